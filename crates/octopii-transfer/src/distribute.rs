//! One chunk to many peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{ChunkSource, Digest, Receipt, SendOptions, Transfer, TransferError};

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
    /// How long it took, in success and failure.
    pub duration: Duration,
    /// Why it failed.
    pub error: Option<TransferError>,
}

impl Transfer {
    /// Sends a chunk to every peer at the same time. One result per peer, in the order of `peers`; one peer's failure
    /// does not touch the others. Dropping the future cancels what is under way.
    ///
    /// The options hold for each transfer by itself; an `id` in them is used for the first peer only, since ids are
    /// unique. Each peer costs up to 8 MiB while its transfer runs (nothing for a source in memory).
    pub async fn send_to_all(
        &self,
        source: &ChunkSource,
        peers: Vec<SocketAddr>,
        options: SendOptions,
    ) -> Vec<TransferResult> {
        let (transfer, source) = (self.clone(), source.clone());
        let sending = send_each(transfer, source, peers.clone(), options);
        match self.executor().run(sending).await {
            Some(results) => results,
            None => peers
                .into_iter()
                .map(|peer| failed(peer, 0, Duration::ZERO, TransferError::ShuttingDown))
                .collect(),
        }
    }
}

async fn send_each(
    transfer: Transfer,
    source: ChunkSource,
    peers: Vec<SocketAddr>,
    mut options: SendOptions,
) -> Vec<TransferResult> {
    // Tasks of the set end with it.
    let mut tasks = JoinSet::new();
    for (at, &peer) in peers.iter().enumerate() {
        let (transfer, source, mut own) = (transfer.clone(), source.clone(), options.clone());
        options.id = None;
        tasks.spawn(async move {
            let started = Instant::now();
            let verified = Arc::new(AtomicU64::new(0));
            let (seen, callback) = (Arc::clone(&verified), own.progress.take());
            own.progress = Some(Arc::new(move |progress| {
                seen.fetch_max(progress.verified, Ordering::Relaxed);
                if let Some(callback) = &callback {
                    callback(progress);
                }
            }));
            let outcome = transfer.send(peer, &source, own).await;
            let result = match outcome {
                Ok(receipt) => succeeded(peer, &receipt),
                Err(error) => failed(peer, verified.load(Ordering::Relaxed), started.elapsed(), error),
            };
            (at, result)
        });
    }
    let mut results: Vec<Option<TransferResult>> = vec![None; peers.len()];
    while let Some(ended) = tasks.join_next().await {
        if let Ok((at, result)) = ended {
            results[at] = Some(result);
        }
    }
    // A missing result means that its task was cut off by the runtime's end.
    let missing = |peer| failed(peer, 0, Duration::ZERO, TransferError::ShuttingDown);
    peers.into_iter().zip(results).map(|(peer, result)| result.unwrap_or_else(|| missing(peer))).collect()
}

fn succeeded(peer: SocketAddr, receipt: &Receipt) -> TransferResult {
    TransferResult {
        peer,
        success: true,
        bytes_transferred: receipt.bytes,
        checksum_verified: true,
        digest: Some(receipt.digest),
        duration: receipt.duration,
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
        duration,
        error: Some(error),
    }
}
