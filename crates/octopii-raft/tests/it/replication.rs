//! Proposals and queries while all is well, and while the leader is lost.

use std::collections::BTreeMap;
use std::time::Duration;

use octopii_raft::{KvCommand, KvQuery, KvResponse, ProposeError, QueryError, RaftConfig};
use tokio::time::Instant;

use crate::cluster::{Cluster, leader, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_takes_proposals_and_answers_queries() {
    let (_cluster, nodes) = Cluster::of_three(RaftConfig::default()).await;
    for node in &nodes {
        node.put(&format!("from {}", node.id), "value").await.unwrap();
        // Acknowledged there, visible everywhere at once: that is linearizability.
        for reader in &nodes {
            assert_eq!(reader.get(&format!("from {}", node.id)).await.as_deref(), Some("value"));
        }
    }
    let range = KvQuery::Range { start: vec![], end: None, limit: 2 };
    let answer = nodes[2].consensus.query(&range.encode()).await.unwrap();
    let KvResponse::Entries { entries, more } = KvResponse::decode(&answer).unwrap() else { panic!() };
    assert_eq!((entries.len(), more), (2, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_never_older_than_the_last_acknowledgement() {
    let (_cluster, nodes) = Cluster::of_three(RaftConfig::default()).await;
    let writer = &nodes[leader(&nodes).await];
    for i in 0..60 {
        writer.put("k", &i.to_string()).await.unwrap();
        let reads = nodes.iter().map(|reader| reader.get("k"));
        for (reader, value) in nodes.iter().zip(futures_util::future::join_all(reads).await) {
            assert_eq!(value, Some(i.to_string()), "on node {}", reader.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_command_is_an_error_for_its_proposer_alone() {
    let (_cluster, nodes) = Cluster::of_three(RaftConfig::default()).await;
    for node in &nodes {
        for garbage in [&b"\xff\xff garbage"[..], b""] {
            let error = node.consensus.propose(garbage.to_vec()).await.unwrap_err();
            assert!(matches!(error, ProposeError::Rejected(_)), "{error:?}");
        }
        let error = node.consensus.query(b"\xff garbage").await.unwrap_err();
        assert!(matches!(error, QueryError::Rejected(_)), "{error:?}");
    }
    let huge = vec![0; RaftConfig::default().max_command + 1];
    let error = nodes[0].consensus.propose(huge).await.unwrap_err();
    assert!(matches!(error, ProposeError::TooLarge { .. }), "{error:?}");
    nodes[1].put("k", "v").await.unwrap();
    for node in &nodes {
        assert_eq!(node.get("k").await.as_deref(), Some("v"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_changes_nothing() {
    let (_cluster, nodes) = Cluster::of_three(RaftConfig::default()).await;
    nodes[0].put("k", "v").await.unwrap();
    for node in &nodes {
        node.get("k").await;
    }
    let before: Vec<_> = nodes.iter().map(|node| node.consensus.status().last_log).collect();
    for node in &nodes {
        // A command in place of a query: refused, here and everywhere, and not executed.
        let command = KvCommand::Put { key: b"k".to_vec(), value: b"changed".to_vec() };
        let _ = node.consensus.query(&command.encode()).await;
        assert_eq!(node.get("k").await.as_deref(), Some("v"));
    }
    let after: Vec<_> = nodes.iter().map(|node| node.consensus.status().last_log).collect();
    assert_eq!(before, after, "a query writes nothing to the log either");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_key_is_lost_with_the_leader() {
    let (_cluster, mut nodes) = Cluster::of_three(RaftConfig::default()).await;
    let dead = leader(&nodes).await;
    let dead = nodes.remove(dead);
    let mut acknowledged = BTreeMap::new();
    let writers = nodes.iter().map(|node| {
        let consensus = node.consensus.clone();
        let id = node.id;
        node.endpoint.executor().spawn(async move {
            let mut done = Vec::new();
            for i in 0..150 {
                let key = format!("{id}/{i}");
                consensus.propose(put(&key, "x")).await.unwrap();
                done.push(key);
            }
            done
        })
    });
    let writers: Vec<_> = writers.collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let killed = Instant::now();
    dead.stop().await;
    let next = leader(&nodes).await;
    eprintln!("node {} leads {:?} after the old leader was stopped", nodes[next].id, killed.elapsed());
    for writer in writers {
        // Every proposal got through: the proposer turned to the new leader by itself.
        acknowledged.extend(writer.await.unwrap().into_iter().map(|key| (key, ())));
    }
    assert_eq!(acknowledged.len(), 300);
    for node in &nodes {
        for key in acknowledged.keys() {
            assert_eq!(node.get(key).await.as_deref(), Some("x"), "{key} on {}", node.id);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_requests_fail_within_their_deadline() {
    let config = RaftConfig { request_timeout: Duration::from_millis(700), ..RaftConfig::default() };
    let (_cluster, mut nodes) = Cluster::of_three(config).await;
    nodes[0].put("k", "v").await.unwrap();
    let last = nodes.remove(leader(&nodes).await);
    for node in nodes {
        node.stop().await;
    }
    for _ in 0..2 {
        let start = Instant::now();
        let error = last.put("k", "lost").await.unwrap_err();
        assert!(matches!(error, ProposeError::NoQuorum { .. } | ProposeError::NoLeader { .. }), "{error:?}");
        let error = last.consensus.query(&KvQuery::Get { key: b"k".to_vec() }.encode()).await.unwrap_err();
        assert!(matches!(error, QueryError::NoQuorum { .. } | QueryError::NoLeader { .. }), "{error:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
