//! One chunk to many peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::send::send;
use crate::shared::{AbortOnDrop, Shared};
use crate::source::OpenSource;
use crate::supply::Outgoing;
use crate::{AckLevel, ChunkSource, Digest, Receipt, SendOptions, Transfer, TransferError};

mod fate;
mod ledger;
mod member;
mod origin;
mod plan;

pub(crate) use origin::distribute as chain;

/// What came of a transfer to one peer.
#[derive(Debug, Clone)]
pub struct TransferResult {
    /// The receiver.
    pub peer: SocketAddr,
    /// Whether it acknowledged the whole chunk.
    pub success: bool,
    /// Content bytes that it verified: all of them on success.
    pub bytes_transferred: u64,
    /// Whether its SHA-256 of the whole chunk equals the sender's.
    pub checksum_verified: bool,
    /// That SHA-256, on success.
    pub digest: Option<Digest>,
    /// How safe it is there, on success.
    pub level: Option<AckLevel>,
    /// How long it took, in success and failure.
    pub duration: Duration,
    /// Content bytes that travelled from here to it: without pages of zeroes, compressed if they were, and with what was
    /// sent again. After a
    /// failure this is known only of what went in a [chain](Topology::Chain).
    pub travelled: u64,
    /// Why it failed.
    pub error: Option<TransferError>,
}

/// How a chunk gets to several peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Topology {
    /// [`Chain`](Self::Chain) for several peers and a chunk of 8 MiB or more that is not to be compressed, otherwise
    /// [`Direct`](Self::Direct).
    #[default]
    Auto,
    /// From here to each peer: uploads the chunk once per peer.
    Direct,
    /// From here to the first, and from peer to peer: uploads the chunk about once, and takes about as long as one transfer.
    /// Peers hand on what they store in files; what they store in memory they keep to themselves. Nobody needs to trust
    /// anybody but the sender, which vouches for every block. What is handed on is not compressed. Whoever dies, lies or crawls is passed by. Peers must reach
    /// one another under the addresses used here; those that do not are supplied from here.
    Chain,
}

/// How to send to many.
#[derive(Debug, Clone)]
pub struct Distribution {
    /// How to send to each; an `id` is used for the first peer only, since ids are unique.
    pub send: SendOptions,
    /// Who sends to whom. Default [`Topology::Auto`].
    pub topology: Topology,
    /// Return as soon as this many peers have acknowledged, or no longer can. The others go on in the background, as long as
    /// `send.timeout` allows and the service lives; in the results they are [`TransferError::Unfinished`]. Default: all of them.
    pub quorum: Option<usize>,
}

impl From<SendOptions> for Distribution {
    fn from(send: SendOptions) -> Self {
        Self { send, topology: Topology::Auto, quorum: None }
    }
}

/// Smaller chunks are not worth the additional round trips of a chain.
pub(crate) const WORTH_A_CHAIN: u64 = 8 << 20;

impl Transfer {
    /// Sends a chunk to every peer at the same time. One result per peer, in the order of `peers`; one peer's failure
    /// does not touch the others. Dropping the future cancels what is under way.
    ///
    /// Takes [`SendOptions`], or a [`Distribution`] for more choice. Each peer to which this node itself sends costs about
    /// 8 MiB while its transfer runs (nothing for a source in memory).
    pub async fn send_to_all(
        &self,
        source: &ChunkSource,
        peers: Vec<SocketAddr>,
        how: impl Into<Distribution>,
    ) -> Vec<TransferResult> {
        let Distribution { send, topology, quorum } = how.into();
        let (tx, results) = mpsc::channel(peers.len().max(1));
        let sending = dispatch(self.shared(), source.clone(), peers.clone(), send, topology, tx);
        let sending = AbortOnDrop(self.executor().spawn(sending));
        let (results, unfinished) = collect(results, peers.len(), quorum).await;
        if unfinished {
            self.go_on_with(sending);
        }
        let missing = |peer| {
            // Without a quorum, only the runtime's end cuts a result off.
            let why = if unfinished { TransferError::Unfinished } else { TransferError::ShuttingDown };
            failed(peer, 0, Duration::ZERO, why)
        };
        peers.into_iter().zip(results).map(|(peer, result)| result.unwrap_or_else(|| missing(peer))).collect()
    }
}

