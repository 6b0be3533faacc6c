//! What became of a tree and of each thing in it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::name::shown;
use crate::{Digest, TransferId};

/// Why one entry of a tree was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum EntryFailure {
    /// The name cannot be used safely: control characters, or like Octopii's own files.
    BadName,
    /// Something of another kind has the name at the receiver.
    Clash,
    /// A limit of the receiver: depth, number of entries, bytes.
    Limit,
    /// The receiver's disk is full, or would be.
    StorageFull,
    /// Reading or writing failed.
    Io,
    /// The bytes that arrived are not those that were hashed at the source.
    DigestMismatch,
    /// The source changed while it was being sent.
    Changed,
    /// The sender may not read it.
    Unreadable,
    /// A symbolic link: not asked for, leading out of the tree, or not wanted by the receiver.
    Link,
    /// A device, a pipe or a socket.
    Special,
    /// The directory it is in was not taken.
    InRefusedDirectory,
    /// A reason this version does not know.
    Other(u16),
}

impl EntryFailure {
    const KNOWN: [Self; 11] = [
        Self::BadName,
        Self::Clash,
        Self::Limit,
        Self::StorageFull,
        Self::Io,
        Self::DigestMismatch,
        Self::Changed,
        Self::Unreadable,
        Self::Link,
        Self::Special,
        Self::InRefusedDirectory,
    ];

    /// The number on the wire (see `docs/formats/tree.md`).
    pub fn to_u16(self) -> u16 {
        match self {
            Self::Other(code) => code,
            known => Self::KNOWN.iter().position(|k| *k == known).map_or(0, |at| at as u16 + 1),
        }
    }

    /// The meaning of a number from the wire.
    pub fn from_u16(code: u16) -> Self {
        let known = (code as usize).checked_sub(1).and_then(|at| Self::KNOWN.get(at));
        known.copied().unwrap_or(Self::Other(code))
    }
}

impl fmt::Display for EntryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadName => "bad name",
            Self::Clash => "something else has this name",
            Self::Limit => "limit exceeded",
            Self::StorageFull => "disk full",
            Self::Io => "input/output error",
            Self::DigestMismatch => "digest mismatch",
            Self::Changed => "changed meanwhile",
            Self::Unreadable => "unreadable",
            Self::Link => "symbolic link",
            Self::Special => "not a regular file",
            Self::InRefusedDirectory => "its directory was not taken",
            Self::Other(code) => return write!(f, "failure code {code}"),
        })
    }
}

/// Why an entry was not done, in a word and in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotDone {
    /// What kind of reason, for programs.
    pub failure: EntryFailure,
    /// What happened, for people; at most 160 bytes of it travel, control characters do not.
    pub message: String,
}

impl NotDone {
    /// A reason.
    pub fn new(failure: EntryFailure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into() }
    }
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.failure)
    }
}

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryOutcome {
    /// A directory is there, with its mode and time.
    Directory,
    /// The file (or link) was sent and is durable.
    Stored {
        /// Its bytes.
        bytes: u64,
    },
    /// The receiver had it: same size and time, or same digest if that was asked for.
    Unchanged,
    /// The source does not have it any more, and the receiver does not now. Durable with the end of the tree; all else is when it is told.
    Removed,
    /// It was not done.
    NotDone(NotDone),
}

/// A failed call on the receiver's disk, as the sender may know it: without paths.
pub(crate) fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> NotDone {
    move |e| {
        use io::ErrorKind::{FileTooLarge, IsADirectory, NotADirectory, QuotaExceeded, StorageFull};
        let failure = match e.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => EntryFailure::StorageFull,
            NotADirectory | IsADirectory => EntryFailure::Clash,
            _ => EntryFailure::Io,
        };
        NotDone::new(failure, format!("{doing} failed at the receiver: {}", e.kind()))
    }
}

/// An entry that was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoneEntry {
    /// Where in the tree. May hold any bytes but `/` and NUL: show it with [`shown_path`](crate::shown_path).
    pub path: PathBuf,
    /// Why.
    pub why: NotDone,
}

impl fmt::Display for UndoneEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", shown(&self.path), self.why)
    }
}

/// What became of a tree: exact counts, and every entry that was not done (up to [`TreeReport::LISTED`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeReport {
    /// The transfer's id.
    pub id: TransferId,
    /// The directory's name at the receiver; numbered if the wanted one was taken.
    pub name: PathBuf,
    /// Files and links that were sent and are durable.
    pub stored: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Those of them that an earlier, interrupted transfer had brought: known to the sender only.
    pub resumed_bytes: u64,
    /// Content bytes of files as they travelled from here: compressed if they were, over all attempts, and with what was sent again; of
    /// small files that went to several at once with some 45 bytes for each. Known to the sender only.
    pub travelled: u64,
    /// Files that the receiver had already.
    pub unchanged: u64,
    /// How often the tree was begun again after a lost connection; everything else but the next three is about the last attempt.
    /// Known to the sender only.
    pub retries: u32,
    /// Files and links of which the sender knows that attempts before the last have stored them: unchanged now, if nobody has
    /// touched them meanwhile. Known to the sender only.
    pub stored_before: u64,
    /// Their bytes.
    pub bytes_before: u64,
    /// What attempts before the last one have removed. Known to the sender only.
    pub removed_before: u64,
    /// Directories, the tree's own included.
    pub directories: u64,
    /// Files, links and directories that were removed because the source no longer has them; see
    /// [`TreeOptions::delete`](crate::TreeOptions::delete).
    pub removed: u64,
    /// Entries that were not done, on either side, and what could not be removed.
    pub not_done: u64,
    /// The first of them.
    pub undone: Vec<UndoneEntry>,
    /// SHA-256 of the manifest as both sides know it: every name, kind, size, mode and time in order, and every file's
    /// digest if checksums were asked for.
    pub manifest: Digest,
    /// From the call to the last acknowledgement.
    pub duration: Duration,
}

