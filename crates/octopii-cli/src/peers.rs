//! Whom to send to: as it was typed, and where that is now.

use std::net::SocketAddr;

use octopii::{Address, ConnectError, OctopiiNode};

/// One that was found.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// As it was typed, or as the members' list has it.
    pub(crate) name: Address,
    /// Where it is. A host name leads to whoever answers at one of its addresses first.
    pub(crate) addr: SocketAddr,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    pub(crate) found: Vec<Peer>,
    /// Names that lead nowhere, or to nobody who answers.
    pub(crate) missing: Vec<(Address, ConnectError)>,
}

/// Finds all of them at once, each in the time of a dial; IP addresses are taken as they are.
pub(crate) async fn find(node: &OctopiiNode, names: &[Address]) -> Peers {
    let mut looking = tokio::task::JoinSet::new();
    for (at, name) in names.iter().cloned().enumerate() {
        let node = node.clone();
        looking.spawn(async move {
            let found = match name.ip() {
                Some(addr) => Ok(addr),
                None => node.connect(&name).await.map(|peer| peer.addr()),
            };
            (at, name, found)
        });
    }
    let mut all = looking.join_all().await;
    all.sort_by_key(|(at, ..)| *at);
    let mut peers = Peers::default();
    for (_, name, found) in all {
        match found {
            Ok(addr) => peers.found.push(Peer { name, addr }),
            Err(e) => peers.missing.push((name, e)),
        }
    }
    peers
}
