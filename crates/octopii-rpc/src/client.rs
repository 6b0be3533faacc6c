//! Calls methods of peers.

mod lane;
mod options;
mod retry;
mod stream;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes};
use octopii_transport::{
    Address, Connection, Endpoint, Executor, RecvStream, SendStream, StreamError, StreamKind,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::lane::{Answer, Lane, Lanes, OnLane};
pub use self::options::{CallOptions, ClientOptions, RetryPolicy};
use self::retry::Budget;
pub use self::stream::{Responses, Sender, Upload};
use crate::context::Inherited;
use crate::wire::{Head, INLINE, REFUSED, RESPONSE_OVERHEAD, Response, read_response_extras};
use crate::{Code, Metadata, ResponseMetadata, Shape, Status};

/// Calls methods of peers. Cloning is cheap, and clones share the retry budget. Calls may be awaited on any executor.
///
/// Wherever a call takes options, a [`Duration`] will do: its deadline. A call that a handler makes inherits the deadline of
/// the call it answers, if that comes earlier, and its trace.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    kind: StreamKind,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: ClientOptions,
    budget: Budget,
    lanes: Lanes,
}

impl Client {
    /// A client whose calls travel as streams of `kind`.
    pub fn new(endpoint: &Endpoint, kind: StreamKind) -> Self {
        // A lost packet holds up everything on a lane: consensus would rather not wait.
        let lanes = kind != StreamKind::Raft;
        Self::with_options(endpoint, kind, ClientOptions { lanes, ..ClientOptions::default() })
    }

    /// The same, with bounds and a retry policy of its own.
    pub fn with_options(endpoint: &Endpoint, kind: StreamKind, options: ClientOptions) -> Self {
        let budget = Budget::new(&options.retry, endpoint.executor().now());
        Self {
            endpoint: endpoint.clone(),
            kind,
            shared: Arc::new(Shared { options, budget, lanes: Lanes::default() }),
        }
    }

    /// Calls `method` at `addr` with a typed request and response.
    ///
    /// Fails with [`Code::Unavailable`] if the request was surely not carried out (no connection came about, for one), [`Code::Unknown`] if the connection
    /// was lost after sending, [`Code::DeadlineExceeded`] when time ran out, or whatever the handler answered. A call that is
    /// declared [idempotent](CallOptions::idempotent) is tried again where that may help. Dropping the future cancels the
    /// handler.
    pub async fn call<Req, Resp>(
        &self,
        addr: impl Into<Address>,
        method: &str,
        request: &Req,
        options: impl Into<CallOptions>,
    ) -> Result<Resp, Status>
    where
        Req: Serialize + Sync + ?Sized,
        Resp: DeserializeOwned,
    {
        let options = options.into();
        let encoding = options.encoding;
        let body = encoding.encode(request)?;
        let response = self.call_raw(addr, method, body, options).await?;
        encoding.decode(&response).map_err(|e| malformed(&e))
    }

    /// Calls `method` at `addr` with raw bytes. Errors, retries and cancellation as [`call`](Self::call).
    pub async fn call_raw(
        &self,
        addr: impl Into<Address>,
        method: &str,
        request: Bytes,
        options: impl Into<CallOptions>,
    ) -> Result<Bytes, Status> {
        let (addr, begun) = (addr.into(), self.begin(options.into()));
        let progress = Progress::default();
        // Where it lies: moved by value, as a timeout takes it, it would be copied several times.
        let call = pin!(async {
            let mut attempt = 0;
            loop {
                let outcome = async {
                    // The first attempt has all the time that there is: the clock was asked just now.
                    if attempt == 0
                        && let Some((connection, lane)) = self.lane_in_use(&addr, &request)
                        && let Some(call) = self.begin_on(&lane, method, &request, &begun, begun.limit)
                    {
                        progress.may_be_sent();
                        match call?.answer().await {
                            // It was lost before anybody noticed.
                            Answer::Unsent(_) if connection.is_closed() => progress.not_sent(),
                            answer => return answer.into_result(),
                        }
                    }
                    let connection = self.connect(&addr).await?;
                    progress.may_be_sent();
                    self.exchange(&connection, method, &request, &begun).await
                };
                let status = match outcome.await {
                    Ok(response) => {
                        self.answered(&begun);
                        return Ok(response);
                    }
                    Err(status) => progress.failed(status),
                };
                attempt += 1;
                let Some(wait) = self.wait_before_retry(&begun, &status, attempt) else { return Err(status) };
                tracing::debug!(%addr, method, attempt, "trying again in {wait:?}: {status}");
                // The timer of a foreign executor's task belongs to ours.
                let _ = self.endpoint.executor().timeout(wait, std::future::pending::<()>()).await;
            }
        });
        self.within(&begun, method, &progress, call).await
    }

