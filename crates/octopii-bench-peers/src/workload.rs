//! What each log is given to do.

use std::time::Duration;

/// Entries of the log that is opened and read back, and their size in bytes.
pub(crate) const ENTRIES: u64 = 1_000_000;
pub(crate) const ENTRY: usize = 100;

/// One way of appending.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    /// Bytes of an entry.
    pub(crate) size: usize,
    /// Threads, each with a topic (group, region, table) of its own.
    pub(crate) writers: usize,
    /// Whether an append returns only when the entry is on stable storage.
    pub(crate) durable: bool,
    pub(crate) time: Duration,
}

impl Workload {
    /// One append in this many is timed.
    pub(crate) fn every(&self) -> usize {
        if self.durable { 1 } else { 64 }
    }
}
