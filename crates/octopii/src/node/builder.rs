//! Starting a node: the disk, the endpoint, and the layers on them in turn.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use octopii_raft::{BootstrapError, Consensus, ConsensusOptions, KvStore, StateMachine};
use octopii_rpc::{Client as RpcClient, Messenger, Router, Server, StreamKind};
use octopii_transfer::{ReceivePolicy, Transfer, TreeInbox, TreePolicy};
use octopii_transport::{
    Address, Admission, BindError, DatagramSocket, Endpoint, EndpointOptions, NodeId, PeerRole, Profile,
    Resolve,
};
use octopii_vfs::{RealVfs, Vfs};
use octopii_wal::{Committer, OpenError, Options as WalOptions, WriteAheadLog};
use tokio::sync::watch;

use super::{CLOSE_TIMEOUT, OctopiiNode, Parts, close};
use crate::data_dir::{DataDir, DataDirError, authority_at, io_error};
use crate::inbox::{INBOX, Inbox};
use crate::issuing::{IssuedRecord, Issuer, TokenStore};
use crate::joining::{JoinClusterError, join_into};
use crate::revocation::{self, Keeper};
use crate::rotation::{Home, Rotation};
use crate::{Config, IdentitySource, OctopiiRuntime, issuing, service};

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
         member`) for a directory of its own, or run without consensus"
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
    /// What an earlier authority has revoked cannot be revoked by the present one.
    #[error("revocations of an earlier authority could not be said again by this one: {0}")]
    NotSaidAgain(#[from] octopii_transport::RevokeError),
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
        listed: Address,
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
    resolver: Option<Arc<dyn Resolve>>,
}

impl NodeBuilder {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            router: Router::new(),
            state_machine: Box::new(KvStore::new()),
            policies: Vec::new(),
            edges: Edges { vfs: RealVfs::shared(), socket: None, rng_seed: None, resolver: None },
        }
    }

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

    /// Who decides about chunks of a purpose. Those sent by [`Peer::send_chunk_verified`](crate::Peer::send_chunk_verified) and
    /// [`OctopiiNode::transfer_chunk_to_peers`] have the purpose `inbox` and go to the inbox without more ado.
    #[must_use]
    pub fn receive(mut self, purpose: impl Into<String>, policy: impl ReceivePolicy) -> Self {
        let purpose = purpose.into();
        self.policies.push(Box::new(move |transfer| transfer.receive(&purpose, policy)));
        self
    }

    /// Who decides about directories sent with a purpose. Those sent by [`Peer::send_tree`](crate::Peer::send_tree) have the purpose `inbox` and go to
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

    /// Another way to find the addresses of host names than the system's.
    #[must_use]
    pub fn resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.edges.resolver = Some(resolver);
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
    let Edges { vfs, socket, rng_seed, resolver } = edges;
    // What can be seen beforehand is told before a token is spent, and before the directory is anybody's.
    if let Some(id) =
        config.node_id.filter(|id| !config.members.is_empty() && !config.members.contains_key(id))
    {
        return Err(StartError::NotAMember(id));
    }
    if let IdentitySource::Token(token) = &config.identity {
        if config.consensus && token.role() != PeerRole::Member {
            return Err(JoinClusterError::NoMember { role: token.role() }.into());
        }
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
        resolver,
        limits: config.limits.clone(),
        reset_secret: Some(reset_secret),
        revocations,
        keep_revocations: Some(Arc::new(keeper)),
        admission: issuer.clone().map(|issuer| issuer as Arc<dyn Admission>),
        ..config.profile.map_or_else(EndpointOptions::default, Profile::options)
    };
    let endpoint = Endpoint::bind(&executor, &data_dir.identity, options)?;
    if let Some(issuer) = &issuer {
        endpoint.sign_again(issuer.authority(), revocation::now()).await?;
    }
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
        return Err(StartError::ListensElsewhere { node: node_id, listens, listed: listed.clone() });
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
    issuing::register(&mut router, &endpoint, consensus.as_ref(), issuer.as_ref());
    let rotation = Rotation::new(endpoint.clone(), rpc.clone(), vfs, (home, data_dir.hold()), issuer);
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
    let (keeper, revocations) = Keeper::open(vfs, data_dir.path.join("revocations"), data_dir.hold())?;
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
    let store = TokenStore::open(vfs, data_dir.path.join("tokens.toml"))?.held_by(data_dir.hold());
    let record_path = data_dir.path.join("issued");
    let issued = IssuedRecord::open(vfs, record_path.clone())?.held_by(data_dir.hold());
    let mut reserved: Vec<_> = config.members.keys().copied().collect();
    reserved.push(identity.node_id());
    let addresses = match config.members.get(&identity.node_id()) {
        Some(addr) => vec![addr.to_string()],
        None if config.bind.ip().is_unspecified() || config.bind.port() == 0 => Vec::new(),
        None => vec![config.bind.to_string()],
    };
    let issuer = Issuer::new(authority, identity.authority_hash(), store, issued, reserved, addresses);
    issuer.record_own(identity, SystemTime::now()).map_err(|source| io_error(&record_path, source))?;
    Ok(issuer)
}

/// Forms the cluster with the other initial members, however long they take to come up.
async fn join(
    consensus: Option<Consensus>,
    members: BTreeMap<NodeId, Address>,
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
