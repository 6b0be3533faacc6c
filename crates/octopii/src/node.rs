//! A node: every layer, wired.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_raft::{
    BootstrapError, Consensus, ConsensusOptions, KvStore, MembershipError, PeerProgress, ProposeError,
    QueryError, StateMachine, Status as ConsensusStatus,
};
use octopii_rpc::{Client as RpcClient, Message, Messenger, Router, Server, StreamKind};
use octopii_transfer::{
    ChunkSource, ReceivePolicy, SendOptions, Transfer, TransferResult, TreeInbox, TreePolicy,
};
use octopii_transport::{
    Admission, BindError, CertificateHash, ConnectError, DatagramSocket, Endpoint, EndpointOptions, Executor,
    Identity, NodeId, PeerRole, PeerStats, Profile, Revocation, RevokeError,
};
use octopii_vfs::{RealVfs, Vfs};
use octopii_wal::{Committer, OpenError, Options as WalOptions, WriteAheadLog};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::data_dir::{DataDir, DataDirError, authority_at};
use crate::inbox::{INBOX, Inbox};
use crate::issuing::{Issuer, TokenStore};
use crate::joining::{JoinClusterError, join_into};
use crate::revocation::{self, Keeper};
use crate::rotation::{Home, RotateError, Rotation};
use crate::{Config, IdentitySource, OctopiiRuntime, Peer, issuing, service};

/// Why a node did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The node did not get its certificate for the token.
    #[error(transparent)]
    Join(#[from] JoinClusterError),
    /// Consensus is for members only.
    #[error(
        "node {id}'s certificate is {role}'s: only a member takes part in consensus. Get a member's (`octopii token create --role \
         member`), or run without consensus"
    )]
    NoMember {
        /// This node.
        id: NodeId,
        /// Its role.
        role: PeerRole,
    },
    /// The port cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The log cannot be opened.
    #[error(transparent)]
    Wal(#[from] OpenError),
    /// Consensus cannot start.
    #[error(transparent)]
    Consensus(#[from] octopii_raft::StartError),
    /// The initial members do not include this node.
    #[error(
        "node {0} is not among the members it was given: every member is given the same map, with itself in it, and its own \
         id as node_id (--id)"
    )]
    NotAMember(NodeId),
    /// The initial members say that this node listens elsewhere.
    #[error(
        "node {node} listens on {listens}, but the members it was given have it at {listed}: bind the address under which \
         the others look for it"
    )]
    ListensElsewhere {
        /// This node.
        node: NodeId,
        /// Where it listens.
        listens: SocketAddr,
        /// Where the others would look for it.
        listed: SocketAddr,
    },
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

/// Builds a node with more than its [`Config`]: handlers, a state machine, other edges.
pub struct NodeBuilder {
    config: Config,
    router: Router,
    state_machine: Box<dyn StateMachine>,
    policies: Vec<InstallPolicy>,
    edges: Edges,
}

type InstallPolicy = Box<dyn FnOnce(&Transfer) + Send>;

struct Edges {
    vfs: Arc<dyn Vfs>,
    socket: Option<Arc<dyn DatagramSocket>>,
    rng_seed: Option<[u8; 32]>,
}

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

impl NodeBuilder {
    /// The handlers that answer RPC. Names that begin with `octopii.` belong to Octopii.
    #[must_use]
    pub fn router(mut self, router: Router) -> Self {
        self.router = router;
        self
    }

    /// The machine that consensus replicates, in its initial state; the same kind on every member. Default [`KvStore`].
    #[must_use]
    pub fn state_machine(mut self, machine: impl StateMachine) -> Self {
        self.state_machine = Box::new(machine);
        self
    }

    /// Who decides about chunks of a purpose. Those sent by [`Peer::send_chunk_verified`] and
    /// [`OctopiiNode::transfer_chunk_to_peers`] have the purpose `inbox` and go to the inbox without more ado.
    #[must_use]
    pub fn receive(mut self, purpose: impl Into<String>, policy: impl ReceivePolicy) -> Self {
        let purpose = purpose.into();
        self.policies.push(Box::new(move |transfer| transfer.receive(&purpose, policy)));
        self
    }

    /// Who decides about directories sent with a purpose. Those sent by [`Peer::send_tree`] have the purpose `inbox` and go to
    /// the inbox without more ado, each beside what is there already unless the same source has made that.
    #[must_use]
    pub fn receive_trees(mut self, purpose: impl Into<String>, policy: impl TreePolicy) -> Self {
        let purpose = purpose.into();
        self.policies.push(Box::new(move |transfer| transfer.receive_trees(&purpose, policy)));
        self
    }

    /// Another file system, such as a simulator's.
    #[must_use]
    pub fn vfs(mut self, vfs: Arc<dyn Vfs>) -> Self {
        self.edges.vfs = vfs;
        self
    }

