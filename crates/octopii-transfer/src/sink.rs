//! Where an incoming chunk is put: checked block by block, hashed once. Everything here blocks.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::{Vfs, VfsFile};

use crate::budget::{MemoryBudget, Reservation};
use crate::compression::Decompressor;
use crate::digest::{Chain, PrefixHasher};
use crate::journal::{About, Entry, Journal, Prefix};
use crate::temporary::{TemporaryFile, check_destination_name};
use crate::wire::{AckLevel, Have, Span};
use crate::{Destination, Digest, FailureCode, Location, Refusal, TransferError};

/// Memory doubles with what has arrived, in steps between these: moving a large buffer costs more than its pages do.
const MEMORY_STEP: usize = 1 << 20;
const MAX_MEMORY_STEP: usize = 64 << 20;

/// How often one block is asked for again before it is given up.
const ATTEMPTS: u32 = 3;

/// Bytes that may wait behind a damaged block: more than are under way when it is asked for again.
const MAX_WAITING: u64 = 64 << 20;

/// The same in blocks, which may be short.
const MAX_WAITING_BLOCKS: usize = 1 << 14;

/// What is written into the page cache at once.
const PIECE: usize = 64 << 10;

/// Where a write past the page cache must begin in memory.
const ALIGNMENT: usize = 4096;

/// A block as it came from the network.
#[derive(Debug)]
pub(crate) struct IncomingBlock {
    pub(crate) offset: u64,
    pub(crate) parts: Vec<Bytes>,
    /// Bytes of content: in all parts or, if they are `compressed`, once they are not.
    pub(crate) len: usize,
    pub(crate) compressed: bool,
    /// What the sender says the digest of everything up to this block's end is.
    pub(crate) prefix: Digest,
}

/// What a receiver may use.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) memory: Arc<MemoryBudget>,
    /// Bytes to leave free on the disk.
    pub(crate) leave_free: u64,
}

/// An open destination: what is known of the content, and where it goes. They are apart so that one block can be checked
/// while another is written.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) checker: Checker,
    pub(crate) store: Store,
    /// Vouches for what is on the disk, if the content can be resumed.
    pub(crate) journal: Option<Journal>,
    /// What an earlier transfer left.
    pub(crate) earlier: Arc<Prefix>,
    pub(crate) have: Have,
    pub(crate) block_size: u32,
    /// What is acknowledged.
    pub(crate) level: AckLevel,
}

/// The running digest of what has arrived.
#[derive(Debug)]
pub(crate) struct Checker {
    hasher: PrefixHasher,
    /// Everything before it has the right digest.
    offset: u64,
    block_size: u32,
    /// The block at `offset`, which did not arrive as it was sent; how often it has been asked for again.
    damaged: Option<(Waiting, u32)>,
    /// What came after it: stored, but not checked.
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// Where hashing stood at the end of each whole block, for the journal.
    chains: Option<BTreeMap<u64, Chain>>,
    /// For blocks that come compressed, if they may.
    decompressor: Option<Decompressor>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    span: Span,
    prefix: Digest,
}

/// Where blocks go.
#[derive(Debug)]
pub(crate) struct Store {
    target: Target,
    /// Content is read again soon.
    cached: bool,
}

#[derive(Debug)]
enum Target {
    File {
        temporary: TemporaryFile,
        name: String,
        replace: bool,
        scratch: Vec<u8>,
        crcs: BTreeMap<u64, u32>,
        /// For what has no size to reserve space for: what must stay free.
        leave_free: Option<u64>,
    },
    Memory {
        buffer: Vec<u8>,
        limit: u64,
        announced: Option<u64>,
        _reservation: Reservation,
    },
}

/// What became of an attempt to open a destination.
pub(crate) enum Opened {
    Sink(Box<Sink>),
    /// Somebody else is receiving the same content into it.
    InUse,
}

