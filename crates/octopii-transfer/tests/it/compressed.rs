//! Blocks may travel compressed; what is checked, kept and resumed is the content.

use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use octopii_transfer::{
    ChunkSource, Destination, Digest, Distribution, Location, ReceivedChunk, SendOptions, Topology,
    TransferError, TransferOptions,
};
use octopii_transport::StreamKind;
use octopii_vfs::RealVfs;

use crate::nodes::{BLOCK, Node, content, endpoint, names, quick, read};
use crate::raw::{ACCEPT, ACK, AGAIN, FAIL, Raw, ack_body, done, message, opening, read_offer, repair};
use crate::resume::Scene;

const COMPRESSED: u8 = 18;
const WAIT: Duration = Duration::from_secs(15);

/// Lines that compress to about a third.
pub(crate) fn text(len: usize) -> Vec<u8> {
    let line = |n: u64| format!("{n:>12} took {} ns\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1_000_000);
    (0..).flat_map(|n| line(n).into_bytes()).take(len).collect()
}

fn path(chunk: &ReceivedChunk) -> &Path {
    match &chunk.location {
        Location::File(path) => path,
        Location::Memory(_) => panic!("a file was expected"),
    }
}

fn compressing() -> SendOptions {
    SendOptions { compress: Some(3), ..SendOptions::new("file") }
}

/// The bytes are counted where they are handed to the network.
#[tokio::test(flavor = "multi_thread")]
async fn what_shrinks_travels_smaller() {
    let (a, b) = (Node::new(1), Node::new(2));
    let arrived = b.open_inbox();
    let data = text(10 * BLOCK + 77);
    let source = ChunkSource::Memory(data.clone().into());
    let plain = a.transfer.send(b.addr(), &source, SendOptions::new("file"));
    assert_eq!(plain.await.unwrap().travelled, data.len() as u64);
    let whole = read(path(&arrived.recv_timeout(WAIT).unwrap()));
    assert!(whole == data);
    for level in [1, 3, 19] {
        let options = SendOptions { compress: Some(level), ..SendOptions::new("file") };
        let source = ChunkSource::File(a.source("text", &data));
        let receipt = a.transfer.send(b.addr(), &source, options.clone()).await.unwrap();
        assert_eq!((receipt.bytes, receipt.digest), (data.len() as u64, Digest::of(&data)));
        assert!(receipt.travelled < receipt.bytes / 2, "level {level}: {}", receipt.travelled);
        let chunk = arrived.recv_timeout(WAIT).unwrap();
        assert!(read(path(&chunk)) == data);
    }
    let stream = a.transfer.send_stream(b.addr(), std::io::Cursor::new(data.clone()), compressing());
    let receipt = stream.await.unwrap();
    assert!(receipt.travelled < receipt.bytes / 2 && receipt.digest == Digest::of(&data));
    assert!(read(path(&arrived.recv_timeout(WAIT).unwrap())) == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_shrink_travels_as_it_is() {
    let (a, b) = (Node::new(1), Node::new(2));
    let events = b.receive_into("file", Destination::Memory { limit: 64 << 20 });
    // One block of text among others.
    let data = [content(2 * BLOCK), text(BLOCK), content(BLOCK + 5)].concat();
    let source = ChunkSource::Memory(data.clone().into());
    let receipt = a.transfer.send(b.addr(), &source, compressing()).await.unwrap();
    assert_eq!(receipt.digest, Digest::of(&data));
    let noise = 3 * BLOCK as u64 + 5;
    assert!(
        receipt.travelled > noise && receipt.travelled < noise + BLOCK as u64 / 2,
        "{}",
        receipt.travelled
    );
    assert_eq!(events.recv_timeout(WAIT).unwrap().received().digest, receipt.digest);
    for small in [0, 1, 33] {
        let source = ChunkSource::Memory(content(small).into());
        let receipt = a.transfer.send(b.addr(), &source, compressing()).await.unwrap();
        assert_eq!(receipt.travelled, small as u64);
    }
    for level in [-1, 0, 20, i32::MAX] {
        let options = SendOptions { compress: Some(level), ..compressing() };
        let error = a.transfer.send(b.addr(), &source, options).await.unwrap_err();
        assert!(matches!(error, TransferError::InvalidOptions(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_need_not_decompress() {
    let a = Node::new(1);
    let b = Node::with(2, RealVfs::shared(), TransferOptions { decompress: false, ..quick() });
    let arrived = b.open_inbox();
    let data = text(2 * BLOCK);
    let source = ChunkSource::Memory(data.clone().into());
    let receipt = a.transfer.send(b.addr(), &source, compressing()).await.unwrap();
    assert_eq!(receipt.travelled, receipt.bytes);
    assert_eq!(arrived.recv_timeout(WAIT).unwrap().digest, Digest::of(&data));
}

/// An opening that offers compressed blocks.
fn compressed_opening(id: u128, size: usize) -> Vec<u8> {
    let mut opening = opening(id, "file", Some(size as u64), BLOCK as u32);
    opening[6] |= 16;
    opening
}

/// A compressed block behind `before`, which is said to be `len` bytes long, with the digest of `content`.
fn block(before: &[u8], content: &[u8], len: usize, frame: &[u8]) -> Vec<u8> {
    let prefix = Digest::of(&[before, content].concat());
    let start = [&(before.len() as u64).to_le_bytes()[..], &(len as u32).to_le_bytes()].concat();
    message(COMPRESSED, &[&start, frame, &prefix.0].concat())
}

pub(crate) fn frame(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0; zstd_safe::compress_bound(content.len())];
    let len = zstd_safe::compress(&mut out[..], content, 3).unwrap();
    out.truncate(len);
    out
}

/// Blocks that are not what they say: each is found out, costs that block, and never more memory than a block.
fn bad_frames(content: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let good = frame(content);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let bomb = frame(&vec![0; 300 << 20]);
    // The same with a header that claims to be a block.
    let mut lying = bomb.clone();
    let size = (300u32 << 20).to_le_bytes();
    let at = lying.windows(4).position(|bytes| bytes == size).unwrap();
    lying[at..at + 4].copy_from_slice(&(BLOCK as u32).to_le_bytes());
    vec![
        ("a flipped bit", flipped),
        ("truncated", good[..good.len() - 1].to_vec()),
        ("garbage", vec![0xa5; 1000]),
        ("a byte too few", frame(&content[..BLOCK - 1])),
        ("a byte too many", frame(&[content, &b"x"[..]].concat())),
        ("a bomb", bomb),
        ("a lying bomb", lying),
        ("two frames", [frame(&content[..9]), frame(&content[9..])].concat()),
        ("other content", frame(&vec![7; BLOCK])),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_frame_costs_its_block() {
    let (a, b) = (Node::new(1), Node::new(2));
    let arrived = b.open_inbox();
    let whole = text(3 * BLOCK);
    let (first, rest) = whole.split_at(BLOCK);
    let (second, third) = rest.split_at(BLOCK);
    for (n, (what, bad)) in (0..).zip(bad_frames(second)) {
        let mut raw = Raw::open(&a.endpoint, b.addr()).await;
        raw.write(&compressed_opening(n, whole.len())).await;
        let (tag, body) = raw.read().await;
        assert_eq!((tag, body[0]), (ACCEPT, 2), "it takes compressed blocks");
        raw.write(&block(b"", first, BLOCK, &frame(first))).await;
        raw.write(&block(first, second, BLOCK, &bad)).await;
        raw.write(&block(&whole[..2 * BLOCK], third, BLOCK, &frame(third))).await;
        raw.write(&done(whole.len() as u64, Digest::of(&whole))).await;
        let (tag, body) = raw.read().await;
        let asked = [&(BLOCK as u64).to_le_bytes()[..], &(BLOCK as u32).to_le_bytes()].concat();
        assert_eq!((tag, body), (AGAIN, asked), "{what}");
        raw.write(&repair(BLOCK, second)).await;
        assert_eq!(raw.read().await.0, ACK, "{what}");
        let chunk = arrived.recv_timeout(WAIT).unwrap();
        assert!(read(path(&chunk)) == whole, "{what}");
    }
    // One that is never right.
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&compressed_opening(99, BLOCK)).await;
    raw.read().await;
    raw.write(&block(b"", first, BLOCK, &bad_frames(first)[5].1)).await;
    for _ in 0..3 {
        assert_eq!(raw.read().await.0, AGAIN);
        raw.write(&repair(0, second)).await;
    }
    raw.expect_failure(FAIL, 10).await;
    assert_eq!(names(&b.inbox()).len(), bad_frames(first).len(), "and nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_rules_of_compression_ends_the_transfer() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let content = text(BLOCK);
    let small = frame(&content);
    let cases = [
        (
            "not agreed on",
            opening(1, "file", Some(BLOCK as u64), BLOCK as u32),
            block(b"", &content, BLOCK, &small),
        ),
        ("not smaller", compressed_opening(2, BLOCK), block(b"", &small, small.len(), &small)),
        ("longer than a block", compressed_opening(3, 2 * BLOCK), block(b"", &content, BLOCK + 1, &small)),
        ("of no length", compressed_opening(4, BLOCK), block(b"", b"", 0, &small)),
        ("of 4 GiB", compressed_opening(5, BLOCK), block(b"", &content, u32::MAX as usize, &small)),
    ];
    for (what, opening, block) in cases {
        let mut raw = Raw::open(&a.endpoint, b.addr()).await;
        raw.write(&opening).await;
        assert_eq!(raw.read().await.0, ACCEPT, "{what}");
        raw.write(&block).await;
        raw.expect_failure(FAIL, 7).await;
    }
    assert_eq!(names(&b.inbox()), [""; 0]);
}

/// A block that is asked for again comes as it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_is_not_compressed() {
    let (a, receiver) = (Node::new(1), endpoint(2));
    let mut acceptor = receiver.acceptor(StreamKind::Transfer).unwrap();
    let whole = text(2 * BLOCK);
    let sent = whole.clone();
    let receiving = tokio::spawn(async move {
        let mut raw = Raw::accept(&mut acceptor).await;
        read_offer(&mut raw).await;
        raw.write(&message(ACCEPT, &[&[2][..], &[0; 8]].concat())).await;
        for (n, block) in sent.chunks(BLOCK).enumerate() {
            let (tag, body) = raw.read().await;
            assert_eq!((tag, &body[..8]), (COMPRESSED, &((n * BLOCK) as u64).to_le_bytes()[..]));
            assert_eq!(body[8..12], (BLOCK as u32).to_le_bytes());
            let frame = &body[12..body.len() - 32];
            let mut out = vec![0; BLOCK];
            assert_eq!(zstd_safe::decompress(&mut out[..], frame), Ok(BLOCK));
            assert!(out == block);
            assert_eq!(body[body.len() - 32..], Digest::of(&sent[..(n + 1) * BLOCK]).0);
        }
        raw.write(&message(AGAIN, &[&[0; 8][..], &(BLOCK as u32).to_le_bytes()].concat())).await;
        let mut seen = [raw.read().await, raw.read().await];
        seen.sort();
        assert_eq!(seen[0].0, 5, "done");
        assert_eq!(seen[1], (17, [&[0; 8][..], &sent[..BLOCK]].concat()));
        raw.write(&message(ACK, &ack_body(sent.len() as u64, Digest::of(&sent)))).await;
        raw.send.finish().unwrap();
        let _ = raw.send.stopped().await;
    });
    let source = ChunkSource::Memory(whole.into());
    let receipt = a.transfer.send(receiver.local_addr(), &source, compressing()).await.unwrap();
    assert!(receipt.travelled > BLOCK as u64, "with the repair");
    receiving.await.unwrap();
}

/// Cut off and gone on with by another process: offsets, digests and what is on the disk are those of the content.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_compressed_is_gone_on_with() {
    let scene = Scene::of(text(48 * BLOCK));
    let slowly = SendOptions { rate_limit: NonZeroU64::new(16 * BLOCK as u64), ..compressing() };
    scene.cut_with(&scene.sender(1), 24 * BLOCK, slowly).await;
    let source = ChunkSource::File(scene.path.clone());
    let receipt = scene.sender(3).transfer.send(scene.b.addr(), &source, compressing()).await.unwrap();
    assert!(receipt.resumed >= 16 << 20, "{}", receipt.resumed);
    assert!(receipt.travelled < (receipt.bytes - receipt.resumed) / 2, "{}", receipt.travelled);
    scene.arrived_whole(&receipt);
}

/// Relays hand on what was vouched for, so nothing of that is compressed.
#[tokio::test(flavor = "multi_thread")]
async fn many_peers_get_it_directly() {
    let a = Node::new(1);
    let receivers: Vec<_> = (2..4).map(Node::new).collect();
    let heard: Vec<_> = receivers.iter().map(Node::open_inbox).collect();
    let data = text(9 * BLOCK);
    let source = ChunkSource::File(a.source("text", &data));
    let peers: Vec<_> = receivers.iter().map(Node::addr).collect();
    for result in a.transfer.send_to_all(&source, peers.clone(), compressing()).await {
        assert!(result.success && result.travelled < data.len() as u64 / 2, "{result:?}");
    }
    for heard in &heard {
        assert_eq!(heard.recv_timeout(WAIT).unwrap().digest, Digest::of(&data));
    }
    let chain = Distribution { topology: Topology::Chain, ..compressing().into() };
    for result in a.transfer.send_to_all(&source, peers, chain).await {
        assert!(matches!(result.error, Some(TransferError::InvalidOptions(_))), "{result:?}");
    }
    // And the other way round, the hop from the sender is counted.
    let plain = Distribution { topology: Topology::Chain, ..SendOptions::new("file").into() };
    let results = a.transfer.send_to_all(&source, receivers.iter().map(Node::addr).collect(), plain).await;
    let uploaded: u64 = results.iter().map(|result| result.travelled).sum();
    assert!(uploaded >= data.len() as u64, "{uploaded}");
}
