//! The disk through the file-system seam.

use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use octopii_vfs::{DirEntry, DirHandle, FileHandle, FileKind, LockGuard, Metadata, OpenMode, Vfs, VfsFile};
use rustix::io::Errno;

use super::SimDisk;
use super::dir::SimDir;
use super::faults::Operation;
use super::names::{Ino, ROOT};
use super::state::{Node, State};
use crate::Power;

#[derive(Debug, Clone)]
pub(super) struct SimVfs {
    disk: SimDisk,
    power: Power,
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    power: Power,
    ino: Ino,
    writable: bool,
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    power: Power,
    ino: Ino,
}

impl SimVfs {
    pub(super) fn new(disk: SimDisk, power: Power) -> Self {
        Self { disk, power }
    }

    pub(super) fn is_on(&self) -> bool {
        self.power.is_on()
    }

    /// The disk, if the machine is still up.
    pub(super) fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        self.power.check()?;
        Ok(self.disk.lock())
    }

    fn handle(&self, state: &mut State, ino: Ino, writable: bool) -> FileHandle {
        state.open_handle(ino);
        Arc::new(SimFile { disk: self.disk.clone(), power: self.power.clone(), ino, writable })
    }

    fn rename_with(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let mut state = self.state()?;
        state.call(Operation::Rename)?;
        state.rename(from, to, replace)?;
        state.record(format_args!("rename {} to {}", from.display(), to.display()), &[]);
        Ok(())
    }
}

impl Vfs for SimVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        let mut state = self.state()?;
        state.call(Operation::Open)?;
        if mode == OpenMode::CreateNew {
            let (directory, name) = state.locate(path)?;
            if state.lookup(directory, &name)?.is_some() {
                return Err(Errno::EXIST.into());
            }
            let ino = state.create_file(directory, &name)?;
            state.record(format_args!("create {} as {ino}", path.display()), &[]);
            return Ok(self.handle(&mut state, ino, true));
        }
        let ino = state.resolve(path)?;
        let writable = mode == OpenMode::ReadWrite;
        if writable && matches!(state.node(ino)?, Node::Directory(_)) {
            return Err(Errno::ISDIR.into());
        }
        Ok(self.handle(&mut state, ino, writable))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename_with(from, to, true)
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename_with(from, to, false)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state()?;
        state.call(Operation::Remove)?;
        state.remove(path)?;
        state.record(format_args!("remove {}", path.display()), &[]);
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state()?;
        state.call(Operation::CreateDir)?;
        let mut at = PathBuf::from("/");
        let mut here = ROOT;
        for component in path.components() {
            at.push(component);
            let Component::Normal(name) = component else {
                here = state.resolve(&at)?;
                continue;
            };
            here = match state.lookup(here, name)? {
                Some(ino) => ino,
                None => {
                    let ino = state.create_directory(here, name)?;
                    state.record(format_args!("create directory {}", at.display()), &[]);
                    ino
                }
            };
        }
        match state.node(here)? {
            Node::Directory(_) => Ok(()),
            Node::File(_) => Err(Errno::EXIST.into()),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state()?;
        let ino = state.resolve(path)?;
        state.directory(ino)?;
        // A failed directory sync leaves the names as uncertain as they were.
        state.call(Operation::SyncDir)?;
        state.sync_directory(ino)?;
        state.record(format_args!("sync directory {}", path.display()), &[]);
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let state = self.state()?;
        let directory = state.directory(state.resolve(path)?)?;
        let entry = |(name, ino): (&std::ffi::OsString, &Ino)| {
            Ok(DirEntry { name: name.clone(), metadata: metadata_of(state.node(*ino)?) })
        };
        directory.names().iter().map(entry).collect()
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let state = self.state()?;
        Ok(metadata_of(state.node(state.resolve(path)?)?))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let mut state = self.state()?;
        let (directory, name) = state.locate(path)?;
        let ino = match state.lookup(directory, &name)? {
            Some(ino) => ino,
            None => {
                let ino = state.create_file(directory, &name)?;
                state.record(format_args!("create {} as {ino}", path.display()), &[]);
                ino
            }
        };
        state.file(ino)?;
        state.try_lock(ino)?;
        state.open_handle(ino);
        Ok(Box::new(SimLock { disk: self.disk.clone(), power: self.power.clone(), ino }))
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let state = self.state()?;
        state.resolve(path)?;
        Ok(state.free_space())
    }

    fn open_dir(&self, path: &Path) -> io::Result<DirHandle> {
        Ok(Arc::new(SimDir::open(self.clone(), path)?))
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.state()?.canonicalize(path)
    }
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        self.power.check()?;
        Ok(self.disk.lock())
    }

    fn check_writable(&self, otherwise: Errno) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(otherwise.into()) }
    }
}

impl VfsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state()?;
        state.call(Operation::Read)?;
        Ok(state.file(self.ino)?.read(buf, offset))
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state()?;
        self.check_writable(Errno::BADF)?;
        state.call(Operation::Write)?;
        let wanted = state.file(self.ino)?.used_after_write(data.len(), offset);
        state.check_space(self.ino, wanted)?;
        state.file_mut(self.ino)?.write(data, offset);
        state.record(format_args!("write {} at {offset}", self.ino), data);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.file(self.ino)?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        self.check_writable(Errno::INVAL)?;
        state.call(Operation::SetLen)?;
        state.file_mut(self.ino)?.set_len(len);
        state.record(format_args!("set length of {} to {len}", self.ino), &[]);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        self.check_writable(Errno::BADF)?;
        if len == 0 {
            return Err(Errno::INVAL.into());
        }
        state.call(Operation::Allocate)?;
        let wanted = state.file(self.ino)?.used_after_allocate(len);
        state.check_space(self.ino, wanted)?;
        state.file_mut(self.ino)?.allocate(len);
        Ok(())
    }

    fn stored(&self) -> io::Result<u64> {
        Ok(self.state()?.file(self.ino)?.used())
    }

    fn content_from(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.state()?.file(self.ino)?.content_from(offset))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        self.check_writable(Errno::BADF)?;
        state.call(Operation::PunchHole)?;
        state.file_mut(self.ino)?.punch_hole(offset, len);
        state.record(format_args!("punch a hole of {len} into {} at {offset}", self.ino), &[]);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        if let Err(e) = state.call(Operation::SyncData) {
            // If the boot ended instead, that has decided what is left.
            if self.power.is_on() {
                state.sync_failed(self.ino);
                state.record(format_args!("sync of {} failed", self.ino), &[]);
            }
            return Err(e);
        }
        state.sync_file(self.ino)?;
        state.record(format_args!("sync {}", self.ino), &[]);
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        // A later boot has counted its handles anew.
        if self.power.is_on() {
            state.close_handle(self.ino);
        }
    }
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        if self.power.is_on() {
            state.unlock(self.ino);
            state.close_handle(self.ino);
        }
    }
}

fn metadata_of(node: &Node) -> Metadata {
    match node {
        Node::File(content) => Metadata { kind: FileKind::File, len: content.len() },
        Node::Directory(_) => Metadata { kind: FileKind::Directory, len: 0 },
    }
}
