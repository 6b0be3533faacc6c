//! Files with holes arrive with holes: what is not there does not travel, and is not stored.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use octopii_transfer::{
    ChunkSource, Destination, Digest, Distribution, FailureCode, Location, Receipt, SendOptions, Topology,
    TransferError, TransferOptions,
};
use octopii_transport::StreamKind;
use octopii_vfs::{OpenMode, RealVfs, Vfs};
use sha2::{Digest as _, Sha256};

use crate::compressed::text;
use crate::nodes::{BLOCK, Node, content, endpoint, eventually, names, quick, read};
use crate::raw::{
    ACCEPT, ACK, AGAIN, FAIL, REFUSE, Raw, accept_body, data, done, message, opening, read_offer, repair,
};
use crate::recording::{Op, RecordingVfs};
use crate::resume::Scene;

const SPARSE: u8 = 19;
const PAGE: usize = 4096;
const WAIT: Duration = Duration::from_secs(15);
/// What a file system may need to say where the rest is.
const SLACK: u64 = 64 << 10;

/// Where there is content, and what.
type Stretches<'a> = Vec<(usize, &'a [u8])>;

/// A file of `len` bytes with these stretches of content.
fn sparse(node: &Node, name: &str, len: usize, stretches: &[(usize, &[u8])]) -> PathBuf {
    let path = node.dir.path().join(name);
    let file = RealVfs.open(&path, OpenMode::CreateNew).unwrap();
    file.set_len(len as u64).unwrap();
    stretches.iter().for_each(|(at, content)| file.write_all_at(content, *at as u64).unwrap());
    file.sync_data().unwrap();
    assert!(taken(&path) < len as u64 || len < PAGE, "the file system of {} has no holes", path.display());
    path
}

async fn send(from: &Node, to: &Node, path: &Path) -> Result<Receipt, TransferError> {
    send_to(from, to.addr(), path).await
}

async fn send_to(from: &Node, to: SocketAddr, path: &Path) -> Result<Receipt, TransferError> {
    let source = ChunkSource::File(path.to_owned());
    from.transfer.send(to, &source, SendOptions::new("file")).await
}

/// Bytes of disk in use.
fn taken(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Bytes of the pages that are not all zeroes.
fn in_pages(content: &[u8]) -> u64 {
    content.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0)).map(|page| page.len() as u64).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_travel_and_arrive_as_holes() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let some = content(3 * BLOCK);
    let cases: [(&str, usize, Stretches<'_>); 10] = [
        ("nothing but a hole", 6 * BLOCK, vec![]),
        ("nothing but a short one", 100_000, vec![]),
        ("at the beginning", 6 * BLOCK, vec![(5 * BLOCK, &some[..BLOCK])]),
        ("at the end", 6 * BLOCK, vec![(0, &some[..BLOCK])]),
        ("at an end that is no page", 6 * BLOCK + 77, vec![(0, &some[..100])]),
        ("in the middle", 6 * BLOCK, vec![(0, &some[..BLOCK]), (5 * BLOCK, &some[..BLOCK])]),
        ("smaller than a block", 2 * BLOCK, vec![(0, &some[..BLOCK / 2]), (BLOCK, &some[..BLOCK])]),
        ("in pieces of blocks", 6 * BLOCK + 5, vec![(BLOCK / 2 + 9, &some[..]), (6 * BLOCK, b"end")]),
        ("around bytes", 6 * BLOCK, vec![(PAGE - 1, b"xy"), (3 * BLOCK - 1, b"xy"), (5 * BLOCK, b"z")]),
        ("everywhere", 2 * BLOCK, (0..2 * BLOCK).step_by(2 * PAGE).map(|at| (at, &some[..PAGE])).collect()),
    ];
    for (name, len, stretches) in cases {
        let source = sparse(&a, name, len, &stretches);
        let whole = read(&source);
        let receipt = send(&a, &b, &source).await.unwrap();
        assert_eq!((receipt.bytes, receipt.digest), (len as u64, Digest::of(&whole)), "{name}");
        assert_eq!(receipt.travelled, in_pages(&whole), "{name}");
        let stored = b.inbox().join(name);
        assert!(read(&stored) == whole, "{name}");
        assert!(
            taken(&stored) <= taken(&source) + SLACK,
            "{name}: {} for {}",
            taken(&stored),
            taken(&source)
        );
    }
}

