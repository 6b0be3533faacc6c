//! Three whole nodes agree.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::time::Duration;

use octopii::{
    BootstrapError, Client, ClusterAuthority, Code, Config, IdentitySource, KvCommand, KvQuery, KvResponse,
    MembershipChange, NodeId, OctopiiNode, OctopiiRuntime, PeerRole, ProposeError, StartError,
};
use tempfile::{TempDir, tempdir};

struct Cluster {
    home: TempDir,
    authority: ClusterAuthority,
    runtime: OctopiiRuntime,
    members: BTreeMap<NodeId, std::net::SocketAddr>,
}

impl Cluster {
    fn new() -> Self {
        let sockets: Vec<_> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let members = (1..).zip(sockets.iter().map(|s| s.local_addr().unwrap())).collect();
        Self {
            home: tempdir().unwrap(),
            authority: ClusterAuthority::generate().unwrap(),
            runtime: OctopiiRuntime::new(2),
            members,
        }
    }

    fn config(&self, id: NodeId) -> Config {
        Config {
            bind: self.members[&id],
            members: self.members.iter().map(|(id, addr)| (*id, (*addr).into())).collect(),
            identity: IdentitySource::Given(self.authority.issue(id).unwrap()),
            ..Config::new(self.home.path().join(id.to_string()))
        }
    }

    async fn start(&self, id: NodeId) -> OctopiiNode {
        OctopiiNode::start(self.config(id), &self.runtime).await.unwrap()
    }
}

fn put(key: &str, value: &str) -> bytes::Bytes {
    KvCommand::Put { key: key.into(), value: value.into() }.encode()
}

async fn get(node: &OctopiiNode, key: &str) -> Option<Vec<u8>> {
    let answer = node.query(&KvQuery::Get { key: key.into() }.encode()).await.unwrap();
    match KvResponse::decode(&answer).unwrap() {
        KvResponse::Value(value) => value,
        other => panic!("{other:?}"),
    }
}

