//! A disk in memory that fails on command, records every moment at which the power could go, and forgets on a crash what was
//! not synced.

mod coin;
mod crash;
mod state;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use octopii_wal::vfs::{DirEntry, FileHandle, FileKind, LockGuard, Metadata, OpenMode, Vfs, VfsFile};

pub(crate) use coin::Coin;
pub(crate) use crash::Units;
use state::{Content, File, NameChange, State};

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
    /// As `Fail`, but a write has written its first half, and a sync has synced and says it has not.
    FailLate(io::ErrorKind),
}

/// A moment at which the power could go: a call that changes something is under way.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    state: State,
    /// What [`Disk::note`] was last told.
    pub(crate) note: (usize, usize),
    /// A name for the call.
    pub(crate) call: &'static str,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    /// Calls that change something.
    calls: u64,
    /// Calls that only look.
    looks: u64,
    faults: BTreeMap<u64, Fault>,
    look_faults: BTreeMap<u64, io::ErrorKind>,
    /// Calls that failed because of a fault or for want of space.
    failures: u64,
    crashed: bool,
    capacity: Option<usize>,
    syncs: u64,
    next_sync_fails: bool,
    gate_closed: bool,
    waiting_at_gate: usize,
    recording: bool,
    moments: Vec<Moment>,
    note: (usize, usize),
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    gate: Condvar,
    locked: Mutex<bool>,
    meddler: Mutex<Meddler>,
}

/// Something to do while a file is being read.
#[derive(Default)]
struct Meddler(Option<Box<dyn FnOnce() + Send>>);

impl std::fmt::Debug for Meddler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Meddler").field(&self.0.is_some()).finish()
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk(Arc<Shared>);

/// How a call goes on.
enum Go {
    On,
    /// It takes effect, unsynced, and fails.
    Crash,
    /// It takes effect in part, and fails.
    Late(io::ErrorKind),
}

impl Go {
    fn end(self) -> io::Result<()> {
        match self {
            Self::On => Ok(()),
            Self::Crash => Err(dead()),
            Self::Late(kind) => Err(kind.into()),
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the power is off")
}

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

    /// Number of calls so far that only looked: opening, reading, listing, lengths.
    pub(crate) fn looks(&self) -> u64 {
        self.inner().looks
    }

    /// Number of calls so far that failed because a fault was set, or for want of space.
    pub(crate) fn failures(&self) -> u64 {
        self.inner().failures
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.inner().syncs
    }

    pub(crate) fn set_fault(&self, call: u64, fault: Fault) {
        self.inner().faults.insert(call, fault);
    }

    /// The next sync of a file fails once, and loses what it should have synced.
    pub(crate) fn fail_next_sync(&self) {
        self.inner().next_sync_fails = true;
    }

    /// The call numbered `look` of those that only look will fail.
    pub(crate) fn set_look_fault(&self, look: u64, kind: io::ErrorKind) {
        self.inner().look_faults.insert(look, kind);
    }

    pub(crate) fn set_capacity(&self, bytes: Option<usize>) {
        self.inner().capacity = bytes;
    }

    pub(crate) fn used(&self) -> usize {
        self.inner().state.used()
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

    /// Keeps the state of the disk during every call from now on that changes something.
    pub(crate) fn record(&self) {
        self.inner().recording = true;
    }

    /// To be kept with the moments that follow.
    pub(crate) fn note(&self, note: (usize, usize)) {
        self.inner().note = note;
    }

    /// What was recorded. Recording ends.
    pub(crate) fn take_moments(&self) -> Vec<Moment> {
        let mut inner = self.inner();
        inner.recording = false;
        std::mem::take(&mut inner.moments)
    }

    /// The disk as it is, to be crashed.
    pub(crate) fn moment(&self) -> Moment {
        let inner = self.inner();
        Moment { state: inner.state.clone(), note: inner.note, call: "nothing under way" }
    }

    /// The disk as found after a power cut. This one stays as it is.
    pub(crate) fn after_crash(&self, survivors: Survivors) -> Self {
        let moment = self.moment();
        let units = moment.units();
        let picks = match survivors {
            Survivors::Nothing => units.nothing(),
            Survivors::Everything => units.everything(),
            Survivors::Random(seed) => units.random(&mut Coin(seed)),
        };
        moment.after_crash(&units, &picks)
    }

    /// The disk as found after a crash of the process alone: everything is there, and what was not synced still is not.
    pub(crate) fn after_kill(&self) -> Self {
        self.moment().after_kill()
    }

    /// A copy on which every byte is synced.
    pub(crate) fn image(&self) -> Self {
        self.after_crash(Survivors::Everything)
    }

    fn with(state: State) -> Self {
        let inner = Inner { state, ..Inner::default() };
        Self(Arc::new(Shared { inner: Mutex::new(inner), ..Shared::default() }))
    }

    /// Names of files with their contents.
    pub(crate) fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let State { names, files, .. } = &self.inner().state;
        names.iter().map(|(name, id)| (name.to_path_buf(), files[id].now.to_vec())).collect()
    }

    /// Changes a file's content behind everybody's back.
    pub(crate) fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.inner();
        let id = inner.state.names[path];
        let file = inner.state.file(id);
        let mut bytes = file.now.to_vec();
        change(&mut bytes);
        *file = File::with(Content::from_slice(&bytes));
    }

