//! Files of segments that nobody needs any more, kept for segments to come.
//!
//! Overwriting blocks that have been written before is the fastest kind of durable write there is: a new file would have to
//! be filled with zeroes first, every byte of it going to the disk twice. Old bytes cannot be taken for new ones, since
//! every checksum includes the segment's salt.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use octopii_vfs::{FileHandle, FileKind, OpenMode, Vfs};

use crate::error::{Failure, OpenError};
use crate::format::segment::{file_name, is_spare, spare_name, unused_page};

/// Spares kept at most.
const MOST: usize = 8;

#[derive(Debug)]
struct Spare {
    path: PathBuf,
    file: FileHandle,
    len: u64,
}

/// The spare files of a log.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    files: Vec<Spare>,
    /// Segments begun since some were last retired: so many will be wanted until that happens again.
    begun: usize,
}

impl Spares {
    /// Finds those that an earlier opening has left, and removes what is of no use.
    pub(crate) fn find(vfs: &dyn Vfs, dir: &Path, segment_size: u64) -> Result<Self, OpenError> {
        let io = |operation, path: &Path, reason| OpenError::Io { operation, path: path.to_owned(), reason };
        let mut files = Vec::new();
        for entry in vfs.read_dir(dir).map_err(|e| io("list", dir, e))? {
            let path = dir.join(&entry.name);
            if !is_spare(&entry.name) || entry.metadata.kind != FileKind::File {
                continue;
            }
            if files.len() < MOST && fits(entry.metadata.len, segment_size) {
                let file = vfs.open(&path, OpenMode::ReadWrite).map_err(|e| io("open", &path, e))?;
                files.push(Spare { path, file, len: entry.metadata.len });
            } else {
                vfs.remove_file(&path).map_err(|e| io("remove", &path, e))?;
            }
        }
        // After a mere crash of the process their names may not be durable yet.
        if !files.is_empty() {
            vfs.sync_dir(dir).map_err(|e| io("sync", dir, e))?;
        }
        Ok(Self { files, begun: 0 })
    }

    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// Keeps or removes the files of segments that nobody needs any more; with a full disk it removes them. What fails is found
    /// again by the next open, which tries again.
    pub(crate) fn retire(
        &mut self,
        vfs: &dyn Vfs,
        dir: &Path,
        segment_size: u64,
        retired: Vec<(u64, FileHandle)>,
        is_full: bool,
    ) {
        let wanted = if is_full { 0 } else { self.begun.clamp(1, MOST) };
        self.begun = 0;
        for (sequence, file) in retired {
            let path = dir.join(file_name(sequence));
            // Somebody may still be reading from it, and must not see it change. Nobody else can come by the handle now.
            let is_alone = Arc::strong_count(&file) == 1;
            let len = file.len().ok().filter(|len| fits(*len, segment_size));
            let spare = dir.join(spare_name(sequence));
            match len.filter(|_| is_alone && self.files.len() < wanted) {
                Some(len) if vfs.rename(&path, &spare).is_ok() => {
                    self.files.push(Spare { path: spare, file, len });
                }
                _ => {
                    let _ = vfs.remove_file(&path);
                }
            }
        }
        // Until the new names are durable the files must stay as they are: a crash could make them segments again.
        if vfs.sync_dir(dir).is_err() {
            self.files.clear();
        }
    }

    /// Gives the space of all spares back. `false`: there were none.
    pub(crate) fn release(&mut self, vfs: &dyn Vfs) -> bool {
        let any = !self.files.is_empty();
        for spare in self.files.drain(..) {
            let _ = vfs.remove_file(&spare.path);
        }
        any
    }

    /// Gives a spare the name of a segment, which is durable when the caller has synced the directory. Returns it with the
    /// bytes it has.
    pub(crate) fn take(&mut self, vfs: &dyn Vfs, path: &Path) -> Result<Option<(FileHandle, u64)>, Failure> {
        self.begun += 1;
        let Some(Spare { path: from, file, len }) = self.files.pop() else { return Ok(None) };
        // Should the power fail before the file has its new header, it must not look like a segment that was damaged.
        file.write_all_at(&unused_page(), 0).map_err(|e| Failure::Fatal("write", e))?;
        file.sync_data().map_err(|e| Failure::Fatal("sync", e))?;
        if vfs.rename_no_replace(&from, path).is_err() {
            // It was taken away; there is no need of it.
            return Ok(None);
        }
        Ok(Some((file, len)))
    }
}

/// Whether a file of this length is worth keeping for segments of this size.
fn fits(len: u64, segment_size: u64) -> bool {
    (segment_size / 2..=segment_size * 2).contains(&len)
}
