//! Peers that lie, stall or send garbage: a typed answer, nothing left behind, and the service goes on.

use std::sync::mpsc::Receiver;
use std::time::Duration;

use octopii_transfer::{
    ChunkSource, Destination, Digest, FailureCode, SendOptions, TransferError, TransferOptions,
};
use octopii_transport::Endpoint;
use octopii_vfs::RealVfs;
use tokio::time::Instant;

use crate::nodes::{BLOCK, Event, Node, content, endpoint, impatient, names, quick, read};
use crate::raw::{ACCEPT, ACK, FAIL, REFUSE, Raw, data, done, message, opening};

const SMALL: u32 = 4096;

struct Scene {
    hostile: Endpoint,
    node: Node,
    files: Receiver<Event>,
    blobs: Receiver<Event>,
}

fn scene_with(options: TransferOptions) -> Scene {
    let node = Node::with(2, RealVfs::shared(), options);
    let files =
        node.receive_into("file", Destination::File { dir: node.inbox(), name: "f".into(), replace: false });
    let blobs = node.receive_into("blob", Destination::Memory { limit: 10_000 });
    Scene { hostile: endpoint(1), node, files, blobs }
}

fn scene() -> Scene {
    scene_with(quick())
}

impl Scene {
    async fn open(&self) -> Raw {
        Raw::open(&self.hostile, self.node.addr()).await
    }

    async fn accepted(&self, id: u128, purpose: &str, size: Option<u64>) -> Raw {
        let mut raw = self.open().await;
        raw.write(&opening(id, purpose, size, SMALL)).await;
        raw.expect_accept().await;
        raw
    }

