//! A transfer that was cut off goes on where it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use octopii_transfer::{
    AckLevel, ChunkSource, Destination, Digest, Offer, Receipt, ReceivePolicy, ReceivedChunk, Refusal,
    SendOptions, Transfer, TransferError, TransferId, TransferOptions, TransferStatus,
};
use octopii_vfs::{OpenMode, RealVfs, Vfs};

use crate::nodes::{BLOCK, Node, content, endpoint, eventually, names, quick, read};
use crate::raw::{ACCEPT, ACK, AGAIN, Raw, accept_body, data, done, opening_with, repair};
use crate::recording::{Op, RecordingVfs};

const SIZE: usize = 48 * BLOCK;

/// A sender with state that outlives it, a receiver, and a file.
pub(crate) struct Scene {
    state: tempfile::TempDir,
    pub(crate) b: Node,
    data: Vec<u8>,
    pub(crate) path: PathBuf,
}

fn scene() -> Scene {
    Scene::of(content(SIZE))
}

impl Scene {
    pub(crate) fn of(data: Vec<u8>) -> Self {
        let b = Node::new(2);
        b.open_inbox();
        let state = tempfile::tempdir().unwrap();
        let path = b.source("source", &data);
        Self { state, b, data, path }
    }

    /// As another process would be.
    pub(crate) fn sender(&self, id: u64) -> Node {
        let state_dir = Some(self.state.path().join("state"));
        Node::with(id, RealVfs::shared(), TransferOptions { state_dir, ..quick() })
    }

    /// Sends until about `bytes` have been verified, then loses the connection.
    async fn cut_at(&self, sender: &Node, bytes: usize) {
        // The receiver tells five times a second how far it has got.
        let rate_limit = std::num::NonZeroU64::new(60 * BLOCK as u64);
        self.cut_with(sender, bytes, SendOptions { rate_limit, ..SendOptions::new("file") }).await;
    }

    pub(crate) async fn cut_with(&self, sender: &Node, bytes: usize, options: SendOptions) {
        let verified = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&verified);
        let progress = Arc::new(move |p: octopii_transfer::Progress| {
            seen.fetch_max(p.verified, Ordering::Relaxed);
        });
        let options = SendOptions { progress: Some(progress), ..options };
        let source = ChunkSource::File(self.path.clone());
        let cutting = async {
            while verified.load(Ordering::Relaxed) < bytes as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            sender.endpoint.close(Duration::from_secs(5)).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = sender.transfer.send(self.b.addr(), &source, options) => {
                assert!(matches!(result, Err(TransferError::Lost(_))), "{result:?}");
            }
            () = cutting => {}
        }
        // The receiver has let go of it.
        let inbox = self.b.inbox();
        eventually("letting go", || {
            names(&inbox)
                .iter()
                .any(|name| name.ends_with(".part") && RealVfs.lock(&inbox.join(name)).is_ok())
        })
        .await;
        assert_eq!(names(&inbox).len(), 2, "a part and its journal: {:?}", names(&inbox));
    }

    pub(crate) fn left(&self, suffix: &str) -> PathBuf {
        let inbox = self.b.inbox();
        let name = names(&inbox).into_iter().find(|name| name.ends_with(suffix)).unwrap();
        inbox.join(name)
    }

    async fn send(&self, sender: &Node) -> Receipt {
        let source = ChunkSource::File(self.path.clone());
        sender.transfer.send(self.b.addr(), &source, SendOptions::new("file")).await.unwrap()
    }

    pub(crate) fn arrived_whole(&self, receipt: &Receipt) {
        assert_eq!(receipt.digest, Digest::of(&self.data));
        assert_eq!(names(&self.b.inbox()), ["source"]);
        assert!(read(&self.b.inbox().join("source")) == self.data);
    }
}

