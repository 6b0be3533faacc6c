//! The real directories beneath a [`RecordingVfs`].

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;

use octopii_vfs::{Attributes, DirHandle, FileHandle, FileVersion, OpenMode, Timestamp, VfsDir, VfsFile};

use crate::recording::{Op, RecordingVfs};

#[derive(Debug)]
pub(crate) struct RecordingDir(pub(crate) DirHandle, pub(crate) RecordingVfs);

#[derive(Debug)]
struct RecordingFile(FileHandle, RecordingVfs);

impl VfsDir for RecordingDir {
    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        let mut found = self.0.attributes(path)?;
        found.id.0 += u64::from(self.1.is_mounted(path));
        Ok(found)
    }

    fn born(&self, path: &Path) -> io::Result<Option<Timestamp>> {
        self.0.born(path)
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = self.0.names(path)?;
        if self.1.is_odd() {
            names.push(OsString::from("z".repeat(300)));
        }
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        Ok(Arc::new(RecordingFile(self.0.open(path, mode)?, self.1.clone())))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn read_link(&self, path: &Path) -> io::Result<OsString> {
        match self.1.is_odd() {
            true => Ok(OsString::from("z".repeat(5000))),
            false => self.0.read_link(path),
        }
    }

    fn create_link(&self, path: &Path, target: &OsStr) -> io::Result<()> {
        self.1.run(Op::TreeWrite, || self.0.create_link(path, target))
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        self.1.run(Op::TreeRename, || self.0.rename(from, to, replace))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.1.run(Op::TreeRemove, || self.0.remove_dir(path))
    }

    fn set_attributes(&self, path: &Path, mode: u32, modified: Option<Timestamp>) -> io::Result<()> {
        self.0.set_attributes(path, mode, modified)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path)
    }

    fn sync_file_system(&self) -> io::Result<()> {
        self.1.run(Op::TreeSync, || self.0.sync_file_system())
    }
}

impl VfsFile for RecordingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let n = self.0.read_at(buf, offset)?;
        self.1.read(&mut buf[..n], offset);
        Ok(n)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.1.run(Op::TreeWrite, || self.0.write_all_at(data, offset))
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn version(&self) -> io::Result<FileVersion> {
        self.0.version()
    }

    fn set_attributes(&self, mode: u32, modified: Option<Timestamp>) -> io::Result<()> {
        self.0.set_attributes(mode, modified)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
