//! Learners, promotion, removal, leader transfer, and catching up by snapshot.

use octopii_raft::{MembershipError, RaftConfig};

use crate::cluster::{Cluster, Node, eventually, leader};

/// Snapshots often enough for a short test.
fn compacting() -> RaftConfig {
    RaftConfig { snapshot_every: 40, keep_entries: 5, lag_threshold: 50, ..RaftConfig::default() }
}

async fn fill(node: &Node, keys: std::ops::Range<u32>) {
    let puts = keys.map(|i| async move { node.put(&format!("key {i}"), &"x".repeat(2000)).await.unwrap() });
    futures_util::future::join_all(puts).await;
}

async fn check(node: &Node, keys: std::ops::Range<u32>) {
    for i in keys {
        assert!(node.get(&format!("key {i}")).await.is_some(), "key {i} on node {}", node.id);
    }
}

/// Waits until the leader can no longer send the beginning of its log.
async fn purged(nodes: &[Node]) {
    let at = leader(nodes).await;
    eventually("the leader purged its log", || nodes[at].consensus.status().purged > Some(100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_node_catches_up_by_snapshot_and_is_promoted() {
    let (mut cluster, mut nodes) = Cluster::of_three(compacting()).await;
    for part in 0..4 {
        fill(&nodes[0], part * 50..(part + 1) * 50).await;
    }
    purged(&nodes).await;
    let learner = cluster.start(4).await;
    let follower = (leader(&nodes).await + 1) % 3;
    nodes[follower].consensus.add_learner(4, learner.addr()).await.unwrap();
    nodes[follower].consensus.add_learner(4, learner.addr()).await.unwrap();
    check(&learner, 0..200).await;
    assert!(learner.consensus.status().snapshot > Some(100), "{:?}", learner.consensus.status());
    assert!(!learner.consensus.status().members[3].voter);

    learner.consensus.promote_learner(4).await.unwrap();
    let at = leader(&nodes).await;
    let progress = nodes[at].consensus.peer_progress();
    assert_eq!(progress.len(), 4);
    assert!(progress.iter().any(|peer| peer.id == 4 && peer.voter), "{progress:?}");
    assert!(nodes[(at + 1) % 3].consensus.peer_progress().is_empty());

    // Three of four are a quorum only if the new one counts.
    nodes.remove(at).stop().await;
    nodes.push(learner);
    fill(&nodes[2], 200..210).await;
    check(&nodes[0], 200..210).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_follower_catches_up_by_snapshot() {
    let (mut cluster, mut nodes) = Cluster::of_three(compacting()).await;
    fill(&nodes[0], 0..10).await;
    let away = nodes.remove((leader(&nodes).await + 1) % 3);
    let id = away.id;
    away.stop().await;
    for part in 0..5 {
        fill(&nodes[0], part * 50..(part + 1) * 50).await;
    }
    purged(&nodes).await;
    let back = cluster.start(id).await;
    check(&back, 0..250).await;
    // What it got is durable: it starts from it again.
    let applied = back.consensus.status().applied;
    back.stop().await;
    let back = cluster.start(id).await;
    assert!(back.consensus.status().snapshot > Some(100));
    check(&back, 0..250).await;
    assert!(back.consensus.status().applied >= applied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_removed_and_leadership_is_handed_over() {
    let (_cluster, nodes) = Cluster::of_three(RaftConfig::default()).await;
    fill(&nodes[0], 0..5).await;
    let at = leader(&nodes).await;
    let next = (at + 1) % 3;
    nodes[(at + 2) % 3].consensus.transfer_leader(nodes[next].id).await.unwrap();
    eventually("leadership is handed over", || nodes[next].consensus.is_leader()).await;

    // The leader removes itself.
    nodes[at].consensus.remove(nodes[next].id).await.unwrap();
    eventually("another leads", || {
        nodes.iter().enumerate().any(|(i, n)| i != next && n.consensus.is_leader())
    })
    .await;
    fill(&nodes[at], 5..10).await;
    check(&nodes[(at + 2) % 3], 0..10).await;
    assert_eq!(nodes[at].consensus.status().members.len(), 2);
    nodes[at].consensus.remove(nodes[next].id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impossible_changes_are_refused_with_a_reason() {
    let (mut cluster, nodes) = Cluster::of_three(RaftConfig::default()).await;
    let newcomer = cluster.start(9).await;
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for node in &nodes {
        let consensus = &node.consensus;
        for refused in [
            consensus.add_learner(8, nobody).await,
            consensus.add_learner(8, newcomer.addr()).await,
            consensus.promote_learner(9).await,
            consensus.transfer_leader(9).await,
            consensus.add_learner(nodes[0].id, newcomer.addr()).await,
        ] {
            assert!(matches!(refused, Err(MembershipError::Refused(_))), "{refused:?}");
        }
        consensus.remove(77).await.unwrap();
        assert_eq!(consensus.status().members.len(), 3);
    }
}
