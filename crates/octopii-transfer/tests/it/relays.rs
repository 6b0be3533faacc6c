//! One chunk to many peers that hand it on to one another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_transfer::{
    AckLevel, ChunkSource, Destination, Distribution, Offer, ReceivePolicy, ReceivedChunk, Refusal,
    SendOptions, Topology, TransferError, TransferOptions, TransferResult, TransferStatus,
};
use octopii_vfs::{OpenMode, RealVfs, Vfs};

use crate::nodes::{BLOCK, Node, content, eventually, names, quick, read};
use crate::recording::RecordingVfs;

fn chain(send: SendOptions) -> Distribution {
    Distribution { topology: Topology::Chain, ..send.into() }
}

fn addrs(peers: &[Node]) -> Vec<SocketAddr> {
    peers.iter().map(Node::addr).collect()
}

/// Bytes of UDP payload that `node` has sent to `peers`.
async fn uploaded(node: &Node, peers: &[SocketAddr]) -> u64 {
    let mut sum = 0;
    for &peer in peers {
        sum += node.endpoint.connect(peer).await.unwrap().stats().bytes_sent;
    }
    sum
}

fn assert_all_have(peers: &[Node], results: &[TransferResult], data: &[u8]) {
    for (peer, result) in peers.iter().zip(results) {
        assert!(result.success && result.checksum_verified, "{result:?}");
        assert_eq!(result.bytes_transferred, data.len() as u64);
        assert!(read(&peer.inbox().join("f")) == data, "another content arrived");
        assert_eq!(names(&peer.inbox()), ["f"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_uploads_the_chunk_about_once() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..7).map(Node::new).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    for len in [12 * BLOCK + 77, 8 * BLOCK] {
        for peer in &peers {
            let _ = std::fs::remove_file(peer.inbox().join("f"));
        }
        let data = content(len);
        let source = ChunkSource::File(a.source("f", &data));
        let before = uploaded(&a, &addrs(&peers)).await;
        // The size alone makes it a chain.
        let results = a.transfer.send_to_all(&source, addrs(&peers), SendOptions::new("file")).await;
        assert_all_have(&peers, &results, &data);
        let sent = uploaded(&a, &addrs(&peers)).await - before;
        assert!(sent < len as u64 * 5 / 4, "{sent} bytes uploaded for {len}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_and_empty_chunks_can_be_handed_on_too() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..5).map(Node::new).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    for len in [0, 1, 256 << 10, (256 << 10) + 1] {
        for peer in &peers {
            let _ = std::fs::remove_file(peer.inbox().join("f"));
        }
        let data = content(len);
        let options = SendOptions { name: Some("f".into()), ..SendOptions::new("file") };
        let source = ChunkSource::Memory(data.clone().into());
        let results = a.transfer.send_to_all(&source, addrs(&peers), chain(options)).await;
        assert_all_have(&peers, &results, &data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_received_into_memory_is_not_handed_on() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..5).map(Node::new).collect();
    let data = content(9 * BLOCK);
    let arrivals: Vec<_> =
        peers.iter().map(|peer| peer.receive_into("file", Destination::Memory { limit: 64 << 20 })).collect();
    let source = ChunkSource::Memory(data.clone().into());
    let results = a.transfer.send_to_all(&source, addrs(&peers), chain(SendOptions::new("file"))).await;
    for (result, arrival) in results.iter().zip(arrivals) {
        assert!(result.success, "{result:?}");
        let chunk = arrival.recv().unwrap().received();
        assert!(matches!(chunk.location, octopii_transfer::Location::Memory(bytes) if bytes == data));
    }
}

/// Bytes of UDP payload that `nodes` have sent to one another and to `others`.
async fn traffic(nodes: &[&Node], to: &[SocketAddr]) -> u64 {
    let mut sum = 0;
    for node in nodes {
        let others: Vec<_> = to.iter().copied().filter(|&peer| peer != node.addr()).collect();
        sum += uploaded(node, &others).await;
    }
    sum
}

/// Whoever hands on wrong bytes is found out by the block, and nobody's file is wrong for it. It costs that block and what was
/// under way behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_a_flipped_bit_is_found_out() {
    let a = Node::new(1);
    let disks: Vec<_> = (0..3).map(|_| RecordingVfs::default()).collect();
    let nodes = disks.iter().zip(2..);
    let peers: Vec<_> = nodes.map(|(disk, id)| Node::with(id, disk.shared(), quick())).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    // Their own files are right: they read wrongly what they hand on.
    disks.iter().for_each(|disk| disk.rot(5 * BLOCK as u64 + 1234, 0, usize::MAX));
    let data = content(48 * BLOCK);
    let source = ChunkSource::File(a.source("f", &data));
    let results = a.transfer.send_to_all(&source, addrs(&peers), chain(SendOptions::new("file"))).await;
    assert!(disks.iter().any(|disk| disk.lies() > 0), "nobody handed anything on");
    assert_all_have(&peers, &results, &data);
    let everyone: Vec<_> = peers.iter().chain([&a]).collect();
    let sent = traffic(&everyone, &addrs(&peers)).await;
    assert!(
        sent < 3 * data.len() as u64 + 24 * BLOCK as u64,
        "{sent} bytes for 3 receivers of {}",
        data.len()
    );
}

/// The sender reads a block to hash it, and once more to send it.
#[tokio::test(flavor = "multi_thread")]
async fn a_bit_that_flips_in_the_source_between_two_reads_is_found() {
    for times in [1, usize::MAX] {
        let disk = RecordingVfs::default();
        let a = Node::with(1, disk.shared(), quick());
        let peers: Vec<_> = (2..4).map(Node::new).collect();
        let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
        let data = content(20 * BLOCK);
        disk.rot(5 * BLOCK as u64 + 1234, 1, times);
        let source = ChunkSource::File(a.source("f", &data));
        let results = a.transfer.send_to_all(&source, addrs(&peers), chain(SendOptions::new("file"))).await;
        assert!((1..20).contains(&disk.lies()), "{} wrong reads", disk.lies());
        if times == 1 {
            assert_all_have(&peers, &results, &data);
            let sent = traffic(&peers.iter().chain([&a]).collect::<Vec<_>>(), &addrs(&peers)).await;
            assert!(sent < 2 * data.len() as u64 + 16 * BLOCK as u64, "{sent} bytes");
            continue;
        }
        for (peer, result) in peers.iter().zip(results) {
            let error = result.error.expect("there is no right block");
            assert!(matches!(error, TransferError::DigestMismatch(_)), "{error}");
            eventually("the cleaning", || names(&peer.inbox()).is_empty()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_is_passed_by() {
    for victim in 0..3 {
        let a = Node::new(1);
        let mut peers: Vec<_> = (2..6).map(Node::new).collect();
        let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
        let to = addrs(&peers);
        let doomed = peers.remove(victim);
        let (doomed_addr, doomed) = (doomed.addr(), Mutex::new(Some(doomed)));
        let is_dead = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_dead);
        let data = content(48 * BLOCK);
        let source = ChunkSource::File(a.source("f", &data));
        let options = SendOptions {
            // When it has a part of it, its endpoint is gone without a word.
            progress: Some(Arc::new(move |progress| {
                if progress.peer == doomed_addr
                    && progress.verified > 0
                    && let Some(node) = doomed.lock().unwrap().take()
                {
                    drop(node);
                    told.store(true, Ordering::Relaxed);
                }
            })),
            ..SendOptions::new("file")
        };
        let mut results = a.transfer.send_to_all(&source, to, chain(options)).await;
        let lost = results.remove(victim);
        if is_dead.load(Ordering::Relaxed) && !lost.success {
            assert!(lost.error.is_some() && !lost.checksum_verified, "{lost:?}");
        }
        assert_all_have(&peers, &results, &data);
    }
}

/// It takes what it gets at once, but hands it on in drops.
#[tokio::test(flavor = "multi_thread")]
async fn a_crawling_relay_is_passed_by() {
    let a = Node::new(1);
    let disks: Vec<_> = (0..3).map(|_| RecordingVfs::default()).collect();
    let nodes = disks.iter().zip(2..);
    let peers: Vec<_> = nodes.map(|(disk, id)| Node::with(id, disk.shared(), quick())).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    // 256 blocks at 0.25 s each would take more than a minute.
    disks[0].set_read_delay(Duration::from_millis(250));
    let data = content(64 * BLOCK);
    let source = ChunkSource::File(a.source("f", &data));
    let options = SendOptions { timeout: Some(Duration::from_secs(40)), ..SendOptions::new("file") };
    let results = a.transfer.send_to_all(&source, addrs(&peers), chain(options)).await;
    assert_all_have(&peers, &results, &data);
}

/// Takes its chunk only when it is told to.
struct Late {
    go: Mutex<Receiver<()>>,
    destination: Destination,
    /// How many bytes it received, if it did.
    ended: Sender<Option<u64>>,
}

impl ReceivePolicy for Late {
    fn accept(&self, _: &Offer) -> Result<Destination, Refusal> {
        self.go
            .lock()
            .unwrap()
            .recv_timeout(Duration::from_secs(30))
            .map_err(|_| Refusal::rejected("no word"))?;
        Ok(self.destination.clone())
    }

    fn received(&self, chunk: ReceivedChunk) {
        let _ = self.ended.send(Some(chunk.size));
    }

    fn failed(&self, _: &Offer, _: &TransferError) {
        let _ = self.ended.send(None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_is_enough_and_the_others_follow() {
    for topology in [Topology::Direct, Topology::Chain] {
        let a = Node::new(1);
        let peers: Vec<_> = (2..5).map(Node::new).collect();
        let _inboxes: Vec<_> = peers[..2].iter().map(Node::open_inbox).collect();
        let ((go, wait), (tx, rx)) = (channel(), channel());
        let destination = Destination::File { dir: peers[2].inbox(), name: "f".into(), replace: false };
        peers[2].transfer.receive("file", Late { go: Mutex::new(wait), destination, ended: tx });
        let data = content(9 * BLOCK);
        let source = ChunkSource::File(a.source("f", &data));
        let how = Distribution { topology, quorum: Some(2), ..SendOptions::new("file").into() };
        let results = a.transfer.send_to_all(&source, addrs(&peers), how).await;
        assert_all_have(&peers[..2], &results[..2], &data);
        assert!(matches!(results[2].error, Some(TransferError::Unfinished)), "{results:?}");
        go.send(()).unwrap();
        let size =
            tokio::task::spawn_blocking(move || rx.recv_timeout(Duration::from_secs(30))).await.unwrap();
        assert_eq!(size, Ok(Some(data.len() as u64)));
        assert!(read(&peers[2].inbox().join("f")) == data);
    }
}

/// Those that follow are no reason for a service to outlive its last handle.
#[tokio::test(flavor = "multi_thread")]
async fn the_others_of_a_quorum_end_with_the_service() {
    for topology in [Topology::Direct, Topology::Chain] {
        let a = Node::new(1);
        let peers: Vec<_> = (2..4).map(Node::new).collect();
        let _inbox = peers[0].open_inbox();
        let ((go, wait), (tx, rx)) = (channel(), channel());
        let destination = Destination::File { dir: peers[1].inbox(), name: "f".into(), replace: false };
        peers[1].transfer.receive("file", Late { go: Mutex::new(wait), destination, ended: tx });
        let source = ChunkSource::Memory(content(9 * BLOCK).into());
        let send = SendOptions { name: Some("f".into()), ..SendOptions::new("file") };
        let how = Distribution { topology, quorum: Some(1), ..send.into() };
        let results = a.transfer.send_to_all(&source, addrs(&peers), how).await;
        assert!(matches!(results[1].error, Some(TransferError::Unfinished)), "{results:?}");
        let Node { endpoint: _open, transfer, .. } = a;
        drop(transfer);
        go.send(()).unwrap();
        let ended =
            tokio::task::spawn_blocking(move || rx.recv_timeout(Duration::from_secs(30))).await.unwrap();
        assert_eq!(ended, Ok(None), "{topology:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_out_of_reach_is_not_waited_for() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..5).map(Node::new).collect();
    let ((_go, wait), (tx, _rx)) = (channel(), channel());
    let destination = Destination::File { dir: peers[2].inbox(), name: "f".into(), replace: false };
    peers[2].transfer.receive("file", Late { go: Mutex::new(wait), destination, ended: tx });
    let source = ChunkSource::Memory("abc".into());
    let how = Distribution { quorum: Some(2), ..SendOptions::new("file").into() };
    let results = a.transfer.send_to_all(&source, addrs(&peers), how).await;
    assert!(matches!(results[0].error, Some(TransferError::Refused { .. })), "{results:?}");
    assert!(matches!(results[2].error, Some(TransferError::Unfinished)), "{results:?}");
}

/// Dropping the call ends it everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_leaves_nothing() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..5).map(Node::new).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    let most = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&most);
    let options = SendOptions {
        progress: Some(Arc::new(move |progress| {
            seen.fetch_max(progress.verified, Ordering::Relaxed);
        })),
        ..SendOptions::new("file")
    };
    let source = ChunkSource::File(a.source("f", &content(64 * BLOCK)));
    let to = addrs(&peers);
    {
        let sending = a.transfer.send_to_all(&source, to, chain(options));
        tokio::pin!(sending);
        while most.load(Ordering::Relaxed) == 0 {
            tokio::select! {
                _ = &mut sending => return,
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }
    for peer in &peers {
        eventually("cleaning up", || names(&peer.inbox()).iter().all(|name| name == "f")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_peer_is_told_its_own_status() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..4).map(Node::new).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    let id = octopii_transfer::TransferId::random();
    let options = SendOptions { id: Some(id), name: Some("f".into()), ..SendOptions::new("file") };
    let source = ChunkSource::Memory(content(BLOCK).into());
    let results = a.transfer.send_to_all(&source, addrs(&peers), chain(options)).await;
    assert!(results.iter().all(|r| r.success), "{results:?}");
    let status = a.transfer.status(peers[0].addr(), id).await.unwrap();
    assert!(matches!(status, TransferStatus::Finished(ack) if ack.level == AckLevel::Durable), "{status:?}");
}

/// How many bytes each peer had when its latest attempt began, and how many it has verified.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<BTreeMap<SocketAddr, (u64, u64)>>>);

impl Watch {
    fn of(&self, peer: SocketAddr) -> (u64, u64) {
        self.0.lock().unwrap().get(&peer).copied().unwrap_or_default()
    }

    /// Options that tell it, for the files of 40 MiB a second that these tests cut off.
    fn options(&self) -> SendOptions {
        let seen = self.clone();
        SendOptions {
            // The receivers tell five times a second how far they have got.
            rate_limit: std::num::NonZeroU64::new(40 * BLOCK as u64),
            progress: Some(Arc::new(move |p| {
                seen.0.lock().unwrap().insert(p.peer, (p.resumed, p.verified));
            })),
            ..SendOptions::new("file")
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_was_cut_off_goes_on_where_it_was() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..5).map(Node::new).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    let data = content(48 * BLOCK);
    let source = ChunkSource::File(a.source("f", &data));
    for victim in addrs(&peers) {
        for peer in &peers {
            let _ = std::fs::remove_file(peer.inbox().join("f"));
        }
        let watch = Watch::default();
        let how = chain(SendOptions { retries: 3, ..watch.options() });
        let cutting = async {
            while watch.of(victim).1 < 24 * BLOCK as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            a.endpoint.connect(victim).await.unwrap().close("cut");
        };
        let sending = a.transfer.send_to_all(&source, addrs(&peers), how);
        let (results, ()) = tokio::join!(sending, cutting);
        assert_all_have(&peers, &results, &data);
        assert!(watch.of(victim).0 >= 16 << 20, "it began anew: {:?}", watch.of(victim));
    }
}

/// A distribution of 48 MiB that is cut off when each of its two receivers has half of it.
struct CutOff {
    state: tempfile::TempDir,
    peers: Vec<Node>,
    data: Vec<u8>,
    source: ChunkSource,
}

impl CutOff {
    async fn new() -> Self {
        let peers: Vec<_> = (2..4).map(Node::new).collect();
        peers.iter().for_each(|peer| drop(peer.open_inbox()));
        let data = content(48 * BLOCK);
        let source = ChunkSource::File(peers[0].source("f", &data));
        let new = Self { state: tempfile::tempdir().unwrap(), peers, data, source };
        let (first, watch) = (new.sender(1, RealVfs::shared()), Watch::default());
        let sending = first.transfer.send_to_all(&new.source, addrs(&new.peers), chain(watch.options()));
        let cutting = async {
            while addrs(&new.peers).into_iter().any(|peer| watch.of(peer).1 < 24 * BLOCK as u64) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            first.endpoint.close(Duration::from_secs(5)).await;
        };
        tokio::join!(sending, cutting);
        for inbox in new.inboxes() {
            eventually("letting go", || {
                parts(&inbox).iter().any(|name| RealVfs.lock(&inbox.join(name)).is_ok())
            })
            .await;
        }
        new
    }

    fn inboxes(&self) -> impl Iterator<Item = PathBuf> {
        self.peers.iter().map(Node::inbox)
    }

    /// As another process would be.
    fn sender(&self, id: u64, vfs: Arc<dyn Vfs>) -> Node {
        let state_dir = Some(self.state.path().join("state"));
        Node::with(id, vfs, TransferOptions { state_dir, ..quick() })
    }

    /// Sends it again; says how many bytes the receiver that had least had.
    async fn go_on(&self, sender: &Node) -> u64 {
        let watch = Watch::default();
        let how = chain(watch.options());
        let results = sender.transfer.send_to_all(&self.source, addrs(&self.peers), how).await;
        assert_all_have(&self.peers, &results, &self.data);
        addrs(&self.peers).into_iter().map(|peer| watch.of(peer).0).min().unwrap()
    }
}

fn parts(inbox: &Path) -> Vec<String> {
    names(inbox).into_iter().filter(|name| name.ends_with(".part")).collect()
}

/// Another process sends the same file again. What was damaged on a disk meanwhile is found and repaired.
#[tokio::test(flavor = "multi_thread")]
async fn a_distribution_that_was_cut_off_goes_on() {
    let cut_off = CutOff::new().await;
    for inbox in cut_off.inboxes() {
        let file = RealVfs.open(&inbox.join(&parts(&inbox)[0]), OpenMode::ReadWrite).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 3 << 20).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 3 << 20).unwrap();
    }
    let had = cut_off.go_on(&cut_off.sender(9, RealVfs::shared())).await;
    assert!(had >= 16 << 20, "it began anew: {had}");
}

/// It is not hashed again where all receivers have it: of a large file that takes longer than they wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_distribution_that_goes_on_reads_only_what_is_missing() {
    let (cut_off, disk) = (CutOff::new().await, RecordingVfs::default());
    let had = cut_off.go_on(&cut_off.sender(9, disk.shared())).await;
    assert!(had >= 16 << 20, "it began anew: {had}");
    assert_eq!(disk.lowest_read(), Some(had));
}

/// What was hashed is vouched for. A source that changes after that must not be sent again and again as what it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_after_it_was_hashed_is_an_error() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..4).map(Node::new).collect();
    let _inboxes: Vec<_> = peers.iter().map(Node::open_inbox).collect();
    let path = a.source("f", &content(24 * BLOCK));
    let changing = path.clone();
    let done = AtomicBool::new(false);
    let progress = Arc::new(move |p: octopii_transfer::Progress| {
        if p.verified > 0 && !done.swap(true, Ordering::Relaxed) {
            let file = RealVfs.open(&changing, OpenMode::ReadWrite).unwrap();
            file.write_all_at(b"another", 20 * BLOCK as u64).unwrap();
        }
    });
    let rate_limit = std::num::NonZeroU64::new(16 * BLOCK as u64);
    let how = chain(SendOptions { progress: Some(progress), rate_limit, ..SendOptions::new("file") });
    let results = a.transfer.send_to_all(&ChunkSource::File(path), addrs(&peers), how).await;
    for result in results {
        assert!(matches!(result.error, Some(TransferError::SourceChanged(_))), "{result:?}");
    }
}
