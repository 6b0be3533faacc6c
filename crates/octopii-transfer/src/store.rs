//! Where the blocks of an incoming chunk go: into a hidden file, or into memory. Everything here blocks.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::{Vfs, VfsFile};

use crate::budget::{MemoryBudget, Reservation};
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

/// Where blocks go.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) target: Target,
    /// Content is read again soon.
    pub(crate) cached: bool,
}

#[derive(Debug)]
pub(crate) enum Target {
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
pub(crate) fn reserve_space(
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
