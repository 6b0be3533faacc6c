//! Removing what the source no longer has.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use octopii_transfer::{
    EntryFailure, EntryOutcome, ExistingTree, FailureCode, TransferError, TreeOptions, TreeReport,
};

use super::{chmod, counts, picture, put, undone};
use crate::nodes::{Node, eventually, names, operators_endpoint, quick};
use crate::recording::{Op, RecordingVfs};

/// Sends with removal; also which paths were told of as removed.
async fn send(a: &Node, b: &Node) -> Result<(TreeReport, BTreeSet<String>), TransferError> {
    send_with(a, b, |options| options).await
}

async fn send_with(
    a: &Node,
    b: &Node,
    adjust: impl FnOnce(TreeOptions) -> TreeOptions,
) -> Result<(TreeReport, BTreeSet<String>), TransferError> {
    let removed = Arc::new(Mutex::new(BTreeSet::new()));
    let telling = Arc::clone(&removed);
    let options = TreeOptions {
        delete: true,
        on_entry: Some(Arc::new(move |path, outcome| {
            if *outcome == EntryOutcome::Removed {
                assert!(telling.lock().unwrap().insert(path.to_str().unwrap().to_owned()), "told twice");
            }
        })),
        ..TreeOptions::new("tree")
    };
    let report = a.transfer.send_tree(b.addr(), a.tree(), adjust(options)).await?;
    let removed = removed.lock().unwrap().clone();
    assert_eq!(report.removed, removed.len() as u64);
    Ok((report, removed))
}

fn nodes() -> (Node, Node) {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox.delete(true));
    for path in ["a", "b", "d/1", "d/2", "gone/x/1", "gone/x/2", "gone/y", "keep/z"] {
        put(&a.tree(), path, path.as_bytes());
    }
    (a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_no_longer_has_is_removed_and_nothing_else() {
    let (a, b) = nodes();
    send(&a, &b).await.unwrap();
    put(b.dir.path(), "outside/precious", b"precious");
    put(&b.inbox(), "another/f", b"");
    // Links that lead out are removed as such, also where they are in something that goes.
    let tree = b.inbox().join("tree");
    symlink(b.dir.path().join("outside"), tree.join("link")).unwrap();
    symlink(b.dir.path().join("outside"), tree.join("gone/link")).unwrap();
    // The receiver's user has put something there, and let nobody write.
    put(&tree, "d/theirs", b"");
    put(&tree, "\u{1}odd", b"");
    chmod(&tree.join("gone/x"), 0o500);
    chmod(&tree.join("d"), 0o500);
    fs::remove_dir_all(a.tree().join("gone")).unwrap();
    for path in ["b", "d/2"] {
        fs::remove_file(a.tree().join(path)).unwrap();
    }
    put(&a.tree(), "new", b"new");
    let (report, removed) = send(&a, &b).await.unwrap();
    assert_eq!((counts(&report), report.undone), ((1, 3, 3, 0), vec![]));
    let gone = ["gone", "gone/link", "gone/x", "gone/x/1", "gone/x/2", "gone/y"];
    let others = ["\u{1}odd", "b", "d/2", "d/theirs", "link"];
    let expected = gone.into_iter().chain(others).map(str::to_owned).collect();
    assert_eq!(removed, expected);
    // Times and modes of the directories, too.
    assert_eq!(picture(&tree), picture(&a.tree()));
    assert_eq!(names(&b.inbox()), [".octopii-trees", "another", "tree"]);
    assert_eq!(fs::read(b.dir.path().join("outside/precious")).unwrap(), b"precious");
    let (report, _) = send(&a, &b).await.unwrap();
    assert_eq!((counts(&report), report.removed), ((0, 4, 3, 0), 0));
}

/// What could not be told or taken may be what seems to be missing.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_unless_all_else_was_done_and_both_want_it() {
    let (a, b) = nodes();
    send(&a, &b).await.unwrap();
    let before = picture(&b.inbox().join("tree"));
    fs::remove_file(a.tree().join("b")).unwrap();
    symlink("a", a.tree().join("link")).unwrap();
    let (report, removed) = send(&a, &b).await.unwrap();
    assert_eq!(undone(&report), [("link".to_owned(), EntryFailure::Link)]);
    assert!(removed.is_empty() && b.inbox().join("tree/b").exists());
    fs::remove_file(a.tree().join("link")).unwrap();

    let plain = a.send_tree(&b).await.unwrap();
    assert_eq!((plain.removed, plain.not_done), (0, 0));
    b.open_trees(|inbox| inbox);
    let error = send(&a, &b).await.unwrap_err();
    let is_refused =
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::Rejected);
    assert!(is_refused, "{error}");
    let now = picture(&b.inbox().join("tree"));
    assert_eq!(now.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_is_reported() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox.delete(true));
    put(&a.tree(), "d/f", b"");
    put(&a.tree(), "e/f", b"");
    send(&a, &b).await.unwrap();
    fs::remove_dir_all(a.tree().join("d")).unwrap();
    fs::remove_dir_all(a.tree().join("e")).unwrap();
    vfs.fail(Op::TreeRemove, 0, 1, ErrorKind::PermissionDenied);
    let (report, removed) = send(&a, &b).await.unwrap();
    assert_eq!(undone(&report), [("d".to_owned(), EntryFailure::Io)]);
    assert_eq!(removed, ["d/f", "e", "e/f"].map(str::to_owned).into());
    // Removed, then durable, and only then the tree is complete.
    let record = vfs.record();
    let removing = record.iter().rposition(|op| *op == Op::TreeRemove).unwrap();
    assert_eq!(record.get(removing + 1), Some(&Op::TreeSync), "{record:?}");
    let (report, removed) = send(&a, &b).await.unwrap();
    assert_eq!((report.not_done, removed), (0, ["d".to_owned()].into()));
}

