//! What is sent arrives as it was, and only what has changed travels.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use octopii_transfer::{
    EntryFailure, EntryOutcome, ExistingTree, Links, SourceError, TransferError, TreeOptions, TreeReport,
};

use super::{chmod, counts, picture, put, undone};
use crate::nodes::{Node, content, names};

/// Files of every size around the limits, empty things, odd names, modes and times.
fn plant(node: &Node) -> usize {
    let tree = node.tree();
    let sizes = [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000];
    for (i, size) in sizes.into_iter().enumerate() {
        put(&tree, &format!("sizes/{i}"), &content(size));
    }
    let odd =
        ["a b", "-rf", "a:b", "back\\slash", "..a", "\u{e9}\u{4e16}", "%s", "*", ".hidden", "\u{202e}exe"];
    for name in odd {
        put(&tree.join("odd"), name, name.as_bytes());
    }
    fs::write(tree.join("odd").join(OsStr::from_bytes(b"\xff\xfe")), "not text").unwrap();
    fs::write(tree.join("odd").join("x".repeat(255)), "long").unwrap();
    fs::create_dir_all(tree.join("empty/in/empty")).unwrap();
    for (name, mode) in [("m0", 0o600), ("m1", 0o755), ("m2", 0o4755), ("m3", 0o1777), ("m4", 0o444)] {
        put(&tree, &format!("modes/{name}"), b"x");
        chmod(&tree.join("modes").join(name), mode);
    }
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::options().write(true).open(tree.join("sizes/2")).unwrap().set_modified(old).unwrap();
    chmod(&tree.join("empty/in"), 0o2770);
    chmod(&tree.join("empty"), 0o555);
    chmod(&tree, 0o750);
    File::open(tree.join("empty")).unwrap().set_modified(old).unwrap();
    sizes.len() + odd.len() + 2 + 5
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_arrives_as_it_was_and_is_not_sent_twice() {
    let (a, b) = (Node::new(1), Node::new(2));
    let received = b.open_trees(|inbox| inbox);
    let files = plant(&a) as u64;
    let report = a.send_tree(&b).await.unwrap();
    assert_eq!(report.undone, []);
    assert_eq!(counts(&report), (files, 0, 7, 0));
    assert!(report.is_complete());
    let mut wanted = picture(&a.tree());
    // Set-id and sticky bits do not travel.
    wanted.values_mut().for_each(|(_, mode, ..)| *mode &= 0o777);
    assert_eq!(picture(&b.inbox().join("tree")), wanted);
    let theirs = received.recv().unwrap();
    assert_eq!(theirs.path, b.inbox().join("tree"));
    let TreeReport { duration, travelled, .. } = report;
    assert_eq!(TreeReport { duration, travelled, ..theirs.report }, report);
    assert_eq!(travelled, report.stored_bytes);

    // Again: nothing travels. Then a change of content, of mode alone, and a new file.
    let again = a.send_tree(&b).await.unwrap();
    assert_eq!((counts(&again), again.stored_bytes), ((0, files, 7, 0), 0));
    assert_eq!(again.manifest, report.manifest);
    put(&a.tree(), "sizes/1", b"2");
    chmod(&a.tree().join("sizes/0"), 0o640);
    put(&a.tree(), "new/file", b"new");
    let third = a.send_tree(&b).await.unwrap();
    assert_eq!((counts(&third), third.stored_bytes), ((2, files - 1, 8, 0), 4));
    assert_ne!(third.manifest, report.manifest);
    let mut wanted = picture(&a.tree());
    wanted.values_mut().for_each(|(_, mode, ..)| *mode &= 0o777);
    assert_eq!(picture(&b.inbox().join("tree")), wanted);
    assert_eq!(names(&b.inbox()), [".octopii-trees", "tree"]);
}

/// More than one page and more than one pack, in many directories.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_arrive() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    let tree = a.tree();
    for dir in 0..60 {
        fs::create_dir(tree.join(format!("d{dir}"))).unwrap();
        for file in 0..50 {
            fs::write(tree.join(format!("d{dir}/{file}")), format!("{dir}/{file}")).unwrap();
        }
    }
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (told, progress) = (Arc::clone(&seen), Arc::new(Mutex::new(Vec::new())));
    let latest = Arc::clone(&progress);
    let options = TreeOptions {
        on_entry: Some(Arc::new(move |path, outcome| {
            told.lock().unwrap().push((path.to_owned(), outcome.clone()));
        })),
        progress: Some(Arc::new(move |now| latest.lock().unwrap().push(now))),
        ..TreeOptions::new("tree")
    };
    let report = a.transfer.send_tree(b.addr(), &tree, options).await.unwrap();
    assert_eq!(counts(&report), (3000, 0, 61, 0));
    assert_eq!(picture(&b.inbox().join("tree")), picture(&tree));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3061, "every path is told once");
    let stored = |(_, outcome): &&(_, EntryOutcome)| matches!(outcome, EntryOutcome::Stored { .. });
    assert_eq!(seen.iter().filter(stored).count(), 3000);
    let last = *progress.lock().unwrap().last().unwrap();
    assert!(last.complete && (last.found, last.settled) == (3000, 3000), "{last:?}");
    assert_eq!(last.found_bytes, last.settled_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sent_is_reported() {
    let (a, b) = (Node::new(1), Node::new(2));
    let received = b.open_trees(|inbox| inbox.links(true));
    let tree = a.tree();
    put(&tree, "dir/file", b"x");
    put(&tree, "bad\nname", b"x");
    put(&tree, ".octopii-0.part", b"x");
    symlink("file", tree.join("dir/inside")).unwrap();
    symlink("../dir", tree.join("dir/up")).unwrap();
    symlink("/etc/passwd", tree.join("absolute")).unwrap();
    symlink("../../outside", tree.join("dir/outside")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();

    let report = a.send_tree(&b).await.unwrap();
    let link = |name: &str| (name.to_owned(), EntryFailure::Link);
    let always = [
        (".octopii-0.part".to_owned(), EntryFailure::BadName),
        ("absolute".to_owned(), EntryFailure::Link),
        ("bad\\nname".to_owned(), EntryFailure::BadName),
    ];
    let special = ("socket".to_owned(), EntryFailure::Special);
    let links = [link("dir/inside"), link("dir/outside"), link("dir/up")];
    let expected = [&always[..], &links, std::slice::from_ref(&special)].concat();
    assert_eq!(undone(&report), expected);
    assert_eq!((counts(&report), report.is_complete()), ((1, 0, 2, 7), false));
    let theirs = received.recv().unwrap().report;
    assert_eq!(undone(&theirs), expected, "the receiver knows what it did not get");

    let options = TreeOptions { links: Links::Inside, ..TreeOptions::new("tree") };
    let report = a.transfer.send_tree(b.addr(), &tree, options.clone()).await.unwrap();
    assert_eq!(undone(&report), [&always[..], &[link("dir/outside"), special]].concat());
    assert_eq!(counts(&report), (2, 1, 2, 5));
    let inside = b.inbox().join("tree/dir/inside");
    assert_eq!(fs::read_link(inside).unwrap(), std::path::Path::new("file"));
    let again = a.transfer.send_tree(b.addr(), &tree, options).await.unwrap();
    assert_eq!(counts(&again), (0, 3, 2, 5));
}

/// As root everything can be read, so the file is one that changes its kind under the sender's eyes.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_ends_the_tree_only_if_asked() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    let tree = a.tree();
    put(&tree, "fine", b"x");
    put(&tree, "secret/file", b"x");
    chmod(&tree.join("secret"), 0o000);
    if fs::read_dir(tree.join("secret")).is_ok() {
        return; // root
    }
    let report = a.send_tree(&b).await.unwrap();
    assert_eq!(undone(&report), [("secret".to_owned(), EntryFailure::Unreadable)]);
    let options = TreeOptions { strict: true, ..TreeOptions::new("tree") };
    let error = a.transfer.send_tree(b.addr(), &tree, options).await.unwrap_err();
    chmod(&tree.join("secret"), 0o700);
    assert!(matches!(error, TransferError::Source(SourceError::Unreadable { .. })), "{error}");
}

/// With checksums content decides: a change that keeps size and time is found, one of the time alone costs nothing.
#[tokio::test(flavor = "multi_thread")]
async fn checksums_see_what_times_do_not() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    let tree = a.tree();
    put(&tree, "sly", b"before");
    put(&tree, "touched", b"same");
    put(&tree, "large", &content(2_000_000));
    let options = TreeOptions { checksum: true, ..TreeOptions::new("tree") };
    let first = a.transfer.send_tree(b.addr(), &tree, options.clone()).await.unwrap();
    assert_eq!(counts(&first), (3, 0, 1, 0));
    let time = fs::metadata(tree.join("sly")).unwrap().modified().unwrap();
    put(&tree, "sly", b"behind");
    let sly = File::options().write(true).open(tree.join("sly")).unwrap();
    sly.set_modified(time).unwrap();
    let touched = File::options().write(true).open(tree.join("touched")).unwrap();
    touched.set_modified(time + Duration::from_secs(9)).unwrap();
    assert_eq!(a.send_tree(&b).await.unwrap().stored, 1, "by time: the touched one");
    touched.set_modified(time + Duration::from_secs(99)).unwrap();
    let third = a.transfer.send_tree(b.addr(), &tree, options).await.unwrap();
    assert_eq!((counts(&third), third.stored_bytes), ((1, 2, 1, 0), 6), "by content: the sly one");
    assert_eq!(picture(&b.inbox().join("tree")), picture(&tree));
}

