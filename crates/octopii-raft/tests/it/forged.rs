//! A peer with a valid certificate that speaks in another's name.

use std::time::Duration;

use octopii_raft::RaftConfig;
use octopii_rpc::{Client, Code, Status, StreamKind};
use octopii_transport::{Endpoint, EndpointOptions, Executor};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, leader};

// The messages as an attacker would write them, from the documented layout.

#[derive(Clone, Copy, Serialize)]
struct Address {
    to: u64,
    to_incarnation: u64,
    from_incarnation: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct LogId {
    term: u64,
    node: u64,
    index: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Vote {
    term: u64,
    node: u64,
    committed: bool,
}

#[derive(Serialize)]
struct VoteRequest {
    address: Address,
    vote: Vote,
    last: Option<LogId>,
    leadership_transfer: bool,
}

#[derive(Deserialize)]
struct VoteReply {
    _vote: Vote,
    granted: bool,
    _last: Option<LogId>,
}

#[derive(Serialize)]
struct AppendHead {
    address: Address,
    lane: Option<u64>,
    vote: Vote,
    prev: Option<LogId>,
    commit: Option<LogId>,
}

impl AppendHead {
    fn encode(&self) -> bytes::Bytes {
        let head = <octopii_rpc::Bincode as octopii_rpc::Codec>::encode(self).unwrap();
        [&(head.len() as u32).to_le_bytes()[..], &head].concat().into()
    }
}

const DEADLINE: Duration = Duration::from_secs(5);

struct Scene {
    _cluster: Cluster,
    nodes: Vec<crate::cluster::Node>,
    leader: usize,
    incarnations: Vec<u64>,
}

async fn scene() -> (Scene, impl Fn(u64) -> (Endpoint, Client)) {
    let (cluster, nodes) = Cluster::of_three(RaftConfig::default()).await;
    nodes[0].put("k", "v").await.unwrap();
    let leader = leader(&nodes).await;
    let authority = octopii_transport::ClusterAuthority::from_pem(&cluster.authority.to_pem()).unwrap();
    let impostor = move |id| {
        let executor = Executor::new(tokio::runtime::Handle::current());
        let identity = authority.issue(id).unwrap();
        let endpoint = Endpoint::bind(&executor, &identity, EndpointOptions::default()).unwrap();
        let client = Client::new(&endpoint, StreamKind::Raft);
        (endpoint, client)
    };
    let incarnations = nodes.iter().map(|node| cluster.incarnation_of(node.id)).collect();
    (Scene { _cluster: cluster, nodes, leader, incarnations }, impostor)
}

impl Scene {
    fn victim(&self) -> usize {
        (self.leader + 1) % 3
    }

    fn third(&self) -> usize {
        (self.leader + 2) % 3
    }

    fn address(&self, from: Option<usize>) -> Address {
        Address {
            to: self.nodes[self.victim()].id,
            to_incarnation: self.incarnations[self.victim()],
            from_incarnation: from.map_or(1, |from| self.incarnations[from]),
        }
    }

    async fn vote(&self, client: &Client, address: Address, node: u64) -> Result<VoteReply, Status> {
        let vote = Vote { term: 1000, node, committed: false };
        let request = VoteRequest { address, vote, last: None, leadership_transfer: true };
        client.call(self.nodes[self.victim()].addr(), "raft.vote", &request, DEADLINE).await
    }

    async fn append(
        &self,
        client: &Client,
        address: Address,
        node: u64,
        committed: bool,
    ) -> Result<(), Status> {
        let vote = Vote { term: 1000, node, committed };
        let head = AppendHead { address, lane: None, vote, prev: None, commit: None };
        client
            .call_raw(self.nodes[self.victim()].addr(), "raft.append", head.encode(), DEADLINE)
            .await
            .map(|_| ())
    }

    fn terms(&self) -> Vec<u64> {
        self.nodes.iter().map(|node| node.consensus.status().term).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_speaks_for_another_node() {
    let (scene, impostor) = scene().await;
    let before = scene.terms();
    let (third, leader) = (scene.third(), scene.leader);
    let (_endpoint, client) = impostor(scene.nodes[third].id);
    let (_other, stranger) = impostor(99);
    let leader_id = scene.nodes[leader].id;
    for (client, from) in [(&client, Some(third)), (&stranger, None)] {
        let address = scene.address(from);
        let refused = scene.append(client, address, leader_id, true).await.unwrap_err();
        assert_eq!(refused.code, Code::PermissionDenied, "{refused}");
        let refused = scene.vote(client, address, leader_id).await.err().unwrap();
        assert_eq!(refused.code, Code::PermissionDenied, "{refused}");
    }
    let own = scene.nodes[third].id;
    let refused = scene.append(&client, scene.address(Some(third)), own, false).await.unwrap_err();
    assert_eq!(refused.code, Code::PermissionDenied, "entries from a node that was not elected: {refused}");
    assert_eq!(scene.terms(), before, "no term was raised");
    for node in &scene.nodes {
        assert_eq!(node.get("k").await.as_deref(), Some("v"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_data_directory_is_another_node() {
    let (scene, impostor) = scene().await;
    let before = scene.terms();
    let third = scene.third();
    let own = scene.nodes[third].id;
    let (_endpoint, client) = impostor(own);

    let mut address = scene.address(Some(third));
    address.from_incarnation ^= 1;
    let refused = scene.vote(&client, address, own).await.err().unwrap();
    assert_eq!(refused.code, Code::PermissionDenied, "a sender without its data: {refused}");
    let refused = scene.append(&client, address, own, true).await.unwrap_err();
    assert_eq!(refused.code, Code::PermissionDenied, "{refused}");

    let mut address = scene.address(Some(third));
    address.to_incarnation ^= 1;
    let refused = scene.vote(&client, address, own).await.err().unwrap();
    assert_eq!(refused.code, Code::FailedPrecondition, "a receiver without its data: {refused}");
    assert_eq!(scene.terms(), before);

    // The same request is heard when everything fits, so it is these differences that were refused.
    let heard = scene.vote(&client, scene.address(Some(third)), own).await.unwrap();
    assert!(!heard.granted, "its log is shorter than the victim's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_the_node_goes_on() {
    let (scene, impostor) = scene().await;
    let (_endpoint, client) = impostor(99);
    let addr = scene.nodes[scene.victim()].addr();
    for method in [
        "append",
        "vote",
        "pre_vote",
        "transfer_leader",
        "install_snapshot",
        "propose",
        "read_index",
        "change",
        "hello",
    ] {
        for garbage in [&[][..], &[0xff; 3], &[0xff; 64], &[0; 200]] {
            let body = bytes::Bytes::copy_from_slice(garbage);
            assert!(
                client.call_raw(addr, &format!("raft.{method}"), body, DEADLINE).await.is_err(),
                "{method}"
            );
        }
    }
    scene.nodes[scene.victim()].put("k", "w").await.unwrap();
}
