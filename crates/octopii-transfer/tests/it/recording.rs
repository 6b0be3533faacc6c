//! The real file system, with a record of what was done to it and faults put in on purpose.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_vfs::{DirHandle, FileHandle, FileLayer, LockGuard, OpenMode, RealVfs, Vfs, VfsFile, VfsLayer};

use crate::tree::recording::RecordingDir;

/// An operation that can be recorded and made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Allocate,
    PunchHole,
    Write,
    SyncData,
    Rename,
    SyncDir,
    /// What is done through an open directory.
    TreeWrite,
    /// Likewise.
    TreeRename,
    /// Likewise.
    TreeSync,
    /// Likewise, of directories.
    TreeRemove,
    /// Likewise, of modes and times; not recorded.
    TreeAttributes,
    /// Not an operation: put into the record by tests.
    Received,
    /// Likewise.
    Acknowledged,
}

#[derive(Debug, Default)]
struct State {
    record: Vec<Op>,
    // Fails the operation after it succeeded this often, this many times.
    fault: Option<(Op, usize, usize, io::ErrorKind)>,
    free: Option<u64>,
    delay: Duration,
    read_delay: Duration,
    // Does not return, and how often it was called since.
    hanging: Option<(Op, usize)>,
    // There is a name of 300 bytes in every directory, and links lead to one of 5,000.
    odd: bool,
    // Names in open directories that differ in upper and lower case only are the same.
    folding: bool,
    // Modes of directories hold for this process, too.
    unprivileged: bool,
    // Nothing tells when it was created.
    ageless: bool,
    // Beneath it another file system seems to be mounted.
    mounted: Option<PathBuf>,
    rotten: Option<Rot>,
    // Of all reads of content.
    lowest_read: Option<u64>,
    lies: usize,
    // Locks in force, and how often one was not to be had.
    held: usize,
    locked_out: usize,
    unlock_delay: Duration,
}

/// Reads of this byte bring another one, after it was read right so often, so many times.
#[derive(Debug)]
struct Rot {
    offset: u64,
    after: usize,
    times: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct RecordingVfs(Arc<Mutex<State>>);

#[derive(Debug)]
struct RecordingFile(FileHandle, RecordingVfs);

#[derive(Debug)]
struct RecordingLock(Option<Box<dyn LockGuard>>, RecordingVfs);

impl RecordingVfs {
    pub(crate) fn shared(&self) -> Arc<dyn Vfs> {
        Arc::new(self.clone())
    }

    /// Lets `op` fail, after it succeeded `after` times, `times` times.
    pub(crate) fn fail(&self, op: Op, after: usize, times: usize, kind: io::ErrorKind) {
        self.0.lock().unwrap().fault = Some((op, after, times, kind));
    }

    pub(crate) fn set_free(&self, bytes: u64) {
        self.0.lock().unwrap().free = Some(bytes);
    }

    /// Makes every recorded operation slow, so that doing things in the wrong order shows.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.0.lock().unwrap().delay = delay;
    }

    /// Lets `op` hang until [`release`](Self::release).
    pub(crate) fn hang(&self, op: Op) {
        self.0.lock().unwrap().hanging = Some((op, 0));
    }

    /// Whether a call hangs.
    pub(crate) fn hangs(&self) -> bool {
        self.0.lock().unwrap().hanging.is_some_and(|(_, calls)| calls > 0)
    }

    pub(crate) fn release(&self) {
        self.0.lock().unwrap().hanging = None;
    }

    /// Shows what no system calls here can make: a name of 300 bytes in every directory, and links to one of 5,000.
    pub(crate) fn set_odd(&self) {
        self.0.lock().unwrap().odd = true;
    }

    pub(crate) fn is_odd(&self) -> bool {
        self.0.lock().unwrap().odd
    }

    /// Takes upper and lower case for the same in open directories, as some file systems do.
    pub(crate) fn set_folding(&self) {
        self.0.lock().unwrap().folding = true;
    }

    pub(crate) fn is_folding(&self) -> bool {
        self.0.lock().unwrap().folding
    }

    /// Lets modes hold that a privileged process does not feel.
    pub(crate) fn set_unprivileged(&self) {
        self.0.lock().unwrap().unprivileged = true;
    }

    pub(crate) fn is_unprivileged(&self) -> bool {
        self.0.lock().unwrap().unprivileged
    }

    /// Does not tell when anything was created.
    pub(crate) fn set_ageless(&self) {
        self.0.lock().unwrap().ageless = true;
    }

    pub(crate) fn is_ageless(&self) -> bool {
        self.0.lock().unwrap().ageless
    }

    /// Lets what is beneath `path` in an open directory look as if it were on another file system.
    pub(crate) fn mount(&self, path: &str) {
        self.0.lock().unwrap().mounted = Some(path.into());
    }

    pub(crate) fn is_mounted(&self, path: &Path) -> bool {
        self.0.lock().unwrap().mounted.as_ref().is_some_and(|mounted| path.starts_with(mounted))
    }

    /// Makes every read slow.
    pub(crate) fn set_read_delay(&self, delay: Duration) {
        self.0.lock().unwrap().read_delay = delay;
    }

