//! One directory to many peers.

use std::fs;
use std::net::SocketAddr;

use octopii_transfer::{TransferError, TreeOptions};

use super::{counts, picture, put};
use crate::nodes::{Node, content};

const MIB: usize = 1 << 20;

fn to(peers: &[SocketAddr]) -> Vec<(SocketAddr, TreeOptions)> {
    peers.iter().map(|peer| (*peer, TreeOptions::new("tree"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_are_uploaded_about_once() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..6).map(Node::new).collect();
    peers.iter().for_each(|peer| drop(peer.open_trees(|inbox| inbox)));
    put(&a.tree(), "d/large", &content(12 * MIB));
    put(&a.tree(), "d/larger", &content(14 * MIB + 5));
    for n in 0..30 {
        put(&a.tree(), &format!("small/{n}"), &content(n * 100));
    }
    let addrs: Vec<_> = peers.iter().map(Node::addr).collect();
    for result in a.transfer.send_tree_to_all(a.tree(), to(&addrs)).await {
        assert_eq!(counts(&result.unwrap()), (32, 0, 3, 0));
    }
    let mut sent = 0;
    for (peer, addr) in peers.iter().zip(&addrs) {
        assert_eq!(picture(&peer.inbox().join("tree")), picture(&a.tree()));
        sent += a.endpoint.connect(*addr).await.unwrap().stats().bytes_sent;
    }
    // To each by itself it would be four times as much. A peer that asks late, on a loaded machine, is sent to by itself.
    assert!(sent < 3 * 26 * MIB as u64, "{sent} bytes were sent");
    // Only what has changed, to whom it has: one of them has lost a file.
    fs::remove_file(peers[1].inbox().join("tree/d/large")).unwrap();
    let results = a.transfer.send_tree_to_all(a.tree(), to(&addrs)).await;
    let stored: Vec<_> = results.into_iter().map(|result| result.unwrap().stored).collect();
    assert_eq!(stored, [0, 1, 0, 0]);
}

/// A peer that is not there, one that takes nothing, and one that is named twice do not keep the others from anything.
#[tokio::test(flavor = "multi_thread")]
async fn each_peer_has_its_own_result() {
    let (a, b, closed) = (Node::new(1), Node::new(2), Node::new(3));
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "large", &content(9 * MIB));
    let gone = Node::new(4).addr();
    let addrs = [closed.addr(), b.addr(), gone, b.addr()];
    let mut peers = to(&addrs);
    peers.iter_mut().for_each(|(_, options)| options.retries = 20);
    let results = a.transfer.send_tree_to_all(a.tree(), peers).await;
    assert!(matches!(&results[0], Err(TransferError::Refused { .. })), "{results:?}");
    assert!(matches!(&results[2], Err(TransferError::Connect(_))), "{results:?}");
    let of_b: Vec<_> = [1, 3].map(|at| counts(results[at].as_ref().unwrap())).to_vec();
    assert!(of_b.contains(&(1, 0, 1, 0)) && of_b.contains(&(0, 1, 1, 0)), "{results:?}");
    assert_eq!(picture(&b.inbox().join("tree")), picture(&a.tree()));
}