    /// Another network, such as a simulator's, and the seed of the protocol's randomness on it.
    #[must_use]
    pub fn socket(mut self, socket: Arc<dyn DatagramSocket>, rng_seed: [u8; 32]) -> Self {
        self.edges.socket = Some(socket);
        self.edges.rng_seed = Some(rng_seed);
        self
    }

    /// Starts the node on `runtime`. Returns when the port is bound and the state on disk is recovered; the cluster may
    /// still be forming ([`OctopiiNode::joined`]).
    pub async fn start(self, runtime: &OctopiiRuntime) -> Result<OctopiiNode, StartError> {
        let executor = runtime.executor().clone();
        let runtime = runtime.clone();
        // Boxed: the future of a whole start is large.
        executor.run(Box::pin(start(self, runtime))).await.unwrap_or(Err(StartError::ShuttingDown))
    }
}

async fn start(builder: NodeBuilder, runtime: OctopiiRuntime) -> Result<OctopiiNode, StartError> {
    let NodeBuilder { config, mut router, state_machine, policies, edges } = builder;
    let executor = runtime.executor().clone();
    let Edges { vfs, socket, rng_seed } = edges;
    if let IdentitySource::Token(token) = &config.identity {
        join_into(&executor, &vfs, &config.data_dir, token).await?;
    }
    let Disk { data_dir, wal, issuer, keeper, revocations, reset_secret } = {
        let (vfs, config, simulated) = (Arc::clone(&vfs), config.clone(), executor.is_simulated());
        executor.blocking(move || open_disk(&vfs, &config, simulated)).await?
    };
    let node_id = data_dir.identity.node_id();
    let options = EndpointOptions {
        bind: config.bind,
        socket,
        rng_seed,
        limits: config.limits.clone(),
        reset_secret: Some(reset_secret),
        revocations,
        keep_revocations: Some(Arc::new(keeper)),
        admission: issuer.clone().map(|issuer| issuer as Arc<dyn Admission>),
        ..config.profile.map_or_else(EndpointOptions::default, Profile::options)
    };
    let endpoint = Endpoint::bind(&executor, &data_dir.identity, options)?;
    const FRESH: &str = "the endpoint was made a moment ago";
    let mut transfers = config.transfer.clone();
    transfers.state_dir.get_or_insert_with(|| data_dir.path.join("transfers"));
    let transfer = Transfer::start(&endpoint, Arc::clone(&vfs), transfers).expect(FRESH);
    let inbox = Arc::new(Inbox::new(config.chunk_queue));
    transfer.receive(INBOX, inbox.policy(data_dir.path.join("inbox")));
    transfer.receive_trees(INBOX, TreeInbox::new(data_dir.path.join("inbox")));
    for install in policies {
        install(&transfer);
    }
    let messenger = Messenger::start(&endpoint, config.messages.clone()).expect(FRESH);
    let consensus = match &wal {
        Some(wal) => Some(
            Consensus::start(ConsensusOptions {
                endpoint: endpoint.clone(),
                transfer: transfer.clone(),
                wal: wal.clone(),
                vfs: Arc::clone(&vfs),
                state_dir: data_dir.path.join("state"),
                config: config.raft.clone(),
                state_machine,
                incarnation: data_dir.incarnation,
            })
            .await?,
        ),
        None => None,
    };
    if let (Some(consensus), Some(listed)) = (&consensus, config.members.get(&node_id))
        && consensus.status().members.is_empty()
        && listed.port() != endpoint.local_addr().port()
    {
        let listens = endpoint.local_addr();
        consensus.shutdown().await;
        endpoint.close(CLOSE_TIMEOUT).await;
        close(&executor, wal.as_ref()).await;
        return Err(StartError::ListensElsewhere { node: node_id, listens, listed: *listed });
    }
    let rpc = RpcClient::new(&endpoint, StreamKind::Rpc);
    let home = match &config.identity {
        IdentitySource::Given(_) => Home::Nowhere,
        IdentitySource::File(path) => Home::Users(path.clone()),
        IdentitySource::External(files) => Home::External(files.clone()),
        IdentitySource::Auto | IdentitySource::LocalAuthority(_) | IdentitySource::Token(_) => {
            Home::Own(data_dir.path.join("identity.pem"))
        }
    };
    service::register(&mut router, &endpoint, consensus.as_ref());
    revocation::register(&mut router, &endpoint, issuer.as_ref());
    issuing::register(&mut router, &executor, issuer.as_ref());
    let rotation = Rotation::new(endpoint.clone(), rpc.clone(), vfs, home, issuer);
    rotation.register(&mut router);
    router.with_reflection();
    let server = Server::spawn(&endpoint, StreamKind::Rpc, router, config.rpc.clone()).expect(FRESH);
    let (outcome, joined) = watch::channel(None);
    let joining = executor.spawn(join(consensus.clone(), config.members.clone(), outcome)).abort_handle();
    let parts = Parts {
        config,
        joining,
        joined,
        server,
        consensus,
        messenger,
        rpc,
        transfer,
        inbox,
        wal,
        rotation,
        endpoint,
        _runtime: runtime,
        data_dir,
    };
    Ok(OctopiiNode { parts: Arc::new(parts) })
}

