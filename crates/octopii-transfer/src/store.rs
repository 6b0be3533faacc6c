//! Where the blocks of an incoming chunk go: into a hidden file, or into memory. Everything here blocks.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::{Vfs, VfsFile};

use crate::budget::{MemoryBudget, Reservation};
use crate::pages::{Pages, Run};
use crate::temporary::TemporaryFile;
use crate::wire::Span;
use crate::{Digest, FailureCode, Refusal, TransferError};

/// Memory doubles with what has arrived, in steps between these: moving a large buffer costs more than its pages do.
const MEMORY_STEP: usize = 1 << 20;
const MAX_MEMORY_STEP: usize = 64 << 20;

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
    /// Bytes of content as they arrived: without pages of zeroes, compressed.
    pub(crate) travelled: usize,
    /// What the sender says the digest of everything up to this block's end is.
    pub(crate) prefix: Digest,
}

/// What a sender says of the content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Announced {
    pub(crate) size: Option<u64>,
    /// If it has holes: about how many bytes are none.
    pub(crate) stored: Option<u64>,
    pub(crate) block_size: u32,
}

/// What a receiver may use.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) vfs: Arc<dyn Vfs>,
    pub(crate) memory: Arc<MemoryBudget>,
    /// Bytes to leave free on the disk.
    pub(crate) leave_free: u64,
    /// How long a file with holes may be that would not fit without them.
    pub(crate) max_sparse: u64,
}

/// Where blocks go.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) target: Target,
    /// Content is read again soon.
    pub(crate) cached: bool,
    /// Bytes that were written, pages of zeroes that were left out not among them.
    pub(crate) written: u64,
}

#[derive(Debug)]
pub(crate) enum Target {
    File {
        temporary: TemporaryFile,
        name: String,
        replace: bool,
        scratch: Vec<u8>,
        crcs: BTreeMap<u64, u32>,
        /// For that of which no space could be reserved: what must stay free.
        leave_free: Option<u64>,
        /// For content with holes, of which pages of zeroes are not stored: how long the file is.
        around_holes: Option<u64>,
    },
    Memory {
        buffer: Vec<u8>,
        limit: u64,
        announced: Option<u64>,
        _reservation: Reservation,
    },
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
            Target::File { temporary, scratch, crcs, leave_free, around_holes, .. } => {
                let content = match parts {
                    // A small file need not pay for a large buffer.
                    [only] if only.len() < ALIGNMENT => &only[..],
                    parts => gather(scratch, parts, len),
                };
                let pages = around_holes.and_then(|_| Pages::of(content));
                let needed = pages.map_or(len, |pages| pages.content_len()) as u64;
                // Where there can be no holes, even a longer file takes space.
                if let Some(leave_free) = *leave_free
                    && temporary.free_space()? < leave_free.saturating_add(needed)
                {
                    return Err(TransferError::StorageFull(format!(
                        "{leave_free} bytes must stay free, and more than {offset} arrived: make room there"
                    )));
                }
                self.written += needed;
                if temporary.is_resumable() {
                    crcs.insert(offset, crc32c::crc32c(content));
                }
                let (file, cached) = (&**temporary.file(), self.cached);
                let written = match (around_holes, pages) {
                    (Some(end), Some(pages)) => {
                        write_around_holes(file, content, offset, cached, &pages, end)
                    }
                    (end, _) => {
                        end.iter_mut().for_each(|end| *end = offset.saturating_add(len as u64).max(*end));
                        write(file, content, offset, cached)
                    }
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
    pub(crate) fn read_at(&self, span: Span) -> Result<Vec<u8>, TransferError> {
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

fn write(file: &dyn VfsFile, content: &[u8], offset: u64, cached: bool) -> io::Result<()> {
    match cached {
        true => write_in_pieces(file, content, offset),
        // Whatever was received is hardly read at once, and its pages in the cache cost as much as hashing it.
        false => file.write_all_at_uncached(content, offset),
    }
}

/// Writes what is no page of zeroes into a file that is `end` bytes long now. Before its end there may be something else, if this is a
/// repair.
fn write_around_holes(
    file: &dyn VfsFile,
    content: &[u8],
    offset: u64,
    cached: bool,
    pages: &Pages,
    end: &mut u64,
) -> io::Result<()> {
    for Run { range, has_content } in pages.runs() {
        let at = offset + range.start as u64;
        if has_content {
            // A few pages are not worth a write of their own to the disk.
            let cached = cached || range.len() < PIECE;
            write(file, &content[range.clone()], at, cached)?;
            *end = (at + range.len() as u64).max(*end);
        } else if at < *end {
            file.punch_hole(at, range.len() as u64)?;
        }
    }
    let behind = offset + content.len() as u64;
    if *end < behind {
        file.set_len(behind)?;
        *end = behind;
    }
    Ok(())
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

/// Makes sure, as far as the file system lets us, that the disk will not fill half way. Says whether the space is reserved: where holes
/// will be is not known beforehand.
pub(crate) fn reserve_space(
    with: &Resources,
    temporary: &TemporaryFile,
    announced: Announced,
    have: u64,
) -> Result<bool, TransferError> {
    let Announced { size: Some(size), stored, .. } = announced else { return Ok(false) };
    if size == 0 {
        return Ok(true);
    }
    let free = temporary.free_space()?;
    let room = free.saturating_sub(with.leave_free);
    if stored.is_some() && size > room && size > with.max_sparse {
        let message = format!(
            "{size} bytes were offered, holes included, {room} have room here, and of files with holes {} are taken",
            with.max_sparse
        );
        return Err(TransferError::Unacceptable(Refusal::new(FailureCode::TooLarge, message)));
    }
    let missing = match stored {
        None => size.saturating_sub(have),
        Some(stored) => stored.saturating_sub(temporary.stored()?),
    };
    if missing > room {
        let message = format!(
            "{size} bytes were offered, {free} are free, and {} of them must stay free: make room there",
            with.leave_free
        );
        return Err(TransferError::StorageFull(message));
    }
    if stored.is_some() {
        return Ok(false);
    }
    let allocated = temporary.file().allocate(size);
    allocated.map_err(|e| TransferError::store("reserving space for", temporary.dir(), e)).map(|()| true)
}

pub(crate) fn too_large(limit: u64) -> TransferError {
    let message = format!("at most {limit} bytes are taken into memory here; send a smaller chunk");
    TransferError::Unacceptable(Refusal::new(FailureCode::TooLarge, message))
}

pub(crate) fn no_memory(bytes: u64, memory: &MemoryBudget) -> TransferError {
    let refusal = if bytes > memory.limit() {
        let message = format!("at most {} bytes are taken into memory here at once", memory.limit());
        Refusal::new(FailureCode::TooLarge, message)
    } else {
        Refusal::new(FailureCode::Busy, "the memory for incoming chunks is in use; try again later")
    };
    TransferError::Unacceptable(refusal)
}
