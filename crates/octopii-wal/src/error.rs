//! What can go wrong, and what to do about it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Why an operation on an open log failed. Cheap to clone: every waiter of a failed commit gets the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A write or a sync failed, and the log stopped for good. Whether operations that were waiting are on disk is not
    /// known until the log is opened again; nothing acknowledged before is affected.
    #[error(
        "the log stopped because the disk failed to {operation}: {reason}; operations not yet acknowledged may or \
         may not survive: check the disk, then open the log again"
    )]
    Poisoned {
        /// What the log was doing.
        operation: &'static str,
        /// What the file system said.
        reason: Arc<io::Error>,
    },
    /// No space was left for the next piece of log. The operation, and every other that waited with it, is not in the log;
    /// everything acknowledged before is. Purging still works, and appending works again once there is space.
    #[error("no space left for the log: {reason}; purge entries or free space, then try again")]
    StorageFull {
        /// What the file system said.
        reason: Arc<io::Error>,
    },
    /// The entry is larger than [`Options::max_entry`](crate::Options::max_entry); nothing was appended.
    #[error("an entry of {len} bytes is over the limit of {limit}; split it")]
    EntryTooLarge {
        /// Bytes of the entry.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The batch as a whole is over 1 GiB; nothing was appended.
    #[error("a batch of {len} bytes is over the limit of {limit}; commit it in parts")]
    BatchTooLarge {
        /// Bytes of the batch as stored.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The name of a topic or a cursor or a metadata key is empty or over 255 bytes, or a metadata value is over 64 KiB.
    #[error("{what} has {len} bytes, allowed are {allowed:?}")]
    InvalidLength {
        /// Which argument.
        what: &'static str,
        /// Its bytes.
        len: usize,
        /// Bytes allowed.
        allowed: Range<usize>,
    },
    /// The index given to a purge is over [`MAX_INDEX`](crate::MAX_INDEX).
    #[error("index {index} is over the limit of {limit}")]
    IndexTooLarge {
        /// The index.
        index: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// The topic has as many cursors as it may have; nothing was changed.
    #[error("topic {topic:?} has {limit} cursors, which is the limit; remove those that nobody uses")]
    TooManyCursors {
        /// The topic's name.
        topic: String,
        /// Cursors allowed.
        limit: usize,
    },
    /// The cursor was removed after it had been opened; nothing was acknowledged.
    #[error("cursor {cursor:?} of topic {topic:?} was removed; open it again to begin anew")]
    CursorRemoved {
        /// The topic's name.
        topic: String,
        /// The cursor's name.
        cursor: String,
    },
    /// The batch names a topic of another log.
    #[error("topic {topic:?} belongs to another log; open it on the log that commits the batch")]
    ForeignTopic {
        /// The topic's name.
        topic: String,
    },
    /// The log was closed.
    #[error("the log is closed; open it again")]
    Closed,
    /// An entry that was acknowledged does not match its checksum.
    #[error("acknowledged data is damaged: {0}")]
    Damaged(Arc<Damage>),
    /// Reading failed. The log itself goes on.
    #[error("could not {operation}: {reason}")]
    Io {
        /// What the log was doing.
        operation: &'static str,
        /// What the file system said.
        reason: Arc<io::Error>,
    },
}

impl Error {
    /// The same failure, when it happens to an open log.
    pub(crate) fn from_reading(error: OpenError) -> Self {
        match error {
            OpenError::Damaged(damage) => Self::Damaged(Arc::new(damage)),
            OpenError::Io { operation, reason, .. } => Self::Io { operation, reason: Arc::new(reason) },
            other => Self::Io { operation: "scan a segment", reason: Arc::new(io::Error::other(other)) },
        }
    }
}

/// Why a log could not be opened or inspected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another handle in this one, has the directory open.
    #[error("the log in {dir} is locked by another process or handle; close that one first", dir = dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// Acknowledged data is damaged. Nothing was changed on disk.
    #[error("acknowledged data is damaged: {0}; restore this directory from a replica or a backup")]
    Damaged(Damage),
    /// A segment was written by a later version of this crate.
    #[error("{path} has format version {found}, this build reads up to {supported}; use a newer build", path = path.display())]
    UnsupportedVersion {
        /// The segment.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known.
        supported: u32,
    },
    /// An option is out of its range.
    #[error("option {option} is {value}, allowed are {allowed}")]
    InvalidOption {
        /// Its name.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        allowed: String,
    },
    /// The file system refused.
    #[error("could not {operation} {path}: {reason}", path = path.display())]
    Io {
        /// What was being done.
        operation: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the file system said.
        #[source]
        reason: io::Error,
    },
}

/// Where acknowledged data is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The segment file.
    pub segment: PathBuf,
    /// Bytes from its start to the first bad frame or record.
    pub offset: u64,
    /// What is wrong there.
    pub detail: String,
    /// Topics known to have lost entries, with the indexes lost.
    pub topics: Vec<(String, Range<u64>)>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.segment.display(), self.offset, self.detail)?;
        for (topic, range) in &self.topics {
            write!(f, "; topic {topic:?} entries {} to {}", range.start, range.end.saturating_sub(1))?;
        }
        Ok(())
    }
}

/// Why a commit did not happen.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No space. Nothing was written where it matters, and the writer can be used again.
    Full(io::Error),
    /// The log cannot go on.
    Fatal(&'static str, io::Error),
}

impl Failure {
    pub(crate) fn into_reason(self) -> io::Error {
        match self {
            Self::Full(reason) | Self::Fatal(_, reason) => reason,
        }
    }

    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Full(reason) => Error::StorageFull { reason: Arc::new(reason) },
            Self::Fatal(operation, reason) => Error::Poisoned { operation, reason: Arc::new(reason) },
        }
    }
}

pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