/// Whoever watches is not called for every piece.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_many_pieces_is_told_of_by_the_block() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let page = content(PAGE);
    let stretches: Stretches<'_> = (0..8 * BLOCK).step_by(2 * PAGE).map(|at| (at, &page[..])).collect();
    let source = sparse(&a, "f", 8 * BLOCK, &stretches);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let progress = Arc::new(move |_: octopii_transfer::Progress| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let options = SendOptions { progress: Some(progress), ..SendOptions::new("file") };
    let receipt = a.transfer.send(b.addr(), &ChunkSource::File(source), options).await.unwrap();
    assert_eq!(receipt.travelled, 4 * BLOCK as u64);
    let calls = calls.load(Ordering::Relaxed);
    assert!(calls < stretches.len() / 4, "{calls} calls for {} pieces", stretches.len());
}

/// Zeroes that somebody has written have a place on the disk, and keep it.
#[tokio::test(flavor = "multi_thread")]
async fn zeroes_that_are_no_holes_travel_as_holes_and_are_stored() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let whole = [content(BLOCK), vec![0; 3 * BLOCK], content(9)].concat();
    let options = |name: &str| SendOptions { name: Some(name.into()), ..SendOptions::new("file") };
    let file = ChunkSource::File(a.source("source", &whole));
    let receipt = a.transfer.send(b.addr(), &file, options("file")).await.unwrap();
    assert_eq!((receipt.digest, receipt.travelled), (Digest::of(&whole), in_pages(&whole)));
    let memory = ChunkSource::Memory(whole.clone().into());
    let receipt = a.transfer.send(b.addr(), &memory, options("memory")).await.unwrap();
    assert_eq!((receipt.digest, receipt.travelled), (Digest::of(&whole), in_pages(&whole)));
    let stream = a.transfer.send_stream(b.addr(), std::io::Cursor::new(whole.clone()), options("stream"));
    let receipt = stream.await.unwrap();
    assert_eq!(receipt.digest, Digest::of(&whole));
    assert!(receipt.travelled < 2 * BLOCK as u64, "{}", receipt.travelled);
    for name in ["file", "memory", "stream"] {
        assert!(read(&b.inbox().join(name)) == whole, "{name}");
        assert!(taken(&b.inbox().join(name)) >= whole.len() as u64, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory_a_hole_is_zeroes() {
    let (a, b) = (Node::new(1), Node::new(2));
    let events = b.receive_into("file", Destination::Memory { limit: 64 << 20 });
    let source = sparse(&a, "f", 5 * BLOCK + 1, &[(BLOCK + 1, b"here"), (3 * BLOCK, &content(BLOCK))]);
    let receipt = send(&a, &b, &source).await.unwrap();
    assert_eq!(receipt.travelled, (PAGE + BLOCK) as u64);
    let chunk = events.recv_timeout(WAIT).unwrap().received();
    assert!(matches!(chunk.location, Location::Memory(bytes) if bytes == read(&source)));
    // Holes cost memory, and count.
    let large = sparse(&a, "large", 65 << 20, &[]);
    let error = send(&a, &b, &large).await;
    assert!(
        matches!(&error, Err(TransferError::Refused { refusal, .. }) if refusal.code == FailureCode::TooLarge),
        "{error:?}"
    );
}

/// Much longer than what is sent and stored of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_of_little_content_is_a_small_transfer() {
    const LEN: usize = 1 << 30;
    let (disk, other) = (RecordingVfs::default(), RecordingVfs::default());
    let (a, b) = (Node::with(1, disk.shared(), quick()), Node::with(2, other.shared(), quick()));
    let _arrived = b.open_inbox();
    let some = content(BLOCK + 9);
    let source = sparse(&a, "f", LEN, &[(LEN / 3, &some), (LEN - 100, &some[..100])]);
    // A read of the hole would bring something else.
    disk.rot(LEN as u64 / 2, 0, usize::MAX);
    let receipt = send(&a, &b, &source).await.unwrap();
    assert_eq!((receipt.bytes, disk.lies()), (LEN as u64, 0), "holes are not read");
    let bytes_sent = a.endpoint.connect(b.addr()).await.unwrap().stats().bytes_sent;
    assert!(bytes_sent < 2 * BLOCK as u64, "{bytes_sent} bytes of packets");
    let stored = b.inbox().join("f");
    assert_eq!(std::fs::metadata(&stored).unwrap().len(), LEN as u64);
    assert!(taken(&stored) < 2 * BLOCK as u64, "{}", taken(&stored));
    // A receiver that is killed has kept all but the latest part, and a long hole does not wait for a sync every few milliseconds.
    let syncs = other.record().iter().filter(|op| **op == Op::SyncData).count();
    assert!((4..40).contains(&syncs), "{syncs}");
    let file = RealVfs.open(&stored, OpenMode::Read).unwrap();
    for (at, expected) in [(LEN / 3, &some[..]), (LEN - 100, &some[..100])] {
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, at as u64).unwrap();
        assert!(found == expected);
    }
}

