//! Lanes, calling side: small unary calls to one peer share a stream, so that many leave in one packet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use octopii_transport::{Connection, Executor, RecvStream, SendStream, StreamError, StreamKind};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

use super::{take_extras, unreadable};
use crate::wire::{self, ForCaller, Head, LANE_RESPONSE, OPEN_LANE, REFUSED, Response};
use crate::{Advice, Code, Metadata, ResponseMetadata, Status};

/// Requests that wait to be written; with more, calls take a stream of their own, where flow control makes them wait.
const MAX_UNWRITTEN: usize = 64 << 10;

/// The lanes of a client: one for each of its connections.
#[derive(Debug, Default)]
pub(super) struct Lanes(Mutex<BTreeMap<usize, Arc<Lane>>>);

impl Drop for Lanes {
    fn drop(&mut self) {
        for lane in self.0.get_mut().expect("no panic while held").values() {
            lane.close(&Status::new(Code::Cancelled, "the client is gone"));
        }
    }
}

impl Lanes {
    /// The lane on `connection`, if there is one. It may be closed: it takes no call then.
    pub(super) fn in_use(&self, connection: &Connection) -> Option<Arc<Lane>> {
        self.0.lock().expect("no panic while held").get(&connection.id()).cloned()
    }

    /// The lane on `connection`, opened if there is none.
    pub(super) fn on(
        &self,
        connection: &Connection,
        kind: StreamKind,
        executor: &Executor,
        max_response: usize,
    ) -> Arc<Lane> {
        let mut lanes = self.0.lock().expect("no panic while held");
        match lanes.get(&connection.id()) {
            Some(lane) if !lane.is_closed() => return Arc::clone(lane),
            _ => {}
        }
        lanes.retain(|_, lane| !lane.is_closed());
        let lane = Arc::new(Lane { state: Mutex::default(), asked: Notify::new(), max_response });
        lanes.insert(connection.id(), Arc::clone(&lane));
        executor.spawn(run(Arc::clone(&lane), connection.clone(), kind));
        lane
    }
}

#[derive(Debug)]
pub(super) struct Lane {
    state: Mutex<State>,
    /// There is something to write, or the lane is closed.
    asked: Notify,
    max_response: usize,
}

#[derive(Debug, Default)]
struct State {
    unwritten: BytesMut,
    waiting: BTreeMap<u32, Waiting>,
    last_id: u32,
    /// Calls after this one are still in `unwritten`.
    written_id: u32,
    answered: bool,
    closed: bool,
}

impl State {
    fn is_unused(&self) -> bool {
        self.waiting.is_empty() && self.unwritten.is_empty()
    }
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Answer>,
    received: Option<ResponseMetadata>,
    /// The parts of the response that have come.
    parts: BytesMut,
}

/// A call on a lane. Dropping it cancels the handler.
pub(super) struct OnLane {
    lane: Arc<Lane>,
    id: u32,
    answer: oneshot::Receiver<Answer>,
    answered: bool,
}

/// What becomes of a call on a lane.
#[derive(Debug)]
pub(super) enum Answer {
    /// What the peer said, or that nobody knows.
    Heard(Result<Bytes, Status>),
    /// The lane has ended before the request was written: the peer has never heard of it.
    Unsent(Status),
}

impl Answer {
    pub(super) fn into_result(self) -> Result<Bytes, Status> {
        match self {
            Self::Heard(result) => result,
            Self::Unsent(status) => Err(status),
        }
    }
}

impl Drop for OnLane {
    fn drop(&mut self) {
        if self.answered {
            // Who answers has taken it off the lane.
            return;
        }
        let mut state = self.lane.state();
        if state.waiting.remove(&self.id).is_some() && !state.closed {
            wire::put_cancel(self.id, &mut state.unwritten);
            self.lane.asked.notify_one();
        }
    }
}

