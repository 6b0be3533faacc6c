//! Files that are not there yet: hidden while they grow, published whole, removed if nothing comes of them. One that can be
//! resumed is kept for a while, with its journal beside it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use octopii_vfs::{FileHandle, FileKind, LockGuard, OpenMode, Vfs, create_dir_all_durable};

use crate::TransferError;
use crate::checkpoints::hex;
use crate::journal::{About, Journal, Prefix};
use crate::name::{TEMPORARY_PREFIX, check_file_name, numbered};

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

/// What of abandoned files is kept in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    /// How long after the last sync.
    pub(crate) time: Duration,
    /// How many files.
    pub(crate) count: usize,
    /// How many bytes in all.
    pub(crate) bytes: u64,
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

/// Removes the temporary files that dead processes have left in `dir`, but for those that can be resumed: of them the latest
/// stay, as many as `keeping` allows. Those of live transfers, here or in another process, and everything that is not
/// Octopii's stay. Returns how many were removed.
pub(crate) fn sweep(vfs: &dyn Vfs, dir: &Path, keeping: Keeping, now: SystemTime) -> io::Result<usize> {
    let entries = match vfs.read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut removed = 0;
    let mut abandoned = Vec::new();
    for entry in &entries {
        let Some(name) = entry.name.to_str().filter(|_| entry.metadata.kind == FileKind::File) else {
            continue;
        };
        if let Some(stem) = stem(name, TEMPORARY_SUFFIX) {
            let journal = dir.join(format!("{stem}{JOURNAL_SUFFIX}"));
            let age = match vfs.open(&journal, OpenMode::Read).and_then(|file| file.modified()) {
                // Of a file system that keeps no times nothing is kept.
                Ok(modified) => modified.map(|at| now.duration_since(at).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(e),
            };
            abandoned.push((age.unwrap_or(Duration::MAX), dir.join(name), journal, true));
        } else if let Some(stem) = stem(name, JOURNAL_SUFFIX)
            && !entries.iter().any(|e| e.name.to_str() == Some(&format!("{stem}{TEMPORARY_SUFFIX}")))
        {
            // A listing is no snapshot: the file may have come since.
            let path = dir.join(format!("{stem}{TEMPORARY_SUFFIX}"));
            abandoned.push((Duration::MAX, path, dir.join(name), false));
        }
    }
    abandoned.sort();
    let (mut count, mut bytes) = (0, 0);
    for (age, path, journal, was_there) in abandoned {
        // Locking creates what is not there any more: it is empty then, and goes again.
        let _held = match vfs.lock(&path) {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            Err(e) => return Err(e),
        };
        let file = match vfs.open(&path, OpenMode::ReadWrite) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let len = file.len()?;
        let fits = count < keeping.count && len <= keeping.bytes - bytes;
        if len > 0 && age < keeping.time && fits {
            count += 1;
            bytes += len;
            give_back_space(&file)?;
        } else {
            remove_if_there(vfs, &journal)?;
            removed += usize::from(remove_if_there(vfs, &path)? && was_there);
        }
    }
    Ok(removed)
}

/// What lies behind the end of a file is what was reserved for it: setting its length to what it is takes that away.
fn give_back_space(file: &FileHandle) -> io::Result<()> {
    file.set_len(file.len()?)
}

fn remove_if_there(vfs: &dyn Vfs, path: &Path) -> io::Result<bool> {
    match vfs.remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The part of the name of a temporary file, or of a journal, that both have in common.
fn stem<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let stem = name.strip_suffix(suffix)?;
    let id = stem.strip_prefix(TEMPORARY_PREFIX)?;
    (id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then_some(stem)
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
mod tests {
    use super::*;
    use crate::wire::ResumeKey;
    use octopii_vfs::RealVfs;

    const KEEPING: Keeping = Keeping { time: Duration::from_secs(3600), count: 9, bytes: 1 << 20 };

    fn names(dir: &Path) -> Vec<String> {
        let entries = RealVfs.read_dir(dir).unwrap();
        entries.into_iter().map(|e| e.name.into_string().unwrap()).collect()
    }

    #[test]
    fn a_taken_name_is_numbered_and_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let vfs = RealVfs::shared();
        for (i, expected) in ["a.txt", "a (1).txt", "a (2).txt"].into_iter().enumerate() {
            let tmp = TemporaryFile::create(&vfs, dir.path()).unwrap();
            tmp.file().write_all_at(&[i as u8], 0).unwrap();
            assert_eq!(tmp.publish("a.txt", false, true).unwrap(), dir.path().join(expected));
        }
        assert_eq!(octopii_vfs::read_file(&*vfs, &dir.path().join("a.txt"), 9).unwrap(), [0]);
        let tmp = TemporaryFile::create(&vfs, dir.path()).unwrap();
        tmp.file().write_all_at(b"new", 0).unwrap();
        tmp.publish("a.txt", true, true).unwrap();
        assert_eq!(octopii_vfs::read_file(&*vfs, &dir.path().join("a.txt"), 9).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a (1).txt", "a (2).txt", "a.txt"]);
    }

    #[test]
    fn a_dropped_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        drop(TemporaryFile::create(&RealVfs::shared(), dir.path()).unwrap());
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_sweep_takes_what_the_dead_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let vfs = RealVfs::shared();
        let live = TemporaryFile::create(&vfs, dir.path()).unwrap();
        let dead = format!("{TEMPORARY_PREFIX}{:032x}{TEMPORARY_SUFFIX}", 7);
        let others =
            [".octopii-notes.part", ".octopii-", "a.part", ".octopii-0123456789ABCDEF0123456789ABCDEF.part"];
        for name in others.iter().copied().chain([dead.as_str()]) {
            vfs.open(&dir.path().join(name), OpenMode::CreateNew).unwrap();
        }
        assert_eq!(sweep(&*vfs, dir.path(), KEEPING, SystemTime::now()).unwrap(), 1);
        let left = names(dir.path());
        assert!(!left.contains(&dead));
        assert_eq!(left.len(), others.len() + 1);
        drop(live);
        assert_eq!(names(dir.path()).len(), others.len());
        let missing = dir.path().join("missing");
        assert_eq!(sweep(&*vfs, &missing, KEEPING, SystemTime::now()).unwrap(), 0);
    }

    fn abandon(vfs: &Arc<dyn Vfs>, dir: &Path, n: u8) {
        let about = About { key: ResumeKey([n; 16]), size: None, block_size: 4096 };
        let (mut file, _, _) = TemporaryFile::open_resumable(vfs, dir, about).unwrap().unwrap();
        assert!(TemporaryFile::open_resumable(vfs, dir, about).unwrap().is_none(), "it is in use");
        file.file().write_all_at(&[n; 1000], 0).unwrap();
        file.set_keep(true);
    }

    #[test]
    fn what_can_be_resumed_is_kept_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, vfs) = (dir.path(), RealVfs::shared());
        (0..4).for_each(|n| abandon(&vfs, dir, n));
        let orphan = dir.join(format!("{TEMPORARY_PREFIX}{:032x}{JOURNAL_SUFFIX}", 7));
        vfs.open(&orphan, OpenMode::CreateNew).unwrap();
        let now = SystemTime::now();
        let swept = |keeping, now| sweep(&*vfs, dir, keeping, now).unwrap();
        assert_eq!((swept(KEEPING, now), names(dir).len()), (0, 8), "but the journal of nothing");
        assert_eq!(swept(Keeping { count: 3, ..KEEPING }, now), 1);
        assert_eq!(swept(Keeping { bytes: 2999, ..KEEPING }, now), 1);
        assert_eq!(names(dir).len(), 4);
        assert_eq!(swept(KEEPING, now + 2 * KEEPING.time), 2);
        assert!(names(dir).is_empty());
    }

    /// It would otherwise take away all that is older, and still not fit.
    #[test]
    fn what_does_not_fit_takes_nobody_elses_place() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, vfs) = (dir.path(), RealVfs::shared());
        abandon(&vfs, dir, 1);
        abandon(&vfs, dir, 2);
        let large = names(dir).into_iter().filter(|name| name.ends_with(TEMPORARY_SUFFIX));
        // Of the same moment, the first by name.
        let latest = large.max_by_key(|name| {
            let journal = name.replace(TEMPORARY_SUFFIX, JOURNAL_SUFFIX);
            let modified = vfs.open(&dir.join(journal), OpenMode::Read).unwrap().modified().unwrap();
            (modified, std::cmp::Reverse(name.clone()))
        });
        vfs.open(&dir.join(latest.unwrap()), OpenMode::ReadWrite).unwrap().set_len(5000).unwrap();
        let keeping = Keeping { bytes: 4000, ..KEEPING };
        assert_eq!(sweep(&*vfs, dir, keeping, SystemTime::now()).unwrap(), 1);
        assert_eq!(names(dir).len(), 2, "the older one fits");
    }

    /// What is reserved beyond its end would be counted nowhere and fill the disk.
    #[test]
    fn what_is_kept_takes_no_more_room_than_it_has_bytes() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (dir, vfs) = (dir.path(), RealVfs::shared());
        let about = About { key: ResumeKey([1; 16]), size: None, block_size: 4096 };
        let open = || TemporaryFile::open_resumable(&vfs, dir, about).unwrap().unwrap().0;
        let mut file = open();
        file.file().allocate(64 << 20).unwrap();
        file.file().write_all_at(&[1; 1000], 0).unwrap();
        let path = file.path().to_owned();
        let taken = || std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(taken() >= 64 << 20, "this file system does not reserve: {}", taken());
        file.set_keep(true);
        drop(file);
        assert!(taken() < 1 << 20, "{}", taken());
        // The same for what a killed process has left.
        vfs.open(&path, OpenMode::ReadWrite).unwrap().allocate(64 << 20).unwrap();
        assert_eq!(sweep(&*vfs, dir, KEEPING, SystemTime::now()).unwrap(), 0);
        assert!(taken() < 1 << 20, "{}", taken());
    }
}