/// It is no longer what was hashed.
#[tokio::test(flavor = "multi_thread")]
async fn a_hole_that_is_filled_meanwhile_is_a_changed_source() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let source = sparse(&a, "f", 64 * BLOCK, &[(0, &content(20 * BLOCK))]);
    let (filled, path) = (AtomicBool::new(false), source.clone());
    let progress = Arc::new(move |_: octopii_transfer::Progress| {
        if !filled.swap(true, Ordering::Relaxed) {
            RealVfs.open(&path, OpenMode::ReadWrite).unwrap().write_all_at(b"x", 50 * BLOCK as u64).unwrap();
        }
    });
    let options = SendOptions { progress: Some(progress), ..SendOptions::new("file") };
    let error = a.transfer.send(b.addr(), &ChunkSource::File(source), options).await.unwrap_err();
    assert!(matches!(error, TransferError::SourceChanged(_)), "{error}");
    eventually("cleaning up", || names(&b.inbox()).is_empty()).await;
}

/// Every second block is a hole, and the others begin and end with one.
fn striped(blocks: usize) -> Vec<u8> {
    let mut whole = content(blocks * BLOCK);
    for (n, block) in whole.chunks_mut(BLOCK).enumerate() {
        match n % 2 {
            0 => block.fill(0),
            _ => {
                block[..5 * PAGE].fill(0);
                block[BLOCK - 3 * PAGE..].fill(0);
            }
        }
    }
    whole
}

/// A scene whose source has a hole wherever there are zeroes.
fn scene(data: &[u8]) -> Scene {
    let scene = Scene::of(data.to_vec());
    let file = RealVfs.open(&scene.path, OpenMode::ReadWrite).unwrap();
    let pages = data.chunks(PAGE).map(|page| page.iter().all(|byte| *byte == 0));
    let pages: Vec<_> = pages.enumerate().collect();
    for run in pages.chunk_by(|a, b| a.1 == b.1).filter(|run| run[0].1) {
        file.punch_hole((run[0].0 * PAGE) as u64, (run.len() * PAGE) as u64).unwrap();
    }
    scene
}

/// What lay where a hole is now does not show, be it behind what was taken over or within.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_off_among_holes_is_gone_on_with() {
    for stale in [false, true] {
        let whole = striped(96);
        let scene = scene(&whole);
        let rate_limit = NonZeroU64::new(24 * BLOCK as u64);
        scene
            .cut_with(&scene.sender(1), 48 * BLOCK, SendOptions { rate_limit, ..SendOptions::new("file") })
            .await;
        let part = scene.left(".part");
        assert!(taken(&part) < RealVfs.open(&part, OpenMode::Read).unwrap().len().unwrap() * 3 / 4);
        if stale {
            let file = RealVfs.open(&part, OpenMode::ReadWrite).unwrap();
            // Within a hole, on its edge, and all around where what was synced ends.
            for (at, blocks) in [(2 * BLOCK + 5, 1), (5 * BLOCK - 3, 1), (30 * BLOCK + 7, 60)] {
                file.write_all_at(&vec![0xee; blocks * BLOCK], at as u64).unwrap();
            }
        }
        let receipt = send(&scene.sender(3), &scene.b, &scene.path).await.unwrap();
        assert!(receipt.resumed >= 32 << 20, "{}", receipt.resumed);
        scene.arrived_whole(&receipt);
        let (stored, source) = (taken(&scene.b.inbox().join("source")), taken(&scene.path));
        assert!(stored <= source + SLACK, "{stored} for {source}, stale: {stale}");
    }
}

