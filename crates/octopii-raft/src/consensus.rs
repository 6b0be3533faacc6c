//! One node's part in a replicated state machine.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use octopii_rpc::{Client, Server, ServerOptions};
use octopii_transfer::Transfer;
use octopii_transport::{Address, Endpoint, Executor, NodeId, StreamKind};
use octopii_vfs::Vfs;
use octopii_wal::WriteAheadLog;
use openraft::errors::Fatal;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::bootstrap::bootstrap;
use crate::config::RaftConfig;
use crate::core::{guarded, shutdown};
use crate::error::{BootstrapError, MembershipError, ProposeError, QueryError, StartError};
use crate::group::{Outcome, Raft};
use crate::log::store::LogStore;
use crate::machine::{Machine, Shared};
use crate::network::gate::Gate;
use crate::network::lane::Lanes;
use crate::network::link::{Network, SNAPSHOT_PURPOSE};
use crate::network::message::Change;
use crate::network::service::Service;
use crate::request::asker::{Answer, Asker, GaveUp, Request};
use crate::request::leader::Leadership;
use crate::request::read_index::ReadIndex;
use crate::session::Proposer;
use crate::snapshot::inbox::{Inbox, Policy};
use crate::snapshot::store::SnapshotStore;
use crate::state_machine::StateMachine;
use crate::status::{self, PeerProgress, Status};

/// What a node's consensus is made of.
pub struct ConsensusOptions {
    /// The endpoint; its node id is the member's id. Its acceptor for [`StreamKind::Raft`] is taken.
    pub endpoint: Endpoint,
    /// Carries snapshots, under the purpose `raft-snapshot`.
    pub transfer: Transfer,
    /// Holds the log, on the topic `raft`.
    pub wal: WriteAheadLog,
    /// The file system that holds `state_dir`.
    pub vfs: Arc<dyn Vfs>,
    /// Where snapshots are kept. Created if need be.
    pub state_dir: PathBuf,
    /// The tuning, the same on every member.
    pub config: RaftConfig,
    /// The application's machine, in its initial state.
    pub state_machine: Box<dyn StateMachine>,
    /// A random number chosen when the data directory (log and `state_dir`) was created and kept with it. It tells a node
    /// that has its data from one that lost it.
    pub incarnation: u64,
}

/// One node's part in a replicated state machine. Clones are handles to the same one.
///
/// All methods may be awaited from any executor: the work happens on the endpoint's. Dropping one of their futures is safe;
/// a proposal or a membership change may then still happen.
///
/// Consensus ends with [`shutdown`](Consensus::shutdown) or when the last handle is dropped.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    executor: Executor,
    node_id: NodeId,
    raft: Raft,
    log: LogStore,
    machine: Arc<Shared>,
    asker: Asker,
    reads: Arc<ReadIndex>,
    proposer: Arc<Proposer>,
    permits: Semaphore,
    config: Arc<RaftConfig>,
    _server: Server,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").field("node_id", &self.inner.node_id).finish_non_exhaustive()
    }
}