/// Gathers results until all are there or the quorum is decided. Says whether others are still to come.
async fn collect(
    mut results: mpsc::Receiver<(usize, TransferResult)>,
    peers: usize,
    quorum: Option<usize>,
) -> (Vec<Option<TransferResult>>, bool) {
    let mut all: Vec<Option<TransferResult>> = vec![None; peers];
    let (mut good, mut ended) = (0, 0);
    let is_decided =
        |good, ended: usize| quorum.is_some_and(|quorum| good >= quorum || good + (peers - ended) < quorum);
    while ended < peers && !is_decided(good, ended) {
        let Some((i, result)) = results.recv().await else { return (all, false) };
        good += usize::from(result.success);
        ended += usize::from(all[i].is_none());
        all[i] = Some(result);
    }
    (all, ended < peers)
}

async fn dispatch(
    shared: Arc<Shared>,
    source: ChunkSource,
    peers: Vec<SocketAddr>,
    options: SendOptions,
    topology: Topology,
    results: mpsc::Sender<(usize, TransferResult)>,
) {
    let in_a_chain = match topology {
        Topology::Direct => false,
        Topology::Chain => true,
        Topology::Auto if options.compress.is_some() || options.node.is_some() => false,
        Topology::Auto => {
            let vfs = Arc::clone(&shared.resources.vfs);
            let measured = source.clone();
            let size = shared.executor.blocking(move || OpenSource::open(&measured, &vfs));
            // A source that cannot be opened is reported by whoever tries next.
            peers.len() > 1 && size.await.is_ok_and(|source| source.size() >= WORTH_A_CHAIN)
        }
    };
    if in_a_chain {
        chain(shared, Outgoing::Chunk(source), peers, options, results).await;
    } else {
        send_each(&shared, source, peers, options, results).await;
    }
}

async fn send_each(
    shared: &Arc<Shared>,
    source: ChunkSource,
    peers: Vec<SocketAddr>,
    mut options: SendOptions,
    results: mpsc::Sender<(usize, TransferResult)>,
) {
    // Tasks of the set end with it.
    let mut tasks = JoinSet::new();
    for (at, &peer) in peers.iter().enumerate() {
        let (shared, source, mut own) = (Arc::clone(shared), source.clone(), options.clone());
        let results = results.clone();
        options.id = None;
        let sending = async move {
            let started = Instant::now();
            let verified = Arc::new(AtomicU64::new(0));
            let (seen, callback) = (Arc::clone(&verified), own.progress.take());
            own.progress = Some(Arc::new(move |progress| {
                seen.fetch_max(progress.verified, Ordering::Relaxed);
                if let Some(callback) = &callback {
                    callback(progress);
                }
            }));
            let outcome = send(shared, peer, Outgoing::Chunk(source), own).await;
            let result = match outcome {
                Ok(receipt) => succeeded(peer, &receipt),
                Err(error) => failed(peer, verified.load(Ordering::Relaxed), started.elapsed(), error),
            };
            // An error means that nobody wants to know.
            let _ = results.send((at, result)).await;
        };
        tasks.spawn(sending);
    }
    while tasks.join_next().await.is_some() {}
}

fn succeeded(peer: SocketAddr, receipt: &Receipt) -> TransferResult {
    TransferResult {
        peer,
        success: true,
        bytes_transferred: receipt.bytes,
        checksum_verified: true,
        digest: Some(receipt.digest),
        level: Some(receipt.level),
        duration: receipt.duration,
        travelled: receipt.travelled,
        error: None,
    }
}

fn failed(peer: SocketAddr, bytes: u64, duration: Duration, error: TransferError) -> TransferResult {
    TransferResult {
        peer,
        success: false,
        bytes_transferred: bytes,
        checksum_verified: false,
        digest: None,
        level: None,
        duration,
        travelled: 0,
        error: Some(error),
    }
}
