//! Starting, forming, restarting, losing data.

use std::collections::BTreeMap;
use std::io;
use std::io::{Read, Write};
use std::time::Duration;

use bytes::Bytes;
use octopii_raft::{
    BootstrapError, KvStore, ProposeError, QueryError, RaftConfig, Rejected, Role, SnapshotError,
    SnapshotSource, StartError, StateMachine,
};
use octopii_rpc::{Bincode, Codec};
use octopii_vfs::{RealVfs, Vfs};
use octopii_wal::{Options, WriteAheadLog};
use tokio::time::Instant;

use crate::cluster::{Cluster, Node, eventually, form, leader, members};

/// Snapshots often enough for a short test.
fn compacting() -> RaftConfig {
    RaftConfig { snapshot_every: 40, keep_entries: 10, lag_threshold: 60, ..RaftConfig::default() }
}

async fn fill(node: &Node, keys: std::ops::Range<u32>) {
    let puts =
        keys.map(|i| async move { node.put(&format!("key {i}"), &format!("value {i}")).await.unwrap() });
    futures_util::future::join_all(puts).await;
}

async fn check(node: &Node, keys: std::ops::Range<u32>) {
    for i in keys {
        assert_eq!(node.get(&format!("key {i}")).await, Some(format!("value {i}")), "on node {}", node.id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_from_disk_keeps_everything() {
    let (mut cluster, nodes) = Cluster::of_three(compacting()).await;
    fill(&nodes[0], 0..100).await;
    eventually("a snapshot on every node", || nodes.iter().all(|n| n.consensus.status().snapshot.is_some()))
        .await;
    fill(&nodes[1], 100..130).await;
    let before: Vec<_> = nodes.iter().map(|node| node.consensus.status().committed).collect();
    for node in nodes {
        node.stop().await;
    }
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(cluster.start(id).await);
    }
    let members = members(&nodes);
    nodes[0].consensus.bootstrap(members).await.unwrap();
    for node in &nodes {
        check(node, 0..130).await;
        assert!(node.consensus.status().committed >= *before.iter().max().unwrap());
    }
    fill(&nodes[2], 130..140).await;
    check(&nodes[0], 130..140).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_is_a_cluster_and_restarts_as_one() {
    let mut cluster = Cluster::new(RaftConfig::default());
    let node = cluster.start(7).await;
    form(std::slice::from_ref(&node)).await;
    fill(&node, 0..20).await;
    node.stop().await;
    let node = cluster.start(7).await;
    check(&node, 0..20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_refused_under_its_old_id_and_welcome_under_a_new_one() {
    let (mut cluster, mut nodes) = Cluster::of_three(RaftConfig::default()).await;
    fill(&nodes[0], 0..10).await;
    let all = members(&nodes);
    let lost = nodes.remove((leader(&nodes).await + 1) % 3);
    let id = lost.id;
    lost.stop().await;
    cluster.wipe(id);

    let wiped = cluster.start(id).await;
    let refused = wiped.consensus.bootstrap(all).await.unwrap_err();
    assert_eq!(refused, BootstrapError::Wiped { node: id });
    // It is up, reachable, has the right certificate, and counts for nothing: with it, one node is still no quorum.
    fill(&nodes[0], 10..20).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!((wiped.consensus.status().last_log, wiped.consensus.status().role), (None, Role::Learner));
    let addr = wiped.addr();
    let error = nodes[0].consensus.add_learner(id, addr).await.unwrap_err();
    assert!(error.to_string().contains("new id"), "{error}");
    wiped.stop().await;

    let replacement = cluster.start(id + 10).await;
    nodes[0].consensus.add_learner(id + 10, replacement.addr()).await.unwrap();
    nodes[1].consensus.promote_learner(id + 10).await.unwrap();
    nodes[0].consensus.remove(id).await.unwrap();
    check(&replacement, 0..20).await;
    let mut voters: Vec<_> =
        replacement.consensus.status().members.into_iter().map(|m| (m.id, m.voter)).collect();
    voters.retain(|(member, _)| *member == id || *member == id + 10);
    assert_eq!(voters, [(id + 10, true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_first_node_does_not_form_a_second_cluster() {
    let (mut cluster, mut nodes) = Cluster::of_three(RaftConfig::default()).await;
    fill(&nodes[0], 0..10).await;
    let all = members(&nodes);
    // The one that would write the first membership.
    nodes.remove(0).stop().await;
    cluster.wipe(1);
    let wiped = cluster.start(1).await;
    assert_eq!(wiped.consensus.bootstrap(all).await.unwrap_err(), BootstrapError::Wiped { node: 1 });
    check(&nodes[0], 0..10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forming_a_cluster_fails_clearly() {
    let config = RaftConfig { bootstrap_timeout: Duration::from_millis(700), ..RaftConfig::default() };
    let mut cluster = Cluster::new(config);
    let (one, two) = (cluster.start(1).await, cluster.start(2).await);
    let both = BTreeMap::from([(1, one.addr()), (2, two.addr())]);

    let error = one.consensus.bootstrap(BTreeMap::from([(2, two.addr())])).await.unwrap_err();
    assert_eq!(error, BootstrapError::NotAMember { node: 1 });
    let error =
        one.consensus.bootstrap(BTreeMap::from([(1, one.addr()), (3, two.addr())])).await.unwrap_err();
    assert_eq!(error, BootstrapError::WrongNode { addr: two.addr().into(), expected: 3, found: 2 });
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let start = Instant::now();
    let error = one.consensus.bootstrap(BTreeMap::from([(1, one.addr()), (2, nobody)])).await.unwrap_err();
    assert!(
        matches!(&error, BootstrapError::Unreachable { missing, .. } if missing.len() == 1 && (missing[0].id, missing[0].addr.ip()) == (2, Some(nobody))),
        "{error:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(4));

    let (first, second) =
        tokio::join!(one.consensus.bootstrap(both.clone()), two.consensus.bootstrap(both.clone()));
    first.unwrap();
    second.unwrap();
    // Again, at any time, and at once.
    one.consensus.bootstrap(both.clone()).await.unwrap();
    let three = cluster.start(3).await;
    let mut more = both;
    more.insert(3, three.addr());
    assert_eq!(three.consensus.bootstrap(more).await.unwrap_err(), BootstrapError::NotInCluster { node: 3 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cluster_forms_around_a_node_that_has_voted_before() {
    let config = RaftConfig { bootstrap_timeout: Duration::from_millis(700), ..RaftConfig::default() };
    let mut cluster = Cluster::new(config);
    {
        // It voted in a cluster that it never heard of again: someone may hold acknowledged entries.
        let wal = WriteAheadLog::open(cluster.dir_of(2).join("wal"), Options::default()).unwrap();
        let vote = Bincode::encode(&(1u64, 1u64, false)).unwrap();
        wal.topic("raft").unwrap().set_metadata("vote", vote).unwrap().wait().unwrap();
    }
    let nodes = [cluster.start(1).await, cluster.start(2).await];
    let members = members(&nodes);
    for node in &nodes {
        let error = node.consensus.bootstrap(members.clone()).await.unwrap_err();
        assert!(matches!(error, BootstrapError::NotFormed { .. }), "{error:?}");
        assert!(node.consensus.status().members.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_a_typed_error_at_start() {
    let mut cluster = Cluster::new(compacting());
    let node = cluster.start(1).await;
    form(std::slice::from_ref(&node)).await;
    fill(&node, 0..60).await;
    eventually("a snapshot", || node.consensus.status().snapshot.is_some()).await;
    node.stop().await;
    let state = cluster.dir_of(1).join("state");
    let entries = RealVfs.read_dir(&state).unwrap();
    let name =
        entries.into_iter().map(|e| e.name).filter(|n| n.to_string_lossy().ends_with(".snap")).max().unwrap();
    let mut bytes = octopii_vfs::read_file(&RealVfs, &state.join(&name), 1 << 20).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    octopii_vfs::write_file_durable(&RealVfs, &state.join(&name), &bytes).unwrap();

    let endpoint = cluster.bind(1).await;
    let error = cluster.open(&endpoint, Box::new(KvStore::new())).await.unwrap_err();
    assert!(matches!(error, StartError::Snapshot(SnapshotError::Damaged { .. })), "{error:?}");
}

/// Counts its commands.
#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _command: &[u8]) -> Result<Bytes, Rejected> {
        self.0 += 1;
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }

    fn query(&self, _query: &[u8]) -> Result<Bytes, Rejected> {
        Ok(Bytes::copy_from_slice(&self.0.to_le_bytes()))
    }

    fn capture(&self) -> Box<dyn SnapshotSource> {
        Box::new(Self(self.0))
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut bytes = [0; 8];
        snapshot.read_exact(&mut bytes)?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

impl SnapshotSource for Counter {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.0.to_le_bytes())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_over_changes_of_leader_apply_once() {
    let mut cluster = Cluster::new(RaftConfig { snapshot_every: 200, ..RaftConfig::default() });
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(cluster.start_with(id, Box::new(Counter::default())).await);
    }
    form(&nodes).await;
    // Proposals from every node, while leadership goes round.
    let proposers: Vec<_> = nodes
        .iter()
        .flat_map(|node| (0..8).map(move |_| node))
        .map(|node| {
            let consensus = node.consensus.clone();
            node.endpoint.executor().spawn(async move {
                for _ in 0..40 {
                    consensus.propose(&b"count"[..]).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..4 {
        let at = leader(&nodes).await;
        nodes[at].consensus.transfer_leader(nodes[(at + 1) % 3].id).await.ok();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    for proposer in proposers {
        proposer.await.unwrap();
    }
    for node in &nodes {
        let count = node.consensus.query(b"").await.unwrap();
        assert_eq!(count, (3 * 8 * 40u64).to_le_bytes().as_slice(), "on node {}", node.id);
    }
}

/// Panics when told to.
struct Fragile;

impl StateMachine for Fragile {
    fn apply(&mut self, command: &[u8]) -> Result<Bytes, Rejected> {
        assert!(command != b"panic", "as told");
        Ok(Bytes::new())
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, Rejected> {
        assert!(query != b"panic", "as told");
        Ok(Bytes::new())
    }

    fn capture(&self) -> Box<dyn SnapshotSource> {
        Box::new(Counter(0))
    }

    fn restore(&mut self, _snapshot: &mut dyn Read) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_panics_stops_its_node_and_says_so() {
    let mut cluster = Cluster::new(RaftConfig::default());
    let node = cluster.start_with(1, Box::new(Fragile)).await;
    form(std::slice::from_ref(&node)).await;
    assert!(matches!(node.consensus.query(b"panic").await, Err(QueryError::Rejected(_))));
    node.consensus.propose(&b"fine"[..]).await.unwrap();
    node.consensus.query(b"fine").await.unwrap();

    let start = Instant::now();
    let error = node.consensus.propose(&b"panic"[..]).await.unwrap_err();
    assert!(matches!(error, ProposeError::Stopped(_)), "{error:?}");
    assert!(node.consensus.propose(&b"fine"[..]).await.is_err());
    assert!(node.consensus.query(b"fine").await.is_err());
    assert!(start.elapsed() < Duration::from_secs(4), "the deadline is 5 s: {:?}", start.elapsed());
    eventually("it shows as stopped", || node.consensus.status().role == Role::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_to_a_stopped_node_fail_at_once() {
    let (_cluster, nodes) = Cluster::of_three(RaftConfig::default()).await;
    let consensus = nodes[0].consensus.clone();
    consensus.shutdown().await;
    consensus.shutdown().await;
    let start = Instant::now();
    assert!(nodes[0].put("k", "v").await.is_err());
    assert!(consensus.query(b"").await.is_err());
    assert!(start.elapsed() < Duration::from_secs(4), "the deadline is 5 s: {:?}", start.elapsed());
    assert_eq!(consensus.status().role, Role::Stopped);
    nodes[1].put("k", "v").await.unwrap();
}