impl Consensus {
    /// Starts consensus from what `wal` and `state_dir` hold: the newest snapshot is verified and restored, and the committed
    /// entries after it are applied.
    ///
    /// A node whose log is empty waits to be made part of a cluster, by [`bootstrap`](Consensus::bootstrap) on every initial
    /// member or by [`add_learner`](Consensus::add_learner) on a member of an existing cluster.
    pub async fn start(options: ConsensusOptions) -> Result<Self, StartError> {
        let executor = options.endpoint.executor().clone();
        let started = executor.run(start(options)).await;
        let inner = started.unwrap_or(Err(StartError::ShuttingDown))?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Forms a new cluster of `members`, with their addresses. Every initial member calls this with the same map. Host names are
    /// kept as they are, and looked up for each connection.
    ///
    /// Returns when this node is part of the cluster, which need not have elected a leader yet. On a node that is part of it
    /// already, it returns at once, so it may be called at every start. Waits up to
    /// [`bootstrap_timeout`](RaftConfig::bootstrap_timeout) for the other members.
    pub async fn bootstrap(
        &self,
        members: BTreeMap<NodeId, impl Into<Address>>,
    ) -> Result<(), BootstrapError> {
        let members: BTreeMap<NodeId, Address> =
            members.into_iter().map(|(id, addr)| (id, addr.into())).collect();
        let (leadership, log) = (self.inner.asker.leadership.clone(), self.inner.log.clone());
        let formed = self.run(async move { bootstrap(&leadership, &log, &members).await }).await;
        formed.unwrap_or_else(|| Err(BootstrapError::Stopped(SHUTTING_DOWN.to_owned())))
    }

    /// Replicates a command, applies it, and returns the state machine's reply.
    ///
    /// When this returns a reply, the command is durable on a majority of the voters. It was applied exactly once, however
    /// often it had to be sent. Works on every node: it is forwarded to the leader; when the leader is lost on the way, the
    /// next one is asked. Gives up after [`request_timeout`](RaftConfig::request_timeout).
    pub async fn propose(&self, command: impl Into<Bytes>) -> Result<Bytes, ProposeError> {
        let (inner, payload) = (Arc::clone(&self.inner), command.into());
        let proposed = self.run(async move { inner.propose(payload).await }).await;
        proposed.unwrap_or_else(|| Err(ProposeError::Stopped(SHUTTING_DOWN.to_owned())))
    }

    /// Asks the state machine, linearizably: the answer reflects every command that was acknowledged, anywhere, before the
    /// query began.
    ///
    /// Works on every node: the leader confirms with a majority that it still leads and tells the position to read at, and
    /// this node answers from its own state when it has applied that much. Changes nothing and writes nothing. Gives up after
    /// [`request_timeout`](RaftConfig::request_timeout).
    pub async fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        let (inner, query) = (Arc::clone(&self.inner), query.to_vec());
        let answered = self.run(async move { inner.query(&query).await }).await;
        answered.unwrap_or_else(|| Err(QueryError::Stopped(SHUTTING_DOWN.to_owned())))
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.inner.node_id
    }

    /// Whether this node believes that it leads. It may have been replaced without knowing.
    pub fn is_leader(&self) -> bool {
        self.inner.raft.is_leader()
    }

    /// The leader that this node knows of, with its address.
    pub fn leader(&self) -> Option<(NodeId, Address)> {
        let status = self.status();
        let leader = status.leader?;
        let member = status.members.into_iter().find(|member| member.id == leader)?;
        Some((leader, member.addr))
    }

    /// What this node knows of the group and of itself, without asking anyone.
    pub fn status(&self) -> Status {
        status::status(&self.inner.raft)
    }

    /// How far every member is. Empty on a node that does not lead.
    pub fn peer_progress(&self) -> Vec<PeerProgress> {
        status::peer_progress(&self.inner.raft)
    }

    /// Waits until this node knows a leader, or returns `None` after `timeout`.
    pub async fn wait_for_leader(&self, timeout: Duration) -> Option<(NodeId, Address)> {
        let consensus = self.clone();
        let found = self.run(async move {
            let wait = consensus.inner.raft.wait(Some(timeout));
            let known = wait.metrics(|metrics| metrics.current_leader.is_some(), "a leader").await;
            known.ok().and_then(|_| consensus.leader())
        });
        found.await.flatten()
    }

    /// Makes the node at `addr` (an address, or a host name and a port), which runs and belongs to no cluster yet, a learner: it receives the log but does not vote.
    ///
    /// Returns when the change is committed, not when the learner has caught up. Doing it again succeeds. Works on every
    /// member.
    ///
    /// A node id stands for one data directory for ever: a node that lost its data comes back under a new id.
    pub async fn add_learner(&self, id: NodeId, addr: impl Into<Address>) -> Result<(), MembershipError> {
        self.change(Change::AddLearner { id, addr: addr.into() }).await
    }