    /// As [`call_raw`](Self::call_raw) on a connection at hand. Never tries again.
    pub async fn call_on(
        &self,
        connection: &Connection,
        method: &str,
        request: Bytes,
        options: impl Into<CallOptions>,
    ) -> Result<Bytes, Status> {
        let begun = self.begin(options.into());
        let call = self.exchange(connection, method, &request, &begun);
        self.within(&begun, method, &Progress::connected(), call).await
    }

    /// Fixes when the call ends and which trace it belongs to.
    fn begin(&self, options: CallOptions) -> Begun {
        let now = self.endpoint.executor().now();
        let mut end = Executor::after(now, options.deadline);
        let mut trace = options.trace;
        if let Some(inherited) = Inherited::current() {
            end = end.min(inherited.deadline);
            trace = trace.or_else(|| inherited.trace.map(|trace| trace.child()));
        }
        Begun { end, limit: end.saturating_duration_since(now), options: CallOptions { trace, ..options } }
    }

    async fn within<T>(
        &self,
        begun: &Begun,
        method: &str,
        progress: &Progress,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let late = || {
            if progress.is_surely_unsent() && !begun.limit.is_zero() {
                let told = format!("no connection within {:?}, so {method:?} was not called", begun.limit);
                return Status::new(Code::Unavailable, told);
            }
            Status::new(Code::DeadlineExceeded, format!("no answer to {method:?} within {:?}", begun.limit))
        };
        if begun.limit.is_zero() {
            return Err(late());
        }
        self.endpoint.executor().timeout(begun.limit, call).await.unwrap_or_else(|| Err(late()))
    }

    async fn connect(&self, addr: &Address) -> Result<Connection, Status> {
        self.endpoint.connect(addr).await.map_err(|e| Status::new(Code::Unavailable, e.to_string()))
    }

    async fn exchange(
        &self,
        connection: &Connection,
        method: &str,
        body: &Bytes,
        begun: &Begun,
    ) -> Result<Bytes, Status> {
        if self.may_share(connection, body) {
            let lane = self.shared.lanes.on(
                connection,
                self.kind,
                self.endpoint.executor(),
                self.shared.options.max_response,
            );
            let left = begun.left(self.endpoint.executor());
            if let Some(call) = self.begin_on(&lane, method, body, begun, left) {
                return call?.answer().await.into_result();
            }
        }
        let received = begun.options.response_metadata.as_ref();
        if let Some(received) = received {
            received.clear();
        }
        let (mut send, mut recv) = self.open(connection, method, Shape::Unary, body, begun).await?;
        // An error means that the peer stopped reading: it may have answered before it read everything.
        let _ = send.finish();
        self.read_response(&mut recv, received).await?.single()
    }

    fn may_share(&self, connection: &Connection, body: &Bytes) -> bool {
        self.shared.options.lanes && body.len() <= INLINE && !connection.is_lossy()
    }

    /// The lane that a small call takes, if there is one: it ends with its connection, which need not be asked then whether it is open.
    fn lane_in_use(&self, addr: &Address, body: &Bytes) -> Option<(Connection, Arc<Lane>)> {
        let connection = self.endpoint.connected(addr)?;
        if !self.may_share(&connection, body) {
            return None;
        }
        let lane = self.shared.lanes.in_use(&connection)?;
        Some((connection, lane))
    }

    /// Begins a call on a lane; `None` if the lane cannot take it now.
    fn begin_on(
        &self,
        lane: &Arc<Lane>,
        method: &str,
        body: &Bytes,
        begun: &Begun,
        left: Duration,
    ) -> Option<Result<OnLane, Status>> {
        let received = begun.options.response_metadata.as_ref();
        if let Some(received) = received {
            received.clear();
        }
        lane.begin(&begun.head(method, Shape::Unary, left), body, received)
    }