fn flip(path: &std::path::Path, at: u64) {
    let file = RealVfs.open(path, OpenMode::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Neither the sender's process nor its node id need be the same.
#[tokio::test(flavor = "multi_thread")]
async fn another_process_goes_on_from_what_was_synced() {
    let scene = scene();
    scene.cut_at(&scene.sender(1), 24 * BLOCK).await;
    let receipt = scene.send(&scene.sender(3)).await;
    assert!(receipt.resumed >= 16 << 20, "{}", receipt.resumed);
    scene.arrived_whole(&receipt);
}

/// What can be gone on with is synced on the way whatever is asked for at the end.
#[tokio::test(flavor = "multi_thread")]
async fn what_need_not_be_durable_is_gone_on_with_too() {
    for level in [AckLevel::Received, AckLevel::Verified] {
        let scene = scene();
        let sender = scene.sender(1);
        let options = SendOptions { ack: Some(level), ..SendOptions::new("file") };
        let rate_limit = std::num::NonZeroU64::new(60 * BLOCK as u64);
        scene.cut_with(&sender, 24 * BLOCK, SendOptions { rate_limit, ..options.clone() }).await;
        let (sender, source) = (scene.sender(3), ChunkSource::File(scene.path.clone()));
        let receipt = sender.transfer.send(scene.b.addr(), &source, options).await.unwrap();
        assert!(receipt.resumed >= 16 << 20, "{}", receipt.resumed);
        assert_eq!(receipt.level, level);
        let inbox = scene.b.inbox();
        eventually("its name", || names(&inbox) == ["source"]).await;
        scene.arrived_whole(&receipt);
    }
}

/// A receiver whose tasks are dropped as they are leaves what its journal vouches for, the latest sync included.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_ends_in_the_middle_leaves_what_was_synced() {
    let Scene { state, b, data, path } = scene();
    let Node { endpoint, transfer, dir } = b;
    let inbox = dir.path().join("inbox");
    let a = Node::with(
        1,
        RealVfs::shared(),
        TransferOptions { state_dir: Some(state.path().join("state")), ..quick() },
    );
    let rate_limit = std::num::NonZeroU64::new(24 * BLOCK as u64);
    let options = SendOptions { rate_limit, ..SendOptions::new("file") };
    let source = ChunkSource::File(path.clone());
    let dropping = async {
        // One record: it is to be kept before the second sync begins.
        let journal = || names(&inbox).into_iter().find(|name| name.ends_with(".journal"));
        eventually("the first sync", || journal().is_some_and(|name| read(&inbox.join(name)).len() > 400))
            .await;
        // What is written is vouched for a moment later, long before the second sync.
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(transfer);
    };
    let (sent, ()) = tokio::join!(a.transfer.send(endpoint.local_addr(), &source, options), dropping);
    assert!(matches!(sent, Err(TransferError::Lost(_))), "{sent:?}");
    endpoint.close(Duration::from_secs(5)).await;
    let again = Node { dir, ..Node::new(2) };
    again.open_inbox();
    let receipt = a.transfer.send(again.addr(), &source, SendOptions::new("file")).await.unwrap();
    assert!(receipt.resumed >= 16 << 20, "{}", receipt.resumed);
    assert!(read(&inbox.join("source")) == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_made_again_and_the_transfer_goes_on() {
    let scene = scene();
    // From memory, and without any state.
    let a = Node::new(1);
    let endpoint = a.endpoint.clone();
    let (to, cut) = (scene.b.addr(), Arc::new(AtomicU64::new(0)));
    let cuts = Arc::clone(&cut);
    let progress = Arc::new(move |p: octopii_transfer::Progress| {
        let next = (cuts.load(Ordering::Relaxed) + 1) * 18 * BLOCK as u64;
        if p.verified >= next && p.verified < SIZE as u64 {
            cuts.fetch_add(1, Ordering::Relaxed);
            let endpoint = endpoint.clone();
            tokio::spawn(async move { endpoint.connect(to).await.unwrap().close("cut") });
        }
    });
    let rate_limit = std::num::NonZeroU64::new(40 * BLOCK as u64);
    let options = SendOptions {
        progress: Some(progress),
        rate_limit,
        retries: 3,
        name: Some("source".into()),
        ..SendOptions::new("file")
    };
    let source = ChunkSource::Memory(scene.data.clone().into());
    let receipt = a.transfer.send(to, &source, options).await.unwrap();
    assert!(cut.load(Ordering::Relaxed) > 0 && receipt.resumed > 0, "{receipt:?}");
    scene.arrived_whole(&receipt);
}

/// The sender comes back before the receiver has noticed that it was gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_latest_sender_of_a_content_takes_over() {
    let scene = scene();
    let (first, second) = (scene.sender(1), scene.sender(3));
    let (started, moving) = tokio::sync::oneshot::channel();
    let started = std::sync::Mutex::new(Some(started));
    let progress = Arc::new(move |p: octopii_transfer::Progress| {
        if p.verified >= 4 * BLOCK as u64
            && let Some(started) = started.lock().unwrap().take()
        {
            let _ = started.send(());
        }
    });
    let rate_limit = std::num::NonZeroU64::new(20 * BLOCK as u64);
    let options = SendOptions { progress: Some(progress), rate_limit, ..SendOptions::new("file") };
    let source = ChunkSource::File(scene.path.clone());
    let sending = first.transfer.send(scene.b.addr(), &source, options);
    let taking_over = async {
        moving.await.unwrap();
        scene.send(&second).await
    };
    let (given_up, receipt) = tokio::join!(sending, taking_over);
    assert!(matches!(given_up, Err(TransferError::PeerFailed { .. })), "{given_up:?}");
    assert!(receipt.resumed >= 4 << 20, "{}", receipt.resumed);
    scene.arrived_whole(&receipt);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_between_kill_and_resume_costs_one_block() {
    let scene = scene();
    scene.cut_at(&scene.sender(1), 24 * BLOCK).await;
    flip(&scene.left(".part"), 5 * BLOCK as u64 + 7);
    let again = scene.sender(3);
    let receipt = scene.send(&again).await;
    assert!(receipt.resumed >= 16 << 20, "{}", receipt.resumed);
    scene.arrived_whole(&receipt);
    // The rest, the damaged block, and what packets cost.
    let sent = again.endpoint.connect(scene.b.addr()).await.unwrap().stats().bytes_sent;
    let needed = SIZE as u64 - receipt.resumed + BLOCK as u64;
    assert!((needed..needed + 6 * BLOCK as u64).contains(&sent), "{sent} bytes, {needed} were needed");
}

/// Whatever is wrong with what was left, the file arrives whole.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_believed_is_sent_again() {
    type Damage = fn(&Scene);
    let cases: [(&str, Damage); 5] = [
        ("the journal's header", |scene| flip(&scene.left(".journal"), 10)),
        ("the journal's first record", |scene| flip(&scene.left(".journal"), 100)),
        ("no journal", |scene| RealVfs.remove_file(&scene.left(".journal")).unwrap()),
        ("a part that is too short", |scene| {
            RealVfs.open(&scene.left(".part"), OpenMode::ReadWrite).unwrap().set_len(3 << 20).unwrap();
        }),
        ("the sender's key", |scene| {
            let state = scene.state.path().join("state");
            flip(&state.join(&names(&state)[0]), 9);
        }),
    ];
    for (what, damage) in cases {
        let scene = scene();
        scene.cut_at(&scene.sender(1), 17 * BLOCK).await;
        damage(&scene);
        let receipt = scene.send(&scene.sender(3)).await;
        assert_eq!(receipt.resumed, 0, "{what}");
        assert!(read(&scene.b.inbox().join("source")) == scene.data, "{what}");
    }
}

/// The key of what was left is that of one version of the source.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changed_begins_anew() {
    let mut scene = scene();
    scene.cut_at(&scene.sender(1), 17 * BLOCK).await;
    let modified = RealVfs.open(&scene.path, OpenMode::Read).unwrap().modified().unwrap().unwrap();
    flip(&scene.path, 1);
    scene.data[1] ^= 1;
    std::fs::OpenOptions::new().write(true).open(&scene.path).unwrap().set_modified(modified).unwrap();
    let receipt = scene.send(&scene.sender(3)).await;
    assert_eq!(receipt.resumed, 0);
    assert!(read(&scene.b.inbox().join("source")) == scene.data);
}

/// The sender does not take the receiver's word for what it has.
#[tokio::test(flavor = "multi_thread")]
async fn another_content_under_the_same_key_is_not_gone_on_with() {
    let scene = scene();
    scene.cut_at(&scene.sender(1), 17 * BLOCK).await;
    // All of it and its journal, but of other bytes: as if the source had changed in secret.
    let a = scene.sender(3);
    let mut other = scene.data.clone();
    other[1] ^= 1;
    let state = scene.state.path().join("state");
    let key: [u8; 16] = read(&state.join(&names(&state)[0]))[8..24].try_into().unwrap();
    for name in names(&scene.b.inbox()) {
        RealVfs.remove_file(&scene.b.inbox().join(name)).unwrap();
    }
    let mut raw = Raw::open(&a.endpoint, scene.b.addr()).await;
    raw.write(&opening_with(9, Some(key), "file", Some(SIZE as u64), BLOCK as u32)).await;
    assert_eq!(raw.read().await.0, ACCEPT);
    let mut bytes = Vec::new();
    for i in 0..16 {
        bytes.extend_from_slice(&data(&other[..i * BLOCK], &other[i * BLOCK..(i + 1) * BLOCK]));
    }
    raw.write(&bytes).await;
    let inbox = scene.b.inbox();
    let journal = || names(&inbox).into_iter().find(|name| name.ends_with(".journal"));
    eventually("the first sync", || journal().is_some_and(|name| read(&inbox.join(name)).len() > 400)).await;
    raw.connection.close("cut");
    drop(raw);
    eventually("letting go", || RealVfs.lock(&scene.left(".part")).is_ok()).await;
    let receipt = scene.send(&scene.sender(4)).await;
    assert_eq!((receipt.resumed, receipt.digest), (0, Digest::of(&scene.data)));
    assert!(read(&scene.b.inbox().join("source")) == scene.data);
}

/// Damage on the disk is asked for as `docs/formats/transfer.md` says, and what comes in its place is checked.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_block_of_an_earlier_transfer_is_asked_for_by_itself() {
    let scene = scene();
    let (by_hand, key) = (endpoint(1), Some([5; 16]));
    let size = 20 * BLOCK;
    let offer = |id| opening_with(id, key, "file", Some(size as u64), BLOCK as u32);
    let block = |i: usize| data(&scene.data[..i * BLOCK], &scene.data[i * BLOCK..(i + 1) * BLOCK]);
    let mut raw = Raw::open(&by_hand, scene.b.addr()).await;
    raw.write(&offer(1)).await;
    assert_eq!(raw.read().await.0, ACCEPT);
    for i in 0..17 {
        raw.write(&block(i)).await;
    }
    let inbox = scene.b.inbox();
    let journal = || names(&inbox).into_iter().find(|name| name.ends_with(".journal"));
    eventually("the first sync", || journal().is_some_and(|name| read(&inbox.join(name)).len() > 400)).await;
    raw.connection.close("cut");
    drop(raw);
    eventually("letting go", || RealVfs.lock(&scene.left(".part")).is_ok()).await;
    flip(&scene.left(".part"), 3 * BLOCK as u64);

    let mut raw = Raw::open(&by_hand, scene.b.addr()).await;
    raw.write(&offer(2)).await;
    let (tag, body) = raw.read().await;
    assert_eq!((tag, body.len()), (ACCEPT, 41));
    let have = u64::from_le_bytes(body[1..9].try_into().unwrap()) as usize;
    assert!(have >= 16 * BLOCK && have.is_multiple_of(4 << 20), "{have}");
    assert_eq!(body[9..], Digest::of(&scene.data[..have]).0);
    for i in have / BLOCK..20 {
        raw.write(&block(i)).await;
    }
    raw.write(&done(size as u64, Digest::of(&scene.data[..size]))).await;
    let (tag, body) = raw.read().await;
    assert_eq!((tag, &body[..8]), (AGAIN, &(3 * BLOCK as u64).to_le_bytes()[..]));
    raw.write(&repair(3 * BLOCK, &vec![0; BLOCK])).await;
    assert_eq!(raw.read().await.0, AGAIN);
    raw.write(&repair(3 * BLOCK, &scene.data[3 * BLOCK..4 * BLOCK])).await;
    assert_eq!(raw.read().await.0, ACK);
    assert!(read(&inbox.join("f")) == scene.data[..size]);
    assert_eq!(names(&inbox), ["f"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_want_it_begins_anew_and_leaves_nothing() {
    let scene = scene();
    scene.cut_at(&scene.sender(1), 17 * BLOCK).await;
    let a = scene.sender(3);
    let source = ChunkSource::File(scene.path.clone());
    let options = SendOptions { resume: false, ..SendOptions::new("file") };
    let receipt = a.transfer.send(scene.b.addr(), &source, options).await.unwrap();
    assert_eq!(receipt.resumed, 0);
    // What was left waits for its own sender.
    assert_eq!(names(&scene.b.inbox()).len(), 3);
    let receipt = scene.send(&a).await;
    assert!(receipt.resumed > 0);
    assert_eq!(names(&scene.b.inbox()), ["source", "source (1)"]);
}

/// The limits of what is kept are those of the receiver's options, at each start and whenever something is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_goes_on_with_is_removed() {
    let scene = scene();
    scene.cut_at(&scene.sender(1), 17 * BLOCK).await;
    let options = TransferOptions { keep_partial: Duration::ZERO, ..quick() };
    let later = endpoint(2);
    let transfer = Transfer::start(&later, RealVfs::shared(), options).unwrap();
    transfer.receive("file", octopii_transfer::InboxPolicy::new(scene.b.inbox()));
    eventually("the cleaning", || names(&scene.b.inbox()).is_empty()).await;
}

/// What nobody could go on from is not kept, and what is kept goes in its time, although nothing else happens.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_no_use_any_more_goes() {
    let keep_partial = Duration::from_secs(4);
    let (cut, b) =
        (Cut::new(), Node::with(2, RealVfs::shared(), TransferOptions { keep_partial, ..quick() }));
    b.open_inbox();
    for (blocks, is_kept) in [(1, false), (5, true)] {
        cut.send(&b, "file", 0, blocks).await.connection.close("cut");
        if is_kept {
            kept(&b.inbox()).await;
        }
        eventually("cleaning up", || names(&b.inbox()).is_empty()).await;
    }
}

/// A sender by hand, of 6 MiB under one key.
struct Cut {
    sender: Node,
    data: Vec<u8>,
}

impl Cut {
    fn new() -> Self {
        Self { sender: Node::new(1), data: content(6 * BLOCK) }
    }

    /// Offers it, sends the blocks that `to` has not got up to `blocks`, and says so when they are verified.
    async fn send(&self, to: &Node, purpose: &str, have: usize, blocks: usize) -> Raw {
        let id = TransferId::random();
        let mut raw = Raw::open(&self.sender.endpoint, to.addr()).await;
        let (size, key) = (Some(self.data.len() as u64), Some([7; 16]));
        raw.write(&opening_with(id.0, key, purpose, size, BLOCK as u32)).await;
        let accepted = accept_body((have * BLOCK) as u64, &self.data[..have * BLOCK]);
        assert_eq!(raw.read().await, (ACCEPT, accepted));
        for (i, block) in self.data.chunks(BLOCK).enumerate().take(blocks).skip(have) {
            raw.write(&data(&self.data[..i * BLOCK], block)).await;
        }
        let wanted = TransferStatus::Receiving { verified: (blocks * BLOCK) as u64 };
        while self.sender.transfer.status(to.addr(), id).await.unwrap() != wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        raw
    }
}

async fn kept(dir: &std::path::Path) {
    let unlocked = |name: &String| RealVfs.lock(&dir.join(name)).is_ok();
    eventually("keeping", || names(dir).iter().any(|n| n.ends_with(".part") && unlocked(n))).await;
    assert_eq!(names(dir).len(), 2);
}

/// What a failed sync has left unwritten, no later one reports: nothing of such a file is gone on with.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_sync_has_failed_is_not_kept() {
    let disk = RecordingVfs::default();
    let (cut, b) = (Cut::new(), Node::with(2, disk.shared(), quick()));
    b.open_inbox();
    cut.send(&b, "file", 0, 5).await.connection.close("cut");
    kept(&b.inbox()).await;
    let raw = cut.send(&b, "file", 4, 5).await;
    disk.fail(Op::SyncData, 0, 1, std::io::ErrorKind::Other);
    raw.connection.close("cut");
    let inbox = b.inbox();
    eventually("cleaning up", || names(&inbox).is_empty()).await;
    cut.send(&b, "file", 0, 1).await;
}

