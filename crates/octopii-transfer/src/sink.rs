//! Where an incoming chunk is put: checked block by block, hashed once. Everything here blocks.

use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::{FileHandle, Vfs};

use crate::budget::{MemoryBudget, Reservation};
use crate::digest::PrefixHasher;
use crate::temporary::{TemporaryFile, check_destination_name};
use crate::wire::AckLevel;
use crate::{Destination, Digest, FailureCode, Location, Refusal, TransferError};

/// Memory doubles with what has arrived, in steps between these: moving a large buffer costs more than its pages do.
const MEMORY_STEP: usize = 1 << 20;
const MAX_MEMORY_STEP: usize = 64 << 20;

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

/// An open destination: what is known of the content, and where it goes. They are apart so that one block can be checked
/// while another is written.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) checker: Checker,
    pub(crate) store: Store,
}

/// The running digest of what has arrived.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    hasher: PrefixHasher,
    offset: u64,
}

/// Where checked blocks go.
#[derive(Debug)]
pub(crate) struct Store {
    target: Target,
    written: u64,
}

#[derive(Debug)]
enum Target {
    File { temporary: TemporaryFile, name: String, replace: bool },
    Memory { buffer: Vec<u8>, limit: u64, announced: Option<u64>, _reservation: Reservation },
}

impl Sink {
    pub(crate) fn open(with: &Resources, to: Destination, size: Option<u64>) -> Result<Self, TransferError> {
        let target = match to {
            Destination::File { dir, name, replace } => {
                check_destination_name(&name)?;
                let temporary = create_file(with, dir, size)?;
                Target::File { temporary, name, replace }
            }
            Destination::Memory { limit } => {
                if size.is_some_and(|size| size > limit) {
                    return Err(too_large(limit));
                }
                let bytes = size.unwrap_or(limit);
                let reservation = with.memory.reserve(bytes).ok_or_else(|| no_memory(bytes, &with.memory))?;
                Target::Memory { buffer: Vec::new(), limit, announced: size, _reservation: reservation }
            }
        };
        Ok(Self { checker: Checker::default(), store: Store { target, written: 0 } })
    }

    /// Checks the digest of the whole and makes the chunk available: for a file, durable under its final name.
    pub(crate) fn finish(self, expected: Digest) -> Result<(Location, Digest, AckLevel), TransferError> {
        let digest = self.checker.hasher.prefix();
        if digest != expected {
            let message = format!("the sender's SHA-256 is {expected}, the receiver's {digest}");
            return Err(TransferError::DigestMismatch(message));
        }
        match self.store.target {
            Target::File { temporary, name, replace } => {
                let path = temporary.publish(&name, replace)?;
                Ok((Location::File(path), digest, AckLevel::Durable))
            }
            Target::Memory { buffer, .. } => {
                Ok((Location::Memory(buffer.into()), digest, AckLevel::Verified))
            }
        }
    }
}

impl Checker {
    /// Checks the next blocks against their prefix digests, up to the first that is wrong; that one and those behind it are
    /// taken out of `blocks`, as if they had never come.
    pub(crate) fn check(&mut self, blocks: &mut Vec<IncomingBlock>) -> Result<(), TransferError> {
        for (i, block) in blocks.iter().enumerate() {
            let before = self.hasher.clone();
            block.parts.iter().for_each(|part| self.hasher.update(part));
            let end = self.offset + block.len as u64;
            if self.hasher.prefix() != block.prefix {
                let message = format!("bytes {} to {end} did not arrive as they were sent", self.offset);
                self.hasher = before;
                blocks.truncate(i);
                return Err(TransferError::DigestMismatch(message));
            }
            self.offset = end;
        }
        Ok(())
    }
}

impl Store {
    /// Bytes stored so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The file behind it and its path, if it is one, for early syncing.
    pub(crate) fn file(&self) -> Option<(FileHandle, PathBuf)> {
        match &self.target {
            Target::File { temporary, .. } => {
                Some((Arc::clone(temporary.file()), temporary.path().to_owned()))
            }
            Target::Memory { .. } => None,
        }
    }

    /// Stores the next blocks, which have been checked.
    pub(crate) fn write(&mut self, blocks: Vec<IncomingBlock>) -> Result<(), TransferError> {
        for block in blocks {
            match &mut self.target {
                Target::File { temporary, .. } => {
                    let parts: Vec<_> = block.parts.iter().map(|part| IoSlice::new(part)).collect();
                    temporary
                        .file()
                        .write_all_vectored_at(&parts, self.written)
                        .map_err(|e| TransferError::store("writing", temporary.path(), e))?;
                }
                Target::Memory { buffer, limit, announced, .. } => {
                    let len = (buffer.len() + block.len) as u64;
                    if len > *limit {
                        return Err(too_large(*limit));
                    }
                    if buffer.capacity() - buffer.len() < block.len {
                        // Grow with what has arrived: an announced size alone is worth no memory.
                        let step = buffer.len().clamp(MEMORY_STEP, MAX_MEMORY_STEP) as u64;
                        let wanted = (len + step).min(announced.unwrap_or(u64::MAX)).min(*limit);
                        buffer.reserve_exact(wanted as usize - buffer.len());
                    }
                    block.parts.iter().for_each(|part| buffer.extend_from_slice(part));
                }
            }
            self.written += block.len as u64;
        }
        Ok(())
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
