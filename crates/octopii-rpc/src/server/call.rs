//! One call, from its first byte to its last.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::FutureExt;
use futures_util::stream::{BoxStream, StreamExt};
use octopii_transport::{Connection, Incoming, NodeId, RecvStream, SendStream, StreamError};
use tokio::time::{Instant, timeout, timeout_at};

use crate::context::EndOnDrop;
use crate::server::admission::Memory;
use crate::server::begin::{Begun, begin, context, panicked};
use crate::server::{Shared, lane};
use crate::wire::{
    self, INLINE, REFUSED, REQUEST_OVERHEAD, failure_frame, put_response_extras, response_head,
};
use crate::{Body, Cancellation, Code, Reply, Request, Shape, Status};

/// How a call ends that has no whole response.
enum Ending {
    /// There is no whole request: nothing was begun.
    NotBegun,
    /// Nobody is left to answer: the caller gave up, or its connection is gone.
    Gone,
    Failed(Status),
}

impl From<Status> for Ending {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

pub(super) async fn serve(shared: Arc<Shared>, incoming: Incoming) {
    let Incoming { mut send, mut recv, connection } = incoming;
    let mut deadline = Instant::now();
    // An answer that is written has not arrived: a node that stops waits for that, too.
    let flushing = shared.admission.flushing();
    let first = read_first(&shared, connection.peer().node_id, &mut recv).await;
    let outcome = match first {
        Ok((frame, memory)) if memory.is_none() && wire::opens_lane(&frame) => {
            return lane::serve(shared, connection, send, recv, flushing).await;
        }
        Ok((frame, _memory)) => run(&shared, &connection, &mut send, recv, frame, &mut deadline).await,
        Err(ending) => Err(ending),
    };
    let last = deadline.max(Instant::now() + shared.options.request_timeout);
    match outcome {
        Ok(()) => {}
        Err(Ending::NotBegun) => return send.reset(REFUSED),
        // Dropping the stream says that the outcome is unknown, should somebody listen after all.
        Err(Ending::Gone) => return,
        Err(Ending::Failed(status)) => {
            // An error means that the caller or the connection is gone, or that the caller does not read: nobody is left to
            // tell.
            if let Ok(Ok(())) = timeout_at(last, send.write_chunk(failure_frame(&status))).await {
                let _ = send.finish();
            }
        }
    }
    // Who has it, or wants it no more, says so; who is gone is no longer waited for.
    let _ = timeout_at(last, send.stopped()).await;
    drop(flushing);
}

/// Runs a call and writes its responses; gives its deadline as soon as it is known.
async fn run(
    shared: &Arc<Shared>,
    connection: &Connection,
    send: &mut SendStream,
    recv: RecvStream,
    frame: Bytes,
    deadline: &mut Instant,
) -> Result<(), Ending> {
    let Begun { method, head, body, permit: _permit, deadline: granted } =
        begin(shared, connection, frame, Instant::now())?;
    *deadline = granted;
    let body = if head.shape.streams_requests() {
        if !body.is_empty() {
            return Err(Status::new(Code::InvalidArgument, "a stream of requests begins with none").into());
        }
        Body::Stream(requests(Arc::clone(shared), connection.peer().node_id, head.shape, recv))
    } else {
        Body::Whole(body)
    };
    let ended = EndOnDrop(Cancellation::default());
    let context = context(connection, connection.remote_addr(), head, granted, &ended);
    let (inherited, told) = (context.inherited(), ended.0.clone());
    let answer = async {
        // The call itself may panic as well as its future.
        let call =
            AssertUnwindSafe(async { (method.handler)(Request { context, body }).await }).catch_unwind();
        let reply = until(granted, send, call).await?.map_err(|_| panicked())??;
        match reply {
            Reply::Whole(body) => respond(shared, send, body, granted, &told).await,
            Reply::Stream(stream) => respond_with_stream(shared, send, stream, granted, &told).await,
        }
    };
    let outcome = inherited.scope(answer).await;
    if matches!(outcome, Err(Ending::Failed(_)))
        && let Some(extras) = told.take_metadata()
    {
        let mut frame = BytesMut::new();
        put_response_extras(&extras, &mut frame);
        let last = granted.max(Instant::now() + shared.options.request_timeout);
        // Whoever does not take it does not take the failure behind it either.
        let _ = timeout_at(last, send.write_chunk(frame.freeze())).await;
    }
    outcome
}

/// Awaits what a handler does, as long as the caller waits and the deadline has not passed.
async fn until<F: Future>(deadline: Instant, send: &mut SendStream, work: F) -> Result<F::Output, Ending> {
    tokio::select! {
        biased;
        output = timeout_at(deadline, work) => {
            Ok(output.map_err(|_| Status::new(Code::DeadlineExceeded, "the handler did not finish in time"))?)
        }
        // The caller stopped reading: it was dropped or ran out of time.
        _ = send.stopped() => Err(Ending::Gone),
    }
}

async fn read_first(
    shared: &Shared,
    peer: NodeId,
    recv: &mut RecvStream,
) -> Result<(Bytes, Option<Memory>), Ending> {
    let limit = shared.options.max_request + REQUEST_OVERHEAD;
    let reading = async {
        let Some(len) = recv.frame_len(limit).await.map_err(|e| unreadable(&e))? else {
            return Err(Ending::NotBegun);
        };
        // Small ones are bounded by the number of streams.
        let memory = if len > INLINE { Some(shared.admission.reserve(peer, len)?) } else { None };
        match recv.read_frame(limit).await.map_err(|e| unreadable(&e))? {
            Some(frame) => Ok((frame, memory)),
            None => Err(Ending::NotBegun),
        }
    };
    timeout(shared.options.request_timeout, reading).await.unwrap_or_else(|_| {
        Err(Status::new(Code::DeadlineExceeded, "the request did not arrive whole in time").into())
    })
}

fn unreadable(error: &StreamError) -> Ending {
    match error {
        StreamError::FrameTooLarge { len, limit } => Ending::Failed(Status::new(
            Code::InvalidArgument,
            format!("a request of {len} bytes is too large here ({limit}): send it as a chunk"),
        )),
        _ => Ending::NotBegun,
    }
}

/// The requests of a stream, read as they are polled for.
fn requests(
    shared: Arc<Shared>,
    peer: NodeId,
    shape: Shape,
    recv: RecvStream,
) -> BoxStream<'static, Result<Bytes, Status>> {
    futures_util::stream::unfold(Some((recv, None)), move |state| {
        let shared = Arc::clone(&shared);
        async move {
            let (mut recv, held) = state?;
            // The request before has been taken.
            drop::<Option<Memory>>(held);
            match next_request(&shared, peer, shape, &mut recv).await {
                Ok(Some((item, memory))) => Some((Ok(item), Some((recv, memory)))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }
    })
    .boxed()
}

async fn next_request(
    shared: &Shared,
    peer: NodeId,
    shape: Shape,
    recv: &mut RecvStream,
) -> Result<Option<(Bytes, Option<Memory>)>, Status> {
    let options = &shared.options;
    let len = recv.frame_len(options.max_request);
    // With responses still to come a caller may have nothing to ask for a long time.
    let len = if shape.streams_responses() {
        len.await
    } else {
        timeout(options.stream_idle, len)
            .await
            .map_err(|_| Status::new(Code::DeadlineExceeded, "no request came on the stream for too long"))?
    };
    let Some(len) = len.map_err(cut_off)? else { return Ok(None) };
    let memory = if len > INLINE {
        Some(shared.admission.reserve_within(peer, len, options.request_timeout).await?)
    } else {
        None
    };
    let item = timeout(options.request_timeout, recv.read_frame(options.max_request))
        .await
        .map_err(|_| Status::new(Code::DeadlineExceeded, "a request did not arrive whole in time"))?
        .map_err(cut_off)?;
    Ok(item.map(|item| (item, memory)))
}

fn cut_off(error: StreamError) -> Status {
    match error {
        StreamError::FrameTooLarge { len, limit } => Status::new(
            Code::InvalidArgument,
            format!("a request of {len} bytes is too large here ({limit}): send it as a chunk"),
        ),
        other => Status::new(Code::Cancelled, format!("the caller's stream was cut off: {other}")),
    }
}

/// Writes the one response.
async fn respond(
    shared: &Shared,
    send: &mut SendStream,
    body: Bytes,
    deadline: Instant,
    told: &Cancellation,
) -> Result<(), Ending> {
    let head = response_head(true, body.len())?;
    let last = deadline.max(Instant::now() + shared.options.request_timeout);
    let writing = async {
        let small = body.len() <= INLINE;
        let mut first = BytesMut::with_capacity(head.len() + if small { body.len() } else { 0 });
        if let Some(extras) = told.take_metadata() {
            put_response_extras(&extras, &mut first);
        }
        first.put_slice(&head);
        if small {
            first.put_slice(&body);
            send.write_chunk(first.freeze()).await
        } else {
            send.write_chunks(&mut [first.freeze(), body]).await
        }
    };
    match timeout_at(last, writing).await {
        Ok(Ok(())) => {
            // An error means that the caller has stopped reading.
            let _ = send.finish();
            Ok(())
        }
        Ok(Err(_)) | Err(_) => Err(Ending::Gone),
    }
}

/// Bytes of small responses that are written at once.
const BATCH: usize = 32 << 10;

/// Writes responses as the caller takes them, and the end.
async fn respond_with_stream(
    shared: &Shared,
    send: &mut SendStream,
    mut stream: BoxStream<'static, Result<Bytes, Status>>,
    deadline: Instant,
    told: &Cancellation,
) -> Result<(), Ending> {
    let mut batch = BytesMut::new();
    loop {
        let next = AssertUnwindSafe(stream.next()).catch_unwind();
        let mut item = Some(until(deadline, send, next).await?.map_err(|_| panicked())?);
        // Whatever else is ready goes with it.
        let mut end = None;
        let mut large = None;
        while let Some(ready) = item.take() {
            if let Some(extras) = told.take_metadata() {
                put_response_extras(&extras, &mut batch);
            }
            match ready {
                Some(Ok(body)) => {
                    batch.put_slice(&response_head(false, body.len())?);
                    if body.len() > INLINE {
                        large = Some(body);
                        break;
                    }
                    batch.put_slice(&body);
                }
                Some(Err(status)) => end = Some(failure_frame(&status)),
                None => end = Some(Bytes::copy_from_slice(&response_head(true, 0)?)),
            }
            if end.is_none() && batch.len() < BATCH {
                let next = AssertUnwindSafe(stream.next()).catch_unwind().now_or_never();
                item = next.transpose().map_err(|_| panicked())?;
            }
        }
        let last = end.is_some();
        let mut parts = [batch.split().freeze(), large.or(end).unwrap_or_default()];
        match timeout_at(deadline, timeout(shared.options.stream_idle, send.write_chunks(&mut parts))).await {
            Ok(Ok(Ok(()))) => {}
            // A caller that takes nothing cannot be told why.
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => return Err(Ending::Gone),
        }
        if last {
            let _ = send.finish();
            return Ok(());
        }
    }
}
