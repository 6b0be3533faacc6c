//! Directories that stay directories: everything in them is reached from an open handle, never through a link.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::{FileHandle, OpenMode};

/// A shared handle to an open directory.
pub type DirHandle = Arc<dyn VfsDir>;

/// A moment as file systems keep it: whole seconds since 1970 (negative before), and nanoseconds after that second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since the beginning of 1970, UTC.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What a name beneath a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The kind.
    pub kind: EntryKind,
    /// Length in bytes (0 for what is not a regular file).
    pub len: u64,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    /// When the content was last changed; the default on file systems that do not tell.
    pub modified: Timestamp,
    /// Tells this file or directory from all others that exist at the same time: device and inode.
    pub id: (u64, u64),
}

/// The kind of thing a name beneath a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; never followed.
    Link,
    /// A device, a pipe, a socket.
    Special,
}

/// An open directory, and what lies beneath it.
///
/// All paths are relative, made of plain names: no `.`, no `..`, no root. They are resolved from the open directory
/// without following a single symbolic link, and never lead out of it, whatever anyone renames or plants meanwhile; such a
/// path fails instead. The empty path is the directory itself. What was opened stays what it is when its name moves.
///
/// Errors are [`io::Error`] with the kind the operating system would give; a link on the way is
/// `NotADirectory`.
pub trait VfsDir: Send + Sync + fmt::Debug {
    /// What a name stands for, without following it.
    fn attributes(&self, path: &Path) -> io::Result<Attributes>;

    /// When what has a name was created; nobody can set that. `None` on file systems that do not tell.
    fn born(&self, path: &Path) -> io::Result<Option<Timestamp>> {
        let _ = path;
        Ok(None)
    }

    /// Whether another file system, or another part of the same one, is mounted at a directory or on the way to it, as far as the system
    /// tells. File systems without mounts say no.
    fn crosses_mount(&self, path: &Path) -> io::Result<bool> {
        let _ = path;
        Ok(false)
    }

    /// The names in a directory, sorted by their bytes, without `.` and `..`. A directory that was removed is not empty but `NotFound`,
    /// also if it is open.
    fn names(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// Opens or creates a regular file (mode 0600); anything else there is an error, and is not waited for.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle>;

    /// Creates one directory (mode 0700). Durable after [`sync_dir`](Self::sync_dir) of its parent.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Where a symbolic link points to.
    fn read_link(&self, path: &Path) -> io::Result<OsString>;

    /// Creates a symbolic link. Its target is not looked at.
    fn create_link(&self, path: &Path, target: &OsStr) -> io::Result<()>;

    /// Renames `from` to `to`, atomically. If `to` exists, it is replaced or, if not wanted, `AlreadyExists` is returned.
    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()>;

    /// Removes the name of what is not a directory: from the directory that has the rest of the path at this moment, and not if a
    /// file system is mounted on the way (`CrossesDevices`).
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory, under the same conditions. File systems that do not offer this fail with `Unsupported`.
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Sets permission bits and, if given, the time of the last change, of a file or directory. File systems without them
    /// succeed without doing so.
    fn set_attributes(&self, path: &Path, mode: u32, modified: Option<Timestamp>) -> io::Result<()>;

    /// Makes every earlier creation, rename and removal in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes everything durable that was done before the call to the file system that holds this directory, whoever did
    /// it: one wait for thousands of files. After an error nothing is known of any of them: never retry.
    fn sync_file_system(&self) -> io::Result<()>;
}
