//! Who may begin a call, and how much of a request may lie here: bounds for all, bounds for each peer, and fairness between
//! them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use octopii_transport::NodeId;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::{Advice, Code, ServerOptions, Status};

/// Counts calls and bytes by peer. A peer is a node id: more connections give it no more.
#[derive(Debug)]
pub(crate) struct Admission {
    state: Mutex<State>,
    idle: Notify,
    freed: Notify,
    stopped: Notify,
    calls: Bound,
    bytes: Bound,
}

#[derive(Debug, Default)]
struct State {
    total: Usage,
    /// Who has nothing is kept a while: most call again.
    peers: BTreeMap<NodeId, Usage>,
    /// Peers that have something.
    active: usize,
    draining: bool,
    /// Streams on which answers may still be on their way.
    flushing: usize,
}

#[derive(Debug, Default, Clone, Copy)]
struct Usage {
    calls: usize,
    bytes: usize,
}

impl Usage {
    fn is_none(self) -> bool {
        self.calls == 0 && self.bytes == 0
    }
}

/// Peers that have nothing and are kept.
const KEPT: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Bound {
    all: usize,
    each: usize,
}

impl Bound {
    /// Whether a peer that has `own` of the `total` may have `more`, when `peers` have some, it included.
    ///
    /// From three quarters on only who has less than an equal share gets more: whoever took much early cannot keep the
    /// others out.
    fn allows(self, own: usize, total: usize, more: usize, peers: usize) -> bool {
        let (own, total) = (own.saturating_add(more), total.saturating_add(more));
        let scarce = total > self.all - self.all / 4;
        own <= self.each && total <= self.all && (!scarce || own <= self.all / peers.max(1))
    }
}

/// Until it is dropped, a call under way.
#[derive(Debug)]
pub(crate) struct Permit {
    admission: Arc<Admission>,
    peer: NodeId,
}

/// Until it is dropped, bytes that lie here for a peer.
#[derive(Debug)]
pub(crate) struct Memory {
    admission: Arc<Admission>,
    peer: NodeId,
    bytes: usize,
}

/// Until it is dropped, answers may be on their way.
#[derive(Debug)]
pub(crate) struct Flushing(Arc<Admission>);

/// What a peer that is refused for its share is told to wait.
const WAIT: Duration = Duration::from_millis(50);

impl Admission {
    pub(crate) fn new(options: &ServerOptions) -> Self {
        Self {
            state: Mutex::default(),
            idle: Notify::new(),
            freed: Notify::new(),
            stopped: Notify::new(),
            calls: Bound { all: options.concurrent_calls, each: options.concurrent_calls_per_peer },
            bytes: Bound { all: options.request_memory, each: options.request_memory_per_peer },
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Begins a call of `peer`, or says why not.
    pub(crate) fn begin(self: &Arc<Self>, peer: NodeId) -> Result<Permit, Status> {
        let mut state = self.state();
        if state.draining {
            return Err(Status::new(Code::Unavailable, "this node is shutting down: ask another")
                .with_advice(Advice::Elsewhere));
        }
        let own = state.peers.get(&peer).copied().unwrap_or_default();
        let peers = state.active + usize::from(own.is_none());
        if !self.calls.allows(own.calls, state.total.calls, 1, peers) {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("too many calls under way here, {} of them this peer's: try again later", own.calls),
            )
            .with_advice(Advice::After(WAIT)));
        }
        state.take(peer, 1, 0);
        Ok(Permit { admission: Arc::clone(self), peer })
    }

    /// Sets memory aside for what `peer` has announced, or says why not.
    pub(crate) fn reserve(self: &Arc<Self>, peer: NodeId, bytes: usize) -> Result<Memory, Status> {
        let bytes = bytes.max(1);
        let mut state = self.state();
        let own = state.peers.get(&peer).copied().unwrap_or_default();
        let peers = state.active + usize::from(own.is_none());
        // A single request is bounded by itself: it must not be larger than can ever be.
        let first = own.bytes == 0 && state.total.bytes.saturating_add(bytes) <= self.bytes.all;
        if !first && !self.bytes.allows(own.bytes, state.total.bytes, bytes, peers) {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!("requests of {} bytes of this peer lie here already: try again later", own.bytes),
            )
            .with_advice(Advice::After(WAIT)));
        }
        state.take(peer, 0, bytes);
        Ok(Memory { admission: Arc::clone(self), peer, bytes })
    }

    /// The same for what belongs to a call that has begun: waits for room, at most `limit`. Cancel-safe.
    pub(crate) async fn reserve_within(
        self: &Arc<Self>,
        peer: NodeId,
        bytes: usize,
        limit: Duration,
    ) -> Result<Memory, Status> {
        let waiting = async {
            loop {
                let mut freed = std::pin::pin!(self.freed.notified());
                freed.as_mut().enable();
                if let Ok(memory) = self.reserve(peer, bytes) {
                    return memory;
                }
                freed.await;
            }
        };
        // Not `ResourceExhausted`: that would say that nothing was done, and the call has been at work.
        timeout(limit, waiting).await.map_err(|_| {
            Status::new(Code::Aborted, "there was no room for a message of the stream for too long")
        })
    }

    /// Begins no more calls.
    pub(crate) fn stop(&self) {
        self.state().draining = true;
        self.stopped.notify_waiters();
    }

    /// Waits until no more calls are begun. Cancel-safe.
    pub(crate) async fn stopping(&self) {
        let mut stopped = std::pin::pin!(self.stopped.notified());
        stopped.as_mut().enable();
        if !self.state().draining {
            stopped.await;
        }
    }

    /// Says that answers may be on their way: who drains waits for them.
    pub(crate) fn flushing(self: &Arc<Self>) -> Flushing {
        self.state().flushing += 1;
        Flushing(Arc::clone(self))
    }

    /// Calls under way.
    pub(crate) fn under_way(&self) -> usize {
        self.state().total.calls
    }

    /// Waits until no call is under way and every answer has arrived. Cancel-safe.
    pub(crate) async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.state().is_idle() {
                return;
            }
            idle.await;
        }
    }

    fn give_back(&self, peer: NodeId, calls: usize, bytes: usize) {
        let mut state = self.state();
        state.total.calls -= calls;
        state.total.bytes -= bytes;
        if let Some(own) = state.peers.get_mut(&peer) {
            own.calls -= calls;
            own.bytes -= bytes;
            if own.is_none() {
                state.active -= 1;
                if state.peers.len() > KEPT {
                    state.peers.remove(&peer);
                }
            }
        }
        let idle = state.draining && state.is_idle();
        drop(state);
        if idle {
            self.idle.notify_waiters();
        }
        if bytes > 0 {
            self.freed.notify_waiters();
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.total.calls == 0 && self.flushing == 0
    }

    fn take(&mut self, peer: NodeId, calls: usize, bytes: usize) {
        let own = self.peers.entry(peer).or_default();
        self.active += usize::from(own.is_none());
        own.calls += calls;
        own.bytes += bytes;
        self.total.calls += calls;
        self.total.bytes += bytes;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.give_back(self.peer, 1, 0);
    }
}

