//! Received chunks, waiting for the application to ask for them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use octopii_transfer::{InboxPolicy, ReceivedChunk};
use octopii_transport::NodeId;
use tokio::sync::Notify;

/// The purpose of chunks and directories that go to a node's inbox: what [`Peer::send_chunk_verified`](crate::Peer) and
/// [`OctopiiNode::transfer_chunk_to_peers`](crate::OctopiiNode::transfer_chunk_to_peers) send.
pub const INBOX: &str = "inbox";

#[derive(Debug)]
pub(crate) struct Inbox {
    received: Mutex<VecDeque<ReceivedChunk>>,
    arrived: Notify,
    limit: usize,
}

impl Inbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { received: Mutex::default(), arrived: Notify::new(), limit }
    }

    pub(crate) fn policy(self: &Arc<Self>, dir: PathBuf) -> InboxPolicy {
        let inbox = Arc::clone(self);
        InboxPolicy::new(dir).on_received(move |chunk| inbox.push(chunk))
    }

    fn push(&self, chunk: ReceivedChunk) {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        // The file is safe in the inbox; only the news of it is bounded, for applications that never ask.
        if received.len() >= self.limit {
            received.pop_front();
        }
        if self.limit > 0 {
            received.push_back(chunk);
        }
        drop(received);
        self.arrived.notify_waiters();
    }

    pub(crate) async fn take_from(&self, node: NodeId) -> ReceivedChunk {
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            if let Some(chunk) = self.pop(node) {
                return chunk;
            }
            arrived.await;
        }
    }

    fn pop(&self, node: NodeId) -> Option<ReceivedChunk> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let at = received.iter().position(|chunk| chunk.offer.peer.node_id == node)?;
        received.remove(at)
    }
}