impl TreeReport {
    /// Entries that were not done are listed up to this many; [`TreeReport::not_done`] counts all.
    pub const LISTED: usize = 10_000;
    /// Likewise, up to this many bytes of their paths and reasons together.
    pub const LISTED_BYTES: usize = 8 << 20;

    /// Whether everything of the source is at the receiver.
    pub fn is_complete(&self) -> bool {
        self.not_done == 0
    }
}

/// How far a tree has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeProgress {
    /// Files found so far; more may come until [`TreeProgress::complete`].
    pub found: u64,
    /// Their bytes.
    pub found_bytes: u64,
    /// Files that are settled: durable at the receiver, unchanged, or not done.
    pub settled: u64,
    /// Their bytes.
    pub settled_bytes: u64,
    /// Whether everything has been found.
    pub complete: bool,
}

/// Called as a tree advances.
pub type TreeProgressFn = Arc<dyn Fn(TreeProgress) + Send + Sync>;

/// Called with every entry that is settled, in no particular order.
pub type EntryFn = Arc<dyn Fn(&std::path::Path, &EntryOutcome) + Send + Sync>;

/// How many entries met which end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) stored: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) unchanged: u64,
    pub(crate) directories: u64,
    pub(crate) not_done: u64,
    pub(crate) removed: u64,
}

/// What attempts before the last one have done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Earlier {
    attempts: u32,
    stored: u64,
    bytes: u64,
    travelled: u64,
    removed: u64,
}

impl Earlier {
    /// One more, which was cut off.
    pub(crate) fn add(&mut self, ledger: &Ledger) {
        self.attempts += 1;
        self.stored += ledger.tally.stored;
        self.bytes += ledger.tally.stored_bytes;
        self.travelled += ledger.travelled;
        self.removed += ledger.tally.removed;
    }
}

/// Counts outcomes and keeps the list.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) tally: Tally,
    pub(crate) undone: Vec<UndoneEntry>,
    undone_bytes: usize,
    /// Entries that the other side does not count, since it cannot be told of them.
    untold: u64,
    pub(crate) resumed_bytes: u64,
    /// Content bytes as they left here.
    pub(crate) travelled: u64,
}

impl Ledger {
    pub(crate) fn settle(&mut self, path: &std::path::Path, outcome: &EntryOutcome) {
        match outcome {
            EntryOutcome::Directory => self.tally.directories += 1,
            EntryOutcome::Stored { bytes } => {
                self.tally.stored += 1;
                self.tally.stored_bytes += bytes;
            }
            EntryOutcome::Unchanged => self.tally.unchanged += 1,
            EntryOutcome::Removed => self.tally.removed += 1,
            EntryOutcome::NotDone(why) => {
                self.tally.not_done += 1;
                self.list(path, why);
            }
        }
    }

    /// Whether the other side knows of every entry.
    pub(crate) fn is_all_told(&self) -> bool {
        self.untold == 0
    }

    pub(crate) fn settle_untold(&mut self, path: &std::path::Path, why: &NotDone) {
        self.untold += 1;
        self.list(path, why);
    }

    fn list(&mut self, path: &std::path::Path, why: &NotDone) {
        let bytes = path.as_os_str().len() + why.message.len();
        if self.undone.len() < TreeReport::LISTED && self.undone_bytes + bytes <= TreeReport::LISTED_BYTES {
            self.undone_bytes += bytes;
            self.undone.push(UndoneEntry { path: path.to_owned(), why: why.clone() });
        }
    }

    pub(crate) fn report(
        self,
        id: TransferId,
        name: PathBuf,
        manifest: Digest,
        duration: Duration,
        earlier: Earlier,
    ) -> TreeReport {
        let Tally { stored, stored_bytes, unchanged, directories, not_done, removed } = self.tally;
        let mut undone = self.undone;
        undone.sort_by(|a, b| a.path.cmp(&b.path));
        TreeReport {
            id,
            name,
            stored,
            stored_bytes,
            resumed_bytes: self.resumed_bytes,
            travelled: self.travelled + earlier.travelled,
            unchanged,
            retries: earlier.attempts,
            stored_before: earlier.stored,
            bytes_before: earlier.bytes,
            removed_before: earlier.removed,
            directories,
            removed,
            not_done: not_done + self.untold,
            undone,
            manifest,
            duration,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_done_is_listed_within_bounds_and_counted_in_full() {
        for (len, listed) in [(1, TreeReport::LISTED), (4000, TreeReport::LISTED_BYTES / 4003)] {
            let mut ledger = Ledger::default();
            let outcome = EntryOutcome::NotDone(NotDone::new(EntryFailure::Io, "why"));
            for _ in 0..TreeReport::LISTED + 10 {
                ledger.settle("x".repeat(len).as_ref(), &outcome);
            }
            assert_eq!(ledger.tally.not_done, TreeReport::LISTED as u64 + 10);
            assert_eq!(ledger.undone.len(), listed);
        }
    }

    #[test]
    fn every_reason_survives_the_wire() {
        for (i, failure) in EntryFailure::KNOWN.into_iter().enumerate() {
            assert_eq!(failure.to_u16() as usize, i + 1, "{failure:?} must stay at its place");
            assert_eq!(EntryFailure::from_u16(failure.to_u16()), failure);
        }
        for n in [0, 12, u16::MAX] {
            assert_eq!(EntryFailure::from_u16(n), EntryFailure::Other(n));
            assert_eq!(EntryFailure::Other(n).to_u16(), n);
        }
    }
}
