//! Packs that come in a chunk of their own, spoken by hand.

use std::fs;

use octopii_transfer::{ChunkSource, Digest, FailureCode, Receipt, SendOptions, TransferError, TransferId};

use super::hand::{Hand, content, content_with, end, file, given_up, large_meta, packs, unpack};
use crate::compressed::frame;
use crate::nodes::{Node, names};
use crate::raw::message;

const MIB: usize = 1 << 20;

fn nodes() -> (Node, Node) {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    (a, b)
}

/// A chunk of packs of tree 7, or of another one.
async fn ship(a: &Node, b: &Node, tree: u128, number: u64, chunk: Vec<u8>) -> Result<Receipt, TransferError> {
    let meta = large_meta(TransferId(tree), number);
    let options = SendOptions { meta, resume: false, ..SendOptions::new("octopii.packs") };
    a.transfer.send(b.addr(), &ChunkSource::Memory(chunk.into()), options).await
}

fn refused(result: Result<Receipt, TransferError>) -> FailureCode {
    match result.unwrap_err() {
        TransferError::Refused { refusal, .. } => refusal.code,
        other => panic!("{other}"),
    }
}

/// In the directory beside the tree of this name, beside what is always there.
fn beside(b: &Node) -> Vec<String> {
    let dir = b.inbox().join(".octopii-trees");
    let mut all: Vec<_> = names(&dir).iter().flat_map(|tree| names(&dir.join(tree))).collect();
    all.retain(|name| name != "lock" && name != "owner");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_are_opened_as_they_are_told() {
    let (a, b) = nodes();
    let (mut hand, _) = Hand::open_with(&a, &b, 8, 7, "tree").await;
    let told = [file(b"a", 3), file(b"b", 3), file(b"c", 1000), file(b"d", 3), file(b"e", 3), end()];
    hand.page(&told).await;
    // The second pack is compressed; of the third nobody here wants anything.
    let first = packs(&[content(0, b"one"), content(1, b"not"), content(2, b"two")]);
    let zeroes = [&1u16.to_le_bytes()[..], &content(0, &[0; 1000])].concat();
    let second = message(13, &[&(zeroes.len() as u32).to_le_bytes()[..], &frame(&zeroes)].concat());
    let chunk = [&first[..], &second, &packs(&[content(0, b"other")])].concat();
    ship(&a, &b, 7, 5, chunk.clone()).await.unwrap();
    let wrong = packs(&[content_with(0, b"bad", Digest::of(b"good")), given_up(1)]);
    ship(&a, &b, 7, 6, wrong).await.unwrap();
    assert_eq!(beside(&b).len(), 2);
    // No more until they have been opened, and none twice.
    for number in [5, 6, 7] {
        assert_eq!(refused(ship(&a, &b, 7, number, chunk.clone()).await), FailureCode::Busy);
    }
    hand.write(&unpack(5, 0, false, &[0, u64::MAX, 1])).await;
    hand.write(&unpack(5, first.len() as u64, true, &[2])).await;
    hand.write(&unpack(6, 0, true, &[3, 4])).await;
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [3, 1006, 0, 1, 2]);
    assert_eq!(names(&b.inbox().join("tree")), ["a", "b", "c"]);
    assert_eq!(fs::read(b.inbox().join("tree/b")).unwrap(), b"two");
    assert_eq!(fs::read(b.inbox().join("tree/c")).unwrap(), [0; 1000]);
    assert!(beside(&b).is_empty(), "{:?}", beside(&b));
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_nobody_waits_for_are_refused() {
    let (a, b) = nodes();
    let c = Node::new(3);
    let chunk = packs(&[content(0, b"one")]);
    let rejected = FailureCode::Rejected;
    assert_eq!(refused(ship(&a, &b, 7, 1, chunk.clone()).await), rejected, "no tree");
    let mut hand = Hand::open(&a, &b).await;
    assert_eq!(refused(ship(&a, &b, 7, 1, chunk.clone()).await), rejected, "nothing was asked for");
    hand.page(&[file(b"a", 3), file(b"b", 3)]).await;
    assert_eq!(refused(ship(&c, &b, 7, 1, chunk.clone()).await), rejected, "of somebody else");
    assert_eq!(refused(ship(&a, &b, 8, 1, chunk.clone()).await), rejected, "of another tree");
    assert_eq!(refused(ship(&a, &b, 7, 1, vec![0; 32 * MIB + 1]).await), FailureCode::TooLarge);
    let endless = SendOptions { meta: large_meta(TransferId(7), 1), ..SendOptions::new("octopii.packs") };
    let stream = a.transfer.send_stream(b.addr(), std::io::Cursor::new(chunk.clone()), endless);
    assert_eq!(refused(stream.await), FailureCode::TooLarge, "of unknown length");
    // What is there when the tree ends goes with it, opened or not.
    ship(&a, &b, 7, 1, chunk.clone()).await.unwrap();
    ship(&a, &b, 7, 2, chunk).await.unwrap();
    hand.write(&unpack(2, 0, false, &[1])).await;
    hand.pack(&[content(0, b"one")]).await;
    hand.page(&[end()]).await;
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [2, 6, 0, 1, 0]);
    assert!(beside(&b).is_empty(), "{:?}", beside(&b));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_chunk_ends_the_tree() {
    let (a, b) = nodes();
    let one = packs(&[content(0, b"one")]);
    let len = one.len() as u64;
    let zeroes = [&1u16.to_le_bytes()[..], &content(0, &[0; 1000])].concat();
    let compressed = message(13, &[&(zeroes.len() as u32).to_le_bytes()[..], &frame(&zeroes)].concat());
    let cut = one[..one.len() - 1].to_vec();
    let lies = [&[6][..], &1_000_000u32.to_le_bytes(), &[0; 100]].concat();
    let cases: [(&str, Vec<u8>, Vec<u8>); 14] = [
        ("another chunk", one.clone(), unpack(2, 0, true, &[0])),
        ("a chunk that is gone", one.clone(), [unpack(1, 0, true, &[0]), unpack(1, 0, true, &[1])].concat()),
        ("too few", one.clone(), unpack(1, 0, true, &[0, 1])),
        ("too many", packs(&[content(0, b"one"), content(1, b"two")]), unpack(1, 0, true, &[0])),
        ("behind the end", one.clone(), unpack(1, len, true, &[0])),
        ("far behind the end", one.clone(), unpack(1, u64::MAX, true, &[0])),
        ("near the end", one.clone(), unpack(1, len - 4, true, &[0])),
        ("in the middle", one.clone(), unpack(1, 7, true, &[0])),
        ("cut off", cut, unpack(1, 0, true, &[0])),
        ("a lie about its length", lies, unpack(1, 0, true, &[0])),
        ("something else", message(4, &[0; 100]), unpack(1, 0, true, &[0])),
        ("compressed, and not agreed on", compressed, unpack(1, 0, true, &[0])),
        ("not asked for", one.clone(), unpack(1, 0, true, &[2])),
        ("one file twice", packs(&[content(0, b"one"), content(1, b"one")]), unpack(1, 0, true, &[0, 0])),
    ];
    for (id, (what, chunk, message)) in (100..).zip(cases) {
        let mut hand = Hand::open_as(&a, &b, id, &id.to_string()).await;
        hand.page(&[file(b"a", 3), file(b"b", 3), end()]).await;
        ship(&a, &b, id, 1, chunk).await.unwrap();
        hand.write(&message).await;
        hand.expect_fail(7).await;
        let left = names(&b.inbox().join(id.to_string()));
        assert!(left.is_empty() || left == ["a"], "{what}: {left:?}");
        assert!(beside(&b).is_empty(), "{what}");
    }
    for bad in [vec![0; 18], unpack(1, 0, true, &[0])[5..31].to_vec(), [&[0; 16][..], &[2, 0, 0]].concat()] {
        let mut hand = Hand::open(&a, &b).await;
        hand.write(&message(14, &bad)).await;
        hand.expect_fail(7).await;
    }
}
