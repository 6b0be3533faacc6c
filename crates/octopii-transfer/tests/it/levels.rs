//! A receiver acknowledges what its sender asks for or more, never less, and says which it was.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_transfer::{
    AckLevel, ChunkSource, Destination, Digest, Distribution, FailureCode, Location, Offer, ReceivePolicy,
    ReceivedChunk, Refusal, SendOptions, Topology, TransferError, TransferId, TransferOptions,
    TransferStatus,
};
use octopii_transport::StreamKind;
use octopii_vfs::{RealVfs, Vfs};

use crate::nodes::{BLOCK, Node, content, endpoint, eventually, names, quick, read};
use crate::raw::acknowledge;
use crate::recording::{Op, RecordingVfs};

const WAIT: Duration = Duration::from_secs(15);

/// A policy that notes what it hears and, if it has a door, waits behind it.
struct Noting {
    vfs: RecordingVfs,
    destination: Destination,
    least: AckLevel,
    heard: Sender<ReceivedChunk>,
    door: Option<Arc<Mutex<Receiver<()>>>>,
}

impl ReceivePolicy for Noting {
    fn accept(&self, _: &Offer) -> Result<Destination, Refusal> {
        Ok(self.destination.clone())
    }

    fn received(&self, received: ReceivedChunk) {
        if let Some(door) = &self.door {
            let _ = door.lock().unwrap().recv_timeout(WAIT);
        }
        self.vfs.note(Op::Received);
        let _ = self.heard.send(received);
    }

    fn least_ack(&self) -> AckLevel {
        self.least
    }
}

struct Scene {
    vfs: RecordingVfs,
    a: Node,
    b: Node,
    heard: Receiver<ReceivedChunk>,
    door: Sender<()>,
}

fn scene(least: AckLevel, replace: bool, closed: bool) -> Scene {
    let vfs = RecordingVfs::default();
    let (a, b) = (Node::new(1), Node::with(2, vfs.shared(), quick()));
    RealVfs.create_dir_all(&b.inbox()).unwrap();
    let (tx, heard) = channel();
    let (door, behind) = channel();
    let destination = Destination::File { dir: b.inbox(), name: "f".into(), replace };
    let door_of_policy = closed.then(|| Arc::new(Mutex::new(behind)));
    b.transfer
        .receive("file", Noting { vfs: vfs.clone(), destination, least, heard: tx, door: door_of_policy });
    Scene { vfs, a, b, heard, door }
}

fn asking(level: impl Into<Option<AckLevel>>) -> SendOptions {
    SendOptions { ack: level.into(), ..SendOptions::new("file") }
}

/// What is left out is what the level says, and nothing else: the name comes after the digest in any case.
#[tokio::test(flavor = "multi_thread")]
async fn each_level_syncs_what_it_promises() {
    use AckLevel::{Durable, Received, Verified};
    let synced =
        [Op::Allocate, Op::Write, Op::SyncData, Op::Rename, Op::SyncDir, Op::Received, Op::Acknowledged];
    let named = [Op::Allocate, Op::Write, Op::Rename, Op::Received, Op::Acknowledged];
    let cases = [
        (None, Received, false, Durable, &synced[..]),
        (Some(Durable), Received, false, Durable, &synced),
        (Some(Verified), Received, false, Verified, &named),
        // The receiver insists.
        (Some(Verified), Durable, false, Durable, &synced),
        (Some(Received), Durable, false, Durable, &synced),
        (Some(Received), Verified, false, Verified, &named),
        // What takes another's place could be lost together with it.
        (Some(Verified), Received, true, Durable, &synced),
        (Some(Received), Received, true, Durable, &synced),
    ];
    for (wanted, least, replace, reached, expected) in cases {
        // The larger ones would be synced in the background, too, while they arrive.
        for blocks in [2, 20] {
            let scene = scene(least, replace, false);
            let data = content(blocks * BLOCK);
            let source = ChunkSource::Memory(data.clone().into());
            let receipt = scene.a.transfer.send(scene.b.addr(), &source, asking(wanted)).await.unwrap();
            scene.vfs.note(Op::Acknowledged);
            assert_eq!((receipt.level, receipt.digest), (reached, Digest::of(&data)), "{wanted:?} {least:?}");
            let mut record = scene.vfs.record();
            if blocks == 20 && reached == Durable {
                let last = record.iter().rposition(|op| *op == Op::Write).unwrap();
                let mut at = 0..;
                record.retain(|op| at.next() >= Some(last) || *op != Op::SyncData);
                record.dedup();
            }
            assert_eq!(record, expected, "{wanted:?} {least:?} {replace} {blocks}");
            assert_eq!(scene.heard.recv_timeout(WAIT).unwrap().level, reached);
            assert!(read(&scene.b.inbox().join("f")) == data);
        }
    }
}