/// Version and offer of a file "f" with holes, of which so much is stored.
fn sparse_opening(id: u128, size: usize, block: usize, stored: u64) -> Vec<u8> {
    let mut bytes = opening(id, "file", Some(size as u64), block as u32);
    bytes[6] |= 128;
    bytes.extend_from_slice(&stored.to_le_bytes());
    let len = bytes.len() as u32 - 6;
    bytes[2..6].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn block_body(offset: usize, len: usize, map: &[u8], content: &[u8], prefix: Digest) -> Vec<u8> {
    [&(offset as u64).to_le_bytes()[..], &(len as u32).to_le_bytes(), map, content, &prefix.0].concat()
}

/// The block behind `before`, whose pages of zeroes are left out.
fn block(before: &[u8], content: &[u8]) -> Vec<u8> {
    let mut map = vec![0; content.len().div_ceil(PAGE).div_ceil(8)];
    let mut rest = Vec::new();
    for (n, page) in content.chunks(PAGE).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            map[n / 8] |= 1 << (n % 8);
            rest.extend_from_slice(page);
        }
    }
    let prefix = Digest::of(&[before, content].concat());
    message(SPARSE, &block_body(before.len(), content.len(), &map, &rest, prefix))
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_by_hand_arrive_as_the_page_says() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let mut whole = content(8 * BLOCK + 5000);
    whole[..BLOCK].fill(0);
    whole[2 * BLOCK..2 * BLOCK + PAGE].fill(0);
    whole[4 * BLOCK - PAGE..6 * BLOCK + 3 * PAGE].fill(0);
    whole[8 * BLOCK..8 * BLOCK + PAGE].fill(0);
    // Whether it has holes where it comes from or not.
    for (id, opening) in [
        (1, sparse_opening(1, whole.len(), BLOCK, 0)),
        (2, opening(2, "file", Some(whole.len() as u64), BLOCK as u32)),
        (3, opening(3, "file", None, BLOCK as u32)),
    ] {
        let mut raw = Raw::open(&a.endpoint, b.addr()).await;
        raw.write(&opening).await;
        raw.expect_accept().await;
        for (n, next) in whole.chunks(BLOCK).enumerate() {
            let before = &whole[..n * BLOCK];
            // The other form does as well.
            let is_sparse = n % 4 != 1 && n != 7;
            raw.write(&if is_sparse { block(before, next) } else { data(before, next) }).await;
        }
        raw.write(&done(whole.len() as u64, Digest::of(&whole))).await;
        assert_eq!(raw.read().await.0, ACK, "{id}");
        let name = if id == 1 { "f".to_owned() } else { format!("f ({})", id - 1) };
        let stored = b.inbox().join(name);
        assert!(read(&stored) == whole, "{id}");
        match id {
            1 => assert!(taken(&stored) <= in_pages(&whole) + SLACK, "{}", taken(&stored)),
            _ => assert!(taken(&stored) >= whole.len() as u64, "{id}: {}", taken(&stored)),
        }
    }
}