    /// Nothing of what was tried remains, and an honest transfer gets through.
    async fn is_well(&self) {
        assert_eq!(names(&self.node.inbox()), [""; 0]);
        let mut raw = self.accepted(u128::MAX, "file", Some(3)).await;
        raw.write(&[data(b"", b"abc"), done(3, Digest::of(b"abc"))].concat()).await;
        let (tag, _) = raw.read().await;
        assert_eq!(tag, ACK);
        assert_eq!(names(&self.node.inbox()), ["f"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_digest_of_the_whole_is_found() {
    let scene = scene();
    let mut raw = scene.accepted(1, "file", Some(3)).await;
    raw.write(&[data(b"", b"abc"), done(3, Digest::of(b"abd"))].concat()).await;
    raw.expect_failure(FAIL, 10).await;
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_the_size_are_found() {
    let scene = scene();
    // Fewer bytes than announced, more bytes than announced, and an end that says something else than was sent.
    let mut raw = scene.accepted(1, "file", Some(4)).await;
    raw.write(&[data(b"", b"abc"), done(3, Digest::of(b"abc"))].concat()).await;
    raw.expect_failure(FAIL, 11).await;
    let mut raw = scene.accepted(2, "file", Some(2)).await;
    raw.write(&data(b"", b"abc")).await;
    raw.expect_failure(FAIL, 11).await;
    let mut raw = scene.accepted(3, "file", None).await;
    raw.write(&[data(b"", b"abc"), done(2, Digest::of(b"ab"))].concat()).await;
    raw.expect_failure(FAIL, 11).await;
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enormous_sizes_are_refused() {
    let scene = scene();
    for size in [u64::MAX, 1 << 63, i64::MAX as u64] {
        let mut raw = scene.open().await;
        raw.write(&opening(1, "file", Some(size), SMALL)).await;
        raw.expect_failure(REFUSE, 5).await;
        let mut raw = scene.open().await;
        raw.write(&opening(1, "blob", Some(size), SMALL)).await;
        raw.expect_failure(REFUSE, 4).await;
    }
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_given_up_at_its_limit() {
    let scene = scene();
    let mut raw = scene.accepted(1, "blob", None).await;
    let content = content(12_288);
    for (i, block) in content.chunks(SMALL as usize).enumerate() {
        raw.write(&data(&content[..i * SMALL as usize], block)).await;
    }
    raw.expect_failure(FAIL, 4).await;
    scene.blobs.try_recv().unwrap().failed();
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_protocol_is_refused() {
    let good = opening(1, "file", Some(3), SMALL);
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let first = [
        ("another version", changed(0, &[2]), 9),
        ("an unknown tag", changed(1, &[99]), 7),
        ("data first", [&[1][..], &data(b"", b"abc")].concat(), 7),
        ("an offer of 4 GiB", changed(2, &[0xff; 4]), 7),
        ("an offer too short for its fields", [&[1][..], &message(1, &[0; 36])].concat(), 7),
        ("reserved flags", changed(6, &[0x83]), 7),
        ("a block size of 0", changed(23, &[0; 4]), 7),
        ("a block size of 4 GiB", changed(23, &[0xff; 4]), 7),
        ("a block size that is no power of two", changed(23, &[0, 0x30, 0, 0]), 7),
        ("a purpose beyond the offer's end", changed(35, &[64]), 7),
        ("meta of 4 GiB", changed(38, &[0xff; 4]), 7),
        ("a name that is not UTF-8", changed(good.len() - 1, &[0xff]), 7),
    ];
    let scene = scene();
    for (what, bytes, code) in first {
        let mut raw = scene.open().await;
        raw.write(&bytes).await;
        let (tag, body) = raw.read().await;
        assert_eq!((tag, u16::from_le_bytes([body[0], body[1]])), (REFUSE, code), "{what}");
    }
    let block = content(SMALL as usize);
    let later = [
        ("a block of 4 GiB", [&[4][..], &[0xff; 4]].concat()),
        ("an empty block", message(4, &[0; 40])),
        ("a block larger than offered", data(b"", &content(SMALL as usize + 1))),
        ("a gap", message(4, &[&1u64.to_le_bytes()[..], b"b", &Digest::of(b"b").0].concat())),
        ("a block twice", [data(b"", &block), data(b"", &block)].concat()),
        ("a second offer", good[1..].to_vec()),
        ("an acknowledgement", message(7, &[3; 41])),
        ("noise", content(1000)),
    ];
    let later = later.map(|(what, bytes)| (what, None, bytes));
    // Only what has no size may come as it comes.
    let short = ("a block after a short one", Some(2), [data(b"", b"a"), data(b"a", b"b")].concat());
    for (i, (what, size, bytes)) in later.into_iter().chain([short]).enumerate() {
        let mut raw = scene.accepted(100 + i as u128, "file", size).await;
        raw.write(&bytes).await;
        let (tag, body) = raw.read().await;
        assert_eq!((tag, u16::from_le_bytes([body[0], body[1]])), (FAIL, 7), "{what}");
    }
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_early_leaves_nothing() {
    let scene = scene();
    for (id, finish) in [(1, true), (2, false)] {
        let mut raw = scene.accepted(id, "file", Some(10)).await;
        raw.write(&data(b"", b"abc")).await;
        if finish {
            raw.send.finish().unwrap();
        } else {
            raw.send.reset(14);
        }
        raw.expect_failure(FAIL, 14).await;
    }
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_stalls_is_given_up() {
    let scene = scene_with(impatient());
    let idle = impatient().idle_timeout;
    let mut raw = scene.accepted(1, "file", Some(10_000)).await;
    raw.write(&data(b"", &content(SMALL as usize))[..2000]).await;
    let started = Instant::now();
    raw.expect_failure(FAIL, 13).await;
    assert!(started.elapsed() >= idle && started.elapsed() < 2 * idle + Duration::from_secs(3));
    let error = scene.files.try_recv().unwrap().failed();
    assert!(matches!(error, TransferError::Stalled { .. }), "{error}");
    scene.is_well().await;
}

/// One byte now and then keeps no transfer, and no slot, alive for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_trickles_is_given_up() {
    let scene = scene_with(TransferOptions { idle_timeout: Duration::from_millis(100), ..quick() });
    let mut raw = scene.accepted(1, "file", Some(10_000)).await;
    let bytes = data(b"", &content(SMALL as usize));
    let (head, content) = bytes.split_at(13);
    raw.write(head).await;
    let mut given_up = false;
    for byte in &content[..150] {
        given_up = raw.send.write_all(&[*byte]).await.is_err();
        if given_up {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(given_up, "while it still sends");
    raw.expect_failure(FAIL, 13).await;
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_an_offer_is_given_up() {
    let scene = scene_with(TransferOptions { offer_timeout: Duration::from_millis(200), ..quick() });
    let mut raw = scene.open().await;
    raw.write(&opening(1, "file", None, SMALL)[..20]).await;
    raw.expect_failure(REFUSE, 13).await;
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_at_once_are_refused_as_busy() {
    let scene = scene_with(TransferOptions { max_incoming: 1, ..impatient() });
    let _holding = scene.accepted(1, "file", Some(10)).await;
    let honest = Node::new(3);
    let source = ChunkSource::Memory("abc".into());
    let error = honest.transfer.send(scene.node.addr(), &source, SendOptions::new("file")).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::Busy),
        "{error}"
    );
    assert!(error.is_retryable());
    // The stalled one is given up after its idle time, and its place is free again.
    scene.files.recv_timeout(Duration::from_secs(15)).unwrap().failed();
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_cannot_be_used_twice_at_once() {
    let scene = scene();
    let _first = scene.accepted(7, "file", Some(10)).await;
    let mut second = scene.open().await;
    second.write(&opening(7, "file", Some(10), SMALL)).await;
    second.expect_failure(REFUSE, 8).await;
    let other = endpoint(9);
    let mut third = Raw::open(&other, scene.node.addr()).await;
    third.write(&opening(7, "file", Some(10), SMALL)).await;
    assert_eq!(third.read().await.0, ACCEPT, "another peer's ids are its own");
}

/// Short pieces are put together on the way, and still are the block that was sent.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_in_tiny_pieces_arrive() {
    let scene = scene();
    let content = content(2 * BLOCK);
    let (first, rest) = content.split_at(BLOCK);
    let mut raw = scene.open().await;
    raw.write(&opening(1, "file", Some(content.len() as u64), BLOCK as u32)).await;
    raw.expect_accept().await;
    for (before, block) in [(&first[..0], first), (first, rest)] {
        let bytes = data(before, block);
        for piece in bytes[..20_000].chunks(300) {
            raw.write(piece).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        raw.write(&bytes[20_000..]).await;
    }
    raw.write(&done(content.len() as u64, Digest::of(&content))).await;
    assert_eq!(raw.read().await.0, ACK);
    assert!(read(&scene.node.inbox().join("f")) == content);
}
