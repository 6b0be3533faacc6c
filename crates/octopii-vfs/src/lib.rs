//! The file-system seam of Octopii.
//!
//! Everything Octopii keeps on disk goes through [`Vfs`] and [`VfsFile`]. [`RealVfs`] is the machine's own file
//! system; a simulator supplies another one that loses unsynced data, tears writes and fails calls on purpose.
//!
//! The traits promise nothing that a POSIX file system does not: data is durable after [`VfsFile::sync_data`], and a
//! created, renamed or removed *name* is durable after [`Vfs::sync_dir`] of its directory. All calls block; there is no
//! clock, no thread and no async code in this crate.

mod dir;
mod durable;
mod layer;
mod real;
mod real_dir;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

pub use dir::{Attributes, DirHandle, EntryKind, Timestamp, VfsDir};
pub use durable::{create_dir_all_durable, create_file_durable, read_file, write_file_durable};
pub use layer::{FileLayer, VfsLayer};
pub use real::RealVfs;

/// A shared handle to an open file.
pub type FileHandle = Arc<dyn VfsFile>;

/// How [`Vfs::open`] opens a file. Files are never truncated by opening them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading only.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A file that must not exist yet, for reading and writing. A symbolic link at the name is not followed.
    CreateNew,
}

/// What [`Vfs::metadata`] and [`Vfs::read_dir`] tell of a name. Symbolic links are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// File, directory or neither.
    pub kind: FileKind,
    /// Length in bytes (0 for what is not a regular file).
    pub len: u64,
}

/// The kind of thing a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else: a symbolic link, a device, a socket.
    Other,
}

/// What changes when a file's content does, unless someone hides it on purpose; what a file system does not tell is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileVersion {
    /// The device that holds it.
    pub device: u64,
    /// Its number there: another file under the same name has another one.
    pub inode: u64,
    /// Length in bytes.
    pub len: u64,
    /// When the content was last changed, in nanoseconds since 1970. Can be set at will.
    pub modified_ns: i128,
    /// When content or metadata was last changed, in nanoseconds since 1970. Cannot be set.
    pub changed_ns: i128,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name within the directory.
    pub name: std::ffi::OsString,
    /// What it stands for.
    pub metadata: Metadata,
}

/// Held while a lock taken with [`Vfs::lock`] is in force; dropping it releases the lock.
pub trait LockGuard: Send + Sync + fmt::Debug {}

/// A file system.
///
/// Errors are [`io::Error`] with the kind the operating system would give: `NotFound`, `AlreadyExists`, `StorageFull`,
/// `PermissionDenied`, and so on.
pub trait Vfs: Send + Sync + fmt::Debug + 'static {
    /// Opens or creates a file. A created name is durable only after [`Vfs::sync_dir`] of its directory.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle>;

    /// Renames `from` to `to`, replacing `to` atomically if it exists. Durable after [`Vfs::sync_dir`] of both
    /// directories.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames `from` to `to` atomically, or fails with `AlreadyExists` and changes nothing.
    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and its missing parents; an existing directory is no error. See
    /// [`create_dir_all_durable`] for the variant that syncs.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Makes every earlier creation, rename and removal in directory `path` durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory, sorted, without `.` and `..`.
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>>;

    /// What a name stands for.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;

    /// Takes an exclusive lock on the file at `path`, creating it if need be. Fails at once with `WouldBlock` if another
    /// holder, in this process or any other, has it. The lock ends with the guard or with the process.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>>;

    /// Free bytes available to this user on the file system that holds `path`.
    fn free_space(&self, path: &Path) -> io::Result<u64>;

    /// Opens a directory, so that everything beneath it can be reached without following links; links in `path` itself are
    /// followed. File systems that do not offer this fail with `Unsupported`.
    fn open_dir(&self, path: &Path) -> io::Result<DirHandle> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The one spelling under which every path to the same directory is known: absolute, without links and dots.
    fn canonicalize(&self, path: &Path) -> io::Result<std::path::PathBuf>;
}

/// An open file, used by offset: no shared cursor, so a handle can be used from many threads.
pub trait VfsFile: Send + Sync + fmt::Debug {
    /// Reads up to `buf.len()` bytes at `offset`; 0 means end of file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `data` at `offset`, extending the file if need be. On an error any part may have been written.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Writes like [`VfsFile::write_all_at`], past the system's page cache where that is possible: for much data that will
    /// hardly be read soon, and that begins and ends at multiples of 4 KiB in memory and in the file. Anything else is
    /// written the usual way. Durable no sooner than what is written the usual way: after [`VfsFile::sync_data`].
    fn write_all_at_uncached(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    /// Current length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// When the content was last changed, as exactly as the file system tells; `None` if it does not.
    fn modified(&self) -> io::Result<Option<SystemTime>> {
        Ok(None)
    }

    /// Sets permission bits and, if given, the time of the last change. File systems without them succeed without doing so.
    fn set_attributes(&self, mode: u32, modified: Option<Timestamp>) -> io::Result<()> {
        let (_, _) = (mode, modified);
        Ok(())
    }

    /// What tells one content of the file from another without reading it.
    fn version(&self) -> io::Result<FileVersion> {
        let modified = self.modified()?.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let modified_ns = modified.map_or(0, |since| since.as_nanos() as i128);
        Ok(FileVersion { len: self.len()?, modified_ns, ..FileVersion::default() })
    }

    /// Cuts or extends the file to `len` bytes; the extension reads as zeroes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves disk space for the first `len` bytes without changing what is read, so that a full disk is found now
    /// (`StorageFull`) and not in the middle of a write. File systems that cannot reserve succeed without doing so.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Bytes of disk that it takes. Fewer than its length if it has holes (or if the file system makes things smaller by itself),
    /// more if space is reserved. File systems that do not tell give the length.
    fn stored(&self) -> io::Result<u64> {
        self.len()
    }

    /// The first stretch that ends behind `offset` and may hold anything but zeroes, from `offset` on; `None` if only a hole follows,
    /// or nothing. What lies between is holes, and reads as zeroes. File systems that do not tell say that everything is content.
    fn content_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.len()?;
        Ok((offset < len).then_some(offset..len))
    }

    /// Makes what lies between `offset` and `offset + len` read as zeroes, as far as it is within the file, whose length stays.
    /// Takes no space afterwards, reserved or not, in the whole blocks of the file system within; one that cannot do that
    /// gets zeroes to store.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        write_zeroes(self, offset, offset.saturating_add(len).min(self.len()?))
    }

    /// Returns when everything written before the call is on stable storage, with the metadata needed to read it back.
    /// After an error the state of earlier writes is unknown: never retry, poison what depends on the file.
    fn sync_data(&self) -> io::Result<()>;

    /// Fills `buf` from `offset` or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// For files that cannot have holes.
fn write_zeroes<F: VfsFile + ?Sized>(file: &F, from: u64, to: u64) -> io::Result<()> {
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = from;
    while at < to {
        let piece = &ZEROES[..(to - at).min(ZEROES.len() as u64) as usize];
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}