impl Sink {
    /// Opens the destination, to go on from what is left of `resume` in it.
    pub(crate) fn open(
        with: &Resources,
        to: &Destination,
        size: Option<u64>,
        block_size: u32,
        resume: Option<About>,
        level: AckLevel,
    ) -> Result<Opened, TransferError> {
        let mut checker = Checker::new(PrefixHasher::default(), 0, block_size);
        let (mut journal, mut earlier, mut have) = (None, Arc::<Prefix>::default(), Have::nothing());
        let target = match to {
            Destination::File { dir, name, replace } => {
                check_destination_name(name)?;
                let temporary = match resume {
                    None => TemporaryFile::create(&with.vfs, dir)?,
                    Some(about) => {
                        let Some(opened) = TemporaryFile::open_resumable(&with.vfs, dir, about)? else {
                            return Ok(Opened::InUse);
                        };
                        let temporary;
                        (temporary, journal, earlier) = (opened.0, Some(opened.1), Arc::new(opened.2));
                        if let Some((known, hasher)) = earlier.have(block_size) {
                            checker = Checker::new(hasher, known.bytes, block_size);
                            have = known;
                        }
                        checker.chains = Some(BTreeMap::new());
                        temporary
                    }
                };
                reserve_space(with, &temporary, size, have.bytes)?;
                let (scratch, crcs) = (Vec::new(), BTreeMap::new());
                let leave_free = size.is_none().then_some(with.leave_free);
                Target::File { temporary, name: name.clone(), replace: *replace, scratch, crcs, leave_free }
            }
            Destination::Memory { limit } => {
                if size.is_some_and(|size| size > *limit) {
                    return Err(too_large(*limit));
                }
                let bytes = size.unwrap_or(*limit);
                let reservation = with.memory.reserve(bytes).ok_or_else(|| no_memory(bytes, &with.memory))?;
                Target::Memory {
                    buffer: Vec::new(),
                    limit: *limit,
                    announced: size,
                    _reservation: reservation,
                }
            }
        };
        let store = Store { target, cached: false };
        Ok(Opened::Sink(Box::new(Self { checker, store, journal, earlier, have, block_size, level })))
    }

    /// The digest of everything, if it is what the sender claims.
    pub(crate) fn verify(&self, expected: Digest) -> Result<Digest, TransferError> {
        let digest = self.checker.hasher.prefix();
        if digest != expected {
            let message = format!("the sender's SHA-256 is {expected}, the receiver's {digest}");
            return Err(TransferError::DigestMismatch(message));
        }
        Ok(digest)
    }

    /// Makes the chunk available, once its digest has been verified: a file under its final name, and durable there if that was
    /// wanted. Says how safe it is now.
    pub(crate) fn finish(mut self, expected: Digest) -> Result<(Location, Digest, AckLevel), TransferError> {
        let verified = self.verify(expected);
        self.store.set_keep(false);
        let digest = verified?;
        match self.store.target {
            Target::File { temporary, name, replace, .. } => {
                let level = self.level.max(AckLevel::Verified);
                let path = temporary.publish(&name, replace, level == AckLevel::Durable)?;
                Ok((Location::File(path), digest, level))
            }
            Target::Memory { buffer, .. } => {
                Ok((Location::Memory(buffer.into()), digest, AckLevel::Verified))
            }
        }
    }

    /// Whether syncing now is of use later: to what is acknowledged as durable, or to who resumes.
    pub(crate) fn is_synced_early(&self) -> bool {
        self.level == AckLevel::Durable || self.journal.is_some()
    }

    /// Leaves what has arrived to another transfer of the same content, if that is possible at all. Returns whether it is.
    pub(crate) fn keep(mut self, stored: u64) -> bool {
        let Some(mut journal) = self.journal.take() else { return false };
        let entries = self.vouch_for(&journal, stored);
        let synced = match self.store.file() {
            Some(file) => file.file().sync_data().and_then(|()| journal.append(&entries)),
            None => return false,
        };
        match synced {
            Ok(()) if journal.is_worth_keeping(0) => self.store.set_keep(true),
            Ok(()) => {}
            // What was vouched for before is as good as it was.
            Err(e) => tracing::warn!("cannot keep the latest part of an interrupted transfer: {e}"),
        }
        self.store.file().is_some_and(TemporaryFile::is_kept)
    }

