//! Messages of a tree on their stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use octopii_transport::{RecvStream, SendStream, StreamError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::pulse::Pulse;
use super::wire::{self, Header, Open, Tag};
use crate::framing::HEADER_LEN;
use crate::shared::AbortOnDrop;
use crate::{FailureCode, Refusal, TransferError};

/// Whoever has nothing to say for this long says so.
const ALIVE: Duration = Duration::from_secs(1);

/// A body is given this much memory before any of it has arrived.
const BODY_STEP: usize = 256 << 10;

/// A message as it came from the network.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) tag: Tag,
    pub(crate) body: Bytes,
}

/// Reads the version and the opening message. Not cancel-safe.
pub(crate) async fn read_opening(recv: &mut RecvStream) -> Result<Open, TransferError> {
    let mut version = [0];
    recv.read_exact(&mut version).await?;
    if version[0] != wire::VERSION {
        let message = format!("this node speaks version {} of the tree protocol", wire::VERSION);
        return Err(TransferError::Unacceptable(Refusal::new(FailureCode::UnsupportedVersion, message)));
    }
    let Message { tag, body } = read_message(recv).await?;
    match tag {
        Tag::Open => Ok(wire::decode_open(&body)?),
        _ => Err(TransferError::Protocol("a tree begins with its opening")),
    }
}

/// Reads one message; its length has been checked against the limit of its tag. Not cancel-safe.
pub(crate) async fn read_message(recv: &mut RecvStream) -> Result<Message, TransferError> {
    read_ticking(recv, &Pulse::default()).await
}

async fn read_ticking(recv: &mut RecvStream, pulse: &Pulse) -> Result<Message, TransferError> {
    let mut header = [0; HEADER_LEN];
    recv.read_exact(&mut header).await?;
    let Header { tag, len } = Header::decode(header)?;
    let mut body = BytesMut::with_capacity(len.min(BODY_STEP));
    while body.len() < len {
        let part = recv.read_chunk(len - body.len()).await?.ok_or(StreamError::UnexpectedEnd)?;
        pulse.heard(tag != Tag::Alive);
        body.extend_from_slice(&part);
    }
    pulse.heard(tag != Tag::Alive || wire::decode_alive(&body)?);
    Ok(Message { tag, body: body.freeze() })
}

/// Reads messages until that fails, which it returns. Ends as well when nobody takes them.
pub(crate) async fn read_messages(
    recv: &mut RecvStream,
    messages: mpsc::Sender<Message>,
    pulse: &Pulse,
) -> TransferError {
    loop {
        match read_ticking(recv, pulse).await {
            Ok(message) if message.tag == Tag::Alive => {}
            Ok(message) => {
                // It waits for this side's disk: that is no silence of the other side.
                let waiting = pulse.deaf();
                let sent = messages.send(message).await;
                drop(waiting);
                if sent.is_err() {
                    return TransferError::Cancelled;
                }
            }
            // The other side's stream was dropped, or reset on purpose, before it was done.
            Err(TransferError::Lost(StreamError::Reset(_))) => return TransferError::Cancelled,
            Err(error) => return error,
        }
    }
}

/// Writes what is queued, and signs of life in between. Finishes the stream when the queue has ended, and returns when the
/// other side has it all; if this is dropped before, the stream is reset.
pub(crate) async fn write_messages(
    mut send: SendStream,
    mut queue: mpsc::Receiver<Bytes>,
    pulse: Arc<Pulse>,
) -> Result<(), StreamError> {
    let mut since = 0;
    loop {
        match timeout(ALIVE, queue.recv()).await {
            Ok(Some(message)) => send.write_chunk(message).await?,
            Ok(None) => return finish(&mut send).await,
            Err(_) => send.write_chunk(wire::alive(pulse.has_worked(&mut since))).await?,
        }
    }
}

/// Queues the last message and waits, but not longer than the other side may be idle, until it has everything.
pub(crate) async fn say_last(
    queue: mpsc::Sender<Bytes>,
    last: Bytes,
    mut writing: AbortOnDrop<Result<(), StreamError>>,
    idle: Duration,
) {
    let ending = async {
        // Errors mean that the stream is gone: nobody is left to be told.
        let _ = queue.send(last).await;
        drop(queue);
        let _ = (&mut writing.0).await;
    };
    let _ = timeout(idle, ending).await;
}

/// Finishes the stream and waits until the other side's transport has everything.
pub(crate) async fn finish(send: &mut SendStream) -> Result<(), StreamError> {
    send.finish()?;
    send.stopped().await.map(|_| ())
}

/// Queues a message. The queue ends with the stream, whose reader tells why.
pub(crate) async fn enqueue(queue: &mpsc::Sender<Bytes>, message: Bytes) -> Result<(), TransferError> {
    match queue.send(message).await {
        Ok(()) => Ok(()),
        Err(_) => Err(TransferError::Lost(StreamError::Finished)),
    }
}
