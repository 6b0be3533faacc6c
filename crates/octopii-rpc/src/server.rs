//! Runs the handlers of a router.

mod admission;
mod begin;
mod call;
mod lane;

use std::sync::Arc;
use std::time::Duration;

use octopii_transport::{Acceptor, AcceptorTaken, Endpoint, Executor, StreamKind};
use tokio::task::AbortHandle;

use crate::Router;
use crate::server::admission::Admission;

/// Bounds of a [`Server`].
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Calls under way at once, of all peers; more are answered with [`Code::ResourceExhausted`](crate::Code). From three
    /// quarters of it on, only peers with less than an equal share get more. Default 4,096.
    pub concurrent_calls: usize,
    /// Calls of one peer under way at once, over all of its connections. Default 1,024.
    pub concurrent_calls_per_peer: usize,
    /// Longest request body in bytes, and longest message of a stream of requests. Default 16 MiB; larger things are
    /// chunks.
    pub max_request: usize,
    /// Bytes of requests of more than 4 KiB that may lie here, of all peers: announced and not yet whole, or with their
    /// handlers. Default 256 MiB.
    pub request_memory: usize,
    /// The same for one peer. A single request may be longer. Default 64 MiB.
    pub request_memory_per_peer: usize,
    /// A request must arrive whole within this, and so must each message of a stream once it has begun. A response must be
    /// taken within this or the call's deadline, whichever is later. Default 10 s.
    pub request_timeout: Duration,
    /// A stream on which the caller takes no response although one waits, or sends no request although nothing else can
    /// happen, is given up after this. Default 5 min.
    pub stream_idle: Duration,
    /// The longest deadline granted to a unary call, whatever the caller asks for. Default 10 minutes.
    pub max_deadline: Duration,
    /// The longest deadline granted to a call with a stream. Default 24 hours.
    pub max_stream_deadline: Duration,
    /// How long calls under way may go on when their node shuts down: for who calls [`Server::drain`] then. Default 2 s.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            concurrent_calls: 4096,
            concurrent_calls_per_peer: 1024,
            max_request: 16 << 20,
            request_memory: 256 << 20,
            request_memory_per_peer: 64 << 20,
            request_timeout: Duration::from_secs(10),
            stream_idle: Duration::from_secs(300),
            max_deadline: Duration::from_secs(600),
            max_stream_deadline: Duration::from_secs(24 * 3600),
            drain_timeout: Duration::from_secs(2),
        }
    }
}

/// A running server, and a handle of its endpoint. Dropping it stops taking calls; calls under way go on to their end, or
/// until the endpoint closes.
#[derive(Debug)]
pub struct Server {
    accepting: AbortHandle,
    admission: Arc<Admission>,
    // Its tasks hold none: a slow call would keep the endpoint open after its owner has dropped it.
    endpoint: Endpoint,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        // Lanes that are open bring no more calls.
        self.admission.stop();
    }
}

struct Shared {
    executor: Executor,
    router: Router,
    options: ServerOptions,
    admission: Arc<Admission>,
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
        let admission = Arc::new(Admission::new(&options));
        let executor = endpoint.executor().clone();
        let shared = Arc::new(Shared { executor, router, options, admission: Arc::clone(&admission) });
        let accepting = endpoint.executor().spawn(accept(acceptor, shared)).abort_handle();
        Ok(Self { accepting, admission, endpoint: endpoint.clone() })
    }

    /// Calls under way.
    pub fn calls_under_way(&self) -> usize {
        self.admission.under_way()
    }

    /// Begins no more calls: they are answered with [`Code::Unavailable`](crate::Code) and the advice to go
    /// [`Elsewhere`](crate::Advice). Waits for those under way, at most `limit`; gives how many are left then, which go on
    /// until the endpoint closes. Cancel-safe; no call is begun any more even if it is dropped.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.admission.stop();
        // Time running out is told by what is left.
        let _ = self.endpoint.executor().timeout(limit, self.admission.idle()).await;
        self.admission.under_way()
    }
}

async fn accept(mut acceptor: Acceptor, shared: Arc<Shared>) {
    while let Some(incoming) = acceptor.accept().await {
        shared.executor.spawn(call::serve(Arc::clone(&shared), incoming));
    }
}