/// However many directories a node receives into, what it keeps in one of them goes when its time has come.
#[tokio::test(flavor = "multi_thread")]
async fn no_directory_is_forgotten() {
    struct Many(Vec<PathBuf>);
    impl ReceivePolicy for Many {
        fn accept(&self, _: &Offer) -> Result<Destination, Refusal> {
            Err(Refusal::rejected("it is not for that"))
        }
        fn received(&self, _: ReceivedChunk) {}
        fn directories(&self) -> Vec<PathBuf> {
            self.0.clone()
        }
    }
    let keep_partial = Duration::from_secs(3);
    let (cut, b) =
        (Cut::new(), Node::with(2, RealVfs::shared(), TransferOptions { keep_partial, ..quick() }));
    let last = b.dir.path().join("last");
    RealVfs.create_dir_all(&last).unwrap();
    let left = last.join(format!(".octopii-{:032x}.part", 7));
    octopii_vfs::write_file_durable(&RealVfs, &left, b"of a crashed process").unwrap();
    let many = (0..1100).map(|n| b.dir.path().join(n.to_string())).chain([last.clone()]);
    b.transfer.receive("many", Many(many.collect()));
    eventually("the sweep of the last directory", || names(&last).is_empty()).await;
    let late = b.dir.path().join("late");
    b.receive_into("late", Destination::File { dir: late.clone(), name: "f".into(), replace: false });
    cut.send(&b, "late", 0, 5).await.connection.close("cut");
    kept(&late).await;
    eventually("its end", || names(&late).is_empty()).await;
}
