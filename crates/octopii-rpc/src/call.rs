//! A call as handlers and middleware see it: any shape, bodies as bytes.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;

use crate::{Context, Encoding, Status};

/// Which sides of a call are streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// One request, one response.
    Unary,
    /// One request, a stream of responses.
    ServerStream,
    /// A stream of requests, one response.
    ClientStream,
    /// A stream of each, in any order.
    Bidirectional,
}

impl Shape {
    const ALL: [Self; 4] = [Self::Unary, Self::ServerStream, Self::ClientStream, Self::Bidirectional];

    /// Whether requests are a stream.
    pub fn streams_requests(self) -> bool {
        matches!(self, Self::ClientStream | Self::Bidirectional)
    }

    /// Whether responses are a stream.
    pub fn streams_responses(self) -> bool {
        matches!(self, Self::ServerStream | Self::Bidirectional)
    }

    /// Bit 0: responses are a stream; bit 1: requests are.
    pub(crate) fn to_byte(self) -> u8 {
        u8::from(self.streams_responses()) | (u8::from(self.streams_requests()) << 1)
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.to_byte() == byte)
    }
}

/// A call as it comes to a handler or a middleware.
#[derive(Debug)]
pub struct Request {
    /// Who calls what, until when.
    pub context: Context,
    /// What was sent.
    pub body: Body,
}

/// The responses of a handler that streams them, as a service's trait has them: `stream.boxed()` makes one.
pub type ResponseStream<T> = BoxStream<'static, Result<T, Status>>;

/// What a caller sends: encoded as [`Context::encoding`] says.
pub enum Body {
    /// One request.
    Whole(Bytes),
    /// A stream of requests. It is read from the network as it is polled: who does not poll, makes the caller wait.
    Stream(BoxStream<'static, Result<Bytes, Status>>),
}

/// What a handler answers.
pub enum Reply {
    /// One response.
    Whole(Bytes),
    /// A stream of responses; it is polled as fast as the caller reads. An error ends it and is the call's status.
    Stream(BoxStream<'static, Result<Bytes, Status>>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(body) => write!(f, "{} bytes", body.len()),
            Self::Stream(_) => f.write_str("a stream"),
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(body) => write!(f, "{} bytes", body.len()),
            Self::Stream(_) => f.write_str("a stream"),
        }
    }
}

/// The requests of a call that streams them.
///
/// It ends when the caller has finished; a caller that was cut off gives an error first. Dropping it tells the caller to
/// send no more. What has not been taken stays in the connection's windows, so a slow handler slows its caller down.
pub struct Requests<T> {
    inner: BoxStream<'static, Result<Bytes, Status>>,
    encoding: Encoding,
    decoded: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for Requests<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Requests")
    }
}

impl<T: DeserializeOwned> Requests<T> {
    pub(crate) fn new(inner: BoxStream<'static, Result<Bytes, Status>>, encoding: Encoding) -> Self {
        Self { inner, encoding, decoded: PhantomData }
    }

    /// The next request, `None` once the caller has finished. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<T, Status>> {
        StreamExt::next(self).await
    }
}

impl<T: DeserializeOwned> Stream for Requests<T> {
    type Item = Result<T, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<T, Status>>> {
        let item = ready!(self.inner.poll_next_unpin(cx));
        let encoding = self.encoding;
        Poll::Ready(item.map(|item| Ok(encoding.decode(&item?)?)))
    }
}
