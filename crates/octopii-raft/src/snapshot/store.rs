//! The directory that snapshots live in.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use octopii_vfs::{FileKind, Vfs, create_dir_all_durable};

use crate::error::SnapshotError;
use crate::group::SnapshotMeta;
use crate::snapshot::file;

/// Where snapshots arrive from other members, before they are installed.
const INCOMING: &str = "incoming";
const PREFIX: &str = "snapshot-";
const SUFFIX: &str = ".snap";

/// A snapshot file that is whole, by path. What the consensus library hands around as the snapshot's data.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotData {
    pub(crate) path: PathBuf,
}

/// The current snapshot, and the files behind it.
#[derive(Debug)]
pub(crate) struct SnapshotStore {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    current: Option<(SnapshotMeta, PathBuf)>,
    /// The one before, kept while it may still be on its way to another member.
    previous: Option<PathBuf>,
}

impl SnapshotStore {
    /// Opens the directory, creating it if need be, clears what an interrupted run left, and verifies the newest snapshot.
    pub(crate) fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Self, SnapshotError> {
        let io = |source| SnapshotError::Io { path: dir.to_owned(), source };
        let incoming = dir.join(INCOMING);
        create_dir_all_durable(&*vfs, &incoming).map_err(io)?;
        for entry in vfs.read_dir(&incoming).map_err(io)? {
            vfs.remove_file(&incoming.join(entry.name)).map_err(io)?;
        }
        let mut snapshots = Vec::new();
        for entry in vfs.read_dir(dir).map_err(io)? {
            let name = entry.name.to_string_lossy();
            if entry.metadata.kind != FileKind::File || !name.starts_with(PREFIX) {
                continue;
            }
            if name.ends_with(SUFFIX) {
                snapshots.push(dir.join(&entry.name));
            } else {
                vfs.remove_file(&dir.join(&entry.name)).map_err(io)?;
            }
        }
        // Names sort by position. An older file must not stand in for a damaged newest one: the log that it would need
        // may be purged already, and acknowledged commands would vanish.
        let current = snapshots.pop();
        for old in snapshots {
            vfs.remove_file(&old).map_err(io)?;
        }
        let current = match current {
            None => None,
            Some(path) => {
                let verified = file::open(&*vfs, &path)?;
                let unreadable =
                    |_| SnapshotError::Damaged { path: path.clone(), what: "its membership is invalid" };
                Some((verified.meta.try_into().map_err(unreadable)?, path))
            }
        };
        Ok(Self { vfs, dir: dir.to_owned(), files: Mutex::new(Files { current, previous: None }) })
    }

    pub(crate) fn vfs(&self) -> &Arc<dyn Vfs> {
        &self.vfs
    }

    /// Where snapshots from other members are to be put.
    pub(crate) fn incoming(&self) -> PathBuf {
        self.dir.join(INCOMING)
    }

    /// The name a snapshot has once it is whole and durable.
    pub(crate) fn path_of(&self, meta: &SnapshotMeta) -> PathBuf {
        let (next, term, node) = meta
            .last_log_id
            .map_or((0, 0, 0), |id| (id.index.saturating_add(1), id.leader_id.term, id.leader_id.node_id));
        self.dir.join(format!("{PREFIX}{next:020}-{term:020}-{node:020}{SUFFIX}"))
    }

    pub(crate) fn current(&self) -> Option<(SnapshotMeta, SnapshotData)> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.current.as_ref().map(|(meta, path)| (meta.clone(), SnapshotData { path: path.clone() }))
    }

    /// Moves a whole, synced file in as the snapshot `meta` and makes its name durable.
    pub(crate) fn move_in(&self, meta: &SnapshotMeta, from: &Path) -> io::Result<()> {
        let path = self.path_of(meta);
        if from != path {
            self.vfs.rename(from, &path)?;
            self.vfs.sync_dir(&self.dir)?;
        }
        self.adopt(meta, path)
    }

    /// Makes the durable file at `path` the current snapshot, unless a newer one is, and removes what is no longer needed.
    pub(crate) fn adopt(&self, meta: &SnapshotMeta, path: PathBuf) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let unneeded = match &mut files.current {
            Some((current, _)) if current.last_log_id > meta.last_log_id => Some(path),
            Some((current, held)) if *held == path => {
                *current = meta.clone();
                None
            }
            current => {
                let replaced = current.replace((meta.clone(), path)).map(|(_, path)| path);
                std::mem::replace(&mut files.previous, replaced)
            }
        };
        match unneeded {
            Some(path) => self.vfs.remove_file(&path),
            None => Ok(()),
        }
    }
}