    /// Makes a learner a voter. Waits, within the request's deadline, until it has caught up. Doing it again succeeds.
    pub async fn promote_learner(&self, id: NodeId) -> Result<(), MembershipError> {
        self.change(Change::Promote { id }).await
    }

    /// Removes a member, voter or learner. A leader that removes itself hands over and steps down. Doing it again succeeds.
    pub async fn remove(&self, id: NodeId) -> Result<(), MembershipError> {
        self.change(Change::Remove { id }).await
    }

    /// Asks the leader to hand over to the voter `to`. Returns when it has been asked; whether `to` wins its election shows in
    /// the status.
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), MembershipError> {
        self.change(Change::TransferLeader { to }).await
    }

    /// Stops consensus on this node. It leaves the cluster's membership as it is. Idempotent.
    pub async fn shutdown(&self) {
        let inner = Arc::clone(&self.inner);
        self.run(async move {
            shutdown(&inner.raft).await;
            inner.log.flush_committed();
        })
        .await;
    }

    async fn change(&self, change: Change) -> Result<(), MembershipError> {
        let inner = Arc::clone(&self.inner);
        let changed = self.run(async move {
            let deadline = Instant::now() + inner.config.request_timeout;
            inner.asker.ask(&Request::Change(change), deadline).await
        });
        match changed.await.unwrap_or_else(|| Err(GaveUp::Stopped(SHUTTING_DOWN.to_owned()))) {
            Ok(_) => Ok(()),
            Err(GaveUp::NoLeader { waited }) => Err(MembershipError::NoLeader { waited }),
            Err(GaveUp::NoQuorum { waited, last }) => Err(MembershipError::NoQuorum { waited, last }),
            Err(GaveUp::Refused(reason)) => Err(MembershipError::Refused(reason)),
            Err(GaveUp::Stopped(reason)) => Err(MembershipError::Stopped(reason)),
        }
    }

    async fn run<F>(&self, future: F) -> Option<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.inner.executor.run(future).await
    }
}

/// Proposals of this node on their way to a leader elsewhere at once. They must not use up the streams of the connection:
/// votes need some.
const FORWARDED: usize = 512;

/// Requests of others under way here at once: all that the members of a large group may forward, and room for votes and
/// entries beside them.
const CONCURRENT_CALLS: usize = 16_384;

const SHUTTING_DOWN: &str = "the runtime is shutting down";

