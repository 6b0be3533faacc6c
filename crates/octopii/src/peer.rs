//! One peer, as the application speaks to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use octopii_rpc::Status;
use octopii_transfer::{
    ChunkSource, Receipt, ReceivedChunk, SendOptions, TransferError, TreeOptions, TreeReport,
};
use octopii_transport::{ConnectError, NodeId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::OctopiiNode;
use crate::inbox::INBOX;

/// One peer of a node. Messages, calls and chunks share one connection, which is made when it is first needed and made
/// again when it was lost. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Peer {
    node: OctopiiNode,
    addr: SocketAddr,
}

impl Peer {
    pub(crate) fn new(node: OctopiiNode, addr: SocketAddr) -> Self {
        Self { node, addr }
    }

    /// The peer's address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The peer's node id, from its certificate; connects if need be. Cancel-safe.
    pub async fn node_id(&self) -> Result<NodeId, ConnectError> {
        Ok(self.node.parts.endpoint.connect(self.addr).await?.peer().node_id)
    }

    /// Sends a message and returns when the peer's application has taken it (with [`recv`](Self::recv)), or with an error
    /// after [`Config::call_timeout`](crate::Config::call_timeout). Dropping the future withdraws a message not yet taken.
    ///
    /// [`Status::code`] tells whether it may have been taken all the same; at most 1 MiB, larger things are chunks.
    pub async fn send(&self, message: impl Into<Bytes>) -> Result<(), Status> {
        self.node.parts.messenger.send(self.addr, message.into(), self.node.parts.config.call_timeout).await
    }

    /// Takes the peer's oldest message, waiting for one. Its `send` returns at that moment. Cancel-safe.
    pub async fn recv(&self) -> Result<Bytes, ConnectError> {
        let id = self.node_id().await?;
        Ok(self.node.parts.messenger.recv_from(id).await.payload)
    }

    /// Calls a method of the peer with a typed request and response.
    pub async fn call<Req, Resp>(
        &self,
        method: &str,
        request: &Req,
        deadline: Duration,
    ) -> Result<Resp, Status>
    where
        Req: Serialize + Sync + ?Sized,
        Resp: DeserializeOwned,
    {
        self.node.parts.rpc.call(self.addr, method, request, deadline).await
    }

    /// Sends a chunk into the peer's inbox. The receipt means that the peer computed the same SHA-256 and has the file
    /// durably under its final name. Gives up when nothing moves for 30 s; dropping the future cancels the transfer.
    pub async fn send_chunk_verified(&self, chunk: &ChunkSource) -> Result<Receipt, TransferError> {
        self.node.parts.transfer.send(self.addr, chunk, SendOptions::new(INBOX)).await
    }

    /// Sends a directory, with all that is in it, into the peer's inbox. Sent again, only what has changed travels. See
    /// [`send_tree_with`](Self::send_tree_with) for more.
    ///
    /// Everything that the report counts is durable at the peer; what could not be done is named in it and is no error, so look
    /// at [`TreeReport::is_complete`]. Gives up when nothing moves for 30 s; then, or when the future is dropped, what is
    /// complete stays, and sending it again continues.
    pub async fn send_tree(&self, path: impl Into<PathBuf>) -> Result<TreeReport, TransferError> {
        self.send_tree_with(path, TreeOptions::new(INBOX)).await
    }

    /// Sends a directory as `options` say: with progress, checksums, symbolic links, to another purpose.
    pub async fn send_tree_with(
        &self,
        path: impl Into<PathBuf>,
        options: TreeOptions,
    ) -> Result<TreeReport, TransferError> {
        self.node.parts.transfer.send_tree(self.addr, path, options).await
    }

    /// Waits for the next chunk from this peer: verified, durable in the inbox, and acknowledged. Cancel-safe.
    pub async fn recv_chunk_verified(&self) -> Result<ReceivedChunk, ConnectError> {
        let id = self.node_id().await?;
        Ok(self.node.parts.inbox.take_from(id).await)
    }
}
