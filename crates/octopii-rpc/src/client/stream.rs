//! Calls with streams, as their callers see them.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use octopii_transport::{Address, Executor, RecvStream, SendStream, StreamError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{CallOptions, Client, Progress, malformed};
use crate::wire::{INLINE, Response};
use crate::{Code, Encoding, ResponseMetadata, Shape, Status};

impl Client {
    /// Calls a method that answers with a stream of responses. Returns when the request has been sent: a method that is
    /// not there, or refuses, is told by the first response.
    pub async fn server_stream<Req, Resp>(
        &self,
        addr: impl Into<Address>,
        method: &str,
        request: &Req,
        options: impl Into<CallOptions>,
    ) -> Result<Responses<Resp>, Status>
    where
        Req: Serialize + Sync + ?Sized,
        Resp: DeserializeOwned,
    {
        let options = options.into();
        let body = options.encoding.encode(request)?;
        let (mut sender, responses) =
            self.open_typed::<(), Resp>(addr.into(), method, Shape::ServerStream, body, options).await?;
        sender.inner.end();
        Ok(responses)
    }

    /// Calls a method that answers a stream of requests with one response.
    pub async fn client_stream<Req, Resp>(
        &self,
        addr: impl Into<Address>,
        method: &str,
        options: impl Into<CallOptions>,
    ) -> Result<Upload<Req, Resp>, Status>
    where
        Req: Serialize + Sync,
        Resp: DeserializeOwned,
    {
        let (sender, responses) =
            self.open_typed(addr.into(), method, Shape::ClientStream, Bytes::new(), options.into()).await?;
        Ok(Upload { sender, responses })
    }

    /// Calls a method that answers a stream of requests with a stream of responses. The two sides are independent: use them
    /// from different tasks, or neither reads while the other waits to write.
    pub async fn bidirectional<Req, Resp>(
        &self,
        addr: impl Into<Address>,
        method: &str,
        options: impl Into<CallOptions>,
    ) -> Result<(Sender<Req>, Responses<Resp>), Status>
    where
        Req: Serialize + Sync,
        Resp: DeserializeOwned,
    {
        self.open_typed(addr.into(), method, Shape::Bidirectional, Bytes::new(), options.into()).await
    }

    async fn open_typed<Req, Resp>(
        &self,
        addr: Address,
        method: &str,
        shape: Shape,
        body: Bytes,
        options: CallOptions,
    ) -> Result<(Sender<Req>, Responses<Resp>), Status> {
        let encoding = options.encoding;
        let (sender, responses) = self.open_raw(addr, method, shape, body, options).await?;
        Ok((
            Sender { inner: sender, encoding, encoded: PhantomData },
            Responses { inner: responses, encoding, decoded: PhantomData },
        ))
    }

    /// Begins a call of any shape with raw bytes; `first` is the one request, empty if requests are a stream.
    async fn open_raw(
        &self,
        addr: Address,
        method: &str,
        shape: Shape,
        first: Bytes,
        options: CallOptions,
    ) -> Result<(RawSender, BoxStream<'static, Result<Bytes, Status>>), Status> {
        let begun = self.begin(options);
        let received = begun.options.response_metadata.clone();
        if let Some(received) = &received {
            received.clear();
        }
        let progress = Progress::default();
        let opening = async {
            let connection = self.connect(&addr).await?;
            progress.may_be_sent();
            self.open(&connection, method, shape, &first, &begun).await
        };
        let (send, recv) = self.within(&begun, method, &progress, opening).await?;
        let executor = self.endpoint.executor();
        let sender = RawSender {
            send,
            batch: BytesMut::new(),
            broken: false,
            executor: executor.clone(),
            end: begun.end,
        };
        let limit = begun.end.saturating_duration_since(executor.now());
        let sleeping = executor.clone();
        let timer = async move {
            // One timer for the whole stream, on our own runtime whoever polls.
            let _ = sleeping.run(async move { tokio::time::sleep(limit).await }).await;
        };
        let state = Reading {
            client: self.clone(),
            recv,
            received,
            timer: Box::pin(timer),
            single: !shape.streams_responses(),
        };
        let responses = futures_util::stream::unfold(Some(state), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(Some(body)) if state.single => Some((Ok(body), None)),
                Ok(Some(body)) => Some((Ok(body), Some(state))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok((sender, responses.boxed()))
    }
}

struct Reading {
    client: Client,
    recv: RecvStream,
    received: Option<ResponseMetadata>,
    timer: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// One response is to come, and no stream of them.
    single: bool,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let response = tokio::select! {
            biased;
            response = self.client.read_response(&mut self.recv, self.received.as_ref()) => response?,
            () = &mut self.timer => {
                return Err(Status::new(Code::DeadlineExceeded, "the call did not end in time"));
            }
        };
        match response {
            Response::Item(body) if !self.single => Ok(Some(body)),
            Response::Done(body) if self.single => Ok(Some(body)),
            Response::Done(_) if !self.single => Ok(None),
            Response::Failed(status) => Err(status),
            Response::Item(_) | Response::Done(_) | Response::Extras(_) => {
                Err(Status::new(Code::Unknown, "the peer answered in another shape than was asked for"))
            }
        }
    }
}

/// The responses of a call that streams them. Dropping it cancels the handler.
///
/// An error ends it, and is how the call failed. After `None` every response has been received and the handler ended well.
/// What has not been taken stays in the connection's windows: a slow reader slows the handler down.
pub struct Responses<T> {
    inner: BoxStream<'static, Result<Bytes, Status>>,
    encoding: Encoding,
    decoded: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for Responses<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Responses")
    }
}