async fn start(options: ConsensusOptions) -> Result<Inner, StartError> {
    let ConsensusOptions { endpoint, transfer, wal, vfs, state_dir, config, state_machine, incarnation } =
        options;
    let executor = endpoint.executor().clone();
    let node_id = endpoint.node_id();
    let library_config = Arc::new(config.build(endpoint.cluster().to_string())?);
    let config = Arc::new(config);
    let tasks = executor.clone();
    let opened = executor.blocking(move || {
        let store = SnapshotStore::open(vfs, &state_dir)?;
        Ok::<_, StartError>((store, LogStore::open(tasks, wal)?))
    });
    let (store, log) = opened.await?;
    let client = Client::new(&endpoint, StreamKind::Raft);
    let network = Network {
        node_id,
        incarnation,
        endpoint: endpoint.clone(),
        client: client.clone(),
        transfer: transfer.clone(),
        config: Arc::clone(&config),
        lanes: Arc::new(AtomicU64::new(0)),
    };
    let machine = Machine::new(executor.clone(), store, state_machine);
    let shared = machine.shared();
    let raft = Raft::new(node_id, library_config, network.clone(), log.clone(), machine).await;
    let raft = raft.map_err(|error| match error {
        Fatal::StorageError(error) => StartError::State(error.to_string()),
        other => StartError::State(other.to_string()),
    })?;
    // The core publishes what it found on disk before it takes its first question. Until then the membership looks empty, and
    // nobody could be told from an impostor.
    guarded(raft.with_raft_state(|_| ())).await.map_err(|error| StartError::State(error.to_string()))?;
    let gate = Gate { node_id, incarnation, raft: raft.clone() };
    let inbox = {
        let gate = gate.clone();
        Inbox::new(
            Arc::clone(&shared),
            Box::new(move |from| {
                let membership = gate.membership();
                membership.nodes().next().is_none() || membership.get_node(&from).is_some()
            }),
        )
    };
    transfer.receive(SNAPSHOT_PURPOSE, Policy(Arc::clone(&inbox)));
    let leadership =
        Leadership { gate: gate.clone(), endpoint: endpoint.clone(), client, config: Arc::clone(&config) };
    let service = Arc::new(Service {
        gate,
        leadership: leadership.clone(),
        inbox,
        lanes: Lanes::default(),
        log: log.clone(),
    });
    let server = ServerOptions { concurrent_calls: CONCURRENT_CALLS, ..ServerOptions::default() };
    let server = Server::spawn(&endpoint, StreamKind::Raft, service.router(), server)
        .map_err(|_| StartError::Taken)?;
    let asker = Asker { leadership, network, forwarded: Arc::new(Semaphore::new(FORWARDED)) };
    Ok(Inner {
        reads: ReadIndex::new(executor.clone(), asker.clone(), config.request_timeout),
        executor,
        node_id,
        raft,
        log,
        machine: shared,
        asker,
        proposer: Proposer::new(rand::random()),
        permits: Semaphore::new(config.max_in_flight),
        config,
        _server: server,
    })
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The transfer's policy still knows the core, so it must be told to end. Nothing happens if it has.
        let raft = self.raft.clone();
        self.executor.spawn(async move { shutdown(&raft).await });
    }
}

impl Inner {
    async fn propose(&self, payload: Bytes) -> Result<Bytes, ProposeError> {
        if payload.len() > self.config.max_command {
            return Err(ProposeError::TooLarge { size: payload.len(), limit: self.config.max_command });
        }
        let start = Instant::now();
        let deadline = start + self.config.request_timeout;
        let Ok(permit) = timeout_at(deadline, self.permits.acquire()).await else {
            return Err(ProposeError::NoLeader { waited: start.elapsed() });
        };
        let request = Request::Propose { open: self.proposer.open(), payload };
        let asked = self.asker.ask(&request, deadline).await;
        drop(permit);
        match asked {
            Ok(Answer::Outcome(Outcome::Reply(reply))) => Ok(reply),
            Ok(Answer::Outcome(Outcome::Rejected(rejected))) => Err(rejected.into()),
            Ok(other) => Err(ProposeError::Stopped(format!("unexpected answer to a proposal: {other:?}"))),
            Err(GaveUp::NoLeader { waited }) => Err(ProposeError::NoLeader { waited }),
            Err(GaveUp::NoQuorum { waited, last }) => Err(ProposeError::NoQuorum { waited, last }),
            Err(GaveUp::Refused(reason) | GaveUp::Stopped(reason)) => Err(ProposeError::Stopped(reason)),
        }
    }

    async fn query(&self, query: &[u8]) -> Result<Bytes, QueryError> {
        let start = Instant::now();
        let deadline = start + self.config.request_timeout;
        let index = match self.reads.get(deadline).await {
            Ok(index) => index,
            Err(GaveUp::NoLeader { waited }) => return Err(QueryError::NoLeader { waited }),
            Err(GaveUp::NoQuorum { waited, last }) => return Err(QueryError::NoQuorum { waited, last }),
            Err(GaveUp::Refused(reason) | GaveUp::Stopped(reason)) => {
                return Err(QueryError::Stopped(reason));
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = self.raft.wait(Some(left));
        if let Err(error) = wait.applied_index_at_least(Some(index), "read index").await {
            let last = format!("this node has not yet applied entry {index}: {error}");
            return Err(QueryError::NoQuorum { waited: start.elapsed(), last });
        }
        let answer = self.machine.query(query).map_err(|e| QueryError::Stopped(e.to_string()))?;
        Ok(answer?)
    }
}
