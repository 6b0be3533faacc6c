//! Checks incoming blocks against the running digest, each byte hashed once; a damaged block is waited for. Everything here
//! blocks.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::compression::Decompressor;
use crate::digest::{Chain, PrefixHasher};
use crate::store::{IncomingBlock, Store};
use crate::wire::Span;
use crate::{Digest, TransferError};

/// How often one block is asked for again before it is given up.
const ATTEMPTS: u32 = 3;

/// Bytes that may wait behind a damaged block, as they arrived: more than are under way when it is asked for again.
const MAX_WAITING: u64 = 64 << 20;

/// The same in blocks, which may be short, or of zeroes.
const MAX_WAITING_BLOCKS: usize = 1 << 14;

/// The running digest of what has arrived.
#[derive(Debug)]
pub(crate) struct Checker {
    pub(crate) hasher: PrefixHasher,
    /// Everything before it has the right digest.
    offset: u64,
    block_size: u32,
    /// The block at `offset`, which did not arrive as it was sent; how often it has been asked for again.
    damaged: Option<(Waiting, u32)>,
    /// What came after it: stored, but not checked.
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// Where hashing stood at the end of each whole block, for the journal.
    pub(crate) chains: Option<BTreeMap<u64, Chain>>,
    /// For blocks that come compressed, if they may.
    decompressor: Option<Decompressor>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    span: Span,
    prefix: Digest,
    /// Bytes of it that arrived.
    travelled: usize,
}

impl Checker {
    pub(crate) fn new(hasher: PrefixHasher, offset: u64, block_size: u32) -> Self {
        Self {
            hasher,
            offset,
            block_size,
            damaged: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            chains: None,
            decompressor: None,
        }
    }

    /// Everything before this has the right digest.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether nothing is damaged.
    pub(crate) fn is_whole(&self) -> bool {
        self.damaged.is_none()
    }

    /// Lets blocks come compressed. Says whether they may.
    pub(crate) fn take_compressed(&mut self) -> bool {
        self.decompressor = Decompressor::new();
        self.decompressor.is_some()
    }

    /// Checks the next blocks against their prefix digests. Gives back those to store, and the first that is wrong. Blocks
    /// behind that are stored unchecked, or, with `stop`, forgotten as if they had never come.
    pub(crate) fn check(
        &mut self,
        blocks: Vec<IncomingBlock>,
        stop: bool,
    ) -> Result<(Vec<IncomingBlock>, Option<Span>), TransferError> {
        let mut wrong = None;
        let mut store = Vec::with_capacity(blocks.len());
        for mut block in blocks {
            if block.compressed {
                let decompressor = self.decompressor.as_mut();
                let content = decompressor.and_then(|d| d.decompress(&block.parts, block.len));
                // What is no such block counts as zeroes: if those have another digest, it is damaged as any other.
                let content = content.unwrap_or_else(|| vec![0; block.len].into());
                (block.parts, block.compressed) = (vec![content], false);
            }
            let span = Span { offset: block.offset, len: block.len as u32 };
            let waiting = Waiting { span, prefix: block.prefix, travelled: block.travelled };
            if self.damaged.is_some() {
                self.waiting_bytes += block.travelled as u64;
                if self.waiting_bytes > MAX_WAITING || self.waiting.len() == MAX_WAITING_BLOCKS {
                    return Err(TransferError::Protocol("a damaged block is not sent again"));
                }
                self.waiting.push_back(waiting);
            } else if !self.advance(waiting, &block.parts) {
                wrong = Some(span);
                if stop {
                    break;
                }
                self.damaged = Some((waiting, 1));
                continue;
            }
            store.push(block);
        }
        Ok((store, wrong))
    }

    /// Takes the damaged block anew, and stores it. Gives it back if it is to be asked for again; otherwise what
    /// [waited behind it](Self::check_waiting) is next.
    pub(crate) fn repair(
        &mut self,
        store: &mut Store,
        offset: u64,
        parts: Vec<Bytes>,
    ) -> Result<Option<Span>, TransferError> {
        let len = parts.iter().map(Bytes::len).sum::<usize>();
        let (waiting, attempts) = match self.damaged.take() {
            Some(damaged) if (damaged.0.span.offset, damaged.0.span.len as usize) == (offset, len) => damaged,
            _ => return Err(TransferError::Protocol("a block was sent again that nobody asked for")),
        };
        if !self.advance(waiting, &parts) {
            if attempts >= ATTEMPTS {
                return Err(still_damaged(waiting.span));
            }
            self.damaged = Some((waiting, attempts + 1));
            return Ok(Some(waiting.span));
        }
        store.write_at(offset, &parts)?;
        Ok(None)
    }

    /// Whether something waited behind a block that is in order now.
    pub(crate) fn has_waiting(&self) -> bool {
        self.damaged.is_none() && !self.waiting.is_empty()
    }

    /// Checks so many of the blocks that waited, at the most. Gives back the next one to ask for again.
    pub(crate) fn check_waiting(
        &mut self,
        store: &Store,
        most: usize,
    ) -> Result<Option<Span>, TransferError> {
        for _ in 0..most {
            let Some(next) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= next.travelled as u64;
            let content = Bytes::from(store.read_at(next.span)?);
            if !self.advance(next, &[content]) {
                self.damaged = Some((next, 1));
                return Ok(Some(next.span));
            }
        }
        Ok(None)
    }

    /// Goes on over a block, or stays before it if it is not what it should be.
    fn advance(&mut self, block: Waiting, parts: &[Bytes]) -> bool {
        let before = self.hasher.clone();
        parts.iter().for_each(|part| self.hasher.update(part));
        if self.hasher.prefix() != block.prefix {
            self.hasher = before;
            return false;
        }
        if let Some(chains) = &mut self.chains
            && block.span.len == self.block_size
            && let Some(chain) = self.hasher.chain()
        {
            chains.insert(block.span.offset, chain);
        }
        self.offset = block.span.offset + u64::from(block.span.len);
        true
    }
}

pub(crate) fn still_damaged(span: Span) -> TransferError {
    let end = span.offset + u64::from(span.len);
    TransferError::DigestMismatch(format!(
        "bytes {} to {end} were sent {} times and never arrived as they were hashed",
        span.offset,
        ATTEMPTS + 1
    ))
}