/// A tree updates what the same source has made, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn existing_directories_are_left_alone_unless_they_are_its_own() {
    let (a, b, c) = (Node::new(1), Node::new(2), Node::new(3));
    b.open_trees(|inbox| inbox);
    put(&b.inbox(), "tree/mine", b"the user's own");
    put(&a.tree(), "f", b"a");
    put(&c.tree(), "f", b"c");
    for _ in 0..2 {
        assert_eq!(a.send_tree(&b).await.unwrap().name.to_str(), Some("tree (1)"));
        assert_eq!(c.send_tree(&b).await.unwrap().name.to_str(), Some("tree (2)"));
    }
    assert_eq!(names(&b.inbox().join("tree")), ["mine"]);
    assert_eq!(fs::read(b.inbox().join("tree (1)/f")).unwrap(), b"a");
    assert_eq!(fs::read(b.inbox().join("tree (2)/f")).unwrap(), b"c");
    // Somebody else's directory under the name of one that was received is not taken for it.
    fs::rename(b.inbox().join("tree (1)"), b.inbox().join("moved")).unwrap();
    put(&b.inbox(), "tree (1)/theirs", b"");
    assert_eq!(a.send_tree(&b).await.unwrap().name.to_str(), Some("tree (3)"));
    assert_eq!(names(&b.inbox().join("tree (1)")), ["theirs"]);

    b.open_trees(|inbox| inbox.existing(ExistingTree::Fresh));
    assert_eq!(a.send_tree(&b).await.unwrap().name.to_str(), Some("tree (4)"));
    b.open_trees(|inbox| inbox.existing(ExistingTree::Refuse));
    let error = a.send_tree(&b).await.unwrap_err();
    assert!(matches!(error, TransferError::Refused { .. }), "{error}");
    b.open_trees(|inbox| inbox.existing(ExistingTree::Update));
    assert_eq!(a.send_tree(&b).await.unwrap().name.to_str(), Some("tree"));
    assert_eq!(names(&b.inbox().join("tree")), ["f", "mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_forbids_writing_is_no_obstacle() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox.mode_mask(0o770));
    put(&a.tree(), "d/f", b"1");
    chmod(&a.tree().join("d/f"), 0o444);
    chmod(&a.tree().join("d"), 0o555);
    a.send_tree(&b).await.unwrap();
    chmod(&a.tree().join("d"), 0o755);
    put(&a.tree(), "d/g", b"2");
    chmod(&a.tree().join("d"), 0o555);
    let report = a.send_tree(&b).await.unwrap();
    assert_eq!((counts(&report), report.undone), ((1, 1, 2, 0), vec![]));
    let mode = |path| fs::metadata(b.inbox().join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tree/d"), mode("tree/d/f")), (0o550, 0o440));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_directories_are_trees_and_somebody_must_take_them() {
    let (a, b) = (Node::new(1), Node::new(2));
    let error = a.send_tree(&b).await.unwrap_err();
    assert!(matches!(error, TransferError::Refused { .. }), "{error}");
    b.open_trees(|inbox| inbox);
    let file = a.source("file", b"x");
    let options = || TreeOptions::new("tree");
    let error = a.transfer.send_tree(b.addr(), &file, options()).await.unwrap_err();
    assert!(matches!(error, TransferError::Source(SourceError::NotADirectory(_))), "{error}");
    let error = a.transfer.send_tree(b.addr(), file.with_file_name("no"), options()).await.unwrap_err();
    assert!(matches!(error, TransferError::Source(SourceError::NotFound(_))), "{error}");
    let named = TreeOptions { name: Some("other".to_owned()), ..options() };
    let report = a.transfer.send_tree(b.addr(), a.tree(), named).await.unwrap();
    assert_eq!((report.name.to_str(), counts(&report)), (Some("other"), (0, 0, 1, 0)));
    let bad = TreeOptions { name: Some("../up".to_owned()), ..options() };
    let error = a.transfer.send_tree(b.addr(), a.tree(), bad).await.unwrap_err();
    assert!(matches!(error, TransferError::Refused { .. }), "{error}");
}

/// Small and large files together stay below the limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_limited_rate_is_kept() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    for n in 0..20 {
        put(&a.tree(), &format!("{n}"), &content(50_000));
    }
    put(&a.tree(), "large", &content(2_000_000));
    let rate_limit = std::num::NonZeroU64::new(3_000_000);
    let options = TreeOptions { rate_limit, ..TreeOptions::new("tree") };
    let report = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap();
    assert_eq!((report.stored, report.stored_bytes), (21, 3_000_000));
    // A lower bound: no load makes it faster.
    assert!(report.duration > Duration::from_millis(850), "{:?}", report.duration);
}
