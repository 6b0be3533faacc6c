//! A node: every layer, wired.

mod builder;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_raft::{
    BootstrapError, Consensus, MembershipError, PeerProgress, ProposeError, QueryError,
    Status as ConsensusStatus,
};
use octopii_rpc::{Client as RpcClient, Message, Messenger, Server};
use octopii_transfer::{ChunkSource, SendOptions, Transfer, TransferResult};
use octopii_transport::{
    Address, CertificateHash, ConnectError, Endpoint, Executor, Identity, NodeId, PeerStats, Revocation,
    RevokeError,
};
use octopii_wal::WriteAheadLog;
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use self::builder::{NodeBuilder, StartError};
use crate::data_dir::DataDir;
use crate::inbox::{INBOX, Inbox};
use crate::rotation::{RotateError, Rotation};
use crate::{Config, OctopiiRuntime, Peer};

/// A running node. Cloning gives another handle to the same node.
///
/// Every method may be awaited from any executor, another runtime's or a plain thread's `block_on`: the work happens on
/// the threads of the node's [`OctopiiRuntime`]. [`shutdown`](Self::shutdown) ends it in order; dropping the last handle
/// ends it at once, which loses nothing that was acknowledged.
#[derive(Clone)]
pub struct OctopiiNode {
    pub(crate) parts: Arc<Parts>,
}

// Fields are dropped in this order: who uses comes before what is used, and the lock of the directory last.
pub(crate) struct Parts {
    pub(crate) config: Config,
    joining: AbortHandle,
    joined: watch::Receiver<Option<Result<(), BootstrapError>>>,
    server: Server,
    consensus: Option<Consensus>,
    pub(crate) messenger: Messenger,
    pub(crate) rpc: RpcClient,
    pub(crate) transfer: Transfer,
    pub(crate) inbox: Arc<Inbox>,
    wal: Option<WriteAheadLog>,
    rotation: Rotation,
    pub(crate) endpoint: Endpoint,
    _runtime: OctopiiRuntime,
    data_dir: DataDir,
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.joining.abort();
        // Handlers have handles of the endpoint, and live as long as a peer's connection: nothing would ever end.
        self.endpoint.close_now();
    }
}

impl std::fmt::Debug for OctopiiNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OctopiiNode")
            .field("node_id", &self.node_id())
            .field("addr", &self.local_addr())
            .finish()
    }
}

/// Closes the log, which frees its directory.
async fn close(executor: &Executor, wal: Option<&WriteAheadLog>) {
    let Some(wal) = wal.cloned() else { return };
    let blocking = executor.clone();
    let closing = async move { blocking.blocking(move || wal.close()).await };
    // `None`: the runtime is gone; the log is then closed when its last handle is dropped.
    if let Some(Err(e)) = executor.run(closing).await {
        // What was acknowledged is safe whatever a last sync of the rest says.
        tracing::warn!("closing the log: {e}");
    }
}

impl OctopiiNode {
    /// Starts a node with the built-in key-value machine and no RPC handlers of its own; see
    /// [`builder`](Self::builder) for more.
    pub async fn start(config: Config, runtime: &OctopiiRuntime) -> Result<Self, StartError> {
        Self::builder(config).start(runtime).await
    }

    /// Begins to build a node.
    pub fn builder(config: Config) -> NodeBuilder {
        NodeBuilder::new(config)
    }

    /// This node's id, as its certificate states it.
    pub fn node_id(&self) -> NodeId {
        self.parts.endpoint.node_id()
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.parts.endpoint.local_addr()
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> &Path {
        &self.parts.data_dir.path
    }

    /// Where received files go.
    pub fn inbox_dir(&self) -> PathBuf {
        self.data_dir().join("inbox")
    }

    /// Replaces this node's key and certificate by fresh ones from an issuing node (this one, if `None` and it issues): kept
    /// durably, then used for every new connection; live ones go on. Gives the new certificate's hash. The old certificate
    /// stays valid until it is revoked. Dropping the future changes nothing, or lets the change be carried through: never half of it.
    pub async fn rotate_identity(&self, issuer: Option<Address>) -> Result<CertificateHash, RotateError> {
        self.parts.rotation.rotate(issuer).await
    }

    /// The identity that new connections use.
    pub fn identity(&self) -> Identity {
        self.parts.endpoint.identity()
    }

    /// Every open connection, and how it does.
    pub fn connections(&self) -> Vec<PeerStats> {
        self.parts.endpoint.connections()
    }

    /// Puts a revocation that the authority has signed in force: here at once and durably, and from here at every node. It does
    /// not change the membership of consensus; see [`remove_member`](Self::remove_member).
    pub async fn revoke(&self, revocation: &Revocation) -> Result<(), RevokeError> {
        self.parts.endpoint.revoke(revocation).await
    }

    /// Every revocation in force here.
    pub fn revocations(&self) -> Vec<Revocation> {
        self.parts.endpoint.revocations()
    }

    /// Reads this node's identity from its file again and uses it for every new connection; whether it has changed.
    pub async fn reload_identity(&self) -> Result<bool, RotateError> {
        self.parts.rotation.reload().await
    }

    /// The peer at an address. Nothing is sent yet.
    pub fn peer(&self, addr: SocketAddr) -> Peer {
        Peer::new(self.clone(), addr)
    }

    /// The peer at an address, after making sure that somebody answers there who has a certificate of the cluster, whatever the role.
    /// A host name is looked up now, and the peer is the one that answers at one of its addresses. Cancel-safe.
    pub async fn connect(&self, address: impl Into<Address>) -> Result<Peer, ConnectError> {
        let address = address.into();
        let connection = self.parts.endpoint.connect(&address).await?;
        Ok(self.peer(address.ip().unwrap_or_else(|| connection.remote_addr())))
    }

    /// Takes the oldest message of any peer, waiting for one; its sender is told at that moment. Cancel-safe.
    pub async fn recv(&self) -> (Peer, Bytes) {
        let Message { remote_addr, payload, .. } = self.parts.messenger.recv().await;
        (self.peer(remote_addr), payload)
    }

    /// Sends a chunk to every peer at the same time, into their inboxes. One result per peer, in the order given; one
    /// peer's failure does not touch the others. A success means that the peer computed the same SHA-256 and has the
    /// file durably under its final name.
    ///
    /// `timeout` bounds each transfer as a whole. Dropping the future cancels what is under way.
    pub async fn transfer_chunk_to_peers(
        &self,
        chunk: ChunkSource,
        peers: Vec<SocketAddr>,
        timeout: Duration,
    ) -> Vec<TransferResult> {
        let options = SendOptions { timeout: Some(timeout), ..SendOptions::new(INBOX) };
        self.parts.transfer.send_to_all(&chunk, peers, options).await
    }

    /// The transfer service, for sending with options and receiving by purpose.
    pub fn transfer(&self) -> &Transfer {
        &self.parts.transfer
    }

    /// The RPC client.
    pub fn rpc(&self) -> &RpcClient {
        &self.parts.rpc
    }

    /// The executor on which this node's work happens.
    pub fn executor(&self) -> &Executor {
        self.parts.endpoint.executor()
    }

    /// The log, for topics of the application's own beside consensus' topic `raft`. `None` without consensus.
    pub fn wal(&self) -> Option<&WriteAheadLog> {
        self.parts.wal.as_ref()
    }

    /// Proposes a command to the replicated state machine, from any node; gives the machine's reply. When this returns a
    /// reply the command is durable on a majority and was applied exactly once.
    pub async fn propose(&self, command: impl Into<Bytes>) -> Result<Bytes, ProposeError> {
        match &self.parts.consensus {
            Some(consensus) => consensus.propose(command).await,
            None => Err(ProposeError::Stopped(NO_CONSENSUS.to_owned())),
        }
    }

    /// Asks the replicated state machine, linearizably, from any node. Changes nothing.
    pub async fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        match &self.parts.consensus {
            Some(consensus) => consensus.query(query).await,
            None => Err(QueryError::Stopped(NO_CONSENSUS.to_owned())),
        }
    }

