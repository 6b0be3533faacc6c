//! One directory to many peers.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use octopii_transfer::{FailureCode, Offer, Refusal, TransferError, TransferOptions, TreeOptions};
use octopii_transport::{Endpoint, StreamKind};
use octopii_vfs::RealVfs;

use super::hand::{Hand, READY, verdicts};
use super::{counts, picture, put};
use crate::compressed::text;
use crate::nodes::{Node, content, endpoint, names, quick};
use crate::raw::{ACCEPT, Raw, accept_body, message, read_offer};

const MIB: usize = 1 << 20;

fn to(peers: &[SocketAddr]) -> Vec<(SocketAddr, TreeOptions)> {
    peers.iter().map(|peer| (*peer, TreeOptions::new("tree"))).collect()
}

/// What left `a` for these peers so far, as the network counts it.
async fn uploaded(a: &Node, addrs: &[SocketAddr]) -> u64 {
    let mut sent = 0;
    for addr in addrs {
        sent += a.endpoint.connect(*addr).await.unwrap().stats().bytes_sent;
    }
    sent
}

/// Small files, and some that are larger than a pack; their number and bytes.
fn plant(a: &Node) -> (u64, u64) {
    let mut bytes = 0;
    let mut add = |path: String, len: usize| {
        put(&a.tree(), &path, &content(len));
        bytes += len as u64;
    };
    for n in 0..300 {
        add(format!("small/{}/{n}", n % 7), 25_000 + 37 * n);
    }
    add("d/medium".to_owned(), 2 * MIB);
    add("d/large".to_owned(), 9 * MIB + 5);
    (302, bytes)
}

/// To each by itself it would be four times as much.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_uploaded_about_once() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..6).map(Node::new).collect();
    peers.iter().for_each(|peer| drop(peer.open_trees(|inbox| inbox)));
    let (files, bytes) = plant(&a);
    let addrs: Vec<_> = peers.iter().map(Node::addr).collect();
    let before = uploaded(&a, &addrs).await;
    let mut travelled = 0;
    for result in a.transfer.send_tree_to_all(a.tree(), to(&addrs)).await {
        let report = result.unwrap();
        assert_eq!((counts(&report), report.stored_bytes), ((files, 0, 10, 0), bytes));
        travelled += report.travelled;
    }
    let sent = uploaded(&a, &addrs).await - before;
    for peer in &peers {
        assert_eq!(picture(&peer.inbox().join("tree")), picture(&a.tree()));
        assert_eq!(hidden(peer), ["lock", "owner"]);
    }
    assert!(sent * 10 <= bytes * 11, "{bytes} bytes, {sent} were sent");
    assert!(travelled >= bytes && travelled * 100 <= bytes * 103, "{bytes} bytes, {travelled} travelled");
    // Only what has changed, to whom it has: some of them have lost files, and not the same ones.
    for (peer, lost) in
        [(1, "d/large"), (1, "small/3"), (1, "small/4"), (2, "small/3"), (2, "small/4"), (3, "small/4")]
    {
        let lost = peers[peer].inbox().join("tree").join(lost);
        if lost.is_dir() { fs::remove_dir_all(lost).unwrap() } else { fs::remove_file(lost).unwrap() }
    }
    let results = a.transfer.send_tree_to_all(a.tree(), to(&addrs)).await;
    let reports: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(reports.iter().map(|report| report.stored).collect::<Vec<_>>(), [0, 1 + 86, 86, 43]);
    let (lost, travelled) =
        (reports[1].stored_bytes, reports.iter().map(|report| report.travelled).sum::<u64>());
    assert!(travelled < lost + lost / 20, "{lost} lost by the one, {travelled} travelled");
    for peer in &peers {
        assert_eq!(picture(&peer.inbox().join("tree")), picture(&a.tree()));
    }
}

/// One of those that hand on what they receive is gone in the middle of it. On a machine that is busy with something else peers
/// are taken for dead, and what they lack is uploaded again: then it is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_dies_costs_the_others_nothing() {
    for _ in 0..3 {
        let (bytes, sent) = lose_one().await;
        if sent * 10 <= bytes * 11 {
            return;
        }
    }
    panic!("three times more was uploaded than 1.1 times the files");
}

/// Bytes of the files, and what was uploaded.
async fn lose_one() -> (u64, u64) {
    let a = Node::new(1);
    let peers: Vec<_> = (2..7).map(Node::new).collect();
    peers.iter().for_each(|peer| drop(peer.open_trees(|inbox| inbox)));
    let (files, bytes) = plant(&a);
    let addrs: Vec<_> = peers.iter().map(Node::addr).collect();
    let mut connections = Vec::new();
    for addr in &addrs {
        connections.push(a.endpoint.connect(*addr).await.unwrap());
    }
    let sent = || connections.iter().map(|connection| connection.stats().bytes_sent).sum::<u64>();
    let slowly = |addr: &SocketAddr| {
        let rate_limit = NonZeroU64::new(8 * MIB as u64);
        (*addr, TreeOptions { rate_limit, ..TreeOptions::new("tree") })
    };
    let sending = a.transfer.send_tree_to_all(a.tree(), addrs.iter().map(slowly).collect());
    let killing = async {
        // Content is on its way, and has a second to go.
        while sent() < 3 * MIB as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        peers[1].endpoint.close(Duration::ZERO).await;
    };
    let (results, ()) = tokio::join!(sending, killing);
    for (n, result) in results.into_iter().enumerate() {
        if n == 1 {
            let error = result.unwrap_err();
            assert!(matches!(error, TransferError::Lost(_) | TransferError::Connect(_)), "{error}");
            continue;
        }
        assert_eq!(counts(&result.unwrap()), (files, 0, 10, 0));
        assert_eq!(picture(&peers[n].inbox().join("tree")), picture(&a.tree()));
        assert_eq!(hidden(&peers[n]), ["lock", "owner"]);
    }
    (bytes, sent())
}