impl Drop for Flushing {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.flushing -= 1;
        if state.draining && state.is_idle() {
            drop(state);
            self.0.idle.notify_waiters();
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.admission.give_back(self.peer, 0, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(calls: usize, each: usize) -> Arc<Admission> {
        Arc::new(Admission::new(&ServerOptions {
            concurrent_calls: calls,
            concurrent_calls_per_peer: each,
            request_memory: 100,
            request_memory_per_peer: 60,
            ..ServerOptions::default()
        }))
    }

    #[test]
    fn one_peer_cannot_take_everything() {
        let admission = admission(8, 6);
        let greedy: Vec<_> = std::iter::from_fn(|| admission.begin(1).ok()).collect();
        assert_eq!(greedy.len(), 6);
        // Others still get in, up to their share.
        let others: Vec<_> = (2..).map_while(|peer| admission.begin(peer).ok()).collect();
        assert_eq!(others.len(), 2);
        let status = admission.begin(9).unwrap_err();
        assert!(status.is_retryable_here() && matches!(status.advice, Advice::After(_)), "{status}");
        drop((greedy, others));
        assert_eq!(admission.state().active, 0);
    }

    #[test]
    fn when_it_becomes_scarce_shares_are_equal() {
        let admission = admission(16, 16);
        let first: Vec<_> = (0..12).map(|_| admission.begin(1).unwrap()).collect();
        let second = admission.begin(2).unwrap();
        // Two peers: eight each, and the first has more.
        assert!(admission.begin(1).is_err());
        let more: Vec<_> = std::iter::from_fn(|| admission.begin(2).ok()).collect();
        assert_eq!(more.len(), 3);
        drop((first, second, more));
    }

    #[test]
    fn announced_bytes_are_bounded_by_peer() {
        let admission = admission(8, 8);
        let half_sent = admission.reserve(1, 40).unwrap();
        assert!(admission.reserve(1, 40).is_err());
        let other = admission.reserve(2, 40).unwrap();
        assert!(admission.reserve(3, 40).is_err(), "more than all may have");
        drop(half_sent);
        assert!(admission.reserve(1, 40).is_ok());
        drop(other);
        // A single one that is larger than a peer's share, but not than all.
        assert!(admission.reserve(1, 90).is_ok());
        assert!(admission.reserve(1, 101).is_err());
        assert_eq!(admission.state().active, 0);
    }

    /// A stream whose ninety-nine messages have been booked must not be told that nothing was.
    #[tokio::test]
    async fn a_call_at_work_waits_for_room_and_is_never_told_that_nothing_was_done() {
        let admission = admission(8, 8);
        let held = admission.reserve(1, 50).unwrap();
        let status = admission.reserve_within(1, 50, Duration::from_millis(50)).await.unwrap_err();
        assert!(status.code == Code::Aborted && !status.is_retryable_here(), "{status}");
        let mut waiting = std::pin::pin!(admission.reserve_within(1, 50, Duration::from_secs(20)));
        assert!(futures_util::FutureExt::now_or_never(waiting.as_mut()).is_none());
        drop(held);
        drop(waiting.await.unwrap());
    }

    #[test]
    fn peers_that_come_and_go_take_no_memory() {
        let admission = admission(8, 8);
        for peer in 0..10_000 {
            drop(admission.begin(peer).unwrap());
        }
        assert!(admission.state().peers.len() <= KEPT + 1);
    }

    #[tokio::test]
    async fn draining_refuses_new_calls_and_waits_for_old_ones() {
        let admission = admission(8, 8);
        let running = admission.begin(1).unwrap();
        admission.stop();
        let status = admission.begin(2).unwrap_err();
        assert_eq!((status.code, status.advice), (Code::Unavailable, Advice::Elsewhere));
        admission.stopping().await;
        let mut idle = std::pin::pin!(admission.idle());
        let flushing = admission.flushing();
        assert!(futures_util::FutureExt::now_or_never(idle.as_mut()).is_none());
        drop(running);
        assert!(futures_util::FutureExt::now_or_never(idle.as_mut()).is_none(), "its answer is on its way");
        drop(flushing);
        idle.await;
    }
}
