//! Dry runs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::{Arc, Mutex};

use octopii_transfer::{
    EntryOutcome, FailureCode, Links, TransferError, TreeOptions, TreeReport, shown_path,
};

use super::{chmod, counts, picture, put};
use crate::nodes::{Node, content, quick};
use crate::recording::RecordingVfs;

type Told = BTreeSet<(String, String)>;

async fn send(a: &Node, b: &Node, dry_run: bool) -> Result<(TreeReport, Told), TransferError> {
    let told = Arc::new(Mutex::new(Told::new()));
    let telling = Arc::clone(&told);
    let options = TreeOptions {
        delete: true,
        dry_run,
        links: Links::Inside,
        on_entry: Some(Arc::new(move |path, outcome: &EntryOutcome| {
            telling.lock().unwrap().insert((shown_path(path), format!("{outcome:?}")));
        })),
        ..TreeOptions::new("tree")
    };
    let report = a.transfer.send_tree(b.addr(), a.tree(), options).await?;
    let told = told.lock().unwrap().clone();
    Ok((report, told))
}

/// What it tells is what is then done, entry by entry, and until then nothing is.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_would_be_done_and_does_nothing() {
    let (a, b) = (Node::new(1), Node::new(2));
    let received = b.open_trees(|inbox| inbox.delete(true).links(true));
    for path in ["a", "b", "d/1", "d/2", "gone/x/1"] {
        put(&a.tree(), path, path.as_bytes());
    }
    put(&a.tree(), "large", &content(2_000_000));
    let error = send(&a, &b, true).await.unwrap_err();
    let is_refused =
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::Rejected);
    assert!(is_refused && !b.inbox().exists(), "{error}");
    fs::create_dir(b.inbox()).unwrap();
    for round in 0..3 {
        let before = picture(&b.inbox());
        let (foretold, of_each) = send(&a, &b, true).await.unwrap();
        assert_eq!(picture(&b.inbox()), before, "round {round}");
        assert!(received.try_recv().is_err(), "the policy hears of no arrival");
        let (report, done) = send(&a, &b, false).await.unwrap();
        assert_eq!((of_each, counts(&foretold)), (done, counts(&report)), "round {round}");
        assert_eq!((foretold.stored_bytes, foretold.removed), (report.stored_bytes, report.removed));
        assert_eq!((foretold.manifest, &foretold.name), (report.manifest, &report.name));
        assert_eq!(picture(&b.inbox().join("tree")), picture(&a.tree()), "round {round}");
        received.try_recv().unwrap();
        // For the next round: new, changed, gone, a mode that differs and one that lets nobody in.
        put(&a.tree(), &format!("new{round}/f"), b"new");
        put(&a.tree(), "b", format!("changed {round}").as_bytes());
        let _ = fs::remove_dir_all(a.tree().join("gone"));
        let _ = symlink("b", a.tree().join("link"));
        chmod(&a.tree().join("a"), 0o600 + round);
        chmod(&b.inbox().join("tree/d"), 0o500);
    }
    // Somebody else's directory is not what it would go into.
    let c = Node::new(3);
    put(&c.tree(), "f", b"");
    let (foretold, _) = send(&c, &b, true).await.unwrap();
    assert_eq!(foretold.name.to_str(), Some("tree (1)"));
}

/// What is in a directory that lets nobody in is not nothing: the real run opens it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_does_not_guess_what_it_may_not_see() {
    let vfs = RecordingVfs::default();
    vfs.set_unprivileged();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox.delete(true));
    put(&a.tree(), "d/f", b"");
    send(&a, &b, false).await.unwrap();
    put(&b.inbox(), "tree/d/extra/x", b"");
    for (dir, mode) in [("d", 0o000), ("d", 0o300), ("d", 0o600), ("d/extra", 0o000), ("d/extra", 0o600)] {
        let dir = b.inbox().join("tree").join(dir);
        chmod(&dir, mode);
        let error = send(&a, &b, true).await.unwrap_err();
        let is_told = matches!(&error, TransferError::PeerFailed { refusal, .. }
            if refusal.code == FailureCode::Rejected && refusal.message.contains("the mode of"));
        assert!(is_told, "{mode:o}: {error}");
        chmod(&dir, 0o700);
    }
    chmod(&b.inbox().join("tree/d"), 0o500);
    chmod(&b.inbox().join("tree/d/extra"), 0o500);
    let (foretold, _) = send(&a, &b, true).await.unwrap();
    assert_eq!(foretold.removed, 2);
    chmod(&b.inbox().join("tree/d/extra"), 0o000);
    let (report, _) = send(&a, &b, false).await.unwrap();
    assert_eq!((report.removed, report.not_done), (2, 0));
    assert_eq!(picture(&b.inbox().join("tree")), picture(&a.tree()));
}

/// Where something cannot be done nothing would be removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_foretells_no_removal_that_would_not_be() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox.delete(true));
    put(&a.tree(), "f", b"");
    send(&a, &b, false).await.unwrap();
    put(&b.inbox(), "tree/extra", b"");
    symlink("f", a.tree().join("link")).unwrap();
    for dry_run in [true, false] {
        // The receiver takes no links.
        let (report, _) = send(&a, &b, dry_run).await.unwrap();
        assert_eq!((report.removed, report.not_done), (0, 1), "{dry_run}");
    }
}
