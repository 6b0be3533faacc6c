//! What reaches the disk, in which order, what is left when it fails, and how an interrupted tree goes on.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_transfer::{
    EntryFailure, EntryOutcome, FailureCode, ReceivedTree, Refusal, TransferError, TransferOptions,
    TreeDestination, TreeOffer, TreeOptions, TreePolicy,
};

use super::hand::{Hand, READY, content, directory, end, file, opening};
use super::{counts, picture, put, undone};
use crate::nodes::{Node, content as bytes, endpoint, eventually, impatient, names, quick};
use crate::raw::message;
use crate::recording::{Op, RecordingVfs};

/// Notes when a file is settled at the receiver.
struct Noting(RecordingVfs, PathBuf);

impl TreePolicy for Noting {
    fn accept(&self, offer: &TreeOffer) -> Result<TreeDestination, Refusal> {
        Ok(TreeDestination::new(&self.1, &offer.name))
    }

    fn entry(&self, _: &TreeOffer, _: &Path, outcome: &EntryOutcome) {
        if matches!(outcome, EntryOutcome::Stored { .. }) {
            self.0.note(Op::Received);
        }
    }

    fn received(&self, tree: ReceivedTree) {
        drop(tree);
    }
}

/// Written, synced, renamed, synced, policy told, sender told: in this order, each finished for all before the next. Whatever
/// came earlier would mean less than "durable".
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_before_it_is_durable() {
    let small = [Op::TreeWrite];
    let large = [Op::Allocate, Op::Write, Op::SyncData, Op::Rename, Op::SyncDir];
    for (size, writing) in [(4096, &small[..]), (3_000_000, &large[..])] {
        let vfs = RecordingVfs::default();
        let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
        fs::create_dir(b.inbox()).unwrap();
        b.transfer.receive_trees("tree", Noting(vfs.clone(), b.inbox()));
        for name in ["1", "dir/2", "dir/3"] {
            put(&a.tree(), name, &bytes(size));
        }
        if size > 1 << 20 {
            fs::remove_dir_all(a.tree().join("dir")).unwrap();
        }
        vfs.set_delay(Duration::from_millis(20));
        let noting = vfs.clone();
        let options = TreeOptions {
            on_entry: Some(Arc::new(move |_, outcome| {
                if matches!(outcome, EntryOutcome::Stored { .. }) {
                    noting.note(Op::Acknowledged);
                }
            })),
            ..TreeOptions::new("tree")
        };
        a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap();
        let record = vfs.record();
        // Before and after it whose tree it is is written down.
        let owner = [Op::Write, Op::SyncData, Op::Rename, Op::SyncDir];
        let files =
            record.strip_prefix(&owner).unwrap_or_else(|| panic!("the owner comes first: {record:?}"));
        let committing = [Op::TreeSync, Op::TreeRename, Op::TreeSync, Op::Received];
        let expected = [writing, &committing].concat();
        assert_eq!(files[..expected.len()], expected, "{record:?}");
        let rest: Vec<_> = files[expected.len()..].iter().filter(|op| **op == Op::Acknowledged).collect();
        assert_eq!(rest.len(), 1, "told once, and only now: {record:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_written_is_reported_and_the_others_arrive() {
    for (op, kind, failure) in [
        (Op::TreeWrite, ErrorKind::StorageFull, EntryFailure::StorageFull),
        (Op::TreeWrite, ErrorKind::PermissionDenied, EntryFailure::Io),
        (Op::TreeRename, ErrorKind::PermissionDenied, EntryFailure::Io),
    ] {
        let vfs = RecordingVfs::default();
        let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
        b.open_trees(|inbox| inbox);
        for name in ["1", "2", "3"] {
            put(&a.tree(), name, name.as_bytes());
        }
        vfs.fail(op, 1, 1, kind);
        let report = a.send_tree(&b).await.unwrap();
        assert_eq!(undone(&report), [("2".to_owned(), failure)], "{op:?} {kind}");
        assert_eq!(counts(&report), (2, 0, 1, 1));
        let hidden = fs::read_dir(b.inbox().join(".octopii-trees")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(names(&hidden), ["lock", "owner"], "{op:?} {kind}");
        let again = a.send_tree(&b).await.unwrap();
        assert_eq!(counts(&again), (1, 2, 1, 0));
        assert_eq!(picture(&b.inbox().join("tree")), picture(&a.tree()));
    }
}

/// Whoever has heard of a tree's end, good or bad, may send it again at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_free_before_its_end_is_told() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "f", b"x");
    vfs.set_unlock_delay(Duration::from_millis(300));
    a.send_tree(&b).await.unwrap();
    assert_eq!(vfs.held(), 0, "told of its success while it was locked");
    vfs.fail(Op::TreeSync, 0, 1, ErrorKind::Other);
    a.send_tree(&b).await.unwrap_err();
    assert_eq!(vfs.held(), 0, "told of its failure while it was locked");
}

/// Somebody who is just letting go of a tree is waited for, and somebody who is not is told of.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_let_go_of_is_waited_for() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "f", b"x");
    a.send_tree(&b).await.unwrap();
    let hidden = fs::read_dir(b.inbox().join(".octopii-trees")).unwrap().next().unwrap().unwrap().path();
    let lock = || octopii_vfs::Vfs::lock(&octopii_vfs::RealVfs, &hidden.join("lock")).unwrap();

    let held = lock();
    let before = vfs.locked_out();
    let letting_go = async {
        eventually("the offer that finds it locked", || vfs.locked_out() > before).await;
        drop(held);
    };
    let (sent, ()) = tokio::join!(a.send_tree(&b), letting_go);
    assert_eq!(counts(&sent.unwrap()), (0, 1, 1, 0));

    let _held = lock();
    let error = a.send_tree(&b).await.unwrap_err();
    let is_busy =
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::Busy);
    assert!(is_busy, "{error}");
}