    /// What the journal is told of the blocks that are stored up to `stored` and that it does not vouch for yet.
    pub(crate) fn vouch_for(&mut self, journal: &Journal, stored: u64) -> Vec<Entry> {
        let block_size = u64::from(self.block_size);
        let (chains, crcs) = match (&mut self.checker.chains, &mut self.store.target) {
            (Some(chains), Target::File { crcs, .. }) => (chains, crcs),
            _ => return Vec::new(),
        };
        if journal.is_full() {
            chains.clear();
            crcs.clear();
            return Vec::new();
        }
        let mut entries = Vec::new();
        let mut at = journal.bytes();
        while at + block_size <= stored
            && let (Some(&chain), Some(&crc)) = (chains.get(&at), crcs.get(&at))
        {
            entries.push(Entry { chain, crc });
            at += block_size;
        }
        *chains = chains.split_off(&at);
        *crcs = crcs.split_off(&at);
        entries
    }
}

impl Checker {
    fn new(hasher: PrefixHasher, offset: u64, block_size: u32) -> Self {
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
            let waiting = Waiting { span, prefix: block.prefix };
            if self.damaged.is_some() {
                self.waiting_bytes += u64::from(span.len);
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

    /// Takes the damaged block anew, stores it, and checks what waited behind it. Gives back the next one to ask for again.
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
        while let Some(next) = self.waiting.pop_front() {
            self.waiting_bytes -= u64::from(next.span.len);
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

impl Store {
    /// The file behind it, if it is one.
    pub(crate) fn file(&self) -> Option<&TemporaryFile> {
        match &self.target {
            Target::File { temporary, .. } => Some(temporary),
            Target::Memory { .. } => None,
        }
    }

    /// Others will read what is stored as soon as it is.
    pub(crate) fn expect_readers(&mut self) {
        self.cached = true;
    }

    /// Whether a file stays when this is dropped.
    pub(crate) fn set_keep(&mut self, keep: bool) {
        if let Target::File { temporary, .. } = &mut self.target {
            temporary.set_keep(keep);
        }
    }

    /// Stores blocks, each at its place.
    pub(crate) fn write(&mut self, blocks: &[IncomingBlock]) -> Result<(), TransferError> {
        blocks.iter().try_for_each(|block| self.write_at(block.offset, &block.parts))
    }

    pub(crate) fn write_at(&mut self, offset: u64, parts: &[Bytes]) -> Result<(), TransferError> {
        let len = parts.iter().map(Bytes::len).sum::<usize>();
        match &mut self.target {
            Target::File { temporary, scratch, crcs, leave_free, .. } => {
                if let Some(leave_free) = *leave_free
                    && temporary.free_space()? < leave_free.saturating_add(len as u64)
                {
                    return Err(TransferError::StorageFull(format!(
                        "{leave_free} bytes must stay free, and more than {offset} arrived: make room there"
                    )));
                }
                let content = match parts {
                    // A small file need not pay for a large buffer.
                    [only] if only.len() < ALIGNMENT => &only[..],
                    parts => gather(scratch, parts, len),
                };
                if temporary.is_resumable() {
                    crcs.insert(offset, crc32c::crc32c(content));
                }
                // Whatever was received is hardly read at once, and its pages in the cache cost as much as hashing it.
                let written = match self.cached {
                    false => temporary.file().write_all_at_uncached(content, offset),
                    true => write_in_pieces(&**temporary.file(), content, offset),
                };
                written.map_err(|e| TransferError::store("writing", temporary.path(), e))?;
            }
            Target::Memory { buffer, limit, announced, .. } => {
                let start = usize::try_from(offset).map_err(|_| too_large(*limit))?;
                let end = start.saturating_add(len) as u64;
                if end > *limit {
                    return Err(too_large(*limit));
                }
                if end > buffer.capacity() as u64 {
                    // Grow with what has arrived: an announced size alone is worth no memory.
                    let step = buffer.len().clamp(MEMORY_STEP, MAX_MEMORY_STEP) as u64;
                    let wanted = (end + step).min(announced.unwrap_or(u64::MAX)).min(*limit).max(end);
                    buffer.reserve_exact(wanted as usize - buffer.len());
                }
                if start == buffer.len() {
                    parts.iter().for_each(|part| buffer.extend_from_slice(part));
                } else {
                    // Behind or in place of a damaged block.
                    buffer.resize(buffer.len().max(end as usize), 0);
                    let mut at = start;
                    for part in parts {
                        buffer[at..at + part.len()].copy_from_slice(part);
                        at += part.len();
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads back what was stored.
    fn read_at(&self, span: Span) -> Result<Vec<u8>, TransferError> {
        let len = span.len as usize;
        match &self.target {
            Target::File { temporary, .. } => {
                let mut content = vec![0; len];
                temporary
                    .file()
                    .read_exact_at(&mut content, span.offset)
                    .map_err(|e| TransferError::store("reading", temporary.path(), e))?;
                Ok(content)
            }
            Target::Memory { buffer, limit, .. } => {
                let start = usize::try_from(span.offset).map_err(|_| too_large(*limit))?;
                Ok(buffer.get(start..start + len).map(<[u8]>::to_vec).unwrap_or_default())
            }
        }
    }
}

/// Into the page cache, where one large write takes several times as long as many small ones.
fn write_in_pieces(file: &dyn VfsFile, content: &[u8], offset: u64) -> io::Result<()> {
    let pieces = content.chunks(PIECE).zip((offset..).step_by(PIECE));
    pieces.into_iter().try_for_each(|(piece, at)| file.write_all_at(piece, at))
}

/// All parts in one piece that begins where the file system wants it.
fn gather<'a>(scratch: &'a mut Vec<u8>, parts: &[Bytes], len: usize) -> &'a [u8] {
    if scratch.len() < len + ALIGNMENT {
        scratch.resize(len + ALIGNMENT, 0);
    }
    let start = scratch.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    let mut end = start;
    for part in parts {
        scratch[end..end + part.len()].copy_from_slice(part);
        end += part.len();
    }
    &scratch[start..end]
}

/// Makes sure, as far as the file system lets us, that the disk will not fill half way.
fn reserve_space(
    with: &Resources,
    temporary: &TemporaryFile,
    size: Option<u64>,
    have: u64,
) -> Result<(), TransferError> {
    let Some(size) = size.filter(|&size| size > 0) else { return Ok(()) };
    let free = temporary.free_space()?;
    let missing = size.saturating_sub(have);
    if missing > free.saturating_sub(with.leave_free) {
        let message = format!(
            "{size} bytes were offered, {free} are free, and {} of them must stay free: make room there",
            with.leave_free
        );
        return Err(TransferError::StorageFull(message));
    }
    temporary
        .file()
        .allocate(size)
        .map_err(|e| TransferError::store("reserving space for", temporary.dir(), e))
}

pub(crate) fn still_damaged(span: Span) -> TransferError {
    let end = span.offset + u64::from(span.len);
    TransferError::DigestMismatch(format!(
        "bytes {} to {end} were sent {} times and never arrived as they were hashed",
        span.offset,
        ATTEMPTS + 1
    ))
}

fn too_large(limit: u64) -> TransferError {
    let message = format!("at most {limit} bytes are taken into memory here; send a smaller chunk");
    TransferError::Unacceptable(Refusal::new(FailureCode::TooLarge, message))
}

fn no_memory(bytes: u64, memory: &MemoryBudget) -> TransferError {
    let refusal = if bytes > memory.limit() {
        let message = format!("at most {} bytes are taken into memory here at once", memory.limit());
        Refusal::new(FailureCode::TooLarge, message)
    } else {
        Refusal::new(FailureCode::Busy, "the memory for incoming chunks is in use; try again later")
    };
    TransferError::Unacceptable(refusal)
}
