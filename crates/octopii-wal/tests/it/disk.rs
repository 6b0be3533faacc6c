//! A disk in memory that fails on command, and forgets on a crash what was not synced.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use octopii_wal::vfs::{DirEntry, FileHandle, FileKind, LockGuard, Metadata, OpenMode, Vfs, VfsFile};

pub(crate) const SECTOR: usize = 512;

/// Which unsynced changes survive a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Survivors {
    Nothing,
    Everything,
    /// Each sector, length and name by the toss of a coin.
    Random(u64),
}

/// What happens to the call with a given number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power goes: this call may have taken effect or not, and everything after fails.
    Crash,
    /// The call fails once with this error; a failed sync loses what it should have synced.
    Fail(io::ErrorKind),
}

#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    pub(crate) now: Vec<u8>,
    synced: Vec<u8>,
    dirty: BTreeSet<usize>,
    reserved: usize,
}

#[derive(Debug, Default)]
struct Inner {
    files: BTreeMap<u64, File>,
    names: BTreeMap<PathBuf, u64>,
    synced_names: BTreeMap<PathBuf, u64>,
    next_file: u64,
    calls: u64,
    faults: BTreeMap<u64, Fault>,
    crashed: bool,
    capacity: Option<usize>,
    syncs: u64,
    gate_closed: bool,
    waiting_at_gate: usize,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    gate: Condvar,
    locked: Mutex<bool>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Shared>);

impl Disk {
    pub(crate) fn vfs(&self) -> Arc<dyn Vfs> {
        Arc::new(self.clone())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap()
    }

    /// Number of calls so far that changed something.
    pub(crate) fn calls(&self) -> u64 {
        self.inner().calls
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.inner().syncs
    }

    pub(crate) fn set_fault(&self, call: u64, fault: Fault) {
        self.inner().faults.insert(call, fault);
    }

    pub(crate) fn set_capacity(&self, bytes: Option<usize>) {
        self.inner().capacity = bytes;
    }

    pub(crate) fn used(&self) -> usize {
        self.inner().used()
    }

    /// While the gate is closed, syncs of files do not return.
    pub(crate) fn set_gate_closed(&self, closed: bool) {
        self.inner().gate_closed = closed;
        self.0.gate.notify_all();
    }

    /// Returns when a sync has reached the closed gate.
    pub(crate) fn wait_for_sync_at_gate(&self) {
        let mut inner = self.inner();
        while inner.waiting_at_gate == 0 {
            inner = self.0.gate.wait(inner).unwrap();
        }
    }

    /// The disk as found after a power cut. This one stays as it is.
    pub(crate) fn after_crash(&self, survivors: Survivors) -> Self {
        let inner = self.inner();
        let mut coin = Coin(match survivors {
            Survivors::Random(seed) => seed,
            _ => 0,
        });
        let mut keep = || match survivors {
            Survivors::Nothing => false,
            Survivors::Everything => true,
            Survivors::Random(_) => coin.toss(),
        };
        let mut names = inner.synced_names.clone();
        let changed: BTreeSet<_> = inner.names.keys().chain(inner.synced_names.keys()).cloned().collect();
        for name in changed {
            if inner.names.get(&name) != inner.synced_names.get(&name) && keep() {
                match inner.names.get(&name) {
                    Some(id) => names.insert(name, *id),
                    None => names.remove(&name),
                };
            }
        }
        let mut files = BTreeMap::new();
        for id in names.values() {
            let file = &inner.files[id];
            let mut data = file.synced.clone();
            data.resize(data.len().max(file.now.len()), 0);
            for sector in &file.dirty {
                let start = sector * SECTOR;
                let end = (start + SECTOR).min(file.now.len());
                if start < end && keep() {
                    data[start..end].copy_from_slice(&file.now[start..end]);
                }
            }
            let len = if keep() { file.now.len() } else { file.synced.len() };
            data.resize(len, 0);
            files.insert(*id, File { synced: data.clone(), now: data, ..File::default() });
        }
        Self::with(files, names, inner.next_file)
    }

    /// The disk as found after a crash of the process alone: everything is there, and what was not synced still is not.
    pub(crate) fn after_kill(&self) -> Self {
        let inner = self.inner();
        let disk = Self::with(inner.files.clone(), inner.names.clone(), inner.next_file);
        disk.inner().synced_names = inner.synced_names.clone();
        disk
    }

    /// A copy on which every byte is synced.
    pub(crate) fn image(&self) -> Self {
        self.after_crash(Survivors::Everything)
    }

    fn with(files: BTreeMap<u64, File>, names: BTreeMap<PathBuf, u64>, next_file: u64) -> Self {
        let inner = Inner { files, synced_names: names.clone(), names, next_file, ..Inner::default() };
        Self(Arc::new(Shared { inner: Mutex::new(inner), ..Shared::default() }))
    }