/// A disk that takes longer than anyone waits for it gives files their names whenever it comes to that: until then the tree is
/// nobody else's, or their names would be given to another's files.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_locked_as_long_as_its_files_may_get_names() {
    let vfs = RecordingVfs::default();
    let options = TransferOptions { max_incoming: 1, ..impatient() };
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), options));
    b.open_trees(|inbox| inbox);
    let mut hand = Hand::open(&a, &b).await;
    hand.page(&[file(b"f", 3), end()]).await;
    vfs.hang(Op::TreeSync);
    hand.pack(&[content(0, b"one")]).await;
    eventually("the sync", || vfs.hangs()).await;
    drop(hand);
    let open = async |id: u128, name: &[u8]| {
        let mut hand = Hand::silent(&a.endpoint, &b).await;
        hand.write(&opening(id, name)).await;
        let (tag, body) = hand.read().await;
        (tag == READY, String::from_utf8_lossy(&body).into_owned())
    };
    let try_until = async |name: &[u8], wanted: &dyn Fn(bool, &str) -> bool| {
        for id in 100..300 {
            let (ready, text) = open(id, name).await;
            if wanted(ready, &text) {
                return ready;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{}", String::from_utf8_lossy(name));
    };
    // There is one place, and the first tree has it until it has been given up.
    try_until(b"other", &|ready, _| ready).await;
    // As soon as there is a place again, it is the lock that matters.
    let taken = try_until(b"tree", &|ready, text| ready || text.contains("this tree")).await;
    assert!(!taken && vfs.hangs(), "the tree was let go of");
    vfs.release();
    try_until(b"tree", &|ready, _| ready).await;
}

/// The policy hears of one end of a tree: of a tree that arrived, that it did, even if its sender has gone by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_arrived_does_not_fail() {
    let (a, b) = (Node::new(1), Node::new(2));
    let (entered, entering) = std::sync::mpsc::channel();
    let (leave, leaving) = std::sync::mpsc::channel();
    let policy = Slow { dir: b.inbox(), entered: Mutex::new(entered), leaving: Mutex::new(leaving) };
    b.transfer.receive_trees("tree", policy);
    let mut hand = Hand::open(&a, &b).await;
    hand.page(&[end()]).await;
    hand.finish_manifest().await;
    let told = || entering.try_recv().ok();
    eventually("its arrival", || told() == Some("received")).await;
    drop(hand);
    // Nothing tells when the receiver has noticed. If it takes longer on this machine, less is tested.
    tokio::time::sleep(Duration::from_millis(200)).await;
    leave.send(()).unwrap();
    let hidden = fs::read_dir(b.inbox().join(".octopii-trees")).unwrap().next().unwrap().unwrap().path();
    let free = || octopii_vfs::Vfs::lock(&octopii_vfs::RealVfs, &hidden.join("lock")).is_ok();
    eventually("the end of the session", free).await;
    assert_eq!(told(), None);
}