    /// Opens a stream and writes the head of a request and its body.
    async fn open(
        &self,
        connection: &Connection,
        method: &str,
        shape: Shape,
        body: &Bytes,
        begun: &Begun,
    ) -> Result<(SendStream, RecvStream), Status> {
        let left = begun.left(self.endpoint.executor());
        let mut first = begun.head(method, shape, left).encode(body.len())?;
        let rest = if body.len() <= INLINE {
            first.put_slice(body);
            Bytes::new()
        } else {
            body.clone()
        };
        let unsent = |e: StreamError| Status::new(Code::Unavailable, e.to_string());
        let (mut send, recv) = connection.open_with(self.kind, &first, Bytes::new()).await.map_err(unsent)?;
        if !rest.is_empty() {
            // A failed write is no failed call yet: the peer may have answered before it read everything.
            let _ = send.write_chunk(rest).await;
        }
        Ok((send, recv))
    }

    /// The next response; the metadata ahead of it goes to `received`.
    async fn read_response(
        &self,
        recv: &mut RecvStream,
        received: Option<&ResponseMetadata>,
    ) -> Result<Response, Status> {
        loop {
            match recv.read_frame(self.shared.options.max_response + RESPONSE_OVERHEAD).await {
                Ok(Some(frame)) => match Response::decode(frame) {
                    Response::Extras(extras) => take_extras(extras, received)?,
                    response => return Ok(response),
                },
                Ok(None) => {
                    return Err(Status::new(Code::Unknown, "the peer ended the call without an answer"));
                }
                Err(e) => return Err(unreadable(e, self.kind)),
            }
        }
    }
}

/// Keeps the metadata of a response, if somebody wants it.
fn take_extras(extras: Bytes, received: Option<&ResponseMetadata>) -> Result<(), Status> {
    match received {
        Some(received) if !read_response_extras(extras, |name, value| received.add(name, value)) => {
            Err(Status::new(Code::Unknown, "malformed response"))
        }
        _ => Ok(()),
    }
}

/// Why a response could not be read, as a status that says whether the request may have been carried out.
fn unreadable(error: StreamError, kind: impl std::fmt::Debug) -> Status {
    match error {
        StreamError::Reset(REFUSED) => {
            Status::new(Code::Unavailable, format!("the peer does not take {kind:?} calls now"))
        }
        // Not `ResourceExhausted`, which says that the request may be sent again.
        StreamError::FrameTooLarge { len, limit } => Status::new(
            Code::Internal,
            format!("the response has {len} bytes, over the limit of {limit}: ask for less, or for a chunk"),
        ),
        e => Status::new(Code::Unknown, e.to_string()),
    }
}

/// How far the attempts of a call have come: what tells a call that was surely not carried out from one that may have been.
#[derive(Debug, Default)]
struct Progress {
    sent: AtomicBool,
    /// An attempt ended without anybody knowing what became of it.
    unknown: AtomicBool,
}

impl Progress {
    fn connected() -> Self {
        Self { sent: true.into(), unknown: false.into() }
    }

    fn may_be_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    fn not_sent(&self) {
        self.sent.store(false, Ordering::Relaxed);
    }

    fn is_surely_unsent(&self) -> bool {
        !self.sent.load(Ordering::Relaxed)
    }

    /// What an attempt's failure means for the call: one that was not carried out says nothing of those before it.
    fn failed(&self, mut status: Status) -> Status {
        if status.code.is_outcome_unknown() {
            self.unknown.store(true, Ordering::Relaxed);
        } else if status.code.is_retryable() {
            if self.unknown.load(Ordering::Relaxed) {
                status.code = Code::Unknown;
            } else {
                self.sent.store(false, Ordering::Relaxed);
            }
        }
        status
    }
}

/// A call that has begun.
#[derive(Debug)]
struct Begun {
    end: tokio::time::Instant,
    /// How long it may take from its beginning.
    limit: Duration,
    options: CallOptions,
}

impl Begun {
    fn left(&self, executor: &Executor) -> Duration {
        self.end.saturating_duration_since(executor.now())
    }

    fn head<'a>(&'a self, method: &'a str, shape: Shape, left: Duration) -> Head<&'a str, &'a Metadata> {
        Head {
            method,
            shape,
            encoding: self.options.encoding,
            deadline: left,
            trace: self.options.trace,
            metadata: &self.options.metadata,
        }
    }
}

fn malformed(e: &crate::CodecError) -> Status {
    Status::new(Code::DataLoss, format!("the response is malformed: {e}"))
}