/// Nothing is believed: what is said to be zeroes and is not is a damaged block like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_hole_where_none_is_costs_its_block() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let mut whole = content(6 * BLOCK);
    whole[2 * BLOCK..3 * BLOCK].fill(0);
    whole[5 * BLOCK..].fill(0);
    let at = |n: usize| n * BLOCK..(n + 1) * BLOCK;
    let good = |n: usize| block_or_data(&whole[..n * BLOCK], &whole[at(n)]);
    let lie = |n: usize| {
        let prefix = Digest::of(&whole[..(n + 1) * BLOCK]);
        message(SPARSE, &block_body(n * BLOCK, BLOCK, &[0; 32], b"", prefix))
    };
    // Content where there is a hole.
    let other = |n: usize| {
        let prefix = Digest::of(&whole[..(n + 1) * BLOCK]);
        let body = [&((n * BLOCK) as u64).to_le_bytes()[..], &whole[at(0)], &prefix.0];
        message(4, &body.concat())
    };
    let asked = |n: usize| [&((n * BLOCK) as u64).to_le_bytes()[..], &(BLOCK as u32).to_le_bytes()].concat();
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&sparse_opening(1, whole.len(), BLOCK, 0)).await;
    raw.expect_accept().await;
    for bytes in [good(0), lie(1), other(2), lie(3), good(4), other(5)] {
        raw.write(&bytes).await;
    }
    raw.write(&done(whole.len() as u64, Digest::of(&whole))).await;
    for n in [1, 2, 3, 5] {
        assert_eq!(raw.read().await, (AGAIN, asked(n)));
        raw.write(&repair(n * BLOCK, &whole[at(n)])).await;
    }
    assert_eq!(raw.read().await.0, ACK);
    let stored = b.inbox().join("f");
    assert!(read(&stored) == whole, "what was there before a repair shines through");
    assert!(taken(&stored) <= in_pages(&whole) + SLACK, "and takes room: {}", taken(&stored));
    // One that is never right.
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&sparse_opening(2, BLOCK, BLOCK, 0)).await;
    raw.expect_accept().await;
    raw.write(&lie(0)).await;
    for _ in 0..3 {
        assert_eq!(raw.read().await, (AGAIN, asked(0)));
        raw.write(&repair(0, &vec![0; BLOCK])).await;
    }
    raw.expect_failure(FAIL, 10).await;
    assert_eq!(names(&b.inbox()), ["f"]);
}

/// While one block is sent again, gigabytes of holes may arrive.
#[tokio::test(flavor = "multi_thread")]
async fn holes_wait_behind_a_damaged_block_in_any_length() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let mut whole = vec![0; 100 * BLOCK];
    whole[..BLOCK].copy_from_slice(&content(BLOCK));
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&sparse_opening(1, whole.len(), BLOCK, 0)).await;
    raw.expect_accept().await;
    let mut damaged = data(b"", &whole[..BLOCK]);
    damaged[99] ^= 1;
    raw.write(&damaged).await;
    let mut hasher = Sha256::new_with_prefix(&whole[..BLOCK]);
    for n in 1..100 {
        hasher.update(&whole[n * BLOCK..(n + 1) * BLOCK]);
        let prefix = Digest(hasher.clone().finalize().into());
        raw.write(&message(SPARSE, &block_body(n * BLOCK, BLOCK, &[0; 32], b"", prefix))).await;
    }
    raw.write(&done(whole.len() as u64, Digest::of(&whole))).await;
    assert_eq!(raw.read().await.0, AGAIN);
    raw.write(&repair(0, &whole[..BLOCK])).await;
    assert_eq!(raw.read().await.0, ACK);
    assert!(read(&b.inbox().join("f")) == whole);
}

/// A receiver that says nothing is not sent holes without end.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_waits_for_word_of_what_it_has_sent() {
    const AHEAD: usize = 2 << 30;
    let (a, by_hand) = (Node::new(1), endpoint(2));
    let source = sparse(&a, "f", AHEAD + 10 * BLOCK, &[]);
    let mut acceptor = by_hand.acceptor(StreamKind::Transfer).unwrap();
    let receiving = async {
        let mut raw = Raw::accept(&mut acceptor).await;
        read_offer(&mut raw).await;
        raw.write(&message(ACCEPT, &accept_body(0, b""))).await;
        for n in 0..AHEAD / BLOCK {
            let (tag, body) = raw.read().await;
            assert_eq!((tag, &body[..8]), (SPARSE, &((n * BLOCK) as u64).to_le_bytes()[..]));
            assert_eq!(body.len(), 8 + 4 + 32 + 32);
        }
        let more = tokio::time::timeout(Duration::from_millis(500), raw.recv.read_exact(&mut [0])).await;
        assert!(more.is_err(), "it has sent more than that");
        raw.write(&message(6, &(BLOCK as u64).to_le_bytes())).await;
        assert_eq!(raw.read().await.0, SPARSE);
        raw.connection.close("enough");
    };
    let path = source.clone();
    let (sent, ()) = tokio::join!(async { send_to(&a, by_hand.local_addr(), &path).await }, receiving);
    assert!(matches!(sent, Err(TransferError::Lost(_))), "{sent:?}");
}

