//! Small durable operations composed from the trait.

use std::io;
use std::path::{Path, PathBuf};

use crate::{FileKind, OpenMode, Vfs};

/// Creates `path` and its missing parents, and makes every created name durable.
pub fn create_dir_all_durable(vfs: &dyn Vfs, path: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut at = path;
    loop {
        match vfs.metadata(at) {
            Ok(m) if m.kind == FileKind::File => return Err(io::ErrorKind::NotADirectory.into()),
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::NotFound => missing.push(at),
            Err(e) => return Err(e),
        }
        match at.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => at = parent,
            _ => break,
        }
    }
    vfs.create_dir_all(path)?;
    for dir in missing.iter().rev() {
        vfs.sync_dir(parent_or_dot(dir))?;
    }
    Ok(())
}

/// Reads a whole file of at most `limit` bytes; a longer one is `FileTooLarge`.
pub fn read_file(vfs: &dyn Vfs, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = vfs.open(path, OpenMode::Read)?;
    let len = file.len()?;
    if len > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut out = vec![0; len as usize];
    file.read_exact_at(&mut out, 0)?;
    Ok(out)
}

/// Replaces the content of `path` durably and atomically: after a crash the file holds the old bytes or the new ones.
///
/// Written to `path` with `.tmp` appended, synced, renamed over `path`, and the directory synced.
pub fn write_file_durable(vfs: &dyn Vfs, path: &Path, data: &[u8]) -> io::Result<()> {
    through(vfs, path, ".tmp", data, |tmp| vfs.rename(tmp, path))?;
    vfs.sync_dir(parent_or_dot(path))
}

/// Writes a new file durably and atomically: after a crash all of it is there under its name, or nothing. Only its owner can read
/// it (mode 0600). An existing one is never replaced (`AlreadyExists`), and after an error none is left.
///
/// As [`write_file_durable`], through a file that has this process's id in its name, since two may be at it. A crash can leave that.
pub fn create_file_durable(vfs: &dyn Vfs, path: &Path, data: &[u8]) -> io::Result<()> {
    let suffix = format!(".{}.tmp", std::process::id());
    through(vfs, path, &suffix, data, |tmp| vfs.rename_no_replace(tmp, path))?;
    vfs.sync_dir(parent_or_dot(path)).inspect_err(|_| {
        // If it cannot be removed either, the first error says why.
        let _ = vfs.remove_file(path);
    })
}

/// Writes to `path` with `suffix` appended, syncs that and gives it its name.
fn through(
    vfs: &dyn Vfs,
    path: &Path,
    suffix: &str,
    data: &[u8],
    name: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let mut tmp = path.as_os_str().to_owned();
    tmp.push(suffix);
    let tmp = PathBuf::from(tmp);
    match vfs.remove_file(&tmp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    write_synced(vfs, &tmp, data).and_then(|()| name(&tmp)).inspect_err(|_| {
        // Best effort: the next attempt removes it as well.
        let _ = vfs.remove_file(&tmp);
    })
}

fn write_synced(vfs: &dyn Vfs, path: &Path, data: &[u8]) -> io::Result<()> {
    let file = vfs.open(path, OpenMode::CreateNew)?;
    file.write_all_at(data, 0)?;
    file.sync_data()
}

fn parent_or_dot(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