    /// Names of files with their contents.
    pub(crate) fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let inner = self.inner();
        inner.names.iter().map(|(name, id)| (name.clone(), inner.files[id].now.clone())).collect()
    }

    /// Changes a file's content behind everybody's back.
    pub(crate) fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let id = inner.names[path];
        let file = inner.files.get_mut(&id).unwrap();
        change(&mut file.now);
        file.synced = file.now.clone();
    }

    /// Counts a call. `Err`: it fails; `Ok(false)`: it fails as well, but takes effect first, unsynced.
    fn call(inner: &mut Inner) -> io::Result<bool> {
        if inner.crashed {
            return Err(dead());
        }
        inner.calls += 1;
        match inner.faults.remove(&inner.calls) {
            Some(Fault::Crash) => {
                inner.crashed = true;
                Ok(false)
            }
            Some(Fault::Fail(kind)) => Err(kind.into()),
            None => Ok(true),
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the power is off")
}

fn finish(lives: bool) -> io::Result<()> {
    if lives { Ok(()) } else { Err(dead()) }
}

impl Inner {
    fn used(&self) -> usize {
        let live: BTreeSet<_> = self.names.values().collect();
        self.files.iter().filter(|(id, _)| live.contains(id)).map(|(_, f)| f.now.len().max(f.reserved)).sum()
    }

    fn check_capacity(&self, more: usize) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if more > 0 && self.used() + more > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

impl Vfs for Disk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        let mut inner = self.inner();
        let id = match (mode, inner.names.get(path).copied()) {
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, None) => {
                let lives = Self::call(&mut inner)?;
                inner.next_file += 1;
                let id = inner.next_file;
                inner.files.insert(id, File::default());
                inner.names.insert(path.to_owned(), id);
                finish(lives)?;
                id
            }
            (_, Some(id)) => id,
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(Open { disk: self.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let lives = Self::call(&mut inner)?;
        let id = inner.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.names.insert(to.to_owned(), id);
        finish(lives)
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.inner().names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let lives = Self::call(&mut inner)?;
        inner.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        finish(lives)
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let lives = Self::call(&mut inner)?;
        if lives {
            let names: BTreeMap<_, _> = inner
                .names
                .iter()
                .filter(|(n, _)| n.parent() == Some(path))
                .map(|(n, i)| (n.clone(), *i))
                .collect();
            inner.synced_names.retain(|n, _| n.parent() != Some(path));
            inner.synced_names.extend(names);
        }
        finish(lives)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let inner = self.inner();
        let entries = inner.names.iter().filter(|(n, _)| n.parent() == Some(path)).map(|(n, id)| DirEntry {
            name: n.file_name().map(OsString::from).unwrap(),
            metadata: Metadata { kind: FileKind::File, len: inner.files[id].now.len() as u64 },
        });
        Ok(entries.collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        match self.inner().names.get(path) {
            Some(_) => Ok(Metadata { kind: FileKind::File, len: 0 }),
            None => Ok(Metadata { kind: FileKind::Directory, len: 0 }),
        }
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn LockGuard>> {
        let mut locked = self.0.locked.lock().unwrap();
        if std::mem::replace(&mut *locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Locked(self.clone())))
    }

    fn free_space(&self, _: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }
}

#[derive(Debug)]
struct Locked(Disk);

impl LockGuard for Locked {}

impl Drop for Locked {
    fn drop(&mut self) {
        *self.0.0.locked.lock().unwrap() = false;
    }
}

#[derive(Debug)]
struct Open {
    disk: Disk,
    id: u64,
}

impl VfsFile for Open {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.disk.inner();
        let data = &inner.files[&self.id].now;
        let start = (offset as usize).min(data.len());
        let n = buf.len().min(data.len() - start);
        buf[..n].copy_from_slice(&data[start..start + n]);
        Ok(n)
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let lives = Disk::call(&mut inner)?;
        let (start, end) = (offset as usize, offset as usize + data.len());
        let file = &inner.files[&self.id];
        let more = end.saturating_sub(file.now.len().max(file.reserved));
        inner.check_capacity(more)?;
        let file = inner.files.get_mut(&self.id).unwrap();
        if file.now.len() < end {
            file.now.resize(end, 0);
        }
        file.now[start..end].copy_from_slice(data);
        file.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
        finish(lives)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.inner().files[&self.id].now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let lives = Disk::call(&mut inner)?;
        inner.files.get_mut(&self.id).unwrap().now.resize(len as usize, 0);
        finish(lives)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let lives = Disk::call(&mut inner)?;
        let file = &inner.files[&self.id];
        let more = (len as usize).saturating_sub(file.now.len().max(file.reserved));
        inner.check_capacity(more)?;
        let file = inner.files.get_mut(&self.id).unwrap();
        file.reserved = file.reserved.max(len as usize);
        finish(lives)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.waiting_at_gate += 1;
        self.disk.0.gate.notify_all();
        while inner.gate_closed {
            inner = self.disk.0.gate.wait(inner).unwrap();
        }
        inner.waiting_at_gate -= 1;
        let outcome = Disk::call(&mut inner);
        inner.syncs += 1;
        let file = inner.files.get_mut(&self.id).unwrap();
        match outcome {
            Ok(true) => {
                file.synced = file.now.clone();
                file.dirty.clear();
            }
            // As Linux does it: the pages count as clean from now on, and no later sync writes them.
            Err(_) => file.dirty.clear(),
            Ok(false) => {}
        }
        finish(outcome?)
    }
}

/// A small generator of numbers that a seed determines.
#[derive(Debug, Clone)]
pub(crate) struct Coin(pub(crate) u64);

impl Coin {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn toss(&mut self) -> bool {
        self.next() & 1 == 0
    }
}