fn block_or_data(before: &[u8], content: &[u8]) -> Vec<u8> {
    if content.chunks(PAGE).any(|page| page.iter().all(|byte| *byte == 0)) {
        block(before, content)
    } else {
        data(before, content)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_rules_of_holes_ends_the_transfer() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let page = content(PAGE);
    let zeroes = Digest::of(&[0; PAGE]);
    let body = |offset, len, map: &[u8], content: &[u8]| block_body(offset, len, map, content, zeroes);
    let cases = [
        ("of no length", body(0, 0, &[], b""), 7),
        ("of no length, with a map", body(0, 0, &[0], b""), 7),
        ("longer than a block", body(0, 2 * PAGE, &[0], b""), 7),
        ("longer than any block", body(0, 2 * BLOCK, &[0; 32], b""), 7),
        ("of 4 GiB", body(0, u32::MAX as usize, &[0; 32], b""), 7),
        ("without a map", body(0, PAGE, &[], b""), 7),
        ("with half a map", body(0, 100 * PAGE, &[0; 12], b""), 7),
        ("with too much of a map", body(0, PAGE, &[0, 0], b""), 7),
        ("with a page that is not there", body(0, PAGE, &[2], &page), 7),
        ("without a page of zeroes", body(0, PAGE, &[1], &page), 7),
        ("with content that nothing tells of", body(0, PAGE, &[0], &page), 7),
        ("without content that is told of", body(0, 2 * PAGE, &[1], b""), 7),
        ("with less content than is told of", body(0, 2 * PAGE, &[1], &page[1..]), 7),
        ("elsewhere", body(PAGE, PAGE, &[0], b""), 7),
        ("at the end of numbers", body(usize::MAX - PAGE + 1, PAGE, &[0], b""), 7),
        ("too short", vec![0; 44], 7),
        ("too long", vec![0; (8 + 4 + 32 + 32 + BLOCK) + 1], 7),
    ];
    for (id, (what, body, code)) in (0..).zip(cases) {
        let mut raw = Raw::open(&a.endpoint, b.addr()).await;
        raw.write(&sparse_opening(id, 3 * PAGE, PAGE, 0)).await;
        raw.expect_accept().await;
        raw.write(&message(SPARSE, &body)).await;
        let (tag, answer) = raw.read().await;
        assert_eq!((tag, u16::from_le_bytes([answer[0], answer[1]])), (FAIL, code), "{what}");
    }
    let hole = |n: usize| block(&vec![0; n * PAGE], &[0; PAGE]);
    let sequences = [
        ("more than was announced", [hole(0), hole(1), hole(2), hole(3)].concat(), 11),
        ("a short one before another", [block(b"", &[0; 100]), hole(0)].concat(), 7),
        (
            "behind the end",
            [hole(0), hole(1), hole(2), done(3 * PAGE as u64, Digest::of(&[0; 3 * PAGE])), hole(3)].concat(),
            7,
        ),
        ("fewer than was announced", [hole(0), done(PAGE as u64, zeroes)].concat(), 11),
        ("what relays say", message(20, &[&[0; 8][..], &(PAGE as u32).to_le_bytes(), &[0]].concat()), 7),
    ];
    for (id, (what, bytes, code)) in (100..).zip(sequences) {
        let mut raw = Raw::open(&a.endpoint, b.addr()).await;
        raw.write(&sparse_opening(id, 3 * PAGE, PAGE, 0)).await;
        raw.expect_accept().await;
        raw.write(&bytes).await;
        let (tag, answer) = raw.read().await;
        if what == "behind the end" && tag == ACK {
            // Everything was there by then.
            continue;
        }
        assert_eq!((tag, u16::from_le_bytes([answer[0], answer[1]])), (FAIL, code), "{what}");
    }
    let mut openings = vec![("more content than bytes", sparse_opening(1000, PAGE, PAGE, PAGE as u64 + 1))];
    let mut without_size = sparse_opening(1001, 0, PAGE, 0);
    without_size[6] &= !1;
    openings.push(("of unknown size", without_size));
    let mut cut = opening(1002, "file", Some(5), PAGE as u32);
    cut[6] |= 128;
    openings.push(("without the length of the content", cut));
    for (what, opening) in openings {
        let mut raw = Raw::open(&a.endpoint, b.addr()).await;
        raw.write(&opening).await;
        let (tag, answer) = raw.read().await;
        assert_eq!((tag, answer[0]), (REFUSE, 7), "{what}");
    }
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&[&[1][..], &hole(0)].concat()).await;
    raw.expect_failure(REFUSE, 7).await;
    let left: Vec<_> = names(&b.inbox()).into_iter().filter(|name| !name.starts_with('f')).collect();
    assert_eq!(left, [""; 0]);
}

