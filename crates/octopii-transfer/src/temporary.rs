//! Files that are not there yet: hidden while they grow, published whole, removed if nothing comes of them. One that can be
//! resumed is kept for a while, with its journal beside it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use octopii_vfs::{FileHandle, LockGuard, OpenMode, Vfs, create_dir_all_durable};

use crate::TransferError;
use crate::checkpoints::hex;
use crate::journal::{About, Journal, Prefix};
use crate::name::{TEMPORARY_PREFIX, check_file_name, numbered};

mod sweep;

use self::sweep::give_back_space;
pub(crate) use self::sweep::{Keeping, Swept, sweep};

const TEMPORARY_SUFFIX: &str = ".part";
const JOURNAL_SUFFIX: &str = ".journal";

/// How many names are tried before a file whose name is taken is given up.
const MAX_NUMBER: u32 = 9999;

/// A hidden file in its destination directory. Dropping it removes it. All calls block.
///
/// It is locked as long as it lives, so that [`sweep`], here or in another process, takes away only what a dead process
/// has left.
#[derive(Debug)]
pub(crate) struct TemporaryFile {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    path: PathBuf,
    file: FileHandle,
    journal: Option<PathBuf>,
    named: bool,
    fate: Fate,
    lock: Arc<dyn LockGuard>,
}

/// Whether a file stays when nobody works on it any more. That it does not is the last word.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fate(Arc<AtomicU8>);

const UNDECIDED: u8 = 0;
const KEPT: u8 = 1;
const REMOVED: u8 = 2;

