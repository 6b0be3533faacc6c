//! What a client and a call can be told.

use std::time::Duration;

use crate::{Encoding, Metadata, ResponseMetadata, TraceContext};

/// Bounds and policies of a [`Client`](crate::Client).
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Longest response body taken in bytes, and longest message of a stream of responses. Default 16 MiB.
    pub max_response: usize,
    /// When calls that are declared idempotent are tried again.
    pub retry: RetryPolicy,
    /// Whether unary calls with requests of at most 4 KiB share one stream to each peer instead of having one each: several
    /// times the calls per second when many are under way, but a lost packet holds up all of them until it is sent again. While a
    /// connection loses more than 1 % of its packets on a way of more than 2 ms, each call has a stream of its own all the same.
    /// Default true; [`Client::new`](crate::Client::new) leaves it off for consensus.
    pub lanes: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { max_response: 16 << 20, retry: RetryPolicy::default(), lanes: true }
    }
}

/// When a client tries an idempotent call again by itself: after [`Code::Unavailable`](crate::Code), `ResourceExhausted` and
/// `Unknown` (the connection was lost), unless the status advises against it, and within the call's deadline.
///
/// What keeps retries from making an overload worse is a budget that all calls of the client share, as gRPC's retry
/// throttling (proposal A6) and Finagle's retry budgets have it: tokens in a bucket, of which each call deposits a part and
/// each retry takes a whole one.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts of one call, the first included; 1 means that none is tried again. Default 4.
    pub max_attempts: u32,
    /// The wait before the second attempt; it doubles with each, and is shortened by a random part up to a half. A status
    /// that asks for a longer one gets it. Default 25 ms.
    pub initial_backoff: Duration,
    /// The longest such wait. Default 1 s.
    pub max_backoff: Duration,
    /// Tokens that the budget holds at the most, and has to begin with. Default 50.
    pub budget: u32,
    /// What each call that succeeds deposits: 0.1 lets retries add a tenth to the load. Default 0.1.
    pub deposit: f64,
    /// Tokens that come back each second by themselves, so that a client with few calls may retry too. Default 1.
    pub refill_per_second: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 4,
            initial_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_secs(1),
            budget: 50,
            deposit: 0.1,
            refill_per_second: 1.0,
        }
    }
}

/// What one call is told. A [`Duration`] converts into it: the deadline.
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// How long the caller waits. A call made in a handler ends at the latest with the call that is being handled.
    pub deadline: Duration,
    /// What is sent along.
    pub metadata: Metadata,
    /// The trace it belongs to. `None`, the default: that of the call in whose handler it is made, with a span id of its own.
    pub trace: Option<TraceContext>,
    /// Whether the peer may carry the request out twice without harm; only then it is ever sent again. Default false.
    pub idempotent: bool,
    /// How its bodies are written. Default [`Encoding::Native`].
    pub encoding: Encoding,
    /// Where the metadata that comes back goes. Default `None`: it is passed over.
    pub response_metadata: Option<ResponseMetadata>,
}

impl CallOptions {
    /// A call that waits so long, and is told nothing else.
    pub fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            metadata: Metadata::new(),
            trace: None,
            idempotent: false,
            encoding: Encoding::Native,
            response_metadata: None,
        }
    }

    /// Declares that the peer may carry the request out twice without harm.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Sends this along.
    #[must_use]
    pub fn metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Puts the metadata that comes back there.
    #[must_use]
    pub fn response_metadata(mut self, metadata: &ResponseMetadata) -> Self {
        self.response_metadata = Some(metadata.clone());
        self
    }

    /// Makes the call part of this trace.
    #[must_use]
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Writes bodies like this.
    #[must_use]
    pub fn encoding(mut self, encoding: Encoding) -> Self {
        self.encoding = encoding;
        self
    }
}

impl From<Duration> for CallOptions {
    fn from(deadline: Duration) -> Self {
        Self::new(deadline)
    }
}
