//! What is sent: a file or memory, read block by block and hashed on the way.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use octopii_vfs::{FileHandle, FileKind, OpenMode, Vfs};

use crate::buffers::Buffers;
use crate::digest::PrefixHasher;
use crate::{Digest, SourceError, TransferError};

/// A chunk to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkSource {
    /// A file of any size, read as it is sent. Symbolic links are followed. Changing it meanwhile fails the transfer.
    File(PathBuf),
    /// Bytes in memory; never copied.
    Memory(Bytes),
}

impl ChunkSource {
    /// The last component of the file's path, if there is one and it is UTF-8: the name a receiver may give the chunk.
    pub fn file_name(&self) -> Option<&str> {
        match self {
            Self::File(path) => path.file_name()?.to_str(),
            Self::Memory(_) => None,
        }
    }
}

/// An opened source. Blocking: every call belongs on a blocking thread.
#[derive(Debug)]
pub(crate) struct OpenSource {
    content: Content,
    size: u64,
    offset: u64,
    hasher: PrefixHasher,
    buffers: Arc<Buffers>,
}

#[derive(Debug)]
enum Content {
    File { path: PathBuf, file: FileHandle, modified: Option<SystemTime> },
    Memory(Bytes),
}

/// Consecutive content with the digest of everything up to its end.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) offset: u64,
    pub(crate) content: Bytes,
    pub(crate) prefix: Digest,
}

impl OpenSource {
    pub(crate) fn open(source: &ChunkSource, vfs: &Arc<dyn Vfs>) -> Result<Self, SourceError> {
        let (content, size) = match source {
            ChunkSource::Memory(bytes) => (Content::Memory(bytes.clone()), bytes.len() as u64),
            ChunkSource::File(path) => {
                let unreadable = |error| unreadable(path, error);
                // The link's target is what is sent; a pipe must be recognised before `open` would wait on it.
                let target = vfs.canonicalize(path).map_err(unreadable)?;
                match vfs.metadata(&target).map_err(unreadable)?.kind {
                    FileKind::File => {}
                    FileKind::Directory => return Err(SourceError::Directory(path.clone())),
                    FileKind::Other => return Err(SourceError::NotAFile(path.clone())),
                }
                let file = vfs.open(&target, OpenMode::Read).map_err(unreadable)?;
                let size = file.len().map_err(unreadable)?;
                let modified = file.modified().map_err(unreadable)?;
                (Content::File { path: path.clone(), file, modified }, size)
            }
        };
        Ok(Self { content, size, offset: 0, hasher: PrefixHasher::default(), buffers: Arc::default() })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The next block of `block_size` bytes (the last one may be shorter), or `None` at the end.
    pub(crate) fn next_block(&mut self, block_size: u32) -> Result<Option<Block>, TransferError> {
        let offset = self.offset;
        let len = (self.size - offset).min(u64::from(block_size)) as usize;
        if len == 0 {
            return self.check_unchanged().map(|()| None);
        }
        let content = self.content_at(offset, len)?;
        self.hasher.update(&content);
        self.offset += len as u64;
        Ok(Some(Block { offset, content, prefix: self.hasher.prefix() }))
    }

    /// The content of a block, wherever it is; neither hashed nor counted as read.
    pub(crate) fn content_at(&self, offset: u64, len: usize) -> Result<Bytes, TransferError> {
        match &self.content {
            Content::Memory(bytes) => Ok(bytes.slice(offset as usize..offset as usize + len)),
            Content::File { path, file, .. } => {
                let mut buffer = self.buffers.take(len);
                file.read_exact_at(buffer.as_mut_slice(), offset).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => TransferError::SourceChanged(path.clone()),
                    _ => unreadable(path, error).into(),
                })?;
                Ok(buffer.freeze())
            }
        }
    }

    /// As many of the next blocks as wanted; fewer than that means that the source ends there.
    pub(crate) fn next_blocks(
        &mut self,
        block_size: u32,
        wanted: usize,
    ) -> Result<Vec<Block>, TransferError> {
        let mut blocks = Vec::with_capacity(wanted);
        while blocks.len() < wanted {
            match self.next_block(block_size)? {
                Some(block) => blocks.push(block),
                None => break,
            }
        }
        Ok(blocks)
    }

    /// The digest of everything read so far.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.prefix()
    }

    fn check_unchanged(&self) -> Result<(), TransferError> {
        let Content::File { path, file, modified } = &self.content else { return Ok(()) };
        match file.len().and_then(|len| Ok((len, file.modified()?))) {
            Ok(now) if now == (self.size, *modified) => Ok(()),
            Ok(_) => Err(TransferError::SourceChanged(path.clone())),
            Err(error) => Err(unreadable(path, error).into()),
        }
    }
}

fn unreadable(path: &Path, error: io::Error) -> SourceError {
    match error.kind() {
        io::ErrorKind::NotFound => SourceError::NotFound(path.to_owned()),
        _ => SourceError::Unreadable { path: path.to_owned(), error: Arc::new(error) },
    }
}