/// What somebody has mounted in the tree is somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_mounted_in_the_tree_stays() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox.delete(true));
    put(&a.tree(), "f", b"");
    send(&a, &b).await.unwrap();
    for path in ["tree/mounted/precious", "tree/x/deep/precious", "tree/x/y"] {
        put(&b.inbox(), path, b"precious");
    }
    vfs.mount("tree/mounted");
    // Told beforehand, too.
    let (foretold, _) = send_with(&a, &b, |options| TreeOptions { dry_run: true, ..options }).await.unwrap();
    let (report, removed) = send(&a, &b).await.unwrap();
    assert_eq!(undone(&report), [("mounted".to_owned(), EntryFailure::Clash)]);
    assert_eq!((foretold.undone, foretold.removed), (report.undone, report.removed));
    assert_eq!(removed, ["x", "x/deep", "x/deep/precious", "x/y"].map(str::to_owned).into());
    assert!(b.inbox().join("tree/mounted/precious").exists());
}

/// What was renamed to another spelling is there under the old one, which the source does not have.
#[tokio::test(flavor = "multi_thread")]
async fn another_spelling_of_what_is_there_removes_nothing() {
    let vfs = RecordingVfs::default();
    vfs.set_folding();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox.delete(true).links(true));
    put(&a.tree(), "photos/x", b"x");
    put(&a.tree(), "readme", b"read me");
    put(&a.tree(), "gone", b"");
    send(&a, &b).await.unwrap();
    let before = picture(&b.inbox().join("tree"));
    fs::rename(a.tree().join("photos"), a.tree().join("Photos")).unwrap();
    fs::rename(a.tree().join("readme"), a.tree().join("README")).unwrap();
    fs::remove_file(a.tree().join("gone")).unwrap();
    let (report, removed) = send(&a, &b).await.unwrap();
    let expected = [
        ("Photos", EntryFailure::Clash),
        ("Photos/x", EntryFailure::InRefusedDirectory),
        ("README", EntryFailure::Clash),
    ];
    assert_eq!(undone(&report), expected.map(|(path, why)| (path.to_owned(), why)));
    assert!(removed.is_empty());
    let now = picture(&b.inbox().join("tree"));
    assert_eq!(now.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
}

fn is_refused(sent: Result<(TreeReport, BTreeSet<String>), TransferError>) -> bool {
    matches!(sent, Err(TransferError::Refused { refusal, .. }) if refusal.code == FailureCode::Rejected)
}

/// Whoever may send can say of itself what it likes, but not who it is.
#[tokio::test(flavor = "multi_thread")]
async fn only_who_made_a_tree_and_operators_remove_from_it() {
    let (a, b, liar) = (Node::new(1), Node::new(2), Node::new(3));
    let operator = Node::on(operators_endpoint(4), octopii_vfs::RealVfs::shared(), quick());
    b.open_trees(|inbox| inbox.delete(true));
    let claimed = |options| TreeOptions { source: Some("photos".to_owned()), ..options };
    let fill = || ["1", "2", "3", "4"].iter().for_each(|name| put(&a.tree(), name, name.as_bytes()));
    let there = || names(&b.inbox().join("tree"));
    fill();
    send_with(&a, &b, claimed).await.unwrap();
    put(&liar.tree(), "5", b"5");
    for dry_run in [true, false] {
        assert!(is_refused(send_with(&liar, &b, |o| TreeOptions { dry_run, ..claimed(o) }).await));
    }
    // It may bring it up to date, which makes it nobody else's.
    let plain = claimed(TreeOptions::new("tree"));
    let report = liar.transfer.send_tree(b.addr(), liar.tree(), plain).await.unwrap();
    assert_eq!((report.name.to_str(), counts(&report)), (Some("tree"), (1, 0, 1, 0)));
    assert!(is_refused(send_with(&liar, &b, claimed).await));
    assert_eq!(there(), ["1", "2", "3", "4", "5"]);
    put(&operator.tree(), "1", b"1");
    send_with(&operator, &b, claimed).await.unwrap();
    assert_eq!(there(), ["1"]);
    fs::remove_file(a.tree().join("1")).unwrap();
    send_with(&a, &b, claimed).await.unwrap();
    assert_eq!(there(), ["2", "3", "4"]);
    b.open_trees(|inbox| inbox.delete(true).existing(ExistingTree::Update));
    send_with(&liar, &b, claimed).await.unwrap();
    assert_eq!(there(), ["5"]);
}

