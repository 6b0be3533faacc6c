//! Where an incoming chunk is put: checked block by block, hashed once. Everything here blocks.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::{FileHandle, Vfs};

use crate::budget::{MemoryBudget, Reservation};
use crate::digest::PrefixHasher;
use crate::temporary::{TemporaryFile, check_destination_name};
use crate::wire::AckLevel;
use crate::{Destination, Digest, FailureCode, Location, Refusal, TransferError};

/// Memory grows by at most this much ahead of what has arrived.
const MEMORY_STEP: usize = 16 << 20;

/// A block as it came from the network.
#[derive(Debug)]
pub(crate) struct IncomingBlock {
    pub(crate) parts: Vec<Bytes>,
    /// Bytes in all parts.
    pub(crate) len: usize,
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

/// An open destination.
#[derive(Debug)]
pub(crate) struct Sink {
    store: Store,
    hasher: PrefixHasher,
    offset: u64,
}

#[derive(Debug)]
enum Store {
    File { temporary: TemporaryFile, name: String, replace: bool, buffer: Vec<u8> },
    Memory { buffer: Vec<u8>, limit: u64, announced: Option<u64>, _reservation: Reservation },
}

impl Sink {
    pub(crate) fn open(with: &Resources, to: Destination, size: Option<u64>) -> Result<Self, TransferError> {
        let store = match to {
            Destination::File { dir, name, replace } => {
                check_destination_name(&name)?;
                let temporary = create_file(with, dir, size)?;
                Store::File { temporary, name, replace, buffer: Vec::new() }
            }
            Destination::Memory { limit } => {
                if size.is_some_and(|size| size > limit) {
                    return Err(too_large(limit));
                }
                let bytes = size.unwrap_or(limit);
                let reservation = with.memory.reserve(bytes).ok_or_else(|| no_memory(bytes, &with.memory))?;
                Store::Memory { buffer: Vec::new(), limit, announced: size, _reservation: reservation }
            }
        };
        Ok(Self { store, hasher: PrefixHasher::default(), offset: 0 })
    }

    /// Bytes stored so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The file behind it and its path, if it is one, for early syncing.
    pub(crate) fn file(&self) -> Option<(FileHandle, PathBuf)> {
        match &self.store {
            Store::File { temporary, .. } => {
                Some((Arc::clone(temporary.file()), temporary.path().to_owned()))
            }
            Store::Memory { .. } => None,
        }
    }

    /// Checks the next block against its prefix digest, then stores it.
    pub(crate) fn write(&mut self, block: IncomingBlock) -> Result<(), TransferError> {
        let Self { store, hasher, offset } = self;
        match store {
            Store::File { temporary, buffer, .. } => {
                let content = match &block.parts[..] {
                    [only] => &only[..],
                    parts => {
                        buffer.clear();
                        parts.iter().for_each(|part| buffer.extend_from_slice(part));
                        &buffer[..]
                    }
                };
                check(hasher, content, *offset, block.prefix)?;
                temporary
                    .file()
                    .write_all_at(content, *offset)
                    .map_err(|e| TransferError::store("writing", temporary.path(), e))?;
            }
            Store::Memory { buffer, limit, announced, .. } => {
                let len = (buffer.len() + block.len) as u64;
                if len > *limit {
                    return Err(too_large(*limit));
                }
                if buffer.capacity() - buffer.len() < block.len {
                    // Grow with what has arrived: an announced size alone is worth no memory.
                    let step = buffer.len().min(MEMORY_STEP) as u64;
                    let wanted = (len + step).min(announced.unwrap_or(u64::MAX)).min(*limit);
                    buffer.reserve_exact(wanted as usize - buffer.len());
                }
                let start = buffer.len();
                block.parts.iter().for_each(|part| buffer.extend_from_slice(part));
                check(hasher, &buffer[start..], *offset, block.prefix)?;
            }
        }
        *offset += block.len as u64;
        Ok(())
    }

    /// Checks the digest of the whole and makes the chunk available: for a file, durable under its final name.
    pub(crate) fn finish(self, expected: Digest) -> Result<(Location, Digest, AckLevel), TransferError> {
        let digest = self.hasher.prefix();
        if digest != expected {
            let message = format!("the sender's SHA-256 is {expected}, the receiver's {digest}");
            return Err(TransferError::DigestMismatch(message));
        }
        match self.store {
            Store::File { temporary, name, replace, .. } => {
                let path = temporary.publish(&name, replace)?;
                Ok((Location::File(path), digest, AckLevel::Durable))
            }
            Store::Memory { buffer, .. } => Ok((Location::Memory(buffer.into()), digest, AckLevel::Verified)),
        }
    }
}

fn create_file(with: &Resources, dir: PathBuf, size: Option<u64>) -> Result<TemporaryFile, TransferError> {
    let temporary = TemporaryFile::create(&with.vfs, &dir)?;
    if let Some(size) = size {
        let free = with
            .vfs
            .free_space(&dir)
            .map_err(|e| TransferError::store("asking the free space of", &dir, e))?;
        if size > free.saturating_sub(with.leave_free) {
            let message = format!(
                "{size} bytes were offered, {free} are free, and {} of them must stay free: make room there",
                with.leave_free
            );
            return Err(TransferError::StorageFull(message));
        }
        if size > 0 {
            temporary
                .file()
                .allocate(size)
                .map_err(|e| TransferError::store("reserving space for", &dir, e))?;
        }
    }
    Ok(temporary)
}

fn check(
    hasher: &mut PrefixHasher,
    content: &[u8],
    offset: u64,
    expected: Digest,
) -> Result<(), TransferError> {
    hasher.update(content);
    if hasher.prefix() == expected {
        return Ok(());
    }
    let end = offset + content.len() as u64;
    Err(TransferError::DigestMismatch(format!("bytes {offset} to {end} did not arrive as they were sent")))
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
