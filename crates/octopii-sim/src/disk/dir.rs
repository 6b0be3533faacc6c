//! Open directories of the disk.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use octopii_vfs::{Attributes, EntryKind, FileHandle, OpenMode, Timestamp, Vfs, VfsDir};
use rustix::io::Errno;

use super::faults::Operation;
use super::state::Node;
use super::vfs::SimVfs;

/// A directory by its path: there are no links on this disk that could make it another one. Modes and times are not kept.
#[derive(Debug)]
pub(super) struct SimDir {
    vfs: SimVfs,
    path: PathBuf,
}

impl SimDir {
    pub(super) fn open(vfs: SimVfs, path: &Path) -> io::Result<Self> {
        let state = vfs.state()?;
        state.directory(state.resolve(path)?)?;
        drop(state);
        Ok(Self { vfs, path: path.to_owned() })
    }
}

impl VfsDir for SimDir {
    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        let state = self.vfs.state()?;
        let ino = state.resolve(&self.path.join(path))?;
        let (kind, len, mode) = match state.node(ino)? {
            Node::File(content) => (EntryKind::File, content.len(), 0o600),
            Node::Directory(_) => (EntryKind::Directory, 0, 0o700),
        };
        Ok(Attributes { kind, len, mode, modified: Timestamp::default(), id: (0, ino) })
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let state = self.vfs.state()?;
        let directory = state.directory(state.resolve(&self.path.join(path))?)?;
        Ok(directory.names().keys().cloned().collect())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        self.vfs.open(&self.path.join(path), mode)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let path = self.path.join(path);
        let mut state = self.vfs.state()?;
        state.call(Operation::CreateDir)?;
        let (directory, name) = state.locate(&path)?;
        if state.lookup(directory, &name)?.is_some() {
            return Err(Errno::EXIST.into());
        }
        state.create_directory(directory, &name)?;
        state.record(format_args!("create directory {}", path.display()), &[]);
        Ok(())
    }

    fn read_link(&self, _: &Path) -> io::Result<OsString> {
        Err(Errno::INVAL.into())
    }

    fn create_link(&self, _: &Path, _: &OsStr) -> io::Result<()> {
        Err(Errno::PERM.into())
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let (from, to) = (self.path.join(from), self.path.join(to));
        if replace { self.vfs.rename(&from, &to) } else { self.vfs.rename_no_replace(&from, &to) }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.vfs.remove_file(&self.path.join(path))
    }

    fn set_attributes(&self, path: &Path, _: u32, _: Option<Timestamp>) -> io::Result<()> {
        let state = self.vfs.state()?;
        state.resolve(&self.path.join(path)).map(|_| ())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.vfs.sync_dir(&self.path.join(path))
    }

    fn sync_file_system(&self) -> io::Result<()> {
        let mut state = self.vfs.state()?;
        if let Err(e) = state.call(Operation::SyncFileSystem) {
            // If the boot ended instead, that has decided what is left.
            if self.vfs.is_on() {
                state.sync_of_everything_failed();
                state.record(format_args!("sync of everything failed"), &[]);
            }
            return Err(e);
        }
        state.sync_everything()?;
        state.record(format_args!("sync everything"), &[]);
        Ok(())
    }
}
