//! What is sent: a file or memory, read block by block and hashed on the way.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::{DirHandle, FileHandle, FileKind, FileVersion, OpenMode, Vfs, VfsFile};

use crate::buffers::Buffers;
use crate::checkpoints::Checkpoints;
use crate::digest::PrefixHasher;
use crate::pages::{Pages, zeroes};
use crate::wire::{self, CHECKPOINT, Span};
use crate::{Digest, SourceError, TransferError};

/// A chunk to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkSource {
    /// A file of any size, read as it is sent. Symbolic links are followed. Changing it meanwhile fails the transfer. Its holes are not
    /// read, and a receiver that makes a file of it leaves them out.
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

/// A file in a directory that is held open: reached from there without following a link, whatever anyone renames meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Beneath {
    pub(crate) root: DirHandle,
    /// Where the directory is, for messages and to know the file again.
    pub(crate) root_path: PathBuf,
    /// Of plain names.
    pub(crate) path: PathBuf,
    /// What it must have when it is opened.
    pub(crate) len: u64,
    pub(crate) modified_ns: i128,
}

/// An opened source, which can be read from anywhere and any number of times. All calls block.
#[derive(Debug)]
pub(crate) struct OpenSource {
    content: Content,
    size: u64,
    buffers: Arc<Buffers>,
}

#[derive(Debug)]
enum Content {
    File {
        path: PathBuf,
        target: PathBuf,
        file: FileHandle,
        version: FileVersion,
        /// If it has holes: about how many bytes are none.
        stored: Option<u64>,
    },
    Memory(Bytes),
}

/// Consecutive content with the digest of everything up to its end.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) offset: u64,
    pub(crate) content: Bytes,
    pub(crate) prefix: Digest,
    pub(crate) form: Form,
}

/// How a block travels.
#[derive(Debug, Clone)]
pub(crate) enum Form {
    /// As it is.
    Plain,
    /// Without the pages of zeroes in it.
    Sparse(Pages),
    Compressed(Bytes),
}

impl Form {
    /// How this content travels, if it is not compressed.
    pub(crate) fn of(content: &[u8]) -> Self {
        Pages::of(content).map_or(Self::Plain, Self::Sparse)
    }
}

impl Block {
    /// What to send of it before the prefix digest: how its message begins, and the content that follows.
    pub(crate) fn message(self) -> (Vec<u8>, Vec<Bytes>) {
        let Self { offset, content, form, .. } = self;
        match form {
            Form::Plain => (wire::data_start(offset, content.len()), vec![content]),
            Form::Sparse(pages) => (wire::sparse_start(offset, &pages), pages.slices(&content)),
            Form::Compressed(frame) => {
                (wire::compressed_start(offset, content.len(), frame.len()), vec![frame])
            }
        }
    }
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
                let version = file.version().map_err(unreadable)?;
                let stored = stored(&*file, version.len).map_err(unreadable)?;
                (Content::File { path: path.clone(), target, file, version, stored }, version.len)
            }
        };
        Ok(Self { content, size, buffers: Arc::default() })
    }

    /// Opens a file that must still be what was told of it.
    pub(crate) fn beneath(source: &Beneath) -> Result<Self, TransferError> {
        let path = source.root_path.join(&source.path);
        let unreadable = |error| unreadable(&path, error);
        let file = source.root.open(&source.path, OpenMode::Read).map_err(unreadable)?;
        let version = file.version().map_err(unreadable)?;
        if (version.len, version.modified_ns) != (source.len, source.modified_ns) {
            return Err(TransferError::SourceChanged(path));
        }
        let stored = stored(&*file, version.len).map_err(unreadable)?;
        let content = Content::File { target: path.clone(), path, file, version, stored };
        Ok(Self { content, size: version.len, buffers: Arc::default() })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// If it has holes: about how many bytes are none.
    pub(crate) fn stored(&self) -> Option<u64> {
        match &self.content {
            Content::File { stored, .. } => *stored,
            Content::Memory(_) => None,
        }
    }

    /// The file's one path and its version; `None` for memory.
    pub(crate) fn file(&self) -> Option<(&Path, &FileVersion)> {
        match &self.content {
            Content::File { target, version, .. } => Some((target, version)),
            Content::Memory(_) => None,
        }
    }

    /// A part of the content once more; the source must not have changed at all since it was opened.
    pub(crate) fn read_again(&self, span: Span) -> Result<Bytes, TransferError> {
        if span.offset.checked_add(span.len.into()).is_none_or(|end| end > self.size) {
            return Err(TransferError::Protocol("a block beyond the end of the content was asked for again"));
        }
        let content = self.content_at(span.offset, span.len as usize)?;
        if let Content::File { path, file, version, .. } = &self.content
            && file.version().map_err(|error| unreadable(path, error))? != *version
        {
            return Err(TransferError::SourceChanged(path.clone()));
        }
        Ok(content)
    }

    /// The content of a block, wherever it is.
    pub(crate) fn content_at(&self, offset: u64, len: usize) -> Result<Bytes, TransferError> {
        match &self.content {
            Content::Memory(bytes) => Ok(bytes.slice(offset as usize..offset as usize + len)),
            Content::File { path, file, stored, .. } => {
                let read = match stored {
                    None => self.read(&**file, offset, len),
                    Some(_) => self.read_between_holes(&**file, offset, len),
                };
                read.map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => TransferError::SourceChanged(path.clone()),
                    _ => unreadable(path, error).into(),
                })
            }
        }
    }

    fn read(&self, file: &dyn VfsFile, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buffer = self.buffers.take(len);
        file.read_exact_at(buffer.as_mut_slice(), offset)?;
        Ok(buffer.freeze())
    }

    /// Reads nothing that the file system knows to be zeroes. What is filled meanwhile has changed the file.
    fn read_between_holes(&self, file: &dyn VfsFile, offset: u64, len: usize) -> io::Result<Bytes> {
        let end = offset + len as u64;
        let mut next = file.content_from(offset)?.filter(|stretch| stretch.start < end);
        if next.is_none() {
            return Ok(zeroes(len));
        }
        let mut buffer = self.buffers.take(len);
        let mut rest = buffer.as_mut_slice();
        let mut at = offset;
        while let Some(stretch) = next {
            let (start, stop) = (stretch.start.max(at), stretch.end.min(end));
            let (hole, behind) = rest.split_at_mut((start - at) as usize);
            let (content, behind) = behind.split_at_mut(stop.saturating_sub(start) as usize);
            hole.fill(0);
            file.read_exact_at(content, start)?;
            (at, rest) = (start.max(stop), behind);
            next = match at < end {
                true => file.content_from(at)?.filter(|stretch| stretch.start < end),
                false => None,
            };
        }
        rest.fill(0);
        Ok(buffer.freeze())
    }

    /// Length and time of the last change must be what they were. A file that was only renamed meanwhile may be sent.
    fn check_unchanged(&self) -> Result<(), TransferError> {
        let Content::File { path, file, version, .. } = &self.content else { return Ok(()) };
        let now = file.version().map_err(|error| unreadable(path, error))?;
        if (now.len, now.modified_ns) == (version.len, version.modified_ns) {
            Ok(())
        } else {
            Err(TransferError::SourceChanged(path.clone()))
        }
    }
}