    /// Has this done during the next read.
    pub(crate) fn meddle(&self, meddle: impl FnOnce() + Send + 'static) {
        self.0.meddler.lock().unwrap().0 = Some(Box::new(meddle));
    }

    /// Adds a file behind everybody's back.
    pub(crate) fn add(&self, path: &Path, bytes: &[u8]) {
        let mut inner = self.inner();
        let id = inner.state.create(path);
        *inner.state.file(id) = File::with(Content::from_slice(bytes));
        inner.state.sync_dir(path.parent().unwrap());
    }

    /// Flips bits of one byte behind everybody's back.
    pub(crate) fn flip(&self, path: &Path, at: usize, mask: u8) {
        let mut inner = self.inner();
        let id = inner.state.names[path];
        let file = inner.state.file(id);
        let mut byte = [0];
        assert_eq!(file.now.read(&mut byte, at), 1);
        file.write(&[byte[0] ^ mask], at);
        file.sync();
    }
}

impl Moment {
    pub(crate) fn units(&self) -> Units {
        self.state.units()
    }

    pub(crate) fn after_crash(&self, units: &Units, picks: &[usize]) -> Disk {
        Disk::with(self.state.survive(units, picks))
    }

    pub(crate) fn after_kill(&self) -> Disk {
        Disk::with(self.state.clone())
    }
}

impl Inner {
    /// Counts a call that changes something, and decides how it goes on.
    fn call(&mut self) -> io::Result<Go> {
        if self.crashed {
            return Err(dead());
        }
        self.calls += 1;
        let fault = self.faults.remove(&self.calls);
        self.failures += u64::from(fault.is_some());
        match fault {
            Some(Fault::Crash) => {
                self.crashed = true;
                Ok(Go::Crash)
            }
            Some(Fault::Fail(kind)) => Err(kind.into()),
            Some(Fault::FailLate(kind)) => Ok(Go::Late(kind)),
            None => Ok(Go::On),
        }
    }

    /// The call has changed what it changes, and synced nothing.
    fn keep(&mut self, call: &'static str) {
        if self.recording {
            self.moments.push(Moment { state: self.state.clone(), note: self.note, call });
        }
    }

    fn look(&mut self) -> io::Result<()> {
        self.looks += 1;
        match self.look_faults.remove(&self.looks) {
            Some(kind) => {
                self.failures += 1;
                Err(kind.into())
            }
            None => Ok(()),
        }
    }