/// Takes as long as it is told to with a tree that arrived.
struct Slow {
    dir: PathBuf,
    entered: Mutex<Sender<&'static str>>,
    leaving: Mutex<Receiver<()>>,
}

impl TreePolicy for Slow {
    fn accept(&self, offer: &TreeOffer) -> Result<TreeDestination, Refusal> {
        Ok(TreeDestination::new(&self.dir, &offer.name))
    }

    fn received(&self, _: ReceivedTree) {
        self.entered.lock().unwrap().send("received").unwrap();
        self.leaving.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
    }

    fn failed(&self, _: &TreeOffer, _: &TransferError) {
        let _ = self.entered.lock().unwrap().send("failed");
    }
}

/// Signs of life from peers that do nothing do not keep a tree for ever, on neither side.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_only_lives_is_given_up() {
    let idle = Duration::from_millis(200);
    let options = TransferOptions { idle_timeout: idle, ..quick() };
    let (a, b) = (Node::new(1), Node::with(2, octopii_vfs::RealVfs::shared(), options));
    let (failed, failures) = std::sync::mpsc::channel();
    let (_leave, leaving) = std::sync::mpsc::channel();
    let policy = Slow { dir: b.inbox(), entered: Mutex::new(failed), leaving: Mutex::new(leaving) };
    b.transfer.receive_trees("tree", policy);
    let mut hand = Hand::open(&a, &b).await;
    tokio::select! {
        () = hand.idle() => {}
        () = eventually("the end", || failures.try_recv() == Ok("failed")) => {}
    }
    hand.expect_fail(13).await;

    let c = endpoint(3);
    let mut acceptor = c.acceptor(octopii_transport::StreamKind::Tree).unwrap();
    put(&a.tree(), "f", b"x");
    let options = TreeOptions { idle_timeout: idle, ..TreeOptions::new("tree") };
    let idling = async {
        let mut hand = Hand::accept(&mut acceptor).await;
        hand.read().await;
        hand.write(&message(READY, b"\0\x04tree")).await;
        hand.idle().await;
    };
    let sending = a.transfer.send_tree(c.local_addr(), a.tree(), options);
    let sent = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::select! {
            sent = sending => sent,
            () = idling => unreachable!("it idles for ever"),
        }
    });
    let error = sent.await.expect("an end").unwrap_err();
    assert!(matches!(error, TransferError::Stalled { .. }), "{error}");
}

/// A slow disk is no idleness, and the sender hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_says_whether_it_works() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    b.open_trees(|inbox| inbox);
    let mut hand = Hand::open(&a, &b).await;
    hand.page(&[file(b"f", 3), end()]).await;
    vfs.hang(Op::TreeSync);
    hand.pack(&[content(0, b"abc")]).await;
    eventually("the sync", || vfs.hangs()).await;
    // The first may have been said before, or be about the page.
    hand.works().await;
    assert!(hand.works().await);
    vfs.release();
    while hand.works().await {}
}

/// While this side's disk is slow nothing is read of what the sender says: that is not its silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_is_not_given_up_for_a_slow_disk_here() {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), impatient()));
    b.open_trees(|inbox| inbox);
    let mut hand = Hand::open(&a, &b).await;
    let entries: Vec<_> = (0..6u8).map(|n| file(&[b'a' + n], 3)).chain([end()]).collect();
    hand.page(&entries).await;
    vfs.hang(Op::TreeWrite);
    for n in 0..6 {
        hand.pack(&[content(n, b"abc")]).await;
    }
    eventually("the first write", || vfs.hangs()).await;
    // More than twice the idle time.
    tokio::time::sleep(Duration::from_millis(2000)).await;
    vfs.release();
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [6, 18, 0, 1, 0]);
}