/// Reads a source from some offset to its end, hashing. All calls block.
#[derive(Debug)]
pub(crate) struct BlockReader {
    source: Arc<OpenSource>,
    checkpoints: Arc<Checkpoints>,
    offset: u64,
    hasher: PrefixHasher,
}

impl BlockReader {
    /// Begins at the beginning.
    pub(crate) fn new(source: Arc<OpenSource>, checkpoints: Arc<Checkpoints>) -> Self {
        Self { source, checkpoints, offset: 0, hasher: PrefixHasher::default() }
    }

    /// Begins at `offset`. What lies before is not read if a checkpoint there is known; otherwise it is hashed now.
    pub(crate) fn at(
        source: Arc<OpenSource>,
        checkpoints: Arc<Checkpoints>,
        offset: u64,
    ) -> Result<Self, TransferError> {
        let known = checkpoints.at(offset).and_then(|chain| PrefixHasher::after(chain, offset));
        let mut reader = Self::new(source, checkpoints);
        match known {
            Some(hasher) => (reader.offset, reader.hasher) = (offset, hasher),
            None => {
                let step = CHECKPOINT.min(1 << 20);
                while reader.offset < offset {
                    reader.next_block(step.min(offset - reader.offset) as u32)?;
                }
            }
        }
        Ok(reader)
    }

    /// Where the next block begins.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The digest of everything before the next block.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.prefix()
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

    /// The next block of `block_size` bytes (the last one may be shorter), or `None` at the end.
    fn next_block(&mut self, block_size: u32) -> Result<Option<Block>, TransferError> {
        let offset = self.offset;
        let len = (self.source.size - offset).min(u64::from(block_size)) as usize;
        if len == 0 {
            return self.source.check_unchanged().map(|()| None);
        }
        let content = self.source.content_at(offset, len)?;
        self.hasher.update(&content);
        self.offset += len as u64;
        if self.offset.is_multiple_of(CHECKPOINT)
            && let Some(chain) = self.hasher.chain()
        {
            self.checkpoints.note(self.offset, chain);
        }
        let form = Form::of(&content);
        Ok(Some(Block { offset, content, prefix: self.hasher.prefix(), form }))
    }
}

/// About how many bytes of a file are none of its holes; `None` if it has none.
fn stored(file: &dyn VfsFile, len: u64) -> io::Result<Option<u64>> {
    let stored = file.stored()?;
    // Some file systems make content smaller by themselves, without a hole.
    if stored >= len || file.content_from(0)? == Some(0..len) {
        return Ok(None);
    }
    Ok(Some(stored))
}

fn unreadable(path: &Path, error: io::Error) -> SourceError {
    match error.kind() {
        io::ErrorKind::NotFound => SourceError::NotFound(path.to_owned()),
        _ => SourceError::Unreadable { path: path.to_owned(), error: Arc::new(error) },
    }
}
