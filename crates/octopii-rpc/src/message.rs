//! One-way messages, acknowledged when the receiving application has taken them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{AcceptorTaken, Endpoint, Incoming, NodeId, PeerIdentity, StreamError, StreamKind};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::wire::{REFUSED, RESPONSE_OVERHEAD, Response, failure_frame, response_head};
use crate::{Code, Status};

/// Bounds of a [`Messenger`].
#[derive(Debug, Clone)]
pub struct MessengerOptions {
    /// Messages received but not yet taken by the application. Senders of more wait, up to their deadline, and nothing of
    /// theirs is read meanwhile. Default 1,024.
    pub queue: usize,
    /// Longest message in bytes. Default 1 MiB; with `queue` it bounds the memory of the inbox.
    pub max_message: usize,
    /// A message must arrive whole within this, and its acknowledgement be taken within this. Default 10 s.
    pub receive_timeout: Duration,
}

impl Default for MessengerOptions {
    fn default() -> Self {
        Self { queue: 1024, max_message: 1 << 20, receive_timeout: Duration::from_secs(10) }
    }
}

/// A message as the application takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who sent it, from the verified certificate.
    pub peer: PeerIdentity,
    /// Where it came from.
    pub remote_addr: SocketAddr,
    /// What it says.
    pub payload: Bytes,
}

/// Sends and receives one-way messages. Cloning gives another handle to the same inbox.
///
/// When the last handle is dropped, messages not yet taken are refused.
#[derive(Debug, Clone)]
pub struct Messenger {
    endpoint: Endpoint,
    inbox: Arc<Inbox>,
    _open: Arc<CloseOnDrop>,
}

#[derive(Debug)]
struct Inbox {
    waiting: Mutex<VecDeque<Waiting>>,
    arrived: Notify,
    room: Semaphore,
    options: MessengerOptions,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    message: Message,
    taken: oneshot::Sender<()>,
}

#[derive(Debug)]
struct CloseOnDrop {
    accepting: AbortHandle,
    inbox: Arc<Inbox>,
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.accepting.abort();
        // Before the queue is emptied: a message comes into it only while there is room to be had.
        self.inbox.room.close();
        self.inbox.waiting.lock().expect("no panic while held").clear();
    }
}

impl Messenger {
    /// Begins to take messages from peers.
    pub fn start(endpoint: &Endpoint, options: MessengerOptions) -> Result<Self, AcceptorTaken> {
        let mut acceptor = endpoint.acceptor(StreamKind::Message)?;
        let inbox = Arc::new(Inbox {
            waiting: Mutex::default(),
            arrived: Notify::new(),
            room: Semaphore::new(options.queue),
            options,
        });
        let executor = endpoint.executor().clone();
        let accepting = {
            let inbox = Arc::clone(&inbox);
            executor.clone().spawn(async move {
                let mut id = 0;
                while let Some(incoming) = acceptor.accept().await {
                    id += 1;
                    executor.spawn(receive(Arc::clone(&inbox), incoming, id));
                }
            })
        };
        let open = CloseOnDrop { accepting: accepting.abort_handle(), inbox: Arc::clone(&inbox) };
        Ok(Self { endpoint: endpoint.clone(), inbox, _open: Arc::new(open) })
    }

    /// Sends a message and returns when the application at `addr` has taken it.
    ///
    /// [`Code::Unavailable`]: surely not taken. [`Code::Unknown`] and [`Code::DeadlineExceeded`]: it may have been.
    /// Dropping the future withdraws a message that has not been taken yet.
    pub async fn send(&self, addr: SocketAddr, payload: Bytes, deadline: Duration) -> Result<(), Status> {
        let exchange = async {
            let unsent = |e: &dyn std::fmt::Display| Status::new(Code::Unavailable, e.to_string());
            let connection = self.endpoint.connect(addr).await.map_err(|e| unsent(&e))?;
            let (mut send, mut recv) = connection.open(StreamKind::Message).await.map_err(|e| unsent(&e))?;
            // A failed write is told by the answer, or by the lack of one.
            if send.write_frame(&payload).await.is_ok() {
                let _ = send.finish();
            }
            match recv.read_frame(RESPONSE_OVERHEAD).await {
                Ok(Some(frame)) => Response::decode(frame).single().map(|_| ()),
                Ok(None) => {
                    Err(Status::new(Code::Unknown, "the peer ended the message without an acknowledgement"))
                }
                Err(StreamError::Reset(REFUSED)) => {
                    Err(Status::new(Code::Unavailable, "the peer takes no messages now"))
                }
                Err(e) => Err(Status::new(Code::Unknown, e.to_string())),
            }
        };
        self.endpoint.executor().timeout(deadline, exchange).await.unwrap_or_else(|| {
            Err(Status::new(
                Code::DeadlineExceeded,
                format!("{addr} did not take the message within {deadline:?}"),
            ))
        })
    }