    fn check_capacity(&mut self, id: u64, end: usize) -> io::Result<()> {
        let file = &self.state.files[&id];
        let more = end.saturating_sub(file.now.len.max(file.reserved));
        match self.capacity {
            Some(capacity) if more > 0 && self.state.used() + more > capacity => {
                self.failures += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

impl Vfs for Disk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        let mut inner = self.inner();
        let id = match mode {
            OpenMode::CreateNew if inner.state.names.contains_key(path) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            OpenMode::CreateNew => {
                let go = inner.call()?;
                let id = inner.state.create(path);
                inner.keep("create");
                go.end()?;
                id
            }
            _ => {
                inner.look()?;
                inner.state.id(path)?
            }
        };
        Ok(Arc::new(Open { disk: self.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let go = inner.call()?;
        let id = inner.state.id(from)?;
        assert_eq!(from.parent(), to.parent(), "renaming between directories is not simulated");
        inner.state.change_names(NameChange::Rename(from.into(), to.into(), id));
        inner.keep("rename");
        go.end()
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.inner().state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let go = inner.call()?;
        inner.state.id(path)?;
        inner.state.change_names(NameChange::Remove(path.into()));
        inner.keep("remove");
        go.end()
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.inner();
        let go = inner.call()?;
        inner.keep("sync of the directory");
        if !matches!(go, Go::Crash) {
            inner.state.sync_dir(path);
        }
        go.end()
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut inner = self.inner();
        inner.look()?;
        let State { names, files, .. } = &inner.state;
        let entries = names.iter().filter(|(n, _)| n.parent() == Some(path)).map(|(n, id)| DirEntry {
            name: n.file_name().map(OsString::from).unwrap(),
            metadata: Metadata { kind: FileKind::File, len: files[id].now.len as u64 },
        });
        Ok(entries.collect())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let mut inner = self.inner();
        inner.look()?;
        Ok(match inner.state.names.get(path) {
            Some(id) => Metadata { kind: FileKind::File, len: inner.state.files[id].now.len as u64 },
            None => Metadata { kind: FileKind::Directory, len: 0 },
        })
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn LockGuard>> {
        self.inner().look()?;
        let mut locked = self.0.locked.lock().unwrap();
        if std::mem::replace(&mut *locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Locked(self.clone())))
    }

    fn free_space(&self, _: &Path) -> io::Result<u64> {
        self.inner().look()?;
        Ok(u64::MAX)
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.inner().look()?;
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
        let meddler = self.disk.0.meddler.lock().unwrap().0.take();
        if let Some(meddle) = meddler {
            meddle();
        }
        let mut inner = self.disk.inner();
        inner.look()?;
        Ok(inner.state.files[&self.id].now.read(buf, offset as usize))
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let go = inner.call()?;
        inner.check_capacity(self.id, offset as usize + data.len())?;
        let part = if let Go::Late(_) = go { &data[..data.len() / 2] } else { data };
        inner.state.file(self.id).write(part, offset as usize);
        inner.keep("write");
        go.end()
    }

    fn len(&self) -> io::Result<u64> {
        let mut inner = self.disk.inner();
        inner.look()?;
        Ok(inner.state.files[&self.id].now.len as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let go = inner.call()?;
        inner.state.file(self.id).set_len(len as usize);
        inner.keep("change of length");
        go.end()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.inner();
        let go = inner.call()?;
        inner.check_capacity(self.id, len as usize)?;
        let file = inner.state.file(self.id);
        file.reserved = file.reserved.max(len as usize);
        inner.keep("reservation");
        go.end()
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.inner();
        inner.waiting_at_gate += 1;
        self.disk.0.gate.notify_all();
        while inner.gate_closed {
            inner = self.disk.0.gate.wait(inner).unwrap();
        }
        inner.waiting_at_gate -= 1;
        if std::mem::take(&mut inner.next_sync_fails) {
            let call = inner.calls + 1;
            inner.faults.insert(call, Fault::Fail(io::ErrorKind::Other));
        }
        let outcome = inner.call();
        inner.syncs += 1;
        inner.keep("sync");
        let file = inner.state.file(self.id);
        match outcome {
            Ok(Go::On | Go::Late(_)) => file.sync(),
            Ok(Go::Crash) => {}
            Err(_) => file.fail_sync(),
        }
        outcome?.end()
    }
}
