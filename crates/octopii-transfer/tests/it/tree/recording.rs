//! The real directories beneath a [`RecordingVfs`].

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use octopii_vfs::{Attributes, DirHandle, FileHandle, FileLayer, OpenMode, Timestamp, VfsDir, VfsFile};

use crate::recording::{Op, RecordingVfs};

#[derive(Debug)]
pub(crate) struct RecordingDir(pub(crate) DirHandle, pub(crate) RecordingVfs);

#[derive(Debug)]
struct RecordingFile(FileHandle, RecordingVfs);

impl RecordingDir {
    /// The path as it is spelled on the disk, for a file system that takes other spellings for the same.
    fn spelled(&self, path: &Path) -> PathBuf {
        if !self.1.is_folding() {
            return path.to_owned();
        }
        path.iter().fold(PathBuf::new(), |dir, name| {
            let names = self.0.names(&dir).unwrap_or_default();
            let same = names.into_iter().find(|there| there.eq_ignore_ascii_case(name));
            dir.join(same.unwrap_or_else(|| name.to_owned()))
        })
    }
}

impl RecordingDir {
    /// Fails if the directory's mode lacks one of these bits for its owner, and that counts.
    fn permitted(&self, dir: &Path, bits: u32) -> io::Result<()> {
        match self.1.is_unprivileged() && self.0.attributes(dir)?.mode & bits != bits {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(()),
        }
    }
}

impl VfsDir for RecordingDir {
    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        path.parent().map_or(Ok(()), |dir| self.permitted(dir, 0o100))?;
        self.0.attributes(&self.spelled(path))
    }

    fn crosses_mount(&self, path: &Path) -> io::Result<bool> {
        Ok(self.1.is_mounted(path) || self.0.crosses_mount(path)?)
    }

    fn born(&self, path: &Path) -> io::Result<Option<Timestamp>> {
        let born = self.0.born(&self.spelled(path))?;
        Ok(born.filter(|_| !self.1.is_ageless()))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.permitted(path, 0o400)?;
        let mut names = self.0.names(&self.spelled(path))?;
        if self.1.is_odd() {
            names.push(OsString::from("z".repeat(300)));
        }
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        Ok(Arc::new(RecordingFile(self.0.open(&self.spelled(path), mode)?, self.1.clone())))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(&self.spelled(path))
    }

    fn read_link(&self, path: &Path) -> io::Result<OsString> {
        match self.1.is_odd() {
            true => Ok(OsString::from("z".repeat(5000))),
            false => self.0.read_link(&self.spelled(path)),
        }
    }

    fn create_link(&self, path: &Path, target: &OsStr) -> io::Result<()> {
        self.1.run(Op::TreeWrite, || self.0.create_link(&self.spelled(path), target))
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        self.1.run(Op::TreeRename, || self.0.rename(&self.spelled(from), &self.spelled(to), replace))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(&self.spelled(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.1.run(Op::TreeRemove, || self.0.remove_dir(&self.spelled(path)))
    }

    fn set_attributes(&self, path: &Path, mode: u32, modified: Option<Timestamp>) -> io::Result<()> {
        self.1.perhaps_fail(Op::TreeAttributes)?;
        self.0.set_attributes(&self.spelled(path), mode, modified)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }

    fn sync_file_system(&self) -> io::Result<()> {
        self.1.run(Op::TreeSync, || self.0.sync_file_system())
    }
}

impl FileLayer for RecordingFile {
    fn beneath(&self) -> &dyn VfsFile {
        &*self.0
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.0.read_at(buf, offset)?;
        self.1.read(&mut buf[..n], offset);
        Ok(n)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.1.run(Op::TreeWrite, || self.0.write_all_at(data, offset))
    }

    fn write_all_at_uncached(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.1.run(Op::TreeWrite, || self.0.write_all_at_uncached(data, offset))
    }
}
