//! The machine's own file system.
#![expect(clippy::disallowed_methods, reason = "this is the one place that touches std::fs")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{
    FallocateFlags, FlockOperation, RenameFlags, SeekFrom, fallocate, flock, renameat_with, seek, statvfs,
};
use rustix::io::{Errno, retry_on_intr};

use crate::real_dir::{RealDir, set_attributes_of};
use crate::{
    DirEntry, DirHandle, FileHandle, FileKind, FileVersion, LockGuard, Metadata, OpenMode, Timestamp, Vfs,
    VfsFile, write_zeroes,
};

/// The machine's own file system. Files are created with mode 0600, directories with 0700: what a node keeps is its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealVfs;

impl RealVfs {
    /// A shared handle, as the layers above want it.
    pub fn shared() -> Arc<dyn Vfs> {
        Arc::new(Self)
    }
}

/// Much data goes into the page cache in pieces of this size. In one call a write of megabytes takes several times as long
/// on fresh space, all of it in copying to pages of the cache that are as large as the call.
const PIECE: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct RealFile(pub(crate) File);

impl RealFile {
    /// The same file once more, for writing past the page cache. Opened for each use: it costs microseconds, and a descriptor
    /// that stayed would double those that a log of many files needs.
    fn direct(&self) -> Option<File> {
        let name = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        OpenOptions::new().write(true).custom_flags(flags).open(name).ok()
    }
}

impl RealFile {
    /// Many file systems cannot make holes.
    fn zeroes_instead(&self, punched: Result<(), Errno>, range: Range<u64>) -> io::Result<()> {
        match punched {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeroes(self, range.start, range.end),
            other => Ok(other?),
        }
    }
}

#[derive(Debug)]
struct RealLock {
    // The open file description holds the lock; closing it lets go.
    _file: File,
}

impl LockGuard for RealLock {}

impl Vfs for RealVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        match mode {
            OpenMode::Read => {}
            OpenMode::ReadWrite => {
                options.write(true);
            }
            OpenMode::CreateNew => {
                options.write(true).create_new(true);
            }
        }
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        match renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE) {
            // Some file systems lack the flag. A hard link refuses an existing name just as atomically; a crash
            // between the two calls leaves the complete file under both names.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::hard_link(from, to)?;
                fs::remove_file(from)
            }
            other => Ok(other?),
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(m) => entries.push(DirEntry { name: entry.file_name(), metadata: metadata_of(&m) }),
                // Removed while we were listing: it is not there.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        Ok(metadata_of(&fs::symlink_metadata(path)?))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        // `flock` belongs to the open file description, so it also refuses a second opener in this process.
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(RealLock { _file: file }))
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let stat = statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn open_dir(&self, path: &Path) -> io::Result<DirHandle> {
        Ok(Arc::new(RealDir::open(path)?))
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }
}

impl VfsFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn write_all_at_uncached(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        if let Some(direct) = self.direct() {
            while done < data.len() {
                match direct.write_at(&data[done..], offset + done as u64) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // The device wants other alignments, or some file systems' answer to what they cannot do.
                    Err(e) if e.kind() == io::ErrorKind::InvalidInput => break,
                    Err(e) => return Err(e),
                }
            }
        }
        for (i, piece) in data[done..].chunks(PIECE).enumerate() {
            self.0.write_all_at(piece, offset + (done + i * PIECE) as u64)?;
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.size())
    }

    fn modified(&self) -> io::Result<Option<SystemTime>> {
        Ok(self.0.metadata()?.modified().ok())
    }

    fn set_attributes(&self, mode: u32, modified: Option<Timestamp>) -> io::Result<()> {
        set_attributes_of(self.0.as_fd(), mode, modified)
    }

    fn version(&self) -> io::Result<FileVersion> {
        let metadata = self.0.metadata()?;
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Ok(FileVersion {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.size(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        // A signal may interrupt a long reservation.
        match retry_on_intr(|| fallocate(&self.0, FallocateFlags::KEEP_SIZE, 0, len)) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn stored(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks().saturating_mul(512))
    }

    fn content_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let len = self.len()?;
        if offset >= len {
            return Ok(None);
        }
        // The handle's own position is used by nothing else: everything is read and written by offset.
        match seek(&self.0, SeekFrom::Data(offset)) {
            Ok(start) => match seek(&self.0, SeekFrom::Hole(start)) {
                Ok(end) => Ok(Some(start..end)),
                // It was cut meanwhile.
                Err(Errno::NXIO) => Ok(None),
                Err(_) => Ok(Some(start..len.max(start + 1))),
            },
            Err(Errno::NXIO) => Ok(None),
            Err(_) => Ok(Some(offset..len)),
        }
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len).min(self.len()?);
        if offset >= end {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched = retry_on_intr(|| fallocate(&self.0, flags, offset, end - offset));
        self.zeroes_instead(punched, offset..end)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

fn metadata_of(m: &fs::Metadata) -> Metadata {
    let kind = if m.file_type().is_file() {
        FileKind::File
    } else if m.file_type().is_dir() {
        FileKind::Directory
    } else {
        FileKind::Other
    };
    Metadata { kind, len: if kind == FileKind::File { m.len() } else { 0 } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_hole_can_be_there_are_zeroes() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &[7; 200_000]).unwrap();
        let file = RealFile(file);
        let mut expected = vec![7; 200_000];
        for (range, error) in [(3..150_000, Errno::OPNOTSUPP), (199_999..200_000, Errno::NOSYS)] {
            file.zeroes_instead(Err(error), range.start as u64..range.end as u64).unwrap();
            expected[range].fill(0);
        }
        assert!(file.zeroes_instead(Err(Errno::NOSPC), 0..1).is_err());
        file.zeroes_instead(Ok(()), 0..1).unwrap();
        let mut read = vec![1; 200_000];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == expected);
    }
}