/// The acknowledgement comes before the name and before the application, which still hears of the file, and what came of it is
/// remembered.
#[tokio::test(flavor = "multi_thread")]
async fn received_does_not_wait_for_the_application() {
    let scene = scene(AckLevel::Received, false, true);
    let id = TransferId(9);
    let options = SendOptions { id: Some(id), ..asking(AckLevel::Received) };
    let source = ChunkSource::Memory(content(3 * BLOCK).into());
    let receipt = scene.a.transfer.send(scene.b.addr(), &source, options.clone()).await.unwrap();
    assert_eq!((receipt.level, receipt.bytes), (AckLevel::Received, 3 * BLOCK as u64));
    assert!(!scene.vfs.record().contains(&Op::Received), "it is still behind the door");
    let status = scene.a.transfer.status(scene.b.addr(), id).await.unwrap();
    assert_eq!(status, TransferStatus::Receiving { verified: receipt.bytes });
    scene.door.send(()).unwrap();
    assert_eq!(scene.heard.recv_timeout(WAIT).unwrap().level, AckLevel::Verified);
    let finished = async || match scene.a.transfer.status(scene.b.addr(), id).await.unwrap() {
        TransferStatus::Finished(ack) => Some(ack),
        _ => None,
    };
    let mut ack = None;
    for _ in 0..1000 {
        ack = finished().await;
        if ack.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ack.map(|ack| (ack.level, ack.digest)), Some((AckLevel::Verified, receipt.digest)));
    assert_eq!(names(&scene.b.inbox()), ["f"]);
}

/// What fails after the acknowledgement is told to who asks; nothing is left under any name.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_after_received_is_remembered() {
    let scene = scene(AckLevel::Received, false, false);
    scene.vfs.fail(Op::Rename, 0, usize::MAX, std::io::ErrorKind::PermissionDenied);
    let id = TransferId(9);
    let options = SendOptions { id: Some(id), ..asking(AckLevel::Received) };
    let source = ChunkSource::Memory("abc".into());
    let receipt = scene.a.transfer.send(scene.b.addr(), &source, options).await.unwrap();
    assert_eq!(receipt.level, AckLevel::Received);
    let inbox = scene.b.inbox();
    eventually("the end", || names(&inbox).is_empty()).await;
    let mut status = TransferStatus::Unknown;
    for _ in 0..1000 {
        status = scene.a.transfer.status(scene.b.addr(), id).await.unwrap();
        if matches!(status, TransferStatus::Failed(_)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        matches!(&status, TransferStatus::Failed(refusal) if refusal.code == FailureCode::Io),
        "{status:?}"
    );
}

