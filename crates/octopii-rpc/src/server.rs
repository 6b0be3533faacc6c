//! Runs the handlers of a router.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use octopii_transport::{Acceptor, AcceptorTaken, Endpoint, Executor, Incoming, StreamKind};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::wire::{REFUSED, REQUEST_OVERHEAD, Request, encode_response};
use crate::{Code, Context, Router, Status};

/// Bounds of a [`Server`].
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Calls under way at once; more are answered with [`Code::ResourceExhausted`]. Default 4,096.
    pub concurrent_calls: usize,
    /// Longest request body in bytes. Default 16 MiB; larger things are chunks.
    pub max_request: usize,
    /// A request must arrive whole within this. A response must be taken within this or the call's deadline, whichever is
    /// later. Default 10 s.
    pub request_timeout: Duration,
    /// The longest deadline granted, whatever the caller asks for. Default 10 minutes.
    pub max_deadline: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            concurrent_calls: 4096,
            max_request: 16 << 20,
            request_timeout: Duration::from_secs(10),
            max_deadline: Duration::from_secs(600),
        }
    }
}

/// A running server, and a handle of its endpoint. Dropping it stops taking calls; calls under way go on to their end, or
/// until the endpoint closes.
#[derive(Debug)]
pub struct Server {
    accepting: AbortHandle,
    // Its tasks hold none: a slow call would keep the endpoint open after its owner has dropped it.
    _endpoint: Endpoint,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Shared {
    executor: Executor,
    router: Router,
    options: ServerOptions,
    calls: Semaphore,
}

impl Server {
    /// Begins to answer calls that arrive as streams of `kind`.
    pub fn spawn(
        endpoint: &Endpoint,
        kind: StreamKind,
        router: Router,
        options: ServerOptions,
    ) -> Result<Self, AcceptorTaken> {
        let acceptor = endpoint.acceptor(kind)?;
        let calls = Semaphore::new(options.concurrent_calls);
        let executor = endpoint.executor().clone();
        let shared = Arc::new(Shared { executor, router, options, calls });
        let accepting = endpoint.executor().spawn(accept(acceptor, shared)).abort_handle();
        Ok(Self { accepting, _endpoint: endpoint.clone() })
    }
}

async fn accept(mut acceptor: Acceptor, shared: Arc<Shared>) {
    while let Some(incoming) = acceptor.accept().await {
        shared.executor.spawn(serve(Arc::clone(&shared), incoming));
    }
}

async fn serve(shared: Arc<Shared>, mut incoming: Incoming) {
    // Held until the response is taken: a caller that does not read it holds a call, never more of our memory.
    let permit = shared.calls.try_acquire();
    let mut deadline = Instant::now();
    let result = match permit {
        Ok(_) => match answer(&shared, &mut incoming, &mut deadline).await {
            Some(result) => result,
            None => return incoming.send.reset(REFUSED),
        },
        Err(_) => Err(Status::new(Code::ResourceExhausted, "too many calls under way here: try again later")),
    };
    let response = encode_response(result.as_deref());
    let left = deadline.saturating_duration_since(Instant::now()).max(shared.options.request_timeout);
    // An error means that the caller or the connection is gone, or that the caller does not read: nobody is left to tell.
    if let Ok(Ok(())) = timeout(left, incoming.send.write_frame(&response)).await {
        let _ = incoming.send.finish();
    }
}

/// The answer to one call, or `None` if its caller gave up; and the call's deadline, once it is known.
async fn answer(
    shared: &Shared,
    incoming: &mut Incoming,
    deadline: &mut Instant,
) -> Option<Result<Bytes, Status>> {
    let limit = shared.options.max_request + REQUEST_OVERHEAD;
    let frame = match timeout(shared.options.request_timeout, incoming.recv.read_frame(limit)).await {
        Ok(Ok(Some(frame))) => frame,
        Ok(Err(octopii_transport::StreamError::FrameTooLarge { len, .. })) => {
            let message = format!("a request of {len} bytes is too large here ({limit}): send it as a chunk");
            return Some(Err(Status::new(Code::InvalidArgument, message)));
        }
        Ok(Ok(None) | Err(_)) => return None,
        Err(_) => {
            return Some(Err(Status::new(
                Code::DeadlineExceeded,
                "the request did not arrive whole in time",
            )));
        }
    };
    let request = match Request::decode(frame) {
        Ok(request) => request,
        Err(status) => return Some(Err(status)),
    };
    let handler = match shared.router.handler(&request.method) {
        Ok(handler) => handler,
        Err(status) => return Some(Err(status)),
    };
    let granted = request.deadline.min(shared.options.max_deadline);
    *deadline = Instant::now() + granted;
    let context = Context {
        peer: *incoming.connection.peer(),
        remote_addr: incoming.connection.remote_addr(),
        deadline: *deadline,
        method: request.method,
    };
    // The call itself may panic as well as its future.
    let call = AssertUnwindSafe(async { handler(context, request.body).await }).catch_unwind();
    tokio::select! {
        biased;
        outcome = timeout(granted, call) => Some(match outcome {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Status::new(Code::Internal, "the handler panicked")),
            Err(_) => Err(Status::new(Code::DeadlineExceeded, "the handler did not finish in time")),
        }),
        // The caller stopped reading: it was dropped or ran out of time.
        _ = incoming.send.stopped() => None,
    }
}
