//! Calls that fail on purpose, and how often each was made.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

/// The calls that a disk counts and can be told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Opening or creating a file.
    Open,
    /// Reading from a file.
    Read,
    /// Writing to a file.
    Write,
    /// Cutting or extending a file.
    SetLen,
    /// Reserving space.
    Allocate,
    /// Making a hole.
    PunchHole,
    /// Making a file's data durable.
    SyncData,
    /// Making a directory's names durable.
    SyncDir,
    /// Making everything durable.
    SyncFileSystem,
    /// Renaming, replacing or not.
    Rename,
    /// Removing a file.
    Remove,
    /// Creating directories.
    CreateDir,
}

impl Operation {
    /// All that count towards [`SimDisk::crash_after`](crate::SimDisk::crash_after).
    pub const CHANGING: [Self; 11] = [
        Self::Open,
        Self::Write,
        Self::SetLen,
        Self::Allocate,
        Self::PunchHole,
        Self::SyncData,
        Self::SyncDir,
        Self::SyncFileSystem,
        Self::Rename,
        Self::Remove,
        Self::CreateDir,
    ];
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::SetLen => "set_len",
            Self::Allocate => "allocate",
            Self::PunchHole => "punch_hole",
            Self::SyncData => "sync_data",
            Self::SyncDir => "sync_dir",
            Self::SyncFileSystem => "sync_file_system",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::CreateDir => "create_dir",
        })
    }
}

/// How often each operation was called since the disk was made, failed calls included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    calls: BTreeMap<Operation, u64>,
}

impl Counters {
    /// Calls of one operation.
    pub fn of(&self, operation: Operation) -> u64 {
        self.calls.get(&operation).copied().unwrap_or(0)
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    counters: Counters,
    /// Operation and the number of its call → the error it shall give.
    planned: BTreeMap<(Operation, u64), i32>,
    /// Changing calls until this boot ends, and how it ends.
    end: Option<(u64, End)>,
}

/// How a boot ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The power goes: what was not synced meets its fate.
    PowerCut,
    /// Only the process dies: what it wrote stays, synced or not.
    Kill,
}

impl Faults {
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Plans that the `nth` call of `operation` from now (1 = the next) fails with the operating system's `errno`.
    pub(super) fn plan(&mut self, operation: Operation, nth: u64, errno: i32) {
        self.planned.insert((operation, self.counters.of(operation) + nth), errno);
    }

    /// Plans how the boot ends when so many more calls that change something have been made.
    pub(super) fn plan_end(&mut self, end: Option<(u64, End)>) {
        self.end = end;
    }

    /// How the boot ends instead of this call, if it does.
    pub(super) fn ends_at(&mut self, operation: Operation) -> Option<End> {
        let (left, end) = self.end.as_mut().filter(|_| operation != Operation::Read)?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let end = *end;
        self.end = None;
        Some(end)
    }

    /// Counts a call; an error if it was planned to fail.
    pub(super) fn call(&mut self, operation: Operation) -> io::Result<()> {
        let count = self.counters.calls.entry(operation).or_default();
        *count += 1;
        match self.planned.remove(&(operation, *count)) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}