/// Packs come compressed if everybody takes them so.
#[tokio::test(flavor = "multi_thread")]
async fn packs_for_many_are_compressed() {
    let a = Node::new(1);
    let all = |decompress: &'static [bool]| {
        let with = |(id, decompress): (u64, &bool)| {
            let options = TransferOptions { decompress: *decompress, ..quick() };
            let node = Node::with(id, RealVfs::shared(), options);
            drop(node.open_trees(|inbox| inbox));
            node
        };
        (2..).zip(decompress).map(with).collect::<Vec<_>>()
    };
    let text = text(100 * 50_000);
    for (n, text) in text.chunks(50_000).enumerate() {
        put(&a.tree(), &n.to_string(), text);
    }
    for (decompress, smaller) in [(&[true, true, true][..], true), (&[true, false, true], false)] {
        let peers = all(decompress);
        let addrs: Vec<_> = peers.iter().map(Node::addr).collect();
        let mut peers_and_options = to(&addrs);
        peers_and_options.iter_mut().for_each(|(_, options)| options.compress = Some(3));
        let results = a.transfer.send_tree_to_all(a.tree(), peers_and_options).await;
        let travelled: u64 = results.into_iter().map(|result| result.unwrap().travelled).sum();
        peers.iter().for_each(|peer| assert_eq!(picture(&peer.inbox().join("tree")), picture(&a.tree())));
        let bytes = text.len() as u64;
        assert_eq!(travelled < bytes / 2, smaller, "{travelled}");
        assert!(travelled < bytes + bytes / 50, "{travelled}");
    }
}

/// A receiver that wants all of 100 small files, takes the chunk it is offered, tells again and again how far it has got, and gets no
/// further; until they came to it directly.
async fn crawl(crawler: &Endpoint) {
    let (mut chunks, mut trees) =
        (crawler.acceptor(StreamKind::Transfer).unwrap(), crawler.acceptor(StreamKind::Tree).unwrap());
    let direct = async {
        let mut hand = Hand::accept(&mut trees).await;
        hand.read().await;
        hand.write(&message(READY, b"\0\x04tree")).await;
        assert_eq!(hand.read().await.0, 4);
        hand.write(&verdicts(0, &[2; 101])).await;
        let mut files = 0;
        while files < 100 {
            let (tag, body) = hand.read().await;
            match tag {
                6 => files += u16::from_le_bytes([body[0], body[1]]),
                // The manifest ends.
                8 => {}
                other => panic!("{other}"),
            }
        }
    };
    let crawling = async {
        let mut raw = Raw::accept(&mut chunks).await;
        read_offer(&mut raw).await;
        raw.write(&message(ACCEPT, &accept_body(0, b""))).await;
        loop {
            raw.write(&message(6, &[0; 8])).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = direct => {}
        () = crawling => {}
    }
}

/// Whoever does not take packs so gets what is small directly, be it that it refuses them or that it is behind the others; also
/// if nobody else takes them.
#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_share_is_sent_to_directly() {
    let a = Node::new(1);
    for n in 0..100 {
        put(&a.tree(), &n.to_string(), &content(50_000 + n));
    }
    for refusing in [&[1][..], &[0, 1, 2]] {
        let peers: Vec<_> = (2..5).map(Node::new).collect();
        peers.iter().for_each(|peer| drop(peer.open_trees(|inbox| inbox)));
        for peer in refusing {
            let refuse = |_: &Offer| Err(Refusal::new(FailureCode::StorageFull, "no room for that"));
            peers[*peer].transfer.receive("octopii.packs", refuse);
        }
        let crawler = endpoint(9);
        let addrs: Vec<_> = peers.iter().map(Node::addr).chain([crawler.local_addr()]).collect();
        let mut to = to(&addrs);
        // What they share may idle as long as the least patient of them allows.
        to.iter_mut().for_each(|(_, options)| options.idle_timeout = Duration::from_secs(5));
        to[3].1.idle_timeout = Duration::from_secs(60);
        let (results, ()) = tokio::join!(a.transfer.send_tree_to_all(a.tree(), to), crawl(&crawler));
        for (peer, result) in peers.iter().zip(&results) {
            assert_eq!(counts(result.as_ref().unwrap()), (100, 0, 1, 0));
            assert_eq!(picture(&peer.inbox().join("tree")), picture(&a.tree()));
        }
        assert!(results[3].is_err());
        let travelled: Vec<_> = results.iter().flatten().map(|report| report.travelled).collect();
        assert!(refusing.iter().all(|peer| travelled[*peer] >= 5_000_000), "{travelled:?}");
        if refusing.len() == 1 {
            // Once for all others.
            assert!(travelled.iter().sum::<u64>() < 11_000_000, "{travelled:?}");
        }
    }
}

/// What is left beside the trees.
fn hidden(node: &Node) -> Vec<String> {
    let dir = node.inbox().join(".octopii-trees");
    names(&dir).iter().flat_map(|tree| names(&dir.join(tree))).collect()
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