    /// Takes the oldest message of any peer, waiting for one. Cancel-safe.
    pub async fn recv(&self) -> Message {
        self.take(|_| true).await
    }

    /// Takes the oldest message of one peer, waiting for one. Cancel-safe.
    pub async fn recv_from(&self, node: NodeId) -> Message {
        self.take(|message| message.peer.node_id == node).await
    }

    async fn take(&self, wanted: impl Fn(&Message) -> bool) -> Message {
        loop {
            let mut arrived = std::pin::pin!(self.inbox.arrived.notified());
            arrived.as_mut().enable();
            if let Some(message) = self.inbox.pop(&wanted) {
                return message;
            }
            arrived.await;
        }
    }
}

impl Inbox {
    fn pop(&self, wanted: impl Fn(&Message) -> bool) -> Option<Message> {
        let mut waiting = self.waiting.lock().expect("no panic while held");
        loop {
            let at = waiting.iter().position(|w| wanted(&w.message))?;
            let Waiting { message, taken, .. } = waiting.remove(at)?;
            // A sender that has given up was told that its message may be lost; it must not be taken now.
            if taken.send(()).is_ok() {
                return Some(message);
            }
        }
    }
}

async fn receive(inbox: Arc<Inbox>, mut incoming: Incoming, id: u64) {
    // Nothing is read before there is room for it.
    let room = tokio::select! {
        room = inbox.room.acquire() => room,
        _ = incoming.send.stopped() => return,
    };
    let Ok(room) = room else { return incoming.send.reset(REFUSED) };
    let (limit, time) = (inbox.options.max_message, inbox.options.receive_timeout);
    let result = match timeout(time, incoming.recv.read_frame(limit)).await {
        Ok(Ok(Some(payload))) => match wait_until_taken(&inbox, &mut incoming, id, payload).await {
            Outcome::Taken => Ok(()),
            Outcome::Withdrawn => return,
            Outcome::Closed => return incoming.send.reset(REFUSED),
        },
        Ok(Err(StreamError::FrameTooLarge { len, limit })) => {
            let message =
                format!("a message of {len} bytes is over the limit of {limit}: send it as a chunk");
            Err(Status::new(Code::InvalidArgument, message))
        }
        Ok(Ok(None) | Err(_)) | Err(_) => return incoming.send.reset(REFUSED),
    };
    // The message is in the inbox no more; its sender may be slow to hear of it.
    drop(room);
    let reply = match result.and_then(|()| response_head(true, 0)) {
        Ok(head) => Bytes::copy_from_slice(&head),
        Err(status) => failure_frame(&status),
    };
    // An error means that the sender is gone or does not read; it knows that the outcome is open.
    if let Ok(Ok(())) = timeout(time, incoming.send.write_chunk(reply)).await {
        let _ = incoming.send.finish();
    }
}

enum Outcome {
    Taken,
    /// By its sender.
    Withdrawn,
    /// The inbox is gone.
    Closed,
}

async fn wait_until_taken(inbox: &Inbox, incoming: &mut Incoming, id: u64, payload: Bytes) -> Outcome {
    let (taken, mut was_taken) = oneshot::channel();
    let message = Message {
        peer: *incoming.connection.peer(),
        remote_addr: incoming.connection.remote_addr(),
        payload,
    };
    {
        let mut waiting = inbox.waiting.lock().expect("no panic while held");
        if inbox.room.is_closed() {
            return Outcome::Closed;
        }
        waiting.push_back(Waiting { id, message, taken });
    }
    inbox.arrived.notify_waiters();
    tokio::select! {
        biased;
        outcome = &mut was_taken => if outcome.is_ok() { Outcome::Taken } else { Outcome::Closed },
        _ = incoming.send.stopped() => {
            drop(was_taken);
            inbox.waiting.lock().expect("no panic while held").retain(|w| w.id != id);
            Outcome::Withdrawn
        }
    }
}
