//! What the sender knows of a source that goes to many: every block's prefix digest, computed once for all.

use std::collections::BTreeSet;
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

/// Prefix digests of a source, about 32 bytes per block, growing as it is hashed: from wherever a receiver goes on, to the end.
#[derive(Debug)]
pub(crate) struct Ledger {
    size: u64,
    block_size: u32,
    blocks: RwLock<Blocks>,
    hashed: watch::Sender<Hashed>,
    /// Up to here somebody has been told.
    told: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Blocks {
    prefixes: Vec<Option<Digest>>,
    /// Where hashing began: each part of the source is hashed up to where the next one begins.
    begun: BTreeSet<u64>,
}

/// How far hashing is.
#[derive(Debug, Default)]
pub(crate) struct Hashed {
    /// Blocks in all.
    blocks: usize,
    /// Of the whole, or why there is none.
    end: Option<Result<Digest, TransferError>>,
}

impl Ledger {
    pub(crate) fn new(size: u64, block_size: u32) -> Self {
        Self {
            size,
            block_size,
            blocks: RwLock::default(),
            hashed: watch::Sender::default(),
            told: watch::Sender::new(0),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Reads and hashes `source` from where it stands, a multiple of the block size, until the part begins that is hashed already
    /// or by another call; nothing if it stands in such a part. As far ahead as is useful.
    pub(crate) async fn fill(&self, executor: &Executor, source: BlockReader) {
        let from = source.offset();
        {
            let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
            if blocks.has(from / u64::from(self.block_size)) || !blocks.begun.insert(from) {
                return;
            }
        }
        match self.hash(executor, source).await {
            Ok(None) => {}
            Ok(Some(digest)) => self.hashed.send_modify(|hashed| {
                hashed.end.get_or_insert(Ok(digest));
            }),
            Err(error) => self.hashed.send_modify(|hashed| hashed.end = Some(Err(error))),
        }
    }

    /// The digest of the whole, from whoever reaches the end.
    async fn hash(
        &self,
        executor: &Executor,
        mut source: BlockReader,
    ) -> Result<Option<Digest>, TransferError> {
        let mut told = self.told.subscribe();
        let block_size = self.block_size;
        let from = source.offset();
        loop {
            let at = source.offset();
            // It cannot fail: the sender is in `self`.
            let _ = told.wait_for(|told| at < told.saturating_add(AHEAD)).await;
            // Another part may have been begun meanwhile.
            let to = self.end_of(from);
            if at >= to && to < self.size {
                return Ok(None);
            }
            // One more at the very end: it is there that a change of the source is noticed.
            let wanted =
                usize::try_from((to - at).div_ceil(block_size.into())).map_or(STEP, |n| n.clamp(1, STEP));
            let read = executor.blocking(move || source.next_blocks(block_size, wanted).map(|b| (source, b)));
            let (rest, read) = read.await?;
            source = rest;
            let ended = read.len() < wanted;
            {
                let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
                read.iter().for_each(|block| blocks.put(block.offset / u64::from(block_size), block.prefix));
            }
            self.hashed.send_modify(|hashed| hashed.blocks += read.len());
            if ended {
                return Ok(Some(source.digest()));
            }
        }
    }

    /// Where the part that begins at `from` ends.
    fn end_of(&self, from: u64) -> u64 {
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        blocks.begun.range(from + 1..).next().copied().unwrap_or(self.size)
    }

    /// Changes with every step.
    pub(crate) fn watch(&self) -> watch::Receiver<Hashed> {
        self.hashed.subscribe()
    }

    /// The digest of the whole, once it is known.
    pub(crate) fn digest(&self) -> Result<Option<Digest>, TransferError> {
        self.hashed.borrow().end.clone().transpose()
    }

    /// The block at an offset that was hashed.
    pub(crate) fn block(&self, offset: u64) -> Option<Vouched> {
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        let prefix = blocks.get(offset / u64::from(self.block_size))?;
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

impl Blocks {
    fn get(&self, at: u64) -> Option<Digest> {
        *self.prefixes.get(usize::try_from(at).ok()?)?
    }

    fn has(&self, at: u64) -> bool {
        self.get(at).is_some()
    }

    fn put(&mut self, at: u64, prefix: Digest) {
        // Blocks of a source that can be read have numbers that fit.
        let Ok(at) = usize::try_from(at) else { return };
        if self.prefixes.len() <= at {
            self.prefixes.resize(at + 1, None);
        }
        self.prefixes[at] = Some(prefix);
    }
}

/// A source and its ledger, shared by all conversations of a distribution.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) source: Arc<OpenSource>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ChunkSource;
    use crate::checkpoints::Checkpoints;
    use octopii_vfs::RealVfs;

    const BLOCK: u32 = 256 << 10;

    /// Whoever goes on somewhere does not wait for what lies before, and nothing is hashed twice.
    #[tokio::test]
    async fn it_is_filled_from_wherever_somebody_goes_on() {
        let content: Vec<u8> = (0..(10 << 20) + 5_u32).map(|i| ((i * 31) >> 7) as u8).collect();
        let source =
            OpenSource::open(&ChunkSource::Memory(content.clone().into()), &RealVfs::shared()).unwrap();
        let (source, checkpoints) = (Arc::new(source), Arc::new(Checkpoints::in_memory()));
        let executor = Executor::new(tokio::runtime::Handle::current());
        let ledger = Ledger::new(source.size(), BLOCK);
        let blocks = content.len().div_ceil(BLOCK as usize);
        let known = || (0..blocks).filter(|&i| ledger.block(i as u64 * u64::from(BLOCK)).is_some()).count();
        for (from, expected) in
            [(8 << 20, blocks - 32), (4 << 20, blocks - 16), (8 << 20, blocks - 16), (0, blocks)]
        {
            let reader = BlockReader::at(Arc::clone(&source), Arc::clone(&checkpoints), from).unwrap();
            ledger.fill(&executor, reader).await;
            assert_eq!((known(), ledger.hashed.borrow().blocks), (expected, expected), "from {from}");
            assert_eq!(ledger.digest().unwrap(), Some(Digest::of(&content)));
        }
        for i in 0..blocks {
            let end = content.len().min((i + 1) * BLOCK as usize);
            let block = ledger.block(i as u64 * u64::from(BLOCK)).unwrap();
            assert_eq!(block.prefix, Digest::of(&content[..end]), "block {i}");
        }
    }
}
