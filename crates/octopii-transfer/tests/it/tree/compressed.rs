//! Packs may travel compressed; what is checked and stored are the files.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use octopii_transfer::{Digest, EntryOutcome, TransferError, TransferOptions, TreeOptions, TreeReport};
use octopii_transport::StreamKind;
use octopii_vfs::RealVfs;

use super::hand::{Hand, READY, content, content_with, end, file};
use super::{counts, picture, put};
use crate::compressed::{frame, text};
use crate::nodes::{Node, content as noise, endpoint, names, quick};
use crate::raw::message;

const MIB: usize = 1 << 20;
/// Of an opening: packs would come compressed.
const OFFERED: u8 = 8;
const PACK: u8 = 6;
const COMPRESSED: u8 = 13;

fn compressing() -> TreeOptions {
    TreeOptions { compress: Some(3), ..TreeOptions::new("tree") }
}

async fn send(a: &Node, b: &Node, options: TreeOptions) -> TreeReport {
    let report = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap();
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(picture(&b.inbox().join("tree")), picture(&a.tree()));
    report
}

/// Small files and a large one, of text.
fn plant(a: &Node) -> u64 {
    let text = text(200 * 20_000);
    (0..200).zip(text.chunks(20_000)).for_each(|(n, text)| put(&a.tree(), &format!("d{}/{n}", n % 7), text));
    put(&a.tree(), "large", &text);
    2 * text.len() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn what_shrinks_travels_smaller() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    let bytes = plant(&a);
    for level in [1, 3, 19] {
        let report = send(&a, &b, TreeOptions { compress: Some(level), ..compressing() }).await;
        assert_eq!((report.stored, report.stored_bytes), (201, bytes));
        assert!(report.travelled > bytes / 20 && report.travelled < bytes / 2, "{}", report.travelled);
        std::fs::remove_dir_all(b.inbox().join("tree")).unwrap();
    }
    // As it is counted where it is handed to the network.
    let before = a.endpoint.connect(b.addr()).await.unwrap().stats().bytes_sent;
    let plain = send(&a, &b, TreeOptions::new("tree")).await;
    assert_eq!(plain.travelled, bytes);
    let between = a.endpoint.connect(b.addr()).await.unwrap().stats().bytes_sent;
    std::fs::remove_dir_all(b.inbox().join("tree")).unwrap();
    send(&a, &b, compressing()).await;
    let after = a.endpoint.connect(b.addr()).await.unwrap().stats().bytes_sent;
    assert!(after - between < (between - before) / 2, "{before} {between} {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_shrink_travels_as_it_is() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    for n in 0..30 {
        put(&a.tree(), &n.to_string(), &noise(50_000 + n));
    }
    put(&a.tree(), "empty", b"");
    let report = send(&a, &b, compressing()).await;
    assert_eq!(report.travelled, report.stored_bytes);
    for level in [-1, 0, 20, i32::MAX] {
        let options = TreeOptions { compress: Some(level), ..compressing() };
        let error = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap_err();
        assert!(matches!(error, TransferError::InvalidOptions(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_need_not_decompress() {
    let a = Node::new(1);
    let b = Node::with(2, RealVfs::shared(), TransferOptions { decompress: false, ..quick() });
    b.open_trees(|inbox| inbox);
    let bytes = plant(&a);
    assert_eq!(send(&a, &b, compressing()).await.travelled, bytes);
    let (_, agreed) = Hand::open_with(&a, &b, OFFERED, 7, "other").await;
    assert_eq!(agreed, 0);
}

/// What the sender writes, read by hand; and it packs what does not shrink, or was not agreed on, as it is.
#[tokio::test(flavor = "multi_thread")]
async fn packs_are_frames_of_packs() {
    let a = Node::new(1);
    put(&a.tree(), "noise", &noise(100_000));
    put(&a.tree(), "text", &text(100_000));
    for (agreed, packs) in [(1, COMPRESSED), (0, PACK)] {
        let receiver = endpoint(2);
        let mut acceptor = receiver.acceptor(StreamKind::Tree).unwrap();
        let receiving = async {
            let mut hand = Hand::accept(&mut acceptor).await;
            let (_, opening) = hand.read().await;
            assert_eq!(opening[0], OFFERED);
            hand.write(&message(READY, &[&[agreed][..], b"\x04tree"].concat())).await;
            let (mut entries, mut manifest, mut packed) = (Vec::new(), Vec::new(), None);
            while manifest.is_empty() || packed.is_none() {
                let (tag, body) = hand.read().await;
                match tag {
                    4 => {
                        entries.extend_from_slice(&body[2..]);
                        hand.write(&super::hand::verdicts(0, &[2, 2, 2])).await;
                    }
                    8 => manifest = body[8..40].to_vec(),
                    PACK | COMPRESSED => packed = Some((tag, body)),
                    other => panic!("{other}"),
                }
            }
            assert_eq!(Digest::of(&entries).0[..], manifest);
            let (tag, body) = packed.unwrap();
            assert_eq!(tag, packs);
            let pack = match tag {
                COMPRESSED => {
                    let mut pack = vec![0; u32::from_le_bytes(body[..4].try_into().unwrap()) as usize];
                    assert_eq!(zstd_safe::decompress(&mut pack[..], &body[4..]), Ok(pack.len()));
                    pack
                }
                _ => body,
            };
            let files = [content(0, &noise(100_000)), content(1, &text(100_000))].concat();
            assert_eq!(pack, [&2u16.to_le_bytes()[..], &files].concat());
            hand.write(&super::hand::results(&[0, 1, 2])).await;
            let counts = [2u64, 200_000, 0, 1, 0, 0].map(u64::to_le_bytes).concat();
            hand.write(&message(9, &[&counts[..], &manifest].concat())).await;
            hand
        };
        let sending = a.transfer.send_tree(receiver.local_addr(), a.tree(), compressing());
        let (report, _hand) = tokio::join!(sending, receiving);
        assert_eq!(counts(&report.unwrap()), (2, 0, 1, 0));
    }
    // A receiver that takes what was not offered.
    let receiver = endpoint(3);
    let mut acceptor = receiver.acceptor(StreamKind::Tree).unwrap();
    let receiving = async {
        let mut hand = Hand::accept(&mut acceptor).await;
        hand.read().await;
        hand.write(&message(READY, b"\x01\x04tree")).await;
        hand
    };
    let sending = a.transfer.send_tree(receiver.local_addr(), a.tree(), TreeOptions::new("tree"));
    let (result, _hand) = tokio::join!(sending, receiving);
    let error = result.unwrap_err();
    assert!(matches!(error, TransferError::Protocol(_)), "{error}");
}

/// A pack of one file, the content of which is this.
fn pack(record: &[u8]) -> Vec<u8> {
    [&1u16.to_le_bytes()[..], record].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_not_what_it_says_ends_the_tree() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    let text = text(100_000);
    let good = pack(&content(0, &text));
    let small = frame(&good);
    let bomb = frame(&vec![0; 300 * MIB]);
    // The same with a header that claims to be a pack.
    let mut lying = bomb.clone();
    let at = lying.windows(4).position(|bytes| bytes == ((300 * MIB) as u32).to_le_bytes()).unwrap();
    lying[at..at + 4].copy_from_slice(&(2 * MIB as u32).to_le_bytes());
    let most = 2 + 4096 * 45 + 2 * MIB;
    let cases = [
        ("truncated", good.len(), small[..small.len() - 1].to_vec()),
        ("garbage", good.len(), vec![0xa5; 1000]),
        ("a byte too few", good.len() - 1, small.clone()),
        ("a byte too many", good.len() + 1, small.clone()),
        ("a bomb", 2 * MIB, bomb.clone()),
        ("an honest bomb", 300 * MIB, bomb),
        ("a lying bomb", 2 * MIB, lying),
        ("as much as a pack, but none", most, frame(&vec![1; most])),
        ("4 GiB", u32::MAX as usize, small.clone()),
        ("nothing", 0, small.clone()),
        ("less than a pack", 1, small.clone()),
        ("two frames", good.len(), [frame(&good[..9]), frame(&good[9..])].concat()),
        ("no frame", good.len(), Vec::new()),
        ("another file", good.len(), frame(&pack(&content(1, &text)))),
    ];
    for (id, (what, len, bad)) in (100..).zip(cases) {
        let (mut hand, agreed) = Hand::open_with(&a, &b, OFFERED, id, &id.to_string()).await;
        assert_eq!(agreed, 1, "{what}");
        hand.page(&[file(b"f", text.len() as u64), end()]).await;
        hand.compressed(len, &bad).await;
        hand.expect_fail(7).await;
        assert_eq!(names(&b.inbox().join(id.to_string())), [""; 0], "{what}");
    }
    // What is right, when it was not agreed on.
    let mut hand = Hand::open(&a, &b).await;
    hand.page(&[file(b"f", text.len() as u64), end()]).await;
    hand.compressed(good.len(), &small).await;
    hand.expect_fail(7).await;
    // The same, agreed on; and a frame of a file that is not what its digest says costs that file only.
    let (mut hand, _) = Hand::open_with(&a, &b, OFFERED, 8, "good").await;
    hand.page(&[file(b"f", text.len() as u64), file(b"g", 1000), end()]).await;
    hand.compressed(good.len(), &small).await;
    let wrong = pack(&content_with(1, &[7; 1000], Digest::of(b"other")));
    hand.compressed(wrong.len(), &frame(&wrong)).await;
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [1, text.len() as u64, 0, 1, 1]);
    assert_eq!(std::fs::read(b.inbox().join("good/f")).unwrap(), text);
    // Frames of honest packs that are too long, or are not smaller.
    let (mut hand, _) = Hand::open_with(&a, &b, OFFERED, 10, "long").await;
    let names: [&[u8]; 3] = [b"a", b"b", b"c"];
    hand.page(&names.map(|name| file(name, MIB as u64))).await;
    let files: Vec<u8> = (0..3).flat_map(|n| content(n, &vec![0; MIB])).collect();
    let long = [&3u16.to_le_bytes()[..], &files].concat();
    assert!(long.len() > most);
    hand.compressed(long.len(), &frame(&long)).await;
    hand.expect_fail(7).await;
    let (mut hand, _) = Hand::open_with(&a, &b, OFFERED, 11, "noise").await;
    hand.page(&[file(b"f", 1000)]).await;
    let noisy = pack(&content(0, &noise(1000)));
    assert!(frame(&noisy).len() >= noisy.len());
    hand.compressed(noisy.len(), &frame(&noisy)).await;
    hand.expect_fail(7).await;
    // A flag that nobody knows.
    let mut opening = super::hand::opening(9, b"flags");
    opening[6] = 16;
    let mut hand = Hand::silent(&a.endpoint, &b).await;
    hand.write(&opening).await;
    hand.expect_fail(7).await;
}

/// Cut off in the middle of it: the next attempt agrees anew, and what has arrived is not sent again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_compressed_is_gone_on_with() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    let bytes = plant(&a);
    let (endpoint, to, done) = (a.endpoint.clone(), b.addr(), AtomicBool::new(false));
    let options = TreeOptions {
        retries: 5,
        rate_limit: NonZeroU64::new(4 * MIB as u64),
        on_entry: Some(Arc::new(move |_, outcome| {
            if matches!(outcome, EntryOutcome::Stored { .. }) && !done.swap(true, Ordering::Relaxed) {
                let endpoint = endpoint.clone();
                tokio::spawn(async move { endpoint.connect(to).await.unwrap().close("cut") });
            }
        })),
        ..compressing()
    };
    let report = send(&a, &b, options).await;
    assert!(report.retries >= 1 && report.stored_before >= 1, "{report:?}");
    assert_eq!((report.stored + report.unchanged, report.directories), (201, 8), "{report:?}");
    assert!(report.travelled < bytes / 2, "{}", report.travelled);
}
