//! What the sender knows of a source that goes to many: every block's prefix digest, computed once for all.

use std::sync::{Arc, PoisonError, RwLock};

use octopii_transport::Executor;
use tokio::sync::watch;

use crate::source::{BlockReader, OpenSource};
use crate::wire::relay::Vouched;
use crate::{Digest, TransferError};

/// The source is hashed this far ahead of what anybody has been told, so that its content is still in the system's cache when it
/// is sent.
const AHEAD: u64 = 64 << 20;

/// Blocks hashed in one step on a blocking thread.
const STEP: usize = 16;

/// Prefix digests of a source, 32 bytes per block, growing as it is hashed.
#[derive(Debug)]
pub(crate) struct Ledger {
    size: u64,
    block_size: u32,
    prefixes: RwLock<Vec<Digest>>,
    /// Bytes hashed, and how it ended if it did.
    hashed: watch::Sender<(u64, Option<Result<Digest, TransferError>>)>,
    /// Up to here somebody has been told.
    told: watch::Sender<u64>,
}

impl Ledger {
    pub(crate) fn new(size: u64, block_size: u32) -> Self {
        Self {
            size,
            block_size,
            prefixes: RwLock::default(),
            hashed: watch::Sender::new((0, None)),
            told: watch::Sender::new(0),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Reads and hashes the source to its end, as far ahead as is useful.
    pub(crate) async fn fill(&self, executor: &Executor, source: BlockReader) {
        let end = self.hash(executor, source).await;
        self.hashed.send_modify(|state| state.1 = Some(end));
    }

    async fn hash(&self, executor: &Executor, mut source: BlockReader) -> Result<Digest, TransferError> {
        let mut told = self.told.subscribe();
        let block_size = self.block_size;
        loop {
            let hashed = self.hashed.borrow().0;
            // It cannot fail: the sender is in `self`.
            let _ = told.wait_for(|told| hashed < told.saturating_add(AHEAD)).await;
            let read = executor.blocking(move || source.next_blocks(block_size, STEP).map(|b| (source, b)));
            let (rest, blocks) = read.await?;
            source = rest;
            let ended = blocks.len() < STEP;
            let bytes: usize = blocks.iter().map(|block| block.content.len()).sum();
            let prefixes = blocks.iter().map(|block| block.prefix);
            self.prefixes.write().unwrap_or_else(PoisonError::into_inner).extend(prefixes);
            self.hashed.send_modify(|state| state.0 += bytes as u64);
            if ended {
                return Ok(source.digest());
            }
        }
    }

    /// Changes with every step.
    pub(crate) fn watch(&self) -> watch::Receiver<(u64, Option<Result<Digest, TransferError>>)> {
        self.hashed.subscribe()
    }

    /// The digest of the whole, once it is known.
    pub(crate) fn digest(&self) -> Result<Option<Digest>, TransferError> {
        self.hashed.borrow().1.clone().transpose()
    }

    /// The block at an offset that was hashed.
    pub(crate) fn block(&self, offset: u64) -> Option<Vouched> {
        let at = usize::try_from(offset / u64::from(self.block_size)).ok()?;
        let prefix = *self.prefixes.read().unwrap_or_else(PoisonError::into_inner).get(at)?;
        let len = (self.size - offset).min(u64::from(self.block_size)) as u32;
        Some(Vouched { offset, len, prefix })
    }

    /// Somebody has been told of everything up to here.
    pub(crate) fn tell(&self, to: u64) {
        self.told.send_if_modified(|told| {
            let more = to > *told;
            *told = to.max(*told);
            more
        });
    }
}

/// A source and its ledger, shared by all conversations of a distribution.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) source: Arc<OpenSource>,
}
