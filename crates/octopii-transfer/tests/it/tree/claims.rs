//! Receivers that claim at the end what is not so.

use std::os::unix::fs::symlink;

use octopii_transfer::{TransferError, TreeOptions, TreeReport};
use octopii_transport::StreamKind;

use super::hand::{Hand, READY, results, verdicts};
use super::put;
use crate::nodes::{Node, endpoint};
use crate::raw::message;

/// Sends to a receiver that has everything already (or says what `answer` says), and then says `more` and that this much was done.
async fn sent(
    a: &Node,
    delete: bool,
    answer: &[u8],
    more: Vec<u8>,
    counts: [u64; 6],
) -> Result<TreeReport, TransferError> {
    let b = endpoint(2);
    let mut acceptor = b.acceptor(StreamKind::Tree).unwrap();
    let answering = async {
        let mut hand = Hand::accept(&mut acceptor).await;
        hand.read().await;
        hand.write(&message(READY, b"\0\x04tree")).await;
        // The page and the end.
        hand.read().await;
        let (_, told) = hand.read().await;
        hand.write(answer).await;
        hand.write(&results(&[1])).await;
        hand.write(&more).await;
        let counts: Vec<u8> = counts.iter().flat_map(|n| n.to_le_bytes()).collect();
        hand.write(&message(9, &[&counts[..], &told[8..40]].concat())).await;
        hand
    };
    let options = TreeOptions { delete, ..TreeOptions::new("tree") };
    let sending = a.transfer.send_tree(b.local_addr(), a.tree(), options);
    let (sent, _hand) = tokio::join!(sending, answering);
    sent
}

fn is_found_out(sent: Result<TreeReport, TransferError>) -> bool {
    matches!(sent, Err(TransferError::Protocol(_)))
}

/// A path, and 0 for removed or 1 and an input/output error.
fn removed(path: &[u8], outcome: &[u8]) -> Vec<u8> {
    message(12, &[&[1, 0][..], &(path.len() as u16).to_le_bytes(), path, outcome].concat())
}

/// What the sender left out is missing at the receiver, whatever that says.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_cannot_hide_what_was_left_out() {
    let a = Node::new(1);
    symlink("elsewhere", a.tree().join("l")).unwrap();
    for answer in [verdicts(0, &[0, 2]), verdicts(0, &[1, 2]), verdicts(0, &[2, 2])] {
        // Done with everything: nothing was left out.
        let sent = sent(&a, false, &answer, Vec::new(), [0, 0, 0, 1, 0, 0]).await;
        assert!(is_found_out(sent), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_cannot_count_otherwise() {
    let a = Node::new(1);
    put(&a.tree(), "f", b"abc");
    let (there, right) = (verdicts(0, &[1, 2]), [0, 0, 1, 1, 0, 1]);
    let gone = || removed(b"x/y", &[0]);
    let report = sent(&a, true, &there, gone(), right).await.unwrap();
    assert_eq!((report.unchanged, report.removed, report.not_done), (1, 1, 0));
    for at in 0..right.len() {
        let mut wrong = right;
        wrong[at] += 1;
        assert!(is_found_out(sent(&a, true, &there, gone(), wrong).await), "{wrong:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_removes_what_it_may_when_it_may_and_says_so_in_plain_paths() {
    let a = Node::new(1);
    put(&a.tree(), "f", b"abc");
    let there = verdicts(0, &[1, 2]);
    // Nothing was to be removed.
    assert!(is_found_out(sent(&a, false, &there, removed(b"x", &[0]), [0, 0, 1, 1, 0, 1]).await));
    // Not yet.
    let early = [removed(b"x", &[0]), there.clone()].concat();
    assert!(is_found_out(sent(&a, true, &early, Vec::new(), [0, 0, 1, 1, 0, 1]).await));
    // Of the tree's own directory, what happened to it.
    let report = sent(&a, true, &there, removed(b"", &[1, 5, 0, 0]), [0, 0, 1, 1, 1, 0]).await.unwrap();
    assert_eq!(report.undone.len(), 1);
    assert!(is_found_out(sent(&a, true, &there, removed(b"", &[0]), [0, 0, 1, 1, 0, 1]).await));
    let hostile: [&[u8]; 10] =
        [b"/etc", b"..", b"../x", b"x/../y", b"x/..", b"./x", b"x//y", b"x/", b"a\0b", b"/"];
    for path in hostile {
        let sent = sent(&a, true, &there, removed(path, &[0]), [0, 0, 1, 1, 0, 1]).await;
        assert!(is_found_out(sent), "{path:?}");
    }
}