/// The disk need not have room for holes, only for what is stored.
#[tokio::test(flavor = "multi_thread")]
async fn room_is_needed_for_content_only() {
    let disk = RecordingVfs::default();
    let options = TransferOptions { leave_free: 1000, max_sparse: 64 << 20, ..quick() };
    let (a, b) = (Node::new(1), Node::with(2, disk.shared(), options));
    let _arrived = b.open_inbox();
    let source = sparse(&a, "f", 64 << 20, &[(9 * BLOCK, &content(3 * BLOCK))]);
    disk.set_free(taken(&source) + 999);
    let error = send(&a, &b, &source).await.unwrap_err();
    assert!(matches!(error, TransferError::StorageFull(_)), "{error}");
    let bytes_sent = a.endpoint.connect(b.addr()).await.unwrap().stats().bytes_sent;
    assert!(bytes_sent < BLOCK as u64, "it is known before anything is sent");
    assert_eq!(names(&b.inbox()), [""; 0]);
    disk.set_free(taken(&source) + 1000);
    send(&a, &b, &source).await.unwrap();
    assert!(!disk.record().contains(&Op::Allocate));
    // What costs its sender nothing is bounded.
    let long = sparse(&a, "long", (64 << 20) + 1, &[]);
    let error = send(&a, &b, &long).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::TooLarge),
        "{error}"
    );
    // With room for all of it, holes or not, nothing need be bounded.
    disk.set_free(1 << 40);
    send(&a, &b, &long).await.unwrap();
    // A sender that promises holes and sends content.
    disk.set_free(1000 + 2 * BLOCK as u64 - 1);
    let whole = content(2 * BLOCK);
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&sparse_opening(7, whole.len(), 2 * BLOCK / 2, 0)).await;
    raw.expect_accept().await;
    disk.set_free(1000 + BLOCK as u64 - 1);
    raw.write(&data(b"", &whole[..BLOCK])).await;
    raw.expect_failure(FAIL, 5).await;
    // Where there are no holes, a longer file is a fuller disk.
    disk.set_free(1000);
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&sparse_opening(8, whole.len(), BLOCK, 0)).await;
    raw.expect_accept().await;
    disk.set_free(999);
    raw.write(&block(b"", &vec![0; BLOCK])).await;
    raw.expect_failure(FAIL, 5).await;
    let hidden: Vec<_> = names(&b.inbox()).into_iter().filter(|name| name.starts_with('.')).collect();
    assert_eq!(hidden, [""; 0]);
}

/// A disk that fails where a hole is to be.
#[tokio::test(flavor = "multi_thread")]
async fn a_hole_that_cannot_be_made_leaves_nothing() {
    let disk = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, disk.shared(), quick()));
    let _arrived = b.open_inbox();
    let whole = [content(BLOCK), vec![0; BLOCK]].concat();
    disk.fail(Op::PunchHole, 0, 1, std::io::ErrorKind::Other);
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&sparse_opening(1, whole.len(), BLOCK, 0)).await;
    raw.expect_accept().await;
    // It is stored unchecked, and what is to take its place is a hole.
    let prefix = Digest::of(&whole);
    let mut damaged = data(b"", &whole[..BLOCK]);
    damaged[99] ^= 1;
    let wrong = [&(BLOCK as u64).to_le_bytes()[..], &whole[..BLOCK], &prefix.0].concat();
    raw.write(&[damaged, message(4, &wrong)].concat()).await;
    for n in 0..2 {
        assert_eq!(raw.read().await.0, AGAIN);
        raw.write(&repair(n * BLOCK, &whole[n * BLOCK..(n + 1) * BLOCK])).await;
    }
    raw.expect_failure(FAIL, 12).await;
    assert_eq!(names(&b.inbox()), [""; 0]);
}

