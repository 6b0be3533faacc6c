//! Waiting until an operation is durable.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::delay::Delaying;
use crate::error::Error;
use crate::options::Committer;
use crate::shared::Shared;
use crate::state::{Epoch, Lsn, Waiter};
use crate::sync::thread;

/// The promise of an operation. It is fulfilled as the log's [`Durability`](crate::Durability) says, in the order in
/// which operations were called.
///
/// The log commits when somebody waits, for a ticket or for the entry. A ticket that is dropped without waiting is committed soon all the same (with
/// [`Committer::Caller`]: with the next commit or on closing); one that is kept and not waited for may stay uncommitted
/// until somebody waits for it or a later one.
#[derive(Debug)]
#[must_use = "an operation is durable only when its ticket says so"]
pub struct Ticket {
    shared: Arc<Shared>,
    epoch: Arc<Epoch>,
    lsn: Lsn,
    index: Option<u64>,
    /// Fulfilled from the start, because the log's durability asks for no sync.
    accepted: bool,
}

impl Ticket {
    pub(crate) fn new(
        shared: Arc<Shared>,
        epoch: Arc<Epoch>,
        lsn: Lsn,
        index: Option<u64>,
        accepted: bool,
    ) -> Self {
        Self { shared, epoch, lsn, index, accepted }
    }

    /// The index of the entry that was appended; of the last one, in a batch; `None` if none was.
    pub fn index(&self) -> Option<u64> {
        self.index
    }

    /// Whether waiting would return at once, with success or with an error.
    pub fn is_done(&self) -> bool {
        self.outcome().is_some()
    }

    /// Blocks until the operation is durable, or has failed.
    pub fn wait(self) -> Result<(), Error> {
        let mut registered = None;
        loop {
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            if self.shared.options.committer == Committer::Caller {
                // Its own error, if any, is also the outcome.
                let _ = self.shared.commit_once();
                continue;
            }
            if registered.is_none() {
                self.shared.try_commit_inline();
                if self.outcome().is_none() {
                    registered = self.register(None, Waiter::Thread(thread::current()));
                    self.shared.kick();
                }
                continue;
            }
            thread::park();
        }
    }

    /// A future of the same. It can be polled by any executor, and dropping it loses nothing but the news: the operation
    /// itself goes on.
    pub fn durable(self) -> Durable {
        let delay = self.shared.options.commit_delay.as_ref().map(|delay| delay.begin());
        Durable { ticket: self, registered: None, delay }
    }

    fn outcome(&self) -> Option<Result<(), Error>> {
        if self.accepted { Some(Ok(())) } else { self.epoch.outcome(self.lsn) }
    }

    /// Has `waiter` woken when the outcome is known. `None` if it is known already.
    fn register(&self, id: Option<u64>, waiter: Waiter) -> Option<u64> {
        let mut state = self.shared.state();
        if self.outcome().is_some() {
            return None;
        }
        let id = id.unwrap_or_else(|| {
            state.next_waiter += 1;
            state.next_waiter
        });
        let replaced = state.waiters.insert((self.lsn, id), waiter);
        // A waker is dropped only when the lock is free again, since that may run anything.
        drop(state);
        drop(replaced);
        Some(id)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.outcome().is_none() {
            self.shared.kick();
        }
    }
}

/// The future of [`Ticket::durable`].
#[must_use = "futures do nothing unless polled"]
pub struct Durable {
    ticket: Ticket,
    registered: Option<u64>,
    /// What is left of the simulated time that a commit takes.
    delay: Option<Delaying>,
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl Future for Durable {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(outcome) = self.ticket.outcome() {
                return Poll::Ready(outcome);
            }
            if self.ticket.shared.options.committer == Committer::Caller {
                if let Some(delay) = &mut self.delay {
                    ready!(delay.as_mut().poll(cx));
                    self.delay = None;
                }
                // Its own error, if any, is also the outcome.
                let _ = self.ticket.shared.commit_once();
                continue;
            }
            let first = self.registered.is_none();
            self.registered = self.ticket.register(self.registered, Waiter::Task(cx.waker().clone()));
            if self.registered.is_some() {
                if first {
                    self.ticket.shared.kick();
                }
                return Poll::Pending;
            }
        }
    }
}