/// A directory that somebody has made anew may have the number of the one that was sent: nothing else tells them apart there.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_age_is_not_emptied() {
    let vfs = RecordingVfs::default();
    vfs.set_ageless();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox.delete(true));
    put(&a.tree(), "1", b"1");
    send(&a, &b).await.unwrap();
    put(&b.inbox(), "tree/2", b"2");
    assert!(is_refused(send(&a, &b).await));
    assert_eq!(counts(&a.send_tree(&b).await.unwrap()), (0, 1, 1, 0));
    assert_eq!(names(&b.inbox().join("tree")), ["1", "2"]);
    b.open_trees(|inbox| inbox.delete(true).existing(ExistingTree::Update));
    send(&a, &b).await.unwrap();
    assert_eq!(names(&b.inbox().join("tree")), ["1"]);
}

/// Of the directory that all of it is in, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_does_not_get_its_time_back_is_reported() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox.delete(true));
    put(&a.tree(), "f", b"");
    send(&a, &b).await.unwrap();
    put(&b.inbox(), "tree/gone", b"");
    // First when the directory is complete, then when something was removed from it.
    vfs.fail(Op::TreeAttributes, 1, 1, ErrorKind::PermissionDenied);
    let (report, removed) = send(&a, &b).await.unwrap();
    assert_eq!(undone(&report), [(String::new(), EntryFailure::Io)]);
    assert_eq!(removed, ["gone".to_owned()].into());
}

/// What was removed before the connection was lost is gone, and the next attempt does not find it.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_is_cut_off_goes_on() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox.delete(true));
    put(&a.tree(), "f", b"");
    send(&a, &b).await.unwrap();
    // More than are removed in one step, of which the second one does not end.
    (0..1100).for_each(|n| put(&b.inbox(), &format!("tree/{n}"), b""));
    put(&b.inbox(), "tree/z/x", b"");
    vfs.hang(Op::TreeRemove);
    let (endpoint, addr, slow) = (a.endpoint.clone(), b.addr(), vfs.clone());
    let is_cut = AtomicBool::new(false);
    let cut = move |_: &std::path::Path, outcome: &EntryOutcome| {
        if *outcome == EntryOutcome::Removed && !is_cut.swap(true, Ordering::Relaxed) {
            let (endpoint, slow) = (endpoint.clone(), slow.clone());
            tokio::spawn(async move {
                eventually("the second step", || slow.hangs()).await;
                endpoint.connect(addr).await.unwrap().close("cut");
                slow.release();
            });
        }
    };
    let options =
        TreeOptions { delete: true, retries: 5, on_entry: Some(Arc::new(cut)), ..TreeOptions::new("tree") };
    let report = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap();
    assert!(report.retries >= 1 && report.is_complete(), "{report:?}");
    assert!(report.removed_before >= 1024 && report.removed + report.removed_before <= 1102, "{report:?}");
    assert_eq!(picture(&b.inbox().join("tree")), picture(&a.tree()));
}

/// It was opened to be emptied, and something in it cannot be removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_has_to_stay_is_as_closed_as_it_was() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox.delete(true));
    put(&a.tree(), "f", b"");
    send(&a, &b).await.unwrap();
    let closed = b.inbox().join("tree/closed");
    put(&closed, "mounted/precious", b"precious");
    put(&closed, "extra", b"");
    chmod(&closed, 0o2050);
    let before = picture(&b.inbox())[&PathBuf::from("tree/closed")].clone();
    vfs.mount("tree/closed/mounted");
    let (report, removed) = send(&a, &b).await.unwrap();
    let not_done = undone(&report).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(
        (not_done, removed),
        (vec!["closed".into(), "closed/mounted".into()], ["closed/extra".into()].into())
    );
    assert_eq!(picture(&b.inbox())[&PathBuf::from("tree/closed")], before);
}
