//! A node that is killed: its connections are never closed, so nobody is told.

use std::time::Duration;

use octopii_raft::RaftConfig;
use octopii_transport::Executor;
use tokio::time::Instant;

use crate::cluster::{Cluster, eventually, form, leader};

/// The leader is killed and comes back at the same address. Its peers have entries on their way to it on connections that
/// look alive until 10 s of silence; the returned node must make them give these up, by disowning what arrives on them.
///
/// Heartbeats show nothing of it: each is a new request, and takes the connection that the returned node makes. The
/// deadline of append requests would hide it in part, so it is out of the way here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_reach_a_killed_leader_as_soon_as_it_is_back() {
    let config = RaftConfig { append_timeout: Duration::from_secs(60), ..RaftConfig::default() };
    let mut cluster = Cluster::new(config);
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let executor = Executor::new(threads.handle().clone());
    let mut nodes =
        vec![cluster.start(1).await, cluster.start(2).await, cluster.start_on(3, &executor).await];
    form(&nodes).await;
    nodes[0].consensus.transfer_leader(3).await.unwrap();
    eventually("node 3 leads", || nodes[2].consensus.is_leader()).await;
    for i in 0..20 {
        nodes[0].put(&format!("before {i}"), "value").await.unwrap();
    }

    let killed = nodes.pop().unwrap();
    let mut old_connections = Vec::new();
    for node in &nodes {
        old_connections.push(node.endpoint.connect(killed.addr()).await.unwrap());
    }
    // First its threads, so that nothing of what follows can send anything.
    let tests = Executor::new(tokio::runtime::Handle::current());
    tests.blocking(move || threads.shutdown_timeout(Duration::from_secs(5))).await;
    drop(killed);
    let next = leader(&nodes).await;
    for i in 0..20 {
        nodes[next].put(&format!("after {i}"), "value").await.unwrap();
    }
    assert!(
        old_connections.iter().all(|connection| !connection.is_closed()),
        "an old connection ended by itself, so this test shows nothing"
    );

    let back = cluster.start(3).await;
    let start = Instant::now();
    let committed = nodes[next].consensus.status().committed;
    eventually("it has caught up", || back.consensus.status().applied >= committed).await;
    let took = start.elapsed();
    assert!(
        took < Duration::from_secs(4),
        "the entries came after {took:?}, as if by a connection's idle timeout"
    );
    assert_eq!(back.get("after 19").await.as_deref(), Some("value"));
}
