//! What is left of files that nobody works on any more: some of it is kept for a while.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use octopii_vfs::{FileHandle, FileKind, OpenMode, Vfs};

use super::{JOURNAL_SUFFIX, TEMPORARY_PREFIX, TEMPORARY_SUFFIX};

/// What of abandoned files is kept in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    /// How long after the last sync.
    pub(crate) time: Duration,
    /// How many files.
    pub(crate) count: usize,
    /// How many bytes they take in all.
    pub(crate) bytes: u64,
}

/// What a sweep found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Swept {
    /// Files that are gone now.
    pub(crate) removed: usize,
    /// Files that are kept, or in use.
    pub(crate) left: usize,
}

/// Removes the temporary files that dead processes have left in `dir`, but for those that can be resumed: of them the latest
/// stay, as many as `keeping` allows. Those of live transfers, here or in another process, and everything that is not
/// Octopii's stay.
pub(crate) fn sweep(vfs: &dyn Vfs, dir: &Path, keeping: Keeping, now: SystemTime) -> io::Result<Swept> {
    let entries = match vfs.read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Swept::default()),
        Err(e) => return Err(e),
    };
    let mut swept = Swept::default();
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
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                swept.left += 1;
                continue;
            }
            Err(e) => return Err(e),
        };
        let file = match vfs.open(&path, OpenMode::ReadWrite) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let len = file.len()?;
        // Holes take nothing.
        let taken = file.stored()?.min(len);
        let fits = count < keeping.count && taken <= keeping.bytes - bytes;
        if len > 0 && age < keeping.time && fits {
            count += 1;
            bytes += taken;
            swept.left += 1;
            give_back_space(&file)?;
        } else {
            remove_if_there(vfs, &journal)?;
            swept.removed += usize::from(remove_if_there(vfs, &path)? && was_there);
        }
    }
    Ok(swept)
}

/// What lies behind the end of a file is what was reserved for it: setting its length to what it is takes that away.
pub(super) fn give_back_space(file: &FileHandle) -> io::Result<()> {
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
