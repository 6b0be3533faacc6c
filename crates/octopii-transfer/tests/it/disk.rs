//! What reaches the disk, in which order, and what is left when the disk fails.

use std::io::ErrorKind;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use octopii_transfer::{
    ChunkSource, Destination, FailureCode, InboxPolicy, SendOptions, TransferError, TransferOptions,
};
use octopii_vfs::{RealVfs, Vfs};

use crate::nodes::{BLOCK, Event, Node, content, eventually, names, quick};
use crate::recording::{Op, RecordingVfs};

fn nodes_with(vfs: &RecordingVfs) -> (Node, Node, Receiver<Event>) {
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    RealVfs.create_dir_all(&b.inbox()).unwrap();
    let events =
        b.receive_into("file", Destination::File { dir: b.inbox(), name: "f".into(), replace: false });
    (a, b, events)
}

async fn send(a: &Node, b: &Node, len: usize) -> Result<octopii_transfer::Receipt, TransferError> {
    a.transfer.send(b.addr(), &ChunkSource::Memory(content(len).into()), SendOptions::new("file")).await
}

/// Written, synced, renamed, directory synced, policy told, acknowledged: in this order, each finished before the next. An
/// acknowledgement that came earlier would mean less than "durable".
#[tokio::test(flavor = "multi_thread")]
async fn the_acknowledgement_comes_last() {
    for replace in [false, true] {
        let vfs = RecordingVfs::default();
        let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
        RealVfs.create_dir_all(&b.inbox()).unwrap();
        struct Noting(RecordingVfs, Destination);
        impl octopii_transfer::ReceivePolicy for Noting {
            fn accept(&self, _: &octopii_transfer::Offer) -> Result<Destination, octopii_transfer::Refusal> {
                Ok(self.1.clone())
            }
            fn received(&self, _: octopii_transfer::ReceivedChunk) {
                self.0.note(Op::Received);
            }
        }
        let destination = Destination::File { dir: b.inbox(), name: "f".into(), replace };
        b.transfer.receive("file", Noting(vfs.clone(), destination));
        vfs.set_delay(Duration::from_millis(40));
        send(&a, &b, 2 * BLOCK).await.unwrap();
        vfs.note(Op::Acknowledged);
        assert_eq!(
            vfs.record(),
            [Op::Allocate, Op::Write, Op::SyncData, Op::Rename, Op::SyncDir, Op::Received, Op::Acknowledged]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_nothing_is_left() {
    let faults = [
        (Op::Write, 0, ErrorKind::StorageFull),
        (Op::Write, 2, ErrorKind::StorageFull),
        (Op::Write, 1, ErrorKind::QuotaExceeded),
        (Op::Allocate, 0, ErrorKind::StorageFull),
        (Op::Write, 3, ErrorKind::PermissionDenied),
        (Op::SyncData, 0, ErrorKind::Other),
        (Op::SyncData, 0, ErrorKind::StorageFull),
        (Op::Rename, 0, ErrorKind::PermissionDenied),
        (Op::SyncDir, 0, ErrorKind::Other),
    ];
    for (op, after, kind) in faults {
        let vfs = RecordingVfs::default();
        let (a, b, events) = nodes_with(&vfs);
        vfs.fail(op, after, usize::MAX, kind);
        let error = send(&a, &b, 4 * BLOCK + 1).await.unwrap_err();
        // The receiver has cleaned up before it says so.
        assert_eq!(names(&b.inbox()), [""; 0], "{op:?} {kind}");
        match kind {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                assert!(matches!(error, TransferError::StorageFull(_)), "{op:?} {kind}: {error}");
            }
            _ => assert!(
                matches!(&error, TransferError::PeerFailed { refusal, .. } if refusal.code == FailureCode::Io),
                "{op:?} {kind}: {error}"
            ),
        }
        assert!(!error.to_string().contains("inbox"), "the receiver's paths are its own: {error}");
        if op != Op::Allocate {
            events.try_recv().expect("the policy hears of it first").failed();
        }
        vfs.fail(op, 0, 0, kind);
        send(&a, &b, 10).await.expect("the next transfer works");
    }
}

/// A sync that failed may have lost data that no later sync will mention: the transfer must fail even though the final sync
/// succeeds. The early syncs of a long file are such earlier ones.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_sync_that_fails_fails_the_transfer() {
    let vfs = RecordingVfs::default();
    let (a, b, _events) = nodes_with(&vfs);
    vfs.fail(Op::SyncData, 0, 1, ErrorKind::Other);
    let error = send(&a, &b, 40 * BLOCK).await.unwrap_err();
    assert!(matches!(error, TransferError::PeerFailed { .. }), "{error}");
    assert_eq!(names(&b.inbox()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_room_refuses_before_anything_is_sent() {
    let vfs = RecordingVfs::default();
    let options = TransferOptions { leave_free: 1000, ..quick() };
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), options));
    b.transfer.receive("file", InboxPolicy::new(b.inbox()));
    vfs.set_free(1999);
    let error = send(&a, &b, 1000).await.unwrap_err();
    assert!(matches!(error, TransferError::StorageFull(_)), "{error}");
    assert!(!vfs.record().contains(&Op::Write));
    assert_eq!(names(&b.inbox()), [""; 0]);
    vfs.set_free(2000);
    send(&a, &b, 1000).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_removed_at_the_next_start() {
    let node = Node::new(1);
    let left = format!(".octopii-{:032x}.part", 0xdead);
    let theirs = ".octopii-or-not.part";
    for name in [left.as_str(), theirs, "report.part"] {
        node.source(name, b"half");
    }
    node.transfer.receive("file", InboxPolicy::new(node.dir.path()));
    eventually("the cleaning", || !names(node.dir.path()).contains(&left)).await;
    assert_eq!(names(node.dir.path()), [theirs, "report.part"]);
}

/// A policy need not know its directories beforehand.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_cleaned_when_it_is_first_received_into() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.source(&format!(".octopii-{:032x}.part", 1), b"half");
    let dir = b.dir.path().to_owned();
    b.receive_into("file", Destination::File { dir: dir.clone(), name: "f".into(), replace: false });
    send(&a, &b, 10).await.unwrap();
    assert_eq!(names(&dir), ["f"]);
}