impl OnLane {
    pub(super) async fn answer(mut self) -> Answer {
        let answer = (&mut self.answer).await;
        self.answered = true;
        answer.unwrap_or_else(|_| {
            let told = "the runtime was shut down before an answer came";
            Answer::Heard(Err(Status::new(Code::Unknown, told)))
        })
    }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Begins a call; `None` if the lane cannot take it now.
    pub(super) fn begin(
        self: &Arc<Self>,
        head: &Head<&str, &Metadata>,
        body: &[u8],
        received: Option<&ResponseMetadata>,
    ) -> Option<Result<OnLane, Status>> {
        let mut state = self.state();
        if state.closed || state.unwritten.len() > MAX_UNWRITTEN {
            return None;
        }
        loop {
            state.last_id = state.last_id.wrapping_add(1);
            if !state.waiting.contains_key(&state.last_id) {
                break;
            }
        }
        let id = state.last_id;
        if let Err(status) = head.put_on_lane(id, body, &mut state.unwritten) {
            return Some(Err(status));
        }
        let (answer, answered) = oneshot::channel();
        state.waiting.insert(id, Waiting { answer, received: received.cloned(), parts: BytesMut::new() });
        drop(state);
        self.asked.notify_one();
        Some(Ok(OnLane { lane: Arc::clone(self), id, answer: answered, answered: false }))
    }

    /// Takes no more calls; those that wait fail like this, or as surely not carried out if they were never written.
    fn close(&self, status: &Status) {
        let mut state = self.state();
        state.closed = true;
        let written_id = state.written_id;
        for (id, waiting) in std::mem::take(&mut state.waiting) {
            let mut status = status.clone();
            // Numbers wrap around.
            let unwritten = (1..=u32::MAX / 2).contains(&id.wrapping_sub(written_id));
            if unwritten && status.code == Code::Unknown {
                status.code = Code::Unavailable;
            }
            // An error means that the caller has just given up.
            let answer = if unwritten { Answer::Unsent(status) } else { Answer::Heard(Err(status)) };
            let _ = waiting.answer.send(answer);
        }
        drop(state);
        self.asked.notify_one();
    }

    /// Hands a response to its caller; false if the lane cannot be trusted any more.
    fn take(&self, frame: Bytes) -> bool {
        let Some((id, what)) = wire::decode_lane_response(frame) else { return false };
        let mut state = self.state();
        state.answered = true;
        // Who has given up is no longer there.
        let Some(waiting) = state.waiting.get_mut(&id) else { return true };
        let more = match &what {
            ForCaller::Part(bytes) | ForCaller::Last(Response::Done(bytes)) => bytes.len(),
            ForCaller::Last(_) => 0,
        };
        if waiting.parts.len() + more > self.max_response {
            let error = StreamError::FrameTooLarge {
                len: (waiting.parts.len() + more) as u64,
                limit: self.max_response,
            };
            let failed = state.waiting.remove(&id);
            wire::put_cancel(id, &mut state.unwritten);
            drop(state);
            self.asked.notify_one();
            if let Some(waiting) = failed {
                let _ = waiting.answer.send(Answer::Heard(Err(unreadable(error, StreamKind::Rpc))));
            }
            return true;
        }
        let response = match what {
            ForCaller::Part(bytes) => {
                waiting.parts.extend_from_slice(&bytes);
                return true;
            }
            ForCaller::Last(Response::Extras(extras)) => {
                match take_extras(extras, waiting.received.as_ref()) {
                    Ok(()) => return true,
                    Err(status) => Response::Failed(status),
                }
            }
            ForCaller::Last(response) => response,
        };
        let Some(Waiting { answer, mut parts, received: _ }) = state.waiting.remove(&id) else { return true };
        drop(state);
        let result = match response.single() {
            Ok(rest) if !parts.is_empty() => {
                parts.extend_from_slice(&rest);
                Ok(parts.freeze())
            }
            result => result,
        };
        let _ = answer.send(Answer::Heard(result));
        true
    }
}