#[test]
fn members_form_a_cluster_in_any_order_and_clients_reach_it_through_any_node() {
    let cluster = Cluster::new();
    cluster.runtime.block_on(async {
        let mut nodes = Vec::new();
        for id in [3, 1, 2] {
            nodes.push(cluster.start(id).await);
        }
        for node in &nodes {
            node.joined().await.unwrap();
        }
        nodes[0].wait_for_leader(Duration::from_secs(10)).await.unwrap();
        for (n, node) in nodes.iter().enumerate() {
            node.propose(put(&format!("key{n}"), "value")).await.unwrap();
        }
        for node in &nodes {
            for n in 0..3 {
                assert_eq!(get(node, &format!("key{n}")).await.as_deref(), Some(&b"value"[..]));
            }
        }
        assert_eq!(nodes.iter().filter(|node| node.is_leader()).count(), 1);
        let leader = nodes.iter().find(|node| node.is_leader()).unwrap();
        assert_eq!(leader.peer_progress().len(), 3);

        // A client that is no member; the first address it knows is dead.
        let dead = UdpSocket::bind("127.0.0.1:0").unwrap();
        let known = vec![dead.local_addr().unwrap(), cluster.members[&2]];
        let identity = cluster.authority.issue_as(1_000, PeerRole::Client).unwrap();
        let client = Client::new(&cluster.runtime, &identity, known, Duration::from_secs(8)).unwrap();
        assert_eq!(client.put(b"by client", b"1").await.unwrap(), None);
        assert_eq!(client.get(b"by client").await.unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(client.delete(b"by client").await.unwrap().as_deref(), Some(&b"1"[..]));
        // Who belongs to the cluster is not for a client to say, but for an operator.
        let change = MembershipChange::Promote { id: 99 };
        let refused = client.change_membership(&change).await.unwrap_err();
        assert_eq!(refused.code, Code::PermissionDenied, "{refused}");
        let identity = cluster.authority.issue_as(1_001, PeerRole::Operator).unwrap();
        let nodes = cluster.members.values().copied();
        let operator = Client::new(&cluster.runtime, &identity, nodes, Duration::from_secs(8)).unwrap();
        let refused = operator.change_membership(&change).await.unwrap_err();
        assert_eq!(refused.code, Code::FailedPrecondition, "{refused}");
        let status = client.status_of(cluster.members[&1]).await.unwrap();
        assert_eq!((status.members.len(), status.leader), (3, Some(leader.node_id())));
    });
}

#[test]
fn a_wiped_node_is_told_to_come_back_under_a_new_id() {
    let cluster = Cluster::new();
    cluster.runtime.block_on(async {
        let (first, second) = (cluster.start(1).await, cluster.start(2).await);
        let third = cluster.start(3).await;
        for node in [&first, &second, &third] {
            node.joined().await.unwrap();
        }
        first.propose(put("key", "value")).await.unwrap();
        third.shutdown().await;
        drop(third);
        let wiped = Config { data_dir: cluster.home.path().join("wiped"), ..cluster.config(3) };
        let third = loop {
            match OctopiiNode::start(wiped.clone(), &cluster.runtime).await {
                Ok(node) => break node,
                // The port is released a moment after the node is dropped.
                Err(StartError::Bind(_) | StartError::DataDir(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(e) => panic!("{e}"),
            }
        };
        let error = third.joined().await.unwrap_err();
        assert!(matches!(error, BootstrapError::Wiped { node: 3 }), "{error}");
        first.propose(put("still", "working")).await.unwrap();
    });
}

#[test]
fn a_node_without_consensus_or_quorum_says_so_in_time() {
    let cluster = Cluster::new();
    cluster.runtime.block_on(async {
        let alone = OctopiiNode::start(
            Config { consensus: false, members: BTreeMap::new(), ..cluster.config(1) },
            &cluster.runtime,
        )
        .await
        .unwrap();
        assert!(matches!(alone.propose(put("k", "v")).await, Err(ProposeError::Stopped(_))));
        assert!(alone.wal().is_none());

        let mut config = cluster.config(2);
        config.raft.request_timeout = Duration::from_millis(300);
        let waiting = OctopiiNode::start(config, &cluster.runtime).await.unwrap();
        let begun = std::time::Instant::now();
        let error = waiting.propose(put("k", "v")).await.unwrap_err();
        assert!(matches!(error, ProposeError::NoLeader { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));

        let stranger = Config {
            identity: IdentitySource::Given(cluster.authority.issue(9).unwrap()),
            ..cluster.config(3)
        };
        assert!(matches!(
            OctopiiNode::start(stranger, &cluster.runtime).await,
            Err(StartError::NotAMember(9))
        ));
    });
}

#[test]
fn a_new_member_must_listen_where_the_others_look_for_it() {
    let mut cluster = Cluster::new();
    let addr = cluster.members[&1];
    cluster.members = [(1, addr)].into();
    cluster.runtime.block_on(async {
        let elsewhere = Config { bind: "127.0.0.1:0".parse().unwrap(), ..cluster.config(1) };
        let error = OctopiiNode::start(elsewhere, &cluster.runtime).await.unwrap_err();
        assert!(matches!(error, StartError::ListensElsewhere { node: 1, .. }), "{error}");

        // The map is of no interest any more to a node that belongs to its cluster.
        let node = start_when_free(&cluster, cluster.config(1)).await;
        node.joined().await.unwrap();
        node.shutdown().await;
        drop(node);
        let outdated = Config { members: [(1, "127.0.0.1:9".parse().unwrap())].into(), ..cluster.config(1) };
        start_when_free(&cluster, outdated).await.joined().await.unwrap();
    });
}

/// Tasks let go of their handles a moment after a node is gone.
async fn start_when_free(cluster: &Cluster, config: Config) -> OctopiiNode {
    for _ in 0..200 {
        match OctopiiNode::start(config.clone(), &cluster.runtime).await {
            Ok(node) => return node,
            Err(StartError::DataDir(_) | StartError::Bind(_)) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(e) => panic!("{e}"),
        }
    }
    panic!("the directory was never free again");
}

#[test]
fn a_question_goes_on_to_the_next_node_when_one_takes_it_and_does_not_answer() {
    let cluster = Cluster::new();
    cluster.runtime.block_on(async {
        let sole = Config { members: [(1, cluster.members[&1].into())].into(), ..cluster.config(1) };
        let answering = OctopiiNode::start(sole, &cluster.runtime).await.unwrap();
        answering.joined().await.unwrap();
        // Its fellow members never come: it takes requests and waits for a leader.
        let silent = cluster.start(2).await;
        let identity = cluster.authority.issue(100).unwrap();
        let nodes = vec![silent.local_addr(), answering.local_addr()];
        let client = Client::new(&cluster.runtime, &identity, nodes, Duration::from_secs(3)).unwrap();
        assert_eq!(client.get(b"key").await.unwrap(), None);
        // A change may have been made by the first, so it is not repeated at the second.
        assert!(client.put(b"key", b"value").await.unwrap_err().code.is_outcome_unknown());
        assert_eq!(client.get(b"key").await.unwrap(), None);
    });
}

#[test]
fn a_client_binds_where_it_can_reach_every_node() {
    for (nodes, bound) in [
        (vec!["127.0.0.1:1", "127.0.0.2:1"], "127.0.0.1:0"),
        (vec!["127.0.0.1:1", "10.0.0.1:1"], "0.0.0.0:0"),
        (vec!["[::1]:1"], "[::1]:0"),
        (vec!["10.0.0.1:1", "[::1]:1"], "[::]:0"),
        // It may have either.
        (vec!["node1.example.com:1"], "[::]:0"),
        (vec!["localhost:1", "127.0.0.1:1"], "[::]:0"),
    ] {
        let ipv6 = UdpSocket::bind("[::]:0").is_ok();
        let bound = if ipv6 { bound } else { &bound.replace("[::]", "0.0.0.0") };
        let addresses: Vec<octopii::Address> = nodes.iter().map(|node| node.parse().unwrap()).collect();
        assert_eq!(octopii::bind_for(&addresses), bound.parse().unwrap(), "{nodes:?}");
    }
}