/// What a node finds in its directory.
struct Disk {
    data_dir: DataDir,
    wal: Option<WriteAheadLog>,
    issuer: Option<Arc<Issuer>>,
    keeper: Keeper,
    revocations: Vec<u8>,
    reset_secret: [u8; 32],
}

fn open_disk(vfs: &Arc<dyn Vfs>, config: &Config, simulated: bool) -> Result<Disk, StartError> {
    let data_dir = DataDir::open(vfs, config)?;
    // A mistake that is made again differently must find the directory as it was.
    if !config.members.is_empty() && !config.members.contains_key(&data_dir.node_id()) {
        return Err(StartError::NotAMember(data_dir.node_id()));
    }
    if config.consensus && data_dir.role() != PeerRole::Member {
        return Err(StartError::NoMember { id: data_dir.node_id(), role: data_dir.role() });
    }
    let data_dir = data_dir.claim(vfs)?;
    let issuer = match &config.authority {
        Some(path) => Some(issuer(vfs, config, path, &data_dir)?),
        None => None,
    };
    let reset_secret = data_dir.reset_secret(&**vfs)?;
    let (keeper, revocations) = Keeper::open(vfs, data_dir.path.join("revocations"))?;
    if !config.consensus {
        return Ok(Disk { data_dir, wal: None, issuer, keeper, revocations, reset_secret });
    }
    let options = WalOptions {
        vfs: Arc::clone(vfs),
        durability: config.durability,
        committer: if simulated { Committer::Caller } else { Committer::Thread },
        ..WalOptions::default()
    };
    let wal = WriteAheadLog::open(data_dir.path.join("wal"), options)?;
    Ok(Disk { data_dir, wal: Some(wal), issuer, keeper, revocations, reset_secret })
}

fn issuer(
    vfs: &Arc<dyn Vfs>,
    config: &Config,
    path: &Path,
    data_dir: &DataDir,
) -> Result<Arc<Issuer>, DataDirError> {
    let authority = authority_at(&**vfs, path)?;
    let identity = &data_dir.identity;
    if authority.cluster() != identity.cluster() {
        return Err(DataDirError::OtherAuthority { path: path.to_owned() });
    }
    let store = TokenStore::open(vfs, data_dir.path.join("tokens.toml"))?;
    let mut reserved: Vec<_> = config.members.keys().copied().collect();
    reserved.push(identity.node_id());
    let addresses = match config.members.get(&identity.node_id()) {
        Some(addr) => vec![addr.to_string()],
        None if config.bind.ip().is_unspecified() || config.bind.port() == 0 => Vec::new(),
        None => vec![config.bind.to_string()],
    };
    Ok(Issuer::new(authority, identity.authority_hash(), store, reserved, addresses))
}

/// Forms the cluster with the other initial members, however long they take to come up.
async fn join(
    consensus: Option<Consensus>,
    members: BTreeMap<NodeId, SocketAddr>,
    outcome: watch::Sender<Option<Result<(), BootstrapError>>>,
) {
    let result = loop {
        let Some(consensus) = consensus.as_ref().filter(|_| !members.is_empty()) else { break Ok(()) };
        match consensus.bootstrap(members.clone()).await {
            Err(e @ (BootstrapError::Unreachable { .. } | BootstrapError::NotFormed { .. })) => {
                tracing::warn!("the cluster is not complete yet: {e}");
            }
            Err(e) => {
                tracing::error!("this node cannot join the cluster: {e}");
                break Err(e);
            }
            Ok(()) => break Ok(()),
        }
    };
    outcome.send_replace(Some(result));
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
        NodeBuilder {
            config,
            router: Router::new(),
            state_machine: Box::new(KvStore::new()),
            policies: Vec::new(),
            edges: Edges { vfs: RealVfs::shared(), socket: None, rng_seed: None },
        }
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
    /// stays valid until it is revoked.
    pub async fn rotate_identity(&self, issuer: Option<SocketAddr>) -> Result<CertificateHash, RotateError> {
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

    /// The peer at an address, after making sure that a member of the cluster answers there. Cancel-safe.
    pub async fn connect(&self, addr: SocketAddr) -> Result<Peer, ConnectError> {
        self.parts.endpoint.connect(addr).await?;
        Ok(self.peer(addr))
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
    pub async fn add_learner(&self, id: NodeId, addr: SocketAddr) -> Result<(), MembershipError> {
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
    pub async fn wait_for_leader(&self, timeout: Duration) -> Option<(NodeId, SocketAddr)> {
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
