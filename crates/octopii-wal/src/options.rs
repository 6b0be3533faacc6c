//! How a log is opened.

use std::sync::Arc;
use std::time::Duration;

use octopii_vfs::{RealVfs, Vfs};

use crate::delay::CommitDelay;

/// The largest value of [`Options::max_entry`], 64 MiB.
pub const MAX_ENTRY: usize = 64 << 20;

/// The largest index a topic can be purged to; entries beyond it cannot occur in practice.
pub const MAX_INDEX: u64 = i64::MAX as u64;

/// The smallest and the largest [`Options::segment_size`], in bytes.
pub(crate) const SEGMENT_SIZES: std::ops::RangeInclusive<u64> = (32 << 10)..=(1 << 30);

/// When a [`Ticket`](crate::Ticket) is fulfilled: how much an acknowledgement is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After `fdatasync`: what was acknowledged survives a crash of the process, of the system and a power cut.
    #[default]
    Synced,
    /// At once. The log writes and syncs in the background whenever something has waited for this long, so a crash or
    /// power cut loses about this much time. With [`Committer::Caller`] there is no background: as `None`.
    Interval(Duration),
    /// At once. The log writes when about 1 MiB has gathered and never syncs unless told to by
    /// [`WriteAheadLog::sync`](crate::WriteAheadLog::sync), by closing, or by the change of segments. A crash of the
    /// process loses what had not been written; a power cut also what had not been synced.
    None,
}

/// Who writes and syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Committer {
    /// A thread of the log's own named `octopii-wal`; a single waiting writer commits by itself, which saves two
    /// changes of thread.
    #[default]
    Thread,
    /// Whoever waits for a ticket, or polls its future, commits then and there: the poll blocks for the length of a
    /// sync. For simulators and single-threaded programs.
    Caller,
}

/// Options of [`WriteAheadLog::open`](crate::WriteAheadLog::open).
#[derive(Debug, Clone)]
pub struct Options {
    /// The file system. Default: the machine's own.
    pub vfs: Arc<dyn Vfs>,
    /// What an acknowledgement means. Default: [`Durability::Synced`].
    pub durability: Durability,
    /// Bytes after which a segment file is closed and the next begun, 32 KiB to 1 GiB. A batch that is larger gets a
    /// segment as large as it needs. Space is freed by whole segments, so a smaller size frees sooner and costs a few
    /// more syncs. Default: 64 MiB.
    pub segment_size: u64,
    /// Who writes and syncs. Default: [`Committer::Thread`].
    pub committer: Committer,
    /// Bytes that may wait to be written; beyond it, appending waits until the disk has caught up. A topic may have as many
    /// bytes waiting as are left free, so one alone gets half, and one that floods the log leaves room for the others. A
    /// batch larger than half is let in when nothing else waits, and one that would starve goes in beyond the limit.
    /// Default: 64 MiB.
    pub max_pending_bytes: usize,
    /// Bytes of the largest entry accepted, at most and by default [`MAX_ENTRY`].
    pub max_entry: usize,
    /// Seed of the segments' salts. `None`, the default, takes them from the system; a simulation gives a seed so that
    /// the bytes on disk repeat.
    pub seed: Option<u64>,
    /// Time that commits take, for simulators. Heeded with [`Committer::Caller`] by
    /// [`Ticket::durable`](crate::Ticket::durable) only. Default: none.
    pub commit_delay: Option<CommitDelay>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vfs: RealVfs::shared(),
            durability: Durability::default(),
            segment_size: 64 << 20,
            committer: Committer::default(),
            max_pending_bytes: 64 << 20,
            max_entry: MAX_ENTRY,
            seed: None,
            commit_delay: None,
        }
    }
}