/// Memory is never durable: whoever insists on that is told before anything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn memory_is_verified_at_the_most() {
    let (a, b) = (Node::new(1), Node::new(2));
    let events = b.receive_into("file", Destination::Memory { limit: 100 });
    let source = ChunkSource::Memory("abc".into());
    for (wanted, reached) in [
        (None, AckLevel::Verified),
        (Some(AckLevel::Verified), AckLevel::Verified),
        (Some(AckLevel::Received), AckLevel::Received),
    ] {
        let receipt = a.transfer.send(b.addr(), &source, asking(wanted)).await.unwrap();
        assert_eq!(receipt.level, reached);
        let chunk = events.recv_timeout(WAIT).unwrap().received();
        assert_eq!((chunk.level, chunk.location), (AckLevel::Verified, Location::Memory("abc".into())));
    }
    let error = a.transfer.send(b.addr(), &source, asking(AckLevel::Durable)).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::AckLevel),
        "{error}"
    );
    assert!(events.try_recv().is_err());
}

/// A receiver that acknowledges less than it was asked for has not done what it was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn less_than_was_asked_for_is_an_error() {
    use AckLevel::{Durable, Received, Verified};
    for (wanted, told, is_enough) in [
        (None, 1, false),
        (None, 2, true),
        (Some(Durable), 2, false),
        (Some(Verified), 1, false),
        (Some(Verified), 3, true),
        (Some(Received), 1, true),
        (Some(Received), 0, false),
        (Some(Received), 4, false),
    ] {
        let (a, receiver) = (Node::new(1), endpoint(2));
        let mut acceptor = receiver.acceptor(StreamKind::Transfer).unwrap();
        let body = [&[told][..], &3u64.to_le_bytes(), &Digest::of(b"abc").0].concat();
        tokio::spawn(async move { acknowledge(&mut acceptor, &body).await });
        let source = ChunkSource::Memory("abc".into());
        let sent = a.transfer.send(receiver.local_addr(), &source, asking(wanted)).await;
        match sent {
            Ok(receipt) => assert!(is_enough, "{wanted:?} {told}: {receipt:?}"),
            Err(TransferError::Protocol(_)) => assert!(!is_enough, "{wanted:?} {told}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// In a chain, too.
#[tokio::test(flavor = "multi_thread")]
async fn every_receiver_of_many_is_asked() {
    let a = Node::new(1);
    let receivers: Vec<_> = (2..5).map(Node::new).collect();
    let heard: Vec<_> = receivers.iter().map(Node::open_inbox).collect();
    for (topology, name) in [(Topology::Direct, "direct"), (Topology::Chain, "chain")] {
        let source = ChunkSource::File(a.source(name, &content(9 * BLOCK)));
        let how = Distribution { topology, ..asking(AckLevel::Verified).into() };
        let peers = receivers.iter().map(Node::addr).collect();
        for result in a.transfer.send_to_all(&source, peers, how).await {
            assert_eq!(result.level, Some(AckLevel::Verified), "{:?}", result.error);
        }
        for heard in &heard {
            assert_eq!(heard.recv_timeout(WAIT).unwrap().level, AckLevel::Verified);
        }
    }
}

/// Only what survives a power cut is remembered over a restart: the file of anything else may be gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_receiver_vouches_for_what_is_durable_only() {
    let state = tempfile::tempdir().unwrap();
    let options = || TransferOptions { state_dir: Some(state.path().to_owned()), ..quick() };
    let a = Node::new(1);
    let b = Node::with(2, RealVfs::shared(), options());
    b.open_inbox();
    let levels = [AckLevel::Received, AckLevel::Verified, AckLevel::Durable];
    for (id, level) in (0..).map(TransferId).zip(levels) {
        let send = SendOptions { id: Some(id), name: Some(level.to_string()), ..asking(level) };
        a.transfer.send(b.addr(), &ChunkSource::Memory("abc".into()), send).await.unwrap();
    }
    b.endpoint.close(Duration::from_secs(5)).await;
    drop(b);
    let b = Node::with(2, RealVfs::shared(), options());
    for (id, level) in (0..).map(TransferId).zip(levels) {
        let status = a.transfer.status(b.addr(), id).await.unwrap();
        match level {
            AckLevel::Durable => assert!(matches!(status, TransferStatus::Finished(_)), "{status:?}"),
            _ => assert_eq!(status, TransferStatus::Unknown),
        }
    }
}