/// From peer to peer, a hole is as cheap as from the sender.
#[tokio::test(flavor = "multi_thread")]
async fn holes_are_handed_on_as_holes() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..5).map(Node::new).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    let some = content(2 * BLOCK);
    let source = sparse(&a, "f", 64 * BLOCK, &[(3 * BLOCK + 7, &some), (40 * BLOCK, &some)]);
    let chunk = ChunkSource::File(source.clone());
    let addrs: Vec<_> = peers.iter().map(Node::addr).collect();
    let chain = Distribution { topology: Topology::Chain, ..SendOptions::new("file").into() };
    for result in a.transfer.send_to_all(&chunk, addrs.clone(), chain).await {
        assert!(result.success, "{result:?}");
    }
    for peer in &peers {
        let stored = peer.inbox().join("f");
        assert!(read(&stored) == read(&source));
        assert!(taken(&stored) <= taken(&source) + SLACK, "{}", taken(&stored));
    }
    let mut sum = 0;
    for node in peers.iter().chain([&a]) {
        for &addr in addrs.iter().filter(|addr| **addr != node.addr()) {
            sum += node.endpoint.connect(addr).await.unwrap().stats().bytes_sent;
        }
    }
    assert!(sum < 40 * BLOCK as u64, "{sum} bytes for 4 MiB to 3 peers");
}

/// Compressed is what becomes smaller by it than without its pages of zeroes.
#[tokio::test(flavor = "multi_thread")]
async fn holes_and_compression_go_together() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _arrived = b.open_inbox();
    let (noise, lines) = (content(BLOCK / 2), text(BLOCK / 2));
    let source = sparse(&a, "f", 8 * BLOCK, &[(BLOCK, &noise), (3 * BLOCK, &lines), (5 * BLOCK, &lines)]);
    let whole = read(&source);
    let options = SendOptions { compress: Some(3), ..SendOptions::new("file") };
    let receipt = a.transfer.send(b.addr(), &ChunkSource::File(source.clone()), options).await.unwrap();
    assert_eq!(receipt.digest, Digest::of(&whole));
    let least = noise.len() as u64;
    assert!((least..least + BLOCK as u64 / 2).contains(&receipt.travelled), "{}", receipt.travelled);
    assert!(read(&b.inbox().join("f")) == whole);
    assert!(taken(&b.inbox().join("f")) <= taken(&source) + SLACK);
    // What compression would only make longer than it is without its holes.
    let source = sparse(&a, "noise", 3 * BLOCK, &[(BLOCK, &noise)]);
    let options = SendOptions { compress: Some(3), ..SendOptions::new("file") };
    let receipt = a.transfer.send(b.addr(), &ChunkSource::File(source), options).await.unwrap();
    assert_eq!(receipt.travelled, noise.len() as u64);
}

/// Large files of directories are chunks of their own.
#[tokio::test(flavor = "multi_thread")]
async fn directories_keep_the_holes_of_large_files() {
    let (a, b) = (Node::new(1), Node::new(2));
    let trees = b.open_trees(|inbox| inbox);
    sparse(&a, "large", 40 * BLOCK, &[(20 * BLOCK + 1, b"here")]);
    std::fs::rename(a.dir.path().join("large"), a.tree().join("large")).unwrap();
    a.send_tree(&b).await.unwrap();
    trees.recv_timeout(WAIT).unwrap();
    let stored = b.inbox().join("tree/large");
    assert!(read(&stored) == read(&a.tree().join("large")));
    assert!(taken(&stored) < SLACK, "{}", taken(&stored));
}