impl<T: DeserializeOwned> Responses<T> {
    /// The next response, `None` when the call has ended well. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<T, Status>> {
        StreamExt::next(self).await
    }
}

impl<T: DeserializeOwned> Stream for Responses<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<T, Status>>> {
        let item = ready!(self.inner.poll_next_unpin(cx));
        let encoding = self.encoding;
        Poll::Ready(item.map(|item| encoding.decode(&item?).map_err(|e| malformed(&e))))
    }
}

/// The sending side of a call that streams requests.
///
/// Dropping it without [`finish`](Self::finish) cuts the stream off: the handler gets an error, never a stream that looks
/// whole.
pub struct Sender<T> {
    inner: RawSender,
    encoding: Encoding,
    encoded: PhantomData<fn(T)>,
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a request, waiting while the handler is behind. Not cancel-safe: a dropped or failed call may have sent a part,
    /// after which nothing more can be sent, and the handler never sees a stream that looks whole.
    ///
    /// Fails with [`Code::Cancelled`] when the peer takes no more: the call's response, or the end of its responses, tells why.
    pub async fn send(&mut self, request: &T) -> Result<(), Status> {
        self.feed(request).await?;
        self.inner.flush().await
    }

    /// As [`send`](Self::send), but small requests may wait here for company up to 32 KiB, or for [`flush`](Self::flush) or
    /// [`finish`](Self::finish).
    pub async fn feed(&mut self, request: &T) -> Result<(), Status> {
        let body = self.encoding.encode(request)?;
        self.inner.feed(body).await
    }

    /// Sends what [`feed`](Self::feed) has kept.
    pub async fn flush(&mut self) -> Result<(), Status> {
        self.inner.flush().await
    }

    /// Says that no more requests will come. The responses still do.
    pub async fn finish(mut self) -> Result<(), Status> {
        self.inner.flush().await?;
        self.inner.end();
        Ok(())
    }
}

/// A call that streams requests and has one response. Dropping it cancels the handler.
#[derive(Debug)]
pub struct Upload<Req, Resp> {
    sender: Sender<Req>,
    responses: Responses<Resp>,
}

impl<Req: Serialize, Resp: DeserializeOwned> Upload<Req, Resp> {
    /// Sends a request: see [`Sender::send`]. After [`Code::Cancelled`], [`finish`](Self::finish) gives the response.
    pub async fn send(&mut self, request: &Req) -> Result<(), Status> {
        self.sender.send(request).await
    }

    /// As [`send`](Self::send), but small requests may wait here for company: see [`Sender::feed`].
    pub async fn feed(&mut self, request: &Req) -> Result<(), Status> {
        self.sender.feed(request).await
    }

    /// The two sides by themselves, to use from different tasks: the response, the only one, may come before every request
    /// has been sent.
    pub fn split(self) -> (Sender<Req>, Responses<Resp>) {
        (self.sender, self.responses)
    }

    /// Says that no more requests will come, and waits for the response.
    pub async fn finish(self) -> Result<Resp, Status> {
        let Self { sender, mut responses } = self;
        let sent = sender.finish().await;
        match responses.next().await {
            Some(response) => response,
            None => Err(sent.err().unwrap_or_else(|| Status::new(Code::Unknown, "no response came"))),
        }
    }
}

/// Bytes of small requests that are written at once.
const BATCH: usize = 32 << 10;

struct RawSender {
    send: SendStream,
    batch: BytesMut,
    /// Something may be missing from what was sent: nothing may come behind it, and least of all the end.
    broken: bool,
    executor: Executor,
    end: Instant,
}

impl RawSender {
    async fn feed(&mut self, body: Bytes) -> Result<(), Status> {
        let len = u32::try_from(body.len()).map_err(|_| {
            Status::new(Code::InvalidArgument, "a request has at most 4 GiB; send it as a chunk")
        })?;
        self.whole()?;
        self.batch.put_u32_le(len);
        if body.len() <= INLINE {
            self.batch.put_slice(&body);
            if self.batch.len() >= BATCH { self.flush().await } else { Ok(()) }
        } else {
            self.write(body).await
        }
    }

    async fn flush(&mut self) -> Result<(), Status> {
        self.whole()?;
        if self.batch.is_empty() { Ok(()) } else { self.write(Bytes::new()).await }
    }

    fn whole(&self) -> Result<(), Status> {
        if self.broken {
            return Err(Status::new(
                Code::Cancelled,
                "a request before this one was not sent whole: begin the call again",
            ));
        }
        Ok(())
    }

    /// Writes the batch and what comes behind it.
    async fn write(&mut self, behind: Bytes) -> Result<(), Status> {
        let mut parts = [self.batch.split().freeze(), behind];
        let left = self.end.saturating_duration_since(self.executor.now());
        self.broken = true;
        match self.executor.timeout(left, self.send.write_chunks(&mut parts)).await {
            Some(Ok(())) => {
                self.broken = false;
                Ok(())
            }
            Some(Err(StreamError::Stopped(_))) => {
                Err(Status::new(Code::Cancelled, "the peer takes no more requests: its answer tells why"))
            }
            Some(Err(e)) => Err(Status::new(Code::Unknown, e.to_string())),
            None => Err(Status::new(Code::DeadlineExceeded, "the peer did not take the request in time")),
        }
    }

    fn end(&mut self) {
        // An error means that the peer has stopped reading, which its answer explains.
        let _ = self.send.finish();
    }
}
