//! Lanes, serving side: many small calls on one stream, answered in whatever order they are done.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::FutureExt;
use octopii_transport::{Connection, RecvStream, SendStream, StreamError};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use crate::context::EndOnDrop;
use crate::server::Shared;
use crate::server::admission::Permit;
use crate::server::call::{Begun, begin, context, panicked};
use crate::wire::{INLINE, LANE_PIECE, LANE_REQUEST, OnLane, put_lane_failure, put_lane_response};
use crate::{Body, Cancellation, Code, Reply, Request, Shape, Status};

/// Small responses that are made before they are written.
const BATCH: usize = 32 << 10;

/// A handler that computes longer than this before it first waits is from then on begun on a task of its own.
const BUSY: Duration = Duration::from_micros(50);

/// Serves a lane until it ends. What is under way then is cancelled.
pub(super) async fn serve(
    shared: Arc<Shared>,
    connection: Connection,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let remote_addr = connection.remote_addr();
    let (out, running) = (Arc::default(), Running::default());
    let mut lane = Lane { shared: &shared, connection, remote_addr, out, running };
    loop {
        while let Some(mut parts) = lane.out.take() {
            // A caller that takes no responses is given up with all its calls.
            match timeout(shared.options.request_timeout, send.write_chunks(&mut parts)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
            // Between the pieces of a long response.
            if !lane.take_received(&mut recv) {
                return;
            }
        }
        let frame = tokio::select! {
            frame = next_frame(&shared, &mut recv) => frame,
            () = lane.out.made.notified() => {
                // Others that are about to be done go with it.
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(Some(frame)) = frame else { return };
        // It may have moved; asking for each call would be asking the connection's lock.
        lane.remote_addr = lane.connection.remote_addr();
        if !lane.take(frame) || !lane.take_received(&mut recv) {
            return;
        }
    }
}

/// The next frame: it may be long in coming, but not once it has begun. Cancel-safe.
async fn next_frame(shared: &Shared, recv: &mut RecvStream) -> Result<Option<Bytes>, StreamError> {
    if recv.frame_len(LANE_REQUEST).await?.is_none() {
        return Ok(None);
    }
    let whole = timeout(shared.options.request_timeout, recv.read_frame(LANE_REQUEST)).await;
    whole.unwrap_or(Err(StreamError::UnexpectedEnd))
}

struct Lane<'a> {
    shared: &'a Arc<Shared>,
    connection: Connection,
    remote_addr: SocketAddr,
    out: Arc<Out>,
    running: Running,
}

impl Lane<'_> {
    /// Takes what has arrived, as long as there is room for responses; false if the lane must end.
    fn take_received(&mut self, recv: &mut RecvStream) -> bool {
        while self.out.has_room() {
            match recv.read_frame(LANE_REQUEST).now_or_never() {
                None => break,
                Some(Ok(Some(frame))) => {
                    if !self.take(frame) {
                        return false;
                    }
                }
                Some(Ok(None) | Err(_)) => return false,
            }
        }
        true
    }

    /// Takes one frame; false if the lane cannot be trusted any more.
    fn take(&mut self, frame: Bytes) -> bool {
        match OnLane::decode(frame) {
            Some(OnLane::Call(id, frame)) => {
                if self.running.is_under_way(id) {
                    return false;
                }
                if let Err(status) = self.call(id, frame) {
                    self.out.respond(id, Err(status), None);
                }
                true
            }
            Some(OnLane::Cancel(id)) => {
                self.running.cancel(id);
                true
            }
            None => false,
        }
    }

    fn call(&mut self, id: u32, frame: Bytes) -> Result<(), Status> {
        let now = Instant::now();
        let Begun { method, head, body, permit, deadline } =
            begin(self.shared, &self.connection, frame, now)?;
        if head.shape != Shape::Unary {
            return Err(Status::new(Code::InvalidArgument, "a lane carries unary calls only"));
        }
        let ended = EndOnDrop(Cancellation::default());
        let request = Request {
            context: context(&self.connection, self.remote_addr, head, deadline, &ended),
            body: Body::Whole(body),
        };
        let (handler, inherited) = (Arc::clone(&method.handler), request.context.inherited());
        let call = async move {
            let _ended = ended;
            // The call itself may panic as well as its future.
            match AssertUnwindSafe(async { handler(request).await }).catch_unwind().await {
                Ok(Ok(Reply::Whole(body))) => Ok(body),
                Ok(Ok(Reply::Stream(_))) => {
                    Err(Status::new(Code::Internal, "the handler answered with a stream"))
                }
                Ok(Err(status)) => Err(status),
                Err(_) => Err(panicked()),
            }
        };
        let mut call = Box::pin(inherited.scope(call));
        // Most handlers are done at once: a task for each would cost more than they do.
        if !method.busy.load(Ordering::Relaxed) {
            let done = call.as_mut().now_or_never();
            if now.elapsed() > BUSY {
                method.busy.store(true, Ordering::Relaxed);
            }
            if let Some(result) = done {
                self.out.respond(id, result, Some(permit));
                return Ok(());
            }
        }
        let out = Arc::clone(&self.out);
        let task = self.shared.executor.spawn(async move {
            let result = timeout_at(deadline, call).await.unwrap_or_else(|_| {
                Err(Status::new(Code::DeadlineExceeded, "the handler did not finish in time"))
            });
            out.respond(id, result, Some(permit));
            out.made.notify_one();
        });
        self.running.insert(id, task.abort_handle());
        Ok(())
    }
}

/// Calls that run as tasks of their own. They end with the lane.
#[derive(Default)]
struct Running {
    tasks: BTreeMap<u32, AbortHandle>,
    /// When to look which have ended.
    sweep_at: usize,
}

impl Running {
    fn insert(&mut self, id: u32, task: AbortHandle) {
        if self.tasks.len() >= self.sweep_at {
            self.tasks.retain(|_, task| !task.is_finished());
            self.sweep_at = (2 * self.tasks.len()).max(64);
        }
        self.tasks.insert(id, task);
    }

    fn is_under_way(&self, id: u32) -> bool {
        self.tasks.get(&id).is_some_and(|task| !task.is_finished())
    }

    fn cancel(&mut self, id: u32) {
        if let Some(task) = self.tasks.remove(&id) {
            task.abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

/// Responses that are made and not yet written.
#[derive(Default)]
struct Out {
    state: Mutex<OutState>,
    made: Notify,
}

#[derive(Default)]
struct OutState {
    small: BytesMut,
    /// They hold their calls' permits until they are written, and take turns.
    large: VecDeque<Large>,
}

struct Large {
    id: u32,
    rest: Bytes,
    permit: Option<Permit>,
}

impl Out {
    fn state(&self) -> MutexGuard<'_, OutState> {
        self.state.lock().expect("no panic while held")
    }

    fn has_room(&self) -> bool {
        self.state().small.len() < BATCH
    }

    fn respond(&self, id: u32, result: Result<Bytes, Status>, permit: Option<Permit>) {
        let mut state = self.state();
        match result {
            Ok(body) if body.len() > INLINE => state.large.push_back(Large { id, rest: body, permit }),
            Ok(body) => {
                put_lane_response(id, true, body.len(), &mut state.small);
                state.small.extend_from_slice(&body);
            }
            Err(status) => put_lane_failure(id, &status, &mut state.small),
        }
    }

    /// What to write next: everything small, and a piece of something large.
    fn take(&self) -> Option<[Bytes; 2]> {
        let mut state = self.state();
        let mut piece = Bytes::new();
        if let Some(mut large) = state.large.pop_front() {
            let len = large.rest.len().min(LANE_PIECE);
            let last = len == large.rest.len();
            put_lane_response(large.id, last, len, &mut state.small);
            piece = large.rest.split_to(len);
            if last {
                drop(large.permit);
            } else {
                state.large.push_back(large);
            }
        }
        let small = state.small.split().freeze();
        (!small.is_empty()).then_some([small, piece])
    }
}