    /// Lets one byte be read as another, after it was read right `after` times, `times` times.
    pub(crate) fn rot(&self, offset: u64, after: usize, times: usize) {
        self.0.lock().unwrap().rotten = Some(Rot { offset, after, times });
    }

    /// Where the first byte of content is that was read, from whichever file.
    pub(crate) fn lowest_read(&self) -> Option<u64> {
        self.0.lock().unwrap().lowest_read
    }

    /// How often the rotten byte was read as another.
    pub(crate) fn lies(&self) -> usize {
        self.0.lock().unwrap().lies
    }

    /// Makes letting go of a lock slow.
    pub(crate) fn set_unlock_delay(&self, delay: Duration) {
        self.0.lock().unwrap().unlock_delay = delay;
    }

    /// Locks in force now.
    pub(crate) fn held(&self) -> usize {
        self.0.lock().unwrap().held
    }

    /// How often a lock was not to be had.
    pub(crate) fn locked_out(&self) -> usize {
        self.0.lock().unwrap().locked_out
    }

    pub(crate) fn note(&self, op: Op) {
        self.0.lock().unwrap().record.push(op);
    }

    /// The record so far, with runs of the same operation shortened to one.
    pub(crate) fn record(&self) -> Vec<Op> {
        let mut record = self.0.lock().unwrap().record.clone();
        record.dedup();
        record
    }

    /// Fails if it is `op`'s turn to.
    pub(crate) fn perhaps_fail(&self, op: Op) -> io::Result<()> {
        if let Some((at, after, times, kind)) = &mut self.0.lock().unwrap().fault
            && *at == op
        {
            if *after > 0 {
                *after -= 1;
            } else if *times > 0 {
                *times -= 1;
                return Err((*kind).into());
            }
        }
        Ok(())
    }

    /// Recorded when finished.
    pub(crate) fn run<T>(&self, op: Op, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.perhaps_fail(op)?;
        let delay = self.0.lock().unwrap().delay;
        if !delay.is_zero() {
            // Stands for a slow disk; there is no event to wait for.
            std::thread::park_timeout(delay);
        }
        if let Some((at, calls)) = &mut self.0.lock().unwrap().hanging
            && *at == op
        {
            *calls += 1;
        }
        // Not for ever: a test that fails ends.
        for _ in 0..4000 {
            if self.0.lock().unwrap().hanging.is_none_or(|(at, _)| at != op) {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let result = work();
        self.note(op);
        result
    }
}

impl RecordingVfs {
    /// What happens to everything that is read.
    pub(crate) fn read(&self, read: &mut [u8], offset: u64) {
        let mut state = self.0.lock().unwrap();
        // Less is no block.
        if read.len() >= 64 << 10 {
            state.lowest_read = Some(state.lowest_read.map_or(offset, |lowest| lowest.min(offset)));
        }
        if let Some(Rot { offset: rotten, after, times }) = &mut state.rotten
            && (offset..offset + read.len() as u64).contains(rotten)
        {
            if *after > 0 {
                *after -= 1;
            } else if *times > 0 {
                *times -= 1;
                read[(*rotten - offset) as usize] ^= 1;
                state.lies += 1;
            }
        }
        let delay = state.read_delay;
        drop(state);
        if !delay.is_zero() {
            std::thread::park_timeout(delay);
        }
    }
}

impl VfsLayer for RecordingVfs {
    fn beneath(&self) -> &dyn Vfs {
        &RealVfs
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        Ok(Arc::new(RecordingFile(RealVfs.open(path, mode)?, self.clone())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(Op::Rename, || RealVfs.rename(from, to))
    }

    fn rename_no_replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(Op::Rename, || RealVfs.rename_no_replace(from, to))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.run(Op::SyncDir, || RealVfs.sync_dir(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let lock = RealVfs.lock(path);
        let mut state = self.0.lock().unwrap();
        match lock {
            Ok(lock) => {
                state.held += 1;
                Ok(Box::new(RecordingLock(Some(lock), self.clone())))
            }
            Err(e) => {
                state.locked_out += 1;
                Err(e)
            }
        }
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let free = self.0.lock().unwrap().free;
        free.map_or_else(|| RealVfs.free_space(path), Ok)
    }

    fn open_dir(&self, path: &Path) -> io::Result<DirHandle> {
        Ok(Arc::new(RecordingDir(RealVfs.open_dir(path)?, self.clone())))
    }
}

impl LockGuard for RecordingLock {}

impl Drop for RecordingLock {
    fn drop(&mut self) {
        let delay = self.1.0.lock().unwrap().unlock_delay;
        if !delay.is_zero() {
            std::thread::park_timeout(delay);
        }
        drop(self.0.take());
        self.1.0.lock().unwrap().held -= 1;
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
        self.1.run(Op::Write, || self.0.write_all_at(data, offset))
    }

    fn write_all_at_uncached(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.1.run(Op::Write, || self.0.write_all_at_uncached(data, offset))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.1.run(Op::Allocate, || self.0.allocate(len))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.1.run(Op::PunchHole, || self.0.punch_hole(offset, len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.1.run(Op::SyncData, || self.0.sync_data())
    }
}
