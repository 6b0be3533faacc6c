//! Lanes, serving side: many small calls on one stream, answered in whatever order they are done.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
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
use crate::server::admission::{Flushing, Permit};
use crate::server::begin::{Begun, begin, context, panicked};
use crate::wire::{
    INLINE, LANE_PIECE, LANE_REQUEST, OnLane, put_lane_extras, put_lane_failure, put_lane_response,
};
use crate::{Body, Cancellation, Code, Reply, Request, Shape, Status};

/// Small responses that are made before they are written.
const BATCH: usize = 32 << 10;
/// And so many of them: they count as calls under way until they are written.
const BATCH_CALLS: usize = 256;

/// Serves a lane until it ends. What is under way then is cancelled. Who drains waits for it from the start (`flushing`), so that what
/// has come on it is refused in order and not cut off.
pub(super) async fn serve(
    shared: Arc<Shared>,
    connection: Connection,
    mut send: SendStream,
    mut recv: RecvStream,
    flushing: Flushing,
) {
    let remote_addr = connection.remote_addr();
    let (out, running) = (Arc::default(), Running::default());
    let mut lane = Lane { shared: &shared, connection, remote_addr, out, running };
    let (mut stopping, mut stopped) = (std::pin::pin!(shared.admission.stopping()), false);
    let (mut written, mut held) = (None, Held::default());
    loop {
        while let Some(mut parts) = lane.out.take(&mut held) {
            for id in held.ended.drain(..) {
                lane.running.tasks.remove(&id);
            }
            // A caller that takes no responses is given up with all its calls.
            match timeout(shared.options.request_timeout, send.write_chunks(&mut parts)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
            held.permits.clear();
            written = Some(Instant::now());
            // Between the pieces of a long response.
            if !lane.take_received(&mut recv) {
                return;
            }
        }
        if stopped && lane.running.tasks.is_empty() {
            break;
        }
        let frame = tokio::select! {
            frame = next_frame(&shared, &mut recv) => frame,
            () = &mut stopping, if !stopped => {
                stopped = true;
                // What has come is told to go elsewhere.
                if !lane.take_received(&mut recv) {
                    return;
                }
                continue;
            }
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
    // Every call that was begun has been answered: a lane that ends like this tells its caller so.
    let _ = send.finish();
    if written.is_some_and(|at: Instant| at.elapsed() < SURELY_ARRIVED) {
        // Who is gone is no longer waited for.
        let _ = timeout(shared.options.request_timeout, send.stopped()).await;
    }
    drop(flushing);
}

/// What was written so long ago has arrived, or nobody is there.
const SURELY_ARRIVED: Duration = Duration::from_secs(3);

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
                if self.running.tasks.contains_key(&id) {
                    return false;
                }
                if let Err(status) = self.call(id, frame) {
                    self.out.respond(id, (Err(status), None), None, false);
                }
                true
            }
            Some(OnLane::Cancel(id)) => {
                if let Some(task) = self.running.tasks.remove(&id) {
                    task.abort();
                    self.out.state().ended.retain(|ended| *ended != id);
                }
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
        let told = ended.0.clone();
        let call = async move {
            // The call itself may panic as well as its future.
            let result = match AssertUnwindSafe(async { handler(request).await }).catch_unwind().await {
                Ok(Ok(Reply::Whole(body))) => Ok(body),
                Ok(Ok(Reply::Stream(_))) => {
                    Err(Status::new(Code::Internal, "the handler answered with a stream"))
                }
                Ok(Err(status)) => Err(status),
                Err(_) => Err(panicked()),
            };
            (result, ended.0.take_metadata())
        };
        let mut call = Box::pin(inherited.scope(call));
        // Most handlers are done at once: a task for each would cost more than they do.
        let mut not_begun = None;
        if method.effort.is_long() {
            not_begun = Some(Arc::clone(&method.effort));
        } else {
            let done = call.as_mut().now_or_never();
            method.effort.took(now.elapsed());
            if let Some(result) = done {
                self.out.respond(id, result, Some(permit), false);
                return Ok(());
            }
        }
        let out = Arc::clone(&self.out);
        let task = self.shared.executor.spawn(async move {
            let call = std::future::poll_fn(move |cx| {
                let Some(effort) = not_begun.take() else { return call.as_mut().poll(cx) };
                let begun = Instant::now();
                let polled = call.as_mut().poll(cx);
                effort.took(begun.elapsed());
                polled
            });
            let result = timeout_at(deadline, call).await.unwrap_or_else(|_| {
                let late = Status::new(Code::DeadlineExceeded, "the handler did not finish in time");
                (Err(late), told.take_metadata())
            });
            out.respond(id, result, Some(permit), true);
            out.made.notify_one();
        });
        self.running.tasks.insert(id, task.abort_handle());
        Ok(())
    }
}

/// Calls that run as tasks of their own, until their responses are taken for writing. They end with the lane.
#[derive(Default)]
struct Running {
    tasks: BTreeMap<u32, AbortHandle>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

/// A response, and the extras beside it.
type Made = (Result<Bytes, Status>, Option<BytesMut>);

/// Responses that are made and not yet written.
#[derive(Default)]
struct Out {
    state: Mutex<OutState>,
    made: Notify,
}

#[derive(Default)]
struct OutState {
    small: BytesMut,
    /// Of what lies in `small`: a caller that does not read holds calls, and so never more of our memory.
    permits: Vec<Permit>,
    /// They take turns.
    large: VecDeque<Large>,
    /// Calls that ran as tasks and are done.
    ended: Vec<u32>,
}

/// What goes with a batch of responses until it is written.
#[derive(Default)]
struct Held {
    permits: Vec<Permit>,
    ended: Vec<u32>,
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
        let state = self.state();
        state.small.len() < BATCH && state.permits.len() < BATCH_CALLS
    }

    fn respond(&self, id: u32, (result, extras): Made, permit: Option<Permit>, task: bool) {
        let mut state = self.state();
        if let Some(extras) = extras {
            put_lane_extras(id, &extras, &mut state.small);
        }
        if task {
            // In one go with the response: whoever has read it may use the number again.
            state.ended.push(id);
        }
        match result {
            Ok(body) if body.len() > INLINE => {
                return state.large.push_back(Large { id, rest: body, permit });
            }
            Ok(body) => {
                put_lane_response(id, true, body.len(), &mut state.small);
                state.small.extend_from_slice(&body);
            }
            Err(status) => put_lane_failure(id, &status, &mut state.small),
        }
        state.permits.extend(permit);
    }

    /// What to write next: everything small, and a piece of something large.
    fn take(&self, held: &mut Held) -> Option<[Bytes; 2]> {
        let mut state = self.state();
        std::mem::swap(&mut state.ended, &mut held.ended);
        let mut piece = Bytes::new();
        if let Some(mut large) = state.large.pop_front() {
            let len = large.rest.len().min(LANE_PIECE);
            let last = len == large.rest.len();
            put_lane_response(large.id, last, len, &mut state.small);
            piece = large.rest.split_to(len);
            if last {
                state.permits.extend(large.permit);
            } else {
                state.large.push_back(large);
            }
        }
        // Empty since the batch before was written, and used again.
        std::mem::swap(&mut state.permits, &mut held.permits);
        let small = state.small.split().freeze();
        (!small.is_empty()).then_some([small, piece])
    }
}