/// After a failed sync nothing is known of any file it was about: none is acknowledged, and none that it was to precede
/// gets its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_ends_the_tree() {
    for after in [0, 1] {
        let vfs = RecordingVfs::default();
        let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
        b.open_trees(|inbox| inbox);
        put(&a.tree(), "f", b"x");
        vfs.fail(Op::TreeSync, after, 1, ErrorKind::Other);
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = Arc::clone(&told);
        let options = TreeOptions {
            on_entry: Some(Arc::new(move |path, _| telling.lock().unwrap().push(path.to_owned()))),
            ..TreeOptions::new("tree")
        };
        let error = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap_err();
        assert!(
            matches!(&error, TransferError::PeerFailed { refusal, .. } if refusal.code == FailureCode::Io),
            "{error}"
        );
        assert!(!error.to_string().contains("inbox"), "the receiver's paths are its own: {error}");
        assert!(told.lock().unwrap().is_empty());
        if after == 0 {
            assert_eq!(names(&b.inbox().join("tree")), [""; 0]);
        }
        let again = a.send_tree(&b).await.unwrap();
        assert!(again.is_complete(), "{again:?}");
        assert_eq!(picture(&b.inbox().join("tree")), picture(&a.tree()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_before_it_is_sent() {
    let vfs = RecordingVfs::default();
    let options = TransferOptions { leave_free: 1000, ..quick() };
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), options));
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "1", &[1; 600]);
    put(&a.tree(), "2", &[2; 600]);
    put(&a.tree(), "3", &[3; 400]);
    vfs.set_free(2000);
    let report = a.send_tree(&b).await.unwrap();
    assert_eq!(undone(&report), [("2".to_owned(), EntryFailure::StorageFull)]);
    assert_eq!(counts(&report), (2, 0, 1, 1));
}

/// A sender that dies in the middle: what was acknowledged is not asked for again, what was half there is gone.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_tree_continues_where_it_was() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    let entries = [directory(b"d"), file(b"1", 3), file(b"2", 3), end(), file(b"f", 3), end()];
    let mut hand = Hand::open(&a, &b).await;
    assert_eq!(hand.page(&entries).await, [(0, 0), (2, 0), (2, 0), (2, 0), (2, 0), (2, 0)]);
    hand.pack(&[content(1, b"one")]).await;
    assert_eq!(hand.results().await, [(1, (0, 0))]);
    hand.pack(&[content(2, b"two")]).await;
    drop(hand);
    let hidden = fs::read_dir(b.inbox().join(".octopii-trees")).unwrap().next().unwrap().unwrap().path();
    // The lock is free when the first session has ended and cleaned up.
    let free = || octopii_vfs::Vfs::lock(&octopii_vfs::RealVfs, &hidden.join("lock")).is_ok();
    eventually("the end of the first session", free).await;
    assert_eq!(names(&hidden), ["lock", "owner"]);

    let mut hand = Hand::open(&a, &b).await;
    let verdicts = hand.page(&entries).await;
    assert_eq!((verdicts[1], verdicts[4]), ((1, 0), (2, 0)));
    let missing: Vec<_> = [(2, &b"two"[..]), (4, b"eff")]
        .into_iter()
        .filter(|(n, _)| verdicts[*n as usize] == (2, 0))
        .map(|(n, bytes)| content(n, bytes))
        .collect();
    hand.pack(&missing).await;
    hand.finish_manifest().await;
    let done = hand.expect_done().await;
    assert_eq!((done[0] + done[2], done[3], done[4]), (3, 2, 0));
    assert_eq!(fs::read(b.inbox().join("tree/d/2")).unwrap(), b"two");
}

