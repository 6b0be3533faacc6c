//! Members by host name, whose addresses are not known at first, and change.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_raft::{BootstrapError, RaftConfig};
use octopii_transport::{Address, NodeId, Resolve};

use crate::cluster::{Cluster, Node, eventually, leader};

/// Names that lead where the test says.
#[derive(Debug, Default)]
struct Hosts(Mutex<BTreeMap<String, SocketAddr>>);

impl Hosts {
    fn lead_to(&self, node: &Node) {
        self.0.lock().unwrap().insert(format!("node-{}.test", node.id), node.addr());
    }
}

impl Resolve for Hosts {
    fn resolve(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        let known = self.0.lock().unwrap().get(host).copied();
        known.map(|addr| vec![addr]).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not known yet"))
    }
}

fn named(id: NodeId) -> Address {
    format!("node-{id}.test:4400").parse().unwrap()
}

fn names(node: &Node) -> Vec<String> {
    node.consensus.status().members.iter().map(|member| member.addr.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_found_by_names_that_are_kept_and_looked_up_again() {
    let hosts = Arc::new(Hosts::default());
    let config = RaftConfig { bootstrap_timeout: Duration::from_secs(1), ..RaftConfig::default() };
    let mut cluster = Cluster::new(config);
    cluster.resolver = Some(Arc::<Hosts>::clone(&hosts));
    let members: BTreeMap<NodeId, Address> = (1..=3).map(|id| (id, named(id))).collect();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(cluster.start(id).await);
    }
    hosts.lead_to(&nodes[0]);
    hosts.lead_to(&nodes[1]);
    let error = nodes[0].consensus.bootstrap(members.clone()).await.unwrap_err();
    let BootstrapError::Unreachable { missing, .. } = &error else { panic!("{error}") };
    assert!(missing.iter().any(|m| m.addr == named(3) && m.reason.contains("not known yet")), "{error}");
    assert!(
        error.to_string().contains("node 3 at node-3.test:4400 (node-3.test:4400 cannot be found"),
        "{error}"
    );
    // Addresses are given to others: one who has another's for a while is waited for, too.
    hosts.0.lock().unwrap().insert("node-3.test".to_owned(), nodes[1].addr());
    // A name that was not found is left alone for up to two seconds.
    let mut told = Vec::new();
    while told.len() < 20 && !told.last().is_some_and(|last: &String| last.contains("node 2 answers there")) {
        told.push(nodes[0].consensus.bootstrap(members.clone()).await.unwrap_err().to_string());
    }
    assert!(told.len() < 20, "{told:?}");

    hosts.lead_to(&nodes[2]);
    let forming = nodes.iter().map(|node| async {
        loop {
            match node.consensus.bootstrap(members.clone()).await {
                Ok(()) => return,
                Err(BootstrapError::Unreachable { .. } | BootstrapError::NotFormed { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
    });
    futures_util::future::join_all(forming).await;
    let at = leader(&nodes).await;
    nodes[at].put("before", "1").await.unwrap();

    // A follower is moved: the same name, another address.
    let moved = (at + 1) % 3;
    let id = nodes[moved].id;
    nodes.remove(moved).stop().await;
    let at = leader(&nodes).await;
    nodes[at].put("meanwhile", "2").await.unwrap();
    cluster.move_away(id);
    let former = hosts.0.lock().unwrap()[&format!("node-{id}.test")];
    let back = cluster.start(id).await;
    assert_ne!(back.addr(), former);
    hosts.lead_to(&back);
    assert_eq!(names(&back), ["node-1.test:4400", "node-2.test:4400", "node-3.test:4400"]);
    assert_eq!(back.get("meanwhile").await.as_deref(), Some("2"));

    // And one is added by its name, which does not lead there at first.
    let fourth = cluster.start(4).await;
    let refused = nodes[at].consensus.add_learner(4, named(4)).await.unwrap_err();
    assert!(refused.to_string().contains("node-4.test:4400 cannot be found"), "{refused}");
    hosts.lead_to(&fourth);
    nodes[0].consensus.add_learner(4, named(4)).await.unwrap();
    eventually("the learner knows itself", || names(&fourth).len() == 4).await;
    assert_eq!(names(&fourth)[3], "node-4.test:4400");
    assert_eq!(fourth.get("before").await.as_deref(), Some("1"));
}