async fn run(lane: Arc<Lane>, connection: Connection, kind: StreamKind) {
    let (send, recv) = match connection.open_with(kind, OPEN_LANE, Bytes::new()).await {
        Ok(streams) => streams,
        // Nothing has been sent.
        Err(e) => return lane.close(&Status::new(Code::Unavailable, e.to_string())),
    };
    // Not one after the other: each side goes on reading while it waits to write.
    let end = tokio::select! {
        // Reading first: it tells of a connection that is lost, before requests are written to it.
        biased;
        end = read(&lane, recv) => end,
        end = write(&lane, send) => end,
    };
    let status = match end {
        // Nobody waits any more.
        End::Closed => Status::new(Code::Cancelled, "the client is gone"),
        End::Drained => Status::new(Code::Unavailable, "the peer begins no more calls: ask another")
            .with_advice(Advice::Elsewhere),
        // Nobody has taken the lane, so nobody has taken a call on it.
        End::Lost(StreamError::Reset(REFUSED)) if !lane.state().answered => {
            unreadable(StreamError::Reset(REFUSED), kind)
        }
        End::Lost(error @ StreamError::Reset(_)) => Status::new(Code::Unknown, error.to_string()),
        End::Lost(error) => unreadable(error, kind),
    };
    lane.close(&status);
}

/// How a lane ends.
enum End {
    /// On this side: unused, or its client is gone.
    Closed,
    /// The peer has answered every call that it began, and begins no more.
    Drained,
    Lost(StreamError),
}

/// Reads responses until the lane ends; gives why.
async fn read(lane: &Lane, mut recv: RecvStream) -> End {
    loop {
        match recv.read_frame(LANE_RESPONSE).await {
            Ok(Some(frame)) => {
                let mut next = Some(frame);
                while let Some(frame) = next {
                    if !lane.take(frame) {
                        return End::Lost(StreamError::UnexpectedEnd);
                    }
                    next = recv.received_frame(LANE_RESPONSE);
                }
            }
            Ok(None) => return End::Drained,
            Err(e) => return End::Lost(e),
        }
    }
}

/// A lane on which nothing has happened for one to two of these is closed, so that its connection can count as unused.
const IDLE: Duration = Duration::from_secs(1);

/// Writes requests until the lane is closed; gives why.
async fn write(lane: &Lane, mut send: SendStream) -> End {
    // One timer, looked at when it goes off: setting it for each call would cost more than writing one.
    let mut look = std::pin::pin!(sleep(IDLE));
    let mut last_look = None;
    loop {
        let (unwritten, closed) = {
            let mut state = lane.state();
            state.written_id = state.last_id;
            (state.unwritten.split().freeze(), state.closed)
        };
        if closed {
            return End::Closed;
        }
        if unwritten.is_empty() {
            tokio::select! {
                biased;
                () = lane.asked.notified() => {}
                () = &mut look => {
                    let mut state = lane.state();
                    if last_look == Some(state.last_id) && state.is_unused() {
                        state.closed = true;
                        drop(state);
                        // An error means that the peer has ended it already.
                        let _ = send.finish();
                        return End::Closed;
                    }
                    last_look = Some(state.last_id);
                    look.as_mut().reset(Instant::now() + IDLE);
                    continue;
                }
            }
            // Others that are about to call go with it.
            tokio::task::yield_now().await;
        } else if send.write_chunk(unwritten).await.is_err() {
            // What the peer says to that tells more. New calls take another lane meanwhile.
            lane.state().closed = true;
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoding, Shape};

    #[tokio::test]
    async fn what_was_never_written_was_surely_not_carried_out() {
        let state = State { last_id: u32::MAX - 1, written_id: u32::MAX - 1, ..State::default() };
        let lane = Arc::new(Lane { state: Mutex::new(state), asked: Notify::new(), max_response: 100 });
        let metadata = Metadata::new();
        let head = Head {
            method: "x",
            shape: Shape::Unary,
            encoding: Encoding::Native,
            deadline: Duration::from_secs(1),
            trace: None,
            metadata: &metadata,
        };
        let call = || lane.begin(&head, b"body", None).expect("it is open").expect("legal");
        let written = [call(), call()];
        {
            // As the writing side does.
            let mut state = lane.state();
            state.written_id = state.last_id;
            state.unwritten.clear();
        }
        let unwritten = [call(), call()];
        lane.close(&Status::new(Code::Unknown, "lost"));
        for call in written {
            assert_eq!(call.answer().await.into_result().unwrap_err().code, Code::Unknown);
        }
        for call in unwritten {
            let answer = call.answer().await;
            assert!(matches!(&answer, Answer::Unsent(status) if status.code == Code::Unavailable));
        }
        assert!(lane.begin(&head, b"body", None).is_none());
    }
}