/// Both sides' tasks end when the sending is dropped, and the tree is free again.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_tree_leaves_what_is_complete_and_nothing_else() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    for n in 0..200 {
        put(&a.tree(), &format!("{n}"), &bytes(20_000));
    }
    put(&a.tree(), "large", &bytes(30_000_000));
    let begun = Arc::new(tokio::sync::Notify::new());
    let beginning = Arc::clone(&begun);
    let options = TreeOptions {
        on_entry: Some(Arc::new(move |_, _| beginning.notify_one())),
        ..TreeOptions::new("tree")
    };
    tokio::select! {
        ended = a.transfer.send_tree(b.addr(), a.tree(), options) => drop(ended),
        () = begun.notified() => {}
    }
    let hidden = fs::read_dir(b.inbox().join(".octopii-trees")).unwrap().next().unwrap().unwrap().path();
    let free = || octopii_vfs::Vfs::lock(&octopii_vfs::RealVfs, &hidden.join("lock")).is_ok();
    eventually("the end of the session", free).await;
    let complete = picture(&a.tree());
    for (path, seen) in picture(&b.inbox().join("tree")) {
        if seen.0 == 'f' {
            assert_eq!(seen, complete[&path], "{path:?}");
        }
    }
    let report = a.send_tree(&b).await.unwrap();
    assert_eq!((report.stored + report.unchanged, report.not_done), (201, 0));
    assert_eq!(picture(&b.inbox().join("tree")), complete);
}

/// What a crashed process left is removed when its directory is received into again, and what somebody else left is not.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_removed_at_the_next_start() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "f", b"x");
    a.send_tree(&b).await.unwrap();
    let hidden = fs::read_dir(b.inbox().join(".octopii-trees")).unwrap().next().unwrap().unwrap().path();
    for left in ["s1", "s77", "l0123456789abcdef0123456789abcdef"] {
        fs::write(hidden.join(left), "half").unwrap();
    }
    b.open_trees(|inbox| inbox);
    eventually("the cleaning", || names(&hidden) == ["lock", "owner"]).await;
    assert_eq!(names(&b.inbox().join("tree")), ["f"]);
}

/// A large file that was cut off is not begun anew by the tree that comes next, even if another process sends that.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_of_an_interrupted_tree_goes_on_where_it_was() {
    let (state, slow, b) = (tempfile::tempdir().unwrap(), RecordingVfs::default(), Node::new(2));
    let options = || TransferOptions { state_dir: Some(state.path().join("state")), ..quick() };
    let a = Node::with(1, slow.shared(), options());
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "large", &bytes(48 << 20));
    slow.set_read_delay(Duration::from_millis(10));
    let hidden = || Some(fs::read_dir(b.inbox().join(".octopii-trees")).ok()?.next()?.ok()?.path());
    // A journal with something in it has been synced.
    let journal = || {
        let hidden = hidden()?;
        let name = names(&hidden).into_iter().find(|name| name.ends_with(".journal"))?;
        Some(fs::metadata(hidden.join(name)).ok()?.len())
    };
    let cutting = async {
        eventually("the first sync", || journal().is_some_and(|len| len > 200)).await;
        a.endpoint.close(Duration::from_secs(5)).await;
    };
    let (cut, ()) = tokio::join!(a.send_tree(&b), cutting);
    assert!(cut.is_err(), "{cut:?}");
    let hidden = hidden().unwrap();
    let free = || octopii_vfs::Vfs::lock(&octopii_vfs::RealVfs, &hidden.join("lock")).is_ok();
    eventually("the end of the session", free).await;
    assert_eq!(names(&b.inbox().join("tree")), [""; 0], "nothing half under its name");

    let again = Node::with(1, octopii_vfs::RealVfs::shared(), options());
    let report = again.transfer.send_tree(b.addr(), a.tree(), TreeOptions::new("tree")).await.unwrap();
    assert!(report.is_complete() && report.stored == 1, "{report:?}");
    assert!(report.resumed_bytes >= 16 << 20, "{report:?}");
    assert_eq!(picture(&b.inbox().join("tree")), picture(&a.tree()));
    assert_eq!(names(&hidden), ["lock", "owner"]);
}
