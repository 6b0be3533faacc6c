//! Who is measured, and how each is told to be durable.

use std::path::Path;

use clap::ValueEnum;
use octopii_bench::Outcome;
use octopii_bench::load::Load;

use crate::workload::Workload;
use crate::{octopii, okaywal, raft_engine, raft_log, raw, sqlite, walrus};

/// One of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Peer {
    /// A loop of pwrite and fdatasync with one writer, whatever the number of writers of the others.
    Raw,
    OctopiiWal,
    RaftEngine,
    Okaywal,
    Sqlite,
    WalrusRust,
    RaftLog,
}

impl Peer {
    pub(crate) const ALL: [Self; 7] = [
        Self::Raw,
        Self::OctopiiWal,
        Self::RaftEngine,
        Self::Okaywal,
        Self::Sqlite,
        Self::WalrusRust,
        Self::RaftLog,
    ];

    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// How it is told to sync before it acknowledges.
    pub(crate) fn durability(self) -> &'static str {
        match self {
            Self::Raw => "`fdatasync` after each `pwrite`",
            Self::OctopiiWal => "`Durability::Synced`, then `Ticket::wait`",
            Self::RaftEngine => {
                "`Engine::write(batch, sync = true)` from each thread: `fdatasync` by the group's leader"
            }
            Self::Okaywal => {
                "`EntryWriter::commit`: `fdatasync`, shared by those who wait; there is no other mode"
            }
            Self::Sqlite => {
                "WAL, `synchronous=FULL`; a thread commits all that waits in one transaction: `fdatasync`"
            }
            Self::WalrusRust => {
                "`FsyncSchedule::SyncEach`: `msync` after each append; with 64 writers `O_SYNC` and `fsync`"
            }
            Self::RaftLog => {
                "`flush(sync = true)` with a callback: `fdatasync` by its worker, shared by those who ask within 100 µs"
            }
        }
    }

    /// Whether it can append without waiting for the disk.
    pub(crate) fn can_be_lazy(self) -> bool {
        self != Self::Okaywal
    }

    pub(crate) fn append(self, dir: &Path, workload: &Workload) -> Outcome<Load> {
        match self {
            Self::Raw => raw::append(dir, workload),
            Self::OctopiiWal => octopii::append(dir, workload),
            Self::RaftEngine => raft_engine::append(dir, workload),
            Self::Okaywal => okaywal::append(dir, workload),
            Self::Sqlite => sqlite::append(dir, workload),
            Self::WalrusRust => walrus::append(workload),
            Self::RaftLog => raft_log::append(dir, workload),
        }
    }

    /// Makes a log with [`ENTRIES`](crate::workload::ENTRIES) entries in one topic.
    pub(crate) fn fill(self, dir: &Path) -> Outcome<()> {
        match self {
            Self::Raw => raw::fill(dir),
            Self::OctopiiWal => octopii::fill(dir),
            Self::RaftEngine => raft_engine::fill(dir),
            Self::Okaywal => okaywal::fill(dir),
            Self::Sqlite => sqlite::fill(dir),
            Self::WalrusRust => walrus::fill(),
            Self::RaftLog => raft_log::fill(dir),
        }
    }

    /// Opens the log that [`Self::fill`] made and reads all entries. Returns how many there were.
    pub(crate) fn read(self, dir: &Path) -> Outcome<u64> {
        match self {
            Self::Raw => raw::read(dir),
            Self::OctopiiWal => octopii::read(dir),
            Self::RaftEngine => raft_engine::read(dir),
            Self::Okaywal => okaywal::read(dir),
            Self::Sqlite => sqlite::read(dir),
            Self::WalrusRust => walrus::read(),
            Self::RaftLog => raft_log::read(dir),
        }
    }
}

/// The raw loop and octopii-wal, to which all are compared, and those asked for.
pub(crate) fn chosen(only: &[Peer]) -> Vec<Peer> {
    let is_chosen = |peer: &Peer| matches!(peer, Peer::Raw | Peer::OctopiiWal) || only.contains(peer);
    Peer::ALL.into_iter().filter(is_chosen).collect()
}
