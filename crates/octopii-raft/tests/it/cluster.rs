//! Nodes for the tests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_raft::{
    Consensus, ConsensusOptions, KvCommand, KvQuery, KvResponse, KvStore, ProposeError, RaftConfig,
    StartError, StateMachine,
};
use octopii_transfer::{Transfer, TransferOptions};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor, Identity, NodeId, Resolve};
use octopii_vfs::RealVfs;
use octopii_wal::{Options, WriteAheadLog};
use tempfile::TempDir;
use tokio::time::Instant;

/// One node, running.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) endpoint: Endpoint,
    pub(crate) consensus: Consensus,
}

/// A cluster's identity and the directories of its nodes.
pub(crate) struct Cluster {
    pub(crate) authority: ClusterAuthority,
    pub(crate) config: RaftConfig,
    dir: TempDir,
    /// Where a node listened last, so that it can be started there again.
    addresses: BTreeMap<NodeId, SocketAddr>,
    /// A node has the same certificate and key whenever it is started.
    identities: BTreeMap<NodeId, Identity>,
    /// Where the nodes' names lead, if they have any.
    pub(crate) resolver: Option<Arc<dyn Resolve>>,
}

impl Cluster {
    pub(crate) fn new(config: RaftConfig) -> Self {
        Self {
            authority: ClusterAuthority::generate().unwrap(),
            config,
            dir: tempfile::tempdir().unwrap(),
            addresses: BTreeMap::new(),
            identities: BTreeMap::new(),
            resolver: None,
        }
    }

    /// Three nodes that have formed a cluster and know a leader.
    pub(crate) async fn of_three(config: RaftConfig) -> (Self, Vec<Node>) {
        let mut cluster = Self::new(config);
        let mut nodes = Vec::new();
        for id in 1..=3 {
            nodes.push(cluster.start(id).await);
        }
        form(&nodes).await;
        (cluster, nodes)
    }

    pub(crate) fn dir_of(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    pub(crate) async fn start(&mut self, id: NodeId) -> Node {
        self.start_with(id, Box::new(KvStore::new())).await
    }

    /// A node whose tasks are all on `executor`, so that ending that kills it.
    pub(crate) async fn start_on(&mut self, id: NodeId, executor: &Executor) -> Node {
        let endpoint = self.bind_on(id, executor).await;
        let consensus = self.open(&endpoint, Box::new(KvStore::new())).await.unwrap();
        Node { id, endpoint, consensus }
    }

    pub(crate) async fn start_with(&mut self, id: NodeId, machine: Box<dyn StateMachine>) -> Node {
        let endpoint = self.bind(id).await;
        let consensus = self.open(&endpoint, machine).await.unwrap();
        Node { id, endpoint, consensus }
    }

    /// An endpoint where the node listened last, or anywhere.
    pub(crate) async fn bind(&mut self, id: NodeId) -> Endpoint {
        self.bind_on(id, &Executor::new(tokio::runtime::Handle::current())).await
    }

    async fn bind_on(&mut self, id: NodeId, executor: &Executor) -> Endpoint {
        let bind = self.addresses.get(&id).copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let options = EndpointOptions { bind, resolver: self.resolver.clone(), ..EndpointOptions::default() };
        let identity = self.identities.entry(id).or_insert_with(|| self.authority.issue(id).unwrap());
        // A port just left may be held for a moment by tasks that are being torn down.
        let endpoint = loop {
            match Endpoint::bind(executor, identity, options.clone()) {
                Ok(endpoint) => break endpoint,
                Err(error) if bind.port() == 0 => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        self.addresses.insert(id, endpoint.local_addr());
        endpoint
    }

    pub(crate) async fn open(
        &self,
        endpoint: &Endpoint,
        machine: Box<dyn StateMachine>,
    ) -> Result<Consensus, StartError> {
        let dir = self.dir_of(endpoint.node_id());
        let options = Options { segment_size: 1 << 20, ..Options::default() };
        let wal = loop {
            match WriteAheadLog::open(dir.join("wal"), options.clone()) {
                Ok(wal) => break wal,
                Err(octopii_wal::OpenError::Locked { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        let transfer = Transfer::start(endpoint, RealVfs::shared(), TransferOptions::default()).unwrap();
        Consensus::start(ConsensusOptions {
            endpoint: endpoint.clone(),
            transfer,
            wal,
            vfs: RealVfs::shared(),
            state_dir: dir.join("state"),
            config: self.config.clone(),
            state_machine: machine,
            incarnation: incarnation(&dir),
        })
        .await
    }

    /// The node is started somewhere else next time.
    pub(crate) fn move_away(&mut self, id: NodeId) {
        self.addresses.remove(&id);
    }

    pub(crate) fn incarnation_of(&self, id: NodeId) -> u64 {
        incarnation(&self.dir_of(id))
    }

    /// Deletes everything the node kept.
    pub(crate) fn wipe(&self, id: NodeId) {
        std::fs::remove_dir_all(self.dir_of(id)).unwrap();
    }
}

/// Kept with the data directory, as the node above does it.
fn incarnation(dir: &Path) -> u64 {
    let path = dir.join("incarnation");
    if let Ok(text) = octopii_vfs::read_file(&RealVfs, &path, 100) {
        return String::from_utf8(text).unwrap().parse().unwrap();
    }
    let incarnation: u64 = rand::random();
    octopii_vfs::create_dir_all_durable(&RealVfs, dir).unwrap();
    octopii_vfs::write_file_durable(&RealVfs, &path, incarnation.to_string().as_bytes()).unwrap();
    incarnation
}

impl Node {
    /// Stops the node as a killed process would, as far as others can tell.
    pub(crate) async fn stop(self) {
        self.consensus.shutdown().await;
        self.endpoint.close(Duration::ZERO).await;
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    pub(crate) async fn put(&self, key: &str, value: &str) -> Result<(), ProposeError> {
        let command = KvCommand::Put { key: key.into(), value: value.into() };
        self.consensus.propose(command.encode()).await.map(|_| ())
    }

    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        let query = KvQuery::Get { key: key.into() };
        let answer = self.consensus.query(&query.encode()).await.unwrap();
        match KvResponse::decode(&answer).unwrap() {
            KvResponse::Value(value) => value.map(|v| String::from_utf8(v).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn members(nodes: &[Node]) -> BTreeMap<NodeId, SocketAddr> {
    nodes.iter().map(|node| (node.id, node.addr())).collect()
}

pub(crate) async fn form(nodes: &[Node]) {
    let members = members(nodes);
    let forming = nodes.iter().map(|node| node.consensus.bootstrap(members.clone()));
    for formed in futures_util::future::join_all(forming).await {
        formed.unwrap();
    }
    leader(nodes).await;
}

/// The position in `nodes` of the leader, once they have one.
pub(crate) async fn leader(nodes: &[Node]) -> usize {
    let start = Instant::now();
    loop {
        if let Some(at) = nodes.iter().position(|node| node.consensus.is_leader()) {
            return at;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "no leader");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "still not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn put(key: &str, value: &str) -> Bytes {
    KvCommand::Put { key: key.into(), value: value.into() }.encode()
}
