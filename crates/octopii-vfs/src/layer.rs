//! File systems that do some calls differently from the one beneath them, and pass on the others: those that delay or fail calls, or
//! tell of them.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::{
    DirEntry, DirHandle, FileHandle, FileVersion, LockGuard, Metadata, OpenMode, Timestamp, Vfs, VfsFile,
};

/// A file system above another one. Each call that is not defined anew is passed on as it is; whatever has this is a [`Vfs`].
///
/// What is opened is a file of the file system beneath, unless [`open`](Self::open) gives a [`FileLayer`] above it.
pub trait VfsLayer: Send + Sync + fmt::Debug + 'static {
    /// What calls are passed on to.
    fn beneath(&self) -> &dyn Vfs;

    /// See [`Vfs::open`].
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        self.beneath().open(path, mode)
    }

    /// See [`Vfs::rename`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.beneath().rename(from, to)
    }

    /// See [`Vfs::rename_no_replace`].
    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.beneath().rename_no_replace(from, to)
    }

    /// See [`Vfs::remove_file`].
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.beneath().remove_file(path)
    }

    /// See [`Vfs::create_dir_all`].
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.beneath().create_dir_all(path)
    }

    /// See [`Vfs::sync_dir`].
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.beneath().sync_dir(path)
    }

    /// See [`Vfs::read_dir`].
    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.beneath().read_dir(path)
    }

    /// See [`Vfs::metadata`].
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.beneath().metadata(path)
    }

    /// See [`Vfs::lock`].
    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.beneath().lock(path)
    }

    /// See [`Vfs::free_space`].
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.beneath().free_space(path)
    }

    /// See [`Vfs::open_dir`].
    fn open_dir(&self, path: &Path) -> io::Result<DirHandle> {
        self.beneath().open_dir(path)
    }

    /// See [`Vfs::canonicalize`].
    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.beneath().canonicalize(path)
    }
}

impl<T: VfsLayer> Vfs for T {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        VfsLayer::open(self, path, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        VfsLayer::rename(self, from, to)
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        VfsLayer::rename_no_replace(self, from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        VfsLayer::remove_file(self, path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        VfsLayer::create_dir_all(self, path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        VfsLayer::sync_dir(self, path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        VfsLayer::read_dir(self, path)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        VfsLayer::metadata(self, path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        VfsLayer::lock(self, path)
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        VfsLayer::free_space(self, path)
    }

    fn open_dir(&self, path: &Path) -> io::Result<DirHandle> {
        VfsLayer::open_dir(self, path)
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        VfsLayer::canonicalize(self, path)
    }
}

/// A file above another one, as [`VfsLayer`]: whatever has this is a [`VfsFile`].
pub trait FileLayer: Send + Sync + fmt::Debug {
    /// What calls are passed on to.
    fn beneath(&self) -> &dyn VfsFile;

    /// See [`VfsFile::read_at`].
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.beneath().read_at(buf, offset)
    }

    /// See [`VfsFile::write_all_at`].
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.beneath().write_all_at(data, offset)
    }

    /// See [`VfsFile::write_all_at_uncached`]. Passed on by itself: whoever counts writes defines both.
    fn write_all_at_uncached(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.beneath().write_all_at_uncached(data, offset)
    }

    /// See [`VfsFile::len`].
    fn len(&self) -> io::Result<u64> {
        self.beneath().len()
    }

    /// See [`VfsFile::is_empty`].
    fn is_empty(&self) -> io::Result<bool> {
        self.beneath().is_empty()
    }

    /// See [`VfsFile::modified`].
    fn modified(&self) -> io::Result<Option<SystemTime>> {
        self.beneath().modified()
    }

    /// See [`VfsFile::set_attributes`].
    fn set_attributes(&self, mode: u32, modified: Option<Timestamp>) -> io::Result<()> {
        self.beneath().set_attributes(mode, modified)
    }

    /// See [`VfsFile::version`].
    fn version(&self) -> io::Result<FileVersion> {
        self.beneath().version()
    }

    /// See [`VfsFile::set_len`].
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.beneath().set_len(len)
    }

    /// See [`VfsFile::allocate`].
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.beneath().allocate(len)
    }

    /// See [`VfsFile::stored`].
    fn stored(&self) -> io::Result<u64> {
        self.beneath().stored()
    }

    /// See [`VfsFile::content_from`].
    fn content_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.beneath().content_from(offset)
    }

    /// See [`VfsFile::punch_hole`].
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.beneath().punch_hole(offset, len)
    }

    /// See [`VfsFile::sync_data`].
    fn sync_data(&self) -> io::Result<()> {
        self.beneath().sync_data()
    }
}

impl<T: FileLayer> VfsFile for T {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileLayer::read_at(self, buf, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        FileLayer::write_all_at(self, data, offset)
    }

    fn write_all_at_uncached(&self, data: &[u8], offset: u64) -> io::Result<()> {
        FileLayer::write_all_at_uncached(self, data, offset)
    }

    fn len(&self) -> io::Result<u64> {
        FileLayer::len(self)
    }

    fn is_empty(&self) -> io::Result<bool> {
        FileLayer::is_empty(self)
    }

    fn modified(&self) -> io::Result<Option<SystemTime>> {
        FileLayer::modified(self)
    }

    fn set_attributes(&self, mode: u32, modified: Option<Timestamp>) -> io::Result<()> {
        FileLayer::set_attributes(self, mode, modified)
    }

    fn version(&self) -> io::Result<FileVersion> {
        FileLayer::version(self)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        FileLayer::set_len(self, len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        FileLayer::allocate(self, len)
    }

    fn stored(&self) -> io::Result<u64> {
        FileLayer::stored(self)
    }

    fn content_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        FileLayer::content_from(self, offset)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        FileLayer::punch_hole(self, offset, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        FileLayer::sync_data(self)
    }
}