impl Fate {
    /// There is something to go on from.
    pub(crate) fn keep(&self) {
        // An error means that it is kept, or not to be kept, already.
        let _ = self.0.compare_exchange(UNDECIDED, KEPT, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn remove(&self) {
        self.0.store(REMOVED, Ordering::Relaxed);
    }

    fn is_kept(&self) -> bool {
        self.0.load(Ordering::Relaxed) == KEPT
    }
}

impl TemporaryFile {
    /// Creates the file, and its directory if need be.
    pub(crate) fn create(vfs: &Arc<dyn Vfs>, dir: &Path) -> Result<Self, TransferError> {
        create_dir_all_durable(&**vfs, dir)
            .map_err(|e| TransferError::store("creating directory", dir, e))?;
        let mut attempts = 0;
        loop {
            let path =
                dir.join(format!("{TEMPORARY_PREFIX}{:032x}{TEMPORARY_SUFFIX}", rand::random::<u128>()));
            // The lock comes first and creates the file. Were it created first, a sweep could remove it before the lock,
            // and the lock would then create and hold another, empty file of the same name.
            let opened = vfs.lock(&path).and_then(|lock| Ok((lock, vfs.open(&path, OpenMode::ReadWrite)?)));
            match opened {
                Ok((lock, file)) => {
                    return Ok(Self {
                        vfs: Arc::clone(vfs),
                        dir: dir.to_owned(),
                        path,
                        file,
                        journal: None,
                        named: true,
                        fate: Fate::default(),
                        lock: lock.into(),
                    });
                }
                // A sweep was quicker than the lock; it will not meet the next name.
                Err(e)
                    if attempts < 3
                        && matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) =>
                {
                    attempts += 1;
                }
                Err(e) => {
                    // Whatever half of it exists must not stay; if removing fails too, the next sweep does it.
                    let _ = vfs.remove_file(&path);
                    return Err(TransferError::store("creating a file in", dir, e));
                }
            }
        }
    }

    /// Opens the file of content that can be resumed, with what an earlier transfer left of it, or creates it. `None` if it
    /// is in use.
    pub(crate) fn open_resumable(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        about: About,
    ) -> Result<Option<(Self, Journal, Prefix)>, TransferError> {
        create_dir_all_durable(&**vfs, dir)
            .map_err(|e| TransferError::store("creating directory", dir, e))?;
        let name = crate::Digest::of(&[&b"octopii partial"[..], &about.key.0].concat());
        let stem = format!("{TEMPORARY_PREFIX}{}", hex(&name.0[..16]));
        let path = dir.join(format!("{stem}{TEMPORARY_SUFFIX}"));
        let journal = dir.join(format!("{stem}{JOURNAL_SUFFIX}"));
        let failed = |e| TransferError::store("opening a file to resume in", dir, e);
        let lock: Arc<dyn LockGuard> = match vfs.lock(&path) {
            Ok(lock) => lock.into(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let file = match vfs.open(&path, OpenMode::ReadWrite) {
            // Whoever held the lock before took the file away between the two calls.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let temporary = Self {
            vfs: Arc::clone(vfs),
            dir: dir.to_owned(),
            path,
            file,
            journal: Some(journal.clone()),
            named: true,
            fate: Fate::default(),
            lock,
        };
        let journal = match vfs.open(&journal, OpenMode::ReadWrite) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => vfs.open(&journal, OpenMode::CreateNew),
            other => other,
        }
        .map_err(failed)?;
        let stored = temporary.file.len().map_err(failed)?;
        if let Some((journal, prefix)) =
            Journal::resume(about, FileHandle::clone(&journal), stored).map_err(failed)?
        {
            temporary.fate.keep();
            return Ok(Some((temporary, journal, prefix)));
        }
        // Nothing that could be believed: the content begins anew.
        temporary.file.set_len(0).map_err(failed)?;
        let journal = Journal::begin(about, journal).map_err(failed)?;
        Ok(Some((temporary, journal, Prefix::default())))
    }

    /// Whether the file stays for another transfer to go on from when this is dropped.
    pub(crate) fn set_keep(&mut self, keep: bool) {
        match keep {
            true => self.fate.keep(),
            false => self.fate.remove(),
        }
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.fate.is_kept()
    }

    /// For whoever makes the file worth keeping on another thread.
    pub(crate) fn fate(&self) -> Fate {
        self.fate.clone()
    }

    pub(crate) fn is_resumable(&self) -> bool {
        self.journal.is_some()
    }

    /// In force as long as anyone holds it.
    pub(crate) fn lock(&self) -> &Arc<dyn LockGuard> {
        &self.lock
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn file(&self) -> &FileHandle {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are free where it is.
    pub(crate) fn free_space(&self) -> Result<u64, TransferError> {
        let failed = |e| TransferError::store("asking the free space of", &self.dir, e);
        self.vfs.free_space(&self.dir).map_err(failed)
    }

    /// Gives the content its final name. If it is to be `durable`, the content is made so before, and the name after that. Returns
    /// the path it got.
    pub(crate) fn publish(
        mut self,
        name: &str,
        replace: bool,
        durable: bool,
    ) -> Result<PathBuf, TransferError> {
        if durable {
            self.file.sync_data().map_err(|e| TransferError::store("syncing", &self.path, e))?;
        }
        let path = if replace { self.replace(name)? } else { self.place(name)? };
        self.named = false;
        self.remove_journal();
        if durable && let Err(e) = self.vfs.sync_dir(&self.dir) {
            // The sender will be told that nothing is here. A file that has replaced another stays: taking it away
            // would leave neither. An error here changes nothing about that answer.
            if !replace {
                let _ = self.vfs.remove_file(&path);
            }
            return Err(TransferError::store("syncing directory", &self.dir, e));
        }
        Ok(path)
    }

    fn remove_journal(&self) {
        if let Some(journal) = &self.journal
            && let Err(e) = self.vfs.remove_file(journal)
        {
            tracing::warn!(path = %journal.display(), "cannot remove a journal: {e}");
        }
    }

    fn replace(&self, name: &str) -> Result<PathBuf, TransferError> {
        let path = self.dir.join(name);
        self.vfs.rename(&self.path, &path).map_err(|e| TransferError::store("renaming to", &path, e))?;
        Ok(path)
    }

    /// Forgets what lies behind the first `len` bytes, and what was reserved there.
    pub(crate) fn cut(&self, len: u64) -> Result<(), TransferError> {
        self.file.set_len(len).map_err(|e| TransferError::store("cutting", &self.path, e))
    }

    /// Bytes of disk that it takes.
    pub(crate) fn stored(&self) -> Result<u64, TransferError> {
        self.file.stored().map_err(|e| TransferError::store("looking at", &self.path, e))
    }

    /// Gives back the space that was reserved and has not been written.
    fn give_back_space(&self) {
        if let Err(e) = give_back_space(&self.file) {
            tracing::warn!(path = %self.path.display(), "cannot give back reserved space: {e}");
        }
    }

    /// Atomically takes the first free name of the series.
    fn place(&self, name: &str) -> Result<PathBuf, TransferError> {
        let mut n = 0;
        loop {
            let path = self.dir.join(numbered(name, n));
            match self.vfs.rename_no_replace(&self.path, &path) {
                Ok(()) => return Ok(path),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < MAX_NUMBER => n += 1,
                Err(e) => return Err(TransferError::store("renaming to", &path, e)),
            }
        }
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.named {
            return;
        }
        if self.fate.is_kept() {
            return self.give_back_space();
        }
        if let Err(e) = self.vfs.remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), "cannot remove a temporary file: {e}");
        }
        self.remove_journal();
    }
}

/// Whether a policy's choice of name can be trusted to stay within its directory.
pub(crate) fn check_destination_name(name: &str) -> Result<(), TransferError> {
    use crate::{FailureCode, Refusal};
    check_file_name(name).map_err(|why| {
        TransferError::Unacceptable(Refusal::new(
            FailureCode::BadName,
            format!("the name is not a plain file name: {why}; send it under another name"),
        ))
    })
}

#[cfg(test)]
mod tests;
