//! Sources that change while they are sent.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use octopii_transfer::{EntryFailure, Links, TransferError, TreeOptions};
use octopii_transport::StreamKind;

use super::hand::{Hand, READY, results, verdicts};
use super::{counts, put, undone};
use crate::nodes::{Node, content, endpoint, quick};
use crate::raw::message;
use crate::recording::RecordingVfs;

const PACK: u8 = 6;
const END: u8 = 8;

/// Somebody who may rename in the source puts links there between the walk and a file's turn. What they lead to is not sent, be it
/// as long and as old as what was announced.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_planted_meanwhile_leads_to_is_not_sent() {
    for (len, of_directory) in [(10, true), (10, false), (3_000_000, true), (3_000_000, false)] {
        let (a, b) = (Node::new(1), endpoint(2));
        let secret = a.dir.path().join("secret");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let aged = |root: &Path, path: &str, byte: u8| {
            put(root, path, &vec![byte; len]);
            fs::File::open(root.join(path)).unwrap().set_modified(time).unwrap();
        };
        aged(&a.tree(), "d/f", 1);
        aged(&secret, "f", 2);
        // Walked after it, so that its directory is looked up anew and not the one that the walk had open.
        put(&a.tree(), "x/f", b"");
        put(&a.tree(), "y/f", b"");
        let mut acceptor = b.acceptor(StreamKind::Tree).unwrap();
        let mut chunks = b.acceptor(StreamKind::Transfer).unwrap();
        let receiving = async {
            let mut hand = Hand::accept(&mut acceptor).await;
            hand.read().await;
            hand.write(&message(READY, b"\0\x04tree")).await;
            // Three directories with a file and an end each, and the end of the root.
            hand.read().await;
            if of_directory {
                fs::rename(a.tree().join("d"), a.tree().join("moved")).unwrap();
                symlink(&secret, a.tree().join("d")).unwrap();
            } else {
                fs::remove_file(a.tree().join("d/f")).unwrap();
                symlink(secret.join("f"), a.tree().join("d/f")).unwrap();
            }
            hand.write(&verdicts(0, &[0, 2, 2, 0, 1, 2, 0, 1, 2, 2])).await;
            let pack = async {
                loop {
                    if let (PACK, body) = hand.read().await {
                        return body;
                    }
                }
            };
            let body = tokio::select! {
                body = pack => body,
                _ = chunks.accept() => panic!("{len} {of_directory}: the file is sent as a chunk"),
            };
            // One record, of entry 1, with a reason instead of a content.
            assert_eq!(body[..11], [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], "{len} {of_directory}");
            hand
        };
        let sending = a.transfer.send_tree(b.local_addr(), a.tree(), TreeOptions::new("tree"));
        tokio::select! {
            ended = sending => panic!("{len} {of_directory}: {ended:?}"),
            _ = receiving => {}
        }
    }
}

/// A large file that is replaced by another one of the same length between the walk and its turn is not what was announced.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_changed_since_the_walk_is_reported() {
    let (a, b) = (Node::new(1), endpoint(2));
    put(&a.tree(), "f", &content(3_000_000));
    let mut acceptor = b.acceptor(StreamKind::Tree).unwrap();
    let receiving = async {
        let mut hand = Hand::accept(&mut acceptor).await;
        hand.read().await;
        hand.write(&message(READY, b"\0\x04tree")).await;
        hand.read().await;
        let file = fs::File::options().write(true).open(a.tree().join("f")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        hand.write(&verdicts(0, &[2, 2])).await;
        let (mut given_up, mut manifest) = (None, None);
        while given_up.is_none() || manifest.is_none() {
            match hand.read().await {
                (PACK, body) => given_up = Some(body[10]),
                (END, body) => manifest = Some(body[8..40].to_vec()),
                (tag, _) => panic!("{tag}"),
            }
        }
        assert_eq!(given_up, Some(1), "a reason instead of a content");
        // What the sender said is told back; the root is there.
        hand.write(&message(7, &[&[1, 0][..], &0u64.to_le_bytes(), &[1, 7, 0, 0]].concat())).await;
        hand.write(&results(&[1])).await;
        let counts: Vec<u8> = [0u64, 0, 0, 1, 1, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
        hand.write(&message(9, &[counts, manifest.unwrap()].concat())).await;
        hand
    };
    let sending = a.transfer.send_tree(b.local_addr(), a.tree(), TreeOptions::new("tree"));
    let (sent, _hand) = tokio::join!(sending, receiving);
    let report = sent.unwrap();
    assert_eq!(undone(&report), [("f".to_owned(), EntryFailure::Changed)]);
    assert_eq!(counts(&report), (0, 0, 1, 1));
}

/// Some file systems have names, and links to names, that are longer than what can travel. They are reported, and the rest is sent.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_to_be_told_is_reported() {
    let odd = RecordingVfs::default();
    let (a, b) = (Node::with(1, odd.shared(), quick()), Node::new(2));
    b.open_trees(|inbox| inbox.links(true));
    put(&a.tree(), "d/f", b"x");
    symlink("d", a.tree().join("l")).unwrap();
    odd.set_odd();
    let heard = Arc::new(Mutex::new(0));
    let hearing = Arc::clone(&heard);
    let options = TreeOptions {
        links: Links::Inside,
        on_entry: Some(Arc::new(move |_, _| *hearing.lock().unwrap() += 1)),
        ..TreeOptions::new("tree")
    };
    let report = a.transfer.send_tree(b.addr(), a.tree(), options.clone()).await.unwrap();
    let long = "z".repeat(300);
    let expected = [
        (format!("d/{long}"), EntryFailure::BadName),
        ("l".to_owned(), EntryFailure::Link),
        (long, EntryFailure::BadName),
    ];
    assert_eq!(undone(&report), expected);
    assert_eq!(counts(&report), (1, 0, 2, 3));
    assert_eq!(*heard.lock().unwrap(), 6);
    // The receiver cannot tell whether that is what it has and the source seems not to.
    b.open_trees(|inbox| inbox.delete(true).links(true));
    put(&b.inbox(), "tree/d/theirs", b"");
    for dry_run in [true, false] {
        let options = TreeOptions { delete: true, links: Links::Skip, dry_run, ..TreeOptions::new("tree") };
        fs::remove_file(a.tree().join("l")).unwrap_or(());
        let report = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap();
        assert_eq!((report.removed, report.not_done), (0, 2), "{report:?}");
        assert!(b.inbox().join("tree/d/theirs").exists());
    }
    let options = TreeOptions { strict: true, ..options };
    let error = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap_err();
    assert!(matches!(error, TransferError::Source(_)), "{error}");
}
