//! A disk in memory that can lose power.

mod content;
mod dir;
mod faults;
mod names;
mod state;
mod vfs;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octopii_vfs::Vfs;

pub use faults::{Counters, Operation};

use crate::{Power, Trace};
use faults::End;
use state::State;
use vfs::SimVfs;

/// A simulated disk. Clones are the same disk.
///
/// It promises what `octopii_vfs::Vfs` promises and nothing more:
///
/// - Written bytes are in memory until [`octopii_vfs::VfsFile::sync_data`]. A [crash](SimDisk::crash) leaves of each
///   file's unsynced 512 B sectors none, all, the first few or any subset; its size has a fate of its own.
/// - A created, renamed or removed name is in memory until [`Vfs::sync_dir`] of its directory. A crash leaves of each
///   directory's changes none, all, the first few or any subset; one rename is never torn.
/// - After a failed sync part of the data is on the disk and the rest never will be, although it still reads back.
///
/// Every choice follows from the seed, so the same calls meet the same fate.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    /// An empty disk with 1 TiB of space. Only `/` exists.
    pub fn new(seed: u64) -> Self {
        Self::recorded(seed, "disk", Trace::new(0))
    }

    /// An empty disk whose every change is recorded in `trace` under the name `host`.
    pub fn recorded(seed: u64, host: &str, trace: Trace) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(seed, host, trace))) }
    }

    /// The file system as the current boot sees it. Its handles and locks die with the next [`SimDisk::crash`].
    pub fn vfs(&self) -> Arc<dyn Vfs> {
        let power = self.lock().power().clone();
        Arc::new(SimVfs::new(self.clone(), power))
    }

    /// The current boot of the machine, for what else must fall silent when it ends.
    pub fn power(&self) -> Power {
        self.lock().power().clone()
    }

    /// Cuts the power: all handles of this boot fail from now on, locks are free, unsynced data meets its fate, and the
    /// next boot begins. Call it *before* dropping what the machine ran.
    pub fn crash(&self) {
        self.lock().crash();
    }

    /// Ends this boot without losing anything, as when a process is killed but the machine goes on.
    pub fn kill(&self) {
        self.lock().kill();
    }

    /// Sets the space of the disk in bytes. Using more gives `StorageFull`.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Lets the `nth` call of `operation` from now (1 = the next one) fail with `EIO`.
    pub fn fail_nth(&self, operation: Operation, nth: u64) {
        self.fail_nth_with(operation, nth, rustix::io::Errno::IO.raw_os_error());
    }

    /// Like [`SimDisk::fail_nth`], with an error number of the operating system.
    pub fn fail_nth_with(&self, operation: Operation, nth: u64, errno: i32) {
        self.lock().faults.plan(operation, nth, errno);
    }

    /// Lets the power go in the middle of what the machine does: after `calls` more calls that may change something, as
    /// [`SimDisk::crash`] does it, and the call after them fails.
    pub fn crash_after(&self, calls: u64) {
        self.lock().faults.plan_end(Some((calls, End::PowerCut)));
    }

    /// Like [`SimDisk::crash_after`], but as [`SimDisk::kill`] does it: what was written and not synced stays, until a
    /// later power cut.
    pub fn kill_after(&self, calls: u64) {
        self.lock().faults.plan_end(Some((calls, End::Kill)));
    }

    /// Takes back what [`SimDisk::crash_after`] or [`SimDisk::kill_after`] planned.
    pub fn stay_up(&self) {
        self.lock().faults.plan_end(None);
    }

    /// Lets syncs succeed without making anything durable. A test that still passes with such a disk does not notice a
    /// forgotten sync, and proves nothing.
    pub fn ignore_syncs(&self) {
        self.lock().ignores_syncs = true;
    }

    /// How often each operation was called.
    pub fn counters(&self) -> Counters {
        self.lock().faults.counters().clone()
    }

    /// Flips the bits of `mask` in the byte at `offset` of a file, durably: what a decaying disk does.
    pub fn corrupt(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        self.lock().corrupt(path, offset, mask)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}