    /// Whether this node believes that it leads.
    pub fn is_leader(&self) -> bool {
        self.parts.consensus.as_ref().is_some_and(Consensus::is_leader)
    }

    /// What this node knows of its group. `None` without consensus.
    pub fn consensus_status(&self) -> Option<ConsensusStatus> {
        self.parts.consensus.as_ref().map(Consensus::status)
    }

    /// Adds a node that is up and empty as a learner: it receives the log but does not vote. Works on any node.
    pub async fn add_learner(&self, id: NodeId, addr: impl Into<Address>) -> Result<(), MembershipError> {
        self.membership()?.add_learner(id, addr).await
    }

    /// Makes a learner that has caught up a voter. Works on any node.
    pub async fn promote_learner(&self, id: NodeId) -> Result<(), MembershipError> {
        self.membership()?.promote_learner(id).await
    }

    /// Removes a member. Works on any node.
    pub async fn remove_member(&self, id: NodeId) -> Result<(), MembershipError> {
        self.membership()?.remove(id).await
    }

    /// Asks the leader to hand over to another voter. Works on any node.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), MembershipError> {
        self.membership()?.transfer_leader(to).await
    }

    /// How far every member is. Empty on a node that does not lead.
    pub fn peer_progress(&self) -> Vec<PeerProgress> {
        self.parts.consensus.as_ref().map(Consensus::peer_progress).unwrap_or_default()
    }

    /// Waits until this node belongs to its cluster, or tells why it cannot. Returns at once on a node that was given no
    /// members. Cancel-safe.
    pub async fn joined(&self) -> Result<(), BootstrapError> {
        let mut joined = self.parts.joined.clone();
        match joined.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().expect("waited for some"),
            Err(_) => Err(BootstrapError::Stopped("the node has been shut down".to_owned())),
        }
    }

    /// Waits until this node knows a leader; `None` after `timeout`. Cancel-safe.
    pub async fn wait_for_leader(&self, timeout: Duration) -> Option<(NodeId, Address)> {
        self.parts.consensus.as_ref()?.wait_for_leader(timeout).await
    }

    /// Ends the node in order: calls (new ones are sent elsewhere, those under way have
    /// [`ServerOptions::drain_timeout`](crate::ServerOptions::drain_timeout)), consensus, then incoming transfers (those
    /// that end within 2 s are acknowledged), then the connections (peers are told), then the log, which is synced. Idempotent; takes at most a few seconds. Other handles
    /// then get errors.
    pub async fn shutdown(&self) {
        self.parts.joining.abort();
        let cut_off = self.parts.server.drain(self.parts.config.rpc.drain_timeout).await;
        if cut_off > 0 {
            tracing::info!("{cut_off} calls are still under way and are cut off");
        }
        if let Some(consensus) = &self.parts.consensus {
            consensus.shutdown().await;
        }
        self.parts.transfer.drain(DRAIN_TIMEOUT).await;
        self.parts.endpoint.close(CLOSE_TIMEOUT).await;
        close(self.executor(), self.parts.wal.as_ref()).await;
    }

    fn membership(&self) -> Result<&Consensus, MembershipError> {
        self.parts.consensus.as_ref().ok_or_else(|| MembershipError::Stopped(NO_CONSENSUS.to_owned()))
    }
}

const NO_CONSENSUS: &str = "this node was configured without consensus";

/// Transfers that end within this are acknowledged; others are cut off and can be sent again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Peers have this long to be told that the node stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
