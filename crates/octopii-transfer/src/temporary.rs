//! Files that are not there yet: hidden while they grow, published whole, removed if nothing comes of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use octopii_vfs::{FileHandle, FileKind, LockGuard, OpenMode, Vfs, create_dir_all_durable};

use crate::TransferError;
use crate::name::{TEMPORARY_PREFIX, check_file_name, numbered};

const TEMPORARY_SUFFIX: &str = ".part";

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
    named: bool,
    _lock: Box<dyn LockGuard>,
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
                        named: true,
                        _lock: lock,
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

    pub(crate) fn file(&self) -> &FileHandle {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the content durable, then gives it its final name, then makes the name durable. Returns the path it got.
    pub(crate) fn publish(mut self, name: &str, replace: bool) -> Result<PathBuf, TransferError> {
        self.file.sync_data().map_err(|e| TransferError::store("syncing", &self.path, e))?;
        let path = if replace { self.replace(name)? } else { self.place(name)? };
        self.named = false;
        if let Err(e) = self.vfs.sync_dir(&self.dir) {
            // The sender will be told that nothing is here. A file that has replaced another stays: taking it away
            // would leave neither. An error here changes nothing about that answer.
            if !replace {
                let _ = self.vfs.remove_file(&path);
            }
            return Err(TransferError::store("syncing directory", &self.dir, e));
        }
        Ok(path)
    }

    fn replace(&self, name: &str) -> Result<PathBuf, TransferError> {
        let path = self.dir.join(name);
        self.vfs.rename(&self.path, &path).map_err(|e| TransferError::store("renaming to", &path, e))?;
        Ok(path)
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
        if self.named
            && let Err(e) = self.vfs.remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), "cannot remove a temporary file: {e}");
        }
    }
}

/// Removes the temporary files that dead processes have left in `dir`. Those of live transfers, here or in another
/// process, and everything that is not Octopii's stay. Returns how many were removed.
pub(crate) fn sweep(vfs: &dyn Vfs, dir: &Path) -> io::Result<usize> {
    let entries = match vfs.read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let mut removed = 0;
    for entry in entries {
        if entry.metadata.kind != FileKind::File || !entry.name.to_str().is_some_and(is_temporary) {
            continue;
        }
        let path = dir.join(&entry.name);
        match vfs.lock(&path) {
            Ok(_held) => match vfs.remove_file(&path) {
                Ok(()) => removed += 1,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(removed)
}

fn is_temporary(name: &str) -> bool {
    name.strip_prefix(TEMPORARY_PREFIX)
        .and_then(|rest| rest.strip_suffix(TEMPORARY_SUFFIX))
        .is_some_and(|id| id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
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
    use octopii_vfs::RealVfs;

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
            assert_eq!(tmp.publish("a.txt", false).unwrap(), dir.path().join(expected));
        }
        assert_eq!(octopii_vfs::read_file(&*vfs, &dir.path().join("a.txt"), 9).unwrap(), [0]);
        let tmp = TemporaryFile::create(&vfs, dir.path()).unwrap();
        tmp.file().write_all_at(b"new", 0).unwrap();
        tmp.publish("a.txt", true).unwrap();
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
        assert_eq!(sweep(&*vfs, dir.path()).unwrap(), 1);
        let left = names(dir.path());
        assert!(!left.contains(&dead));
        assert_eq!(left.len(), others.len() + 1);
        drop(live);
        assert_eq!(names(dir.path()).len(), others.len());
        assert_eq!(sweep(&*vfs, &dir.path().join("missing")).unwrap(), 0);
    }
}
