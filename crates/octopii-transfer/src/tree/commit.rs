//! Making files durable, thousands at a time.
//!
//! Files grow under hidden names. Then one sync of the whole file system makes all of them durable, they get their names, and
//! a second sync makes the names durable, with those of new directories above them. Only then are they reported. On the
//! machine of `docs/BENCHMARKS.md`, 10,000 files of 4 KiB took 0.08 s to sync so, and 0.5 to 1.7 s one by one, with up to 32
//! at the same time.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use octopii_vfs::{DirHandle, OpenMode, Timestamp};

use super::check::{Awaited, Closing, Wanted, is_small};
use super::outcome::{EntryFailure, EntryOutcome, NotDone, failed};
use super::root::Root;
use super::wire::{Outcome, Packed};
use crate::framing::Malformed;
use crate::{Digest, TransferError};

/// A file (or link) that is written, verified and waits for its name.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) entry: u64,
    /// Where it is, beneath the base.
    pub(crate) at: PathBuf,
    /// Where it belongs, beneath the base.
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// What is still to be set.
    pub(crate) attributes: Option<(u32, Timestamp)>,
}

/// An entry that is settled: what the sender is told, where it is, and what became of it.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) entry: u64,
    pub(crate) path: PathBuf,
    pub(crate) outcome: EntryOutcome,
}

impl Settled {
    pub(crate) fn not_done(entry: u64, path: PathBuf, why: NotDone) -> Self {
        Self { entry, path, outcome: EntryOutcome::NotDone(why) }
    }

    /// As the sender hears of it.
    pub(crate) fn told(&self) -> Outcome {
        let result = match &self.outcome {
            EntryOutcome::NotDone(why) => Err(why.clone()),
            _ => Ok(()),
        };
        Outcome { entry: self.entry, result }
    }
}

/// Verifies a pack's files and writes them under hidden names; `told` is how many entries there are. Blocks.
pub(crate) fn stage(
    root: &mut Root,
    awaited: &Awaited,
    told: u64,
    pack: Vec<Packed>,
    staged: &mut Vec<Staged>,
) -> Result<Vec<Settled>, TransferError> {
    let mut settled = Vec::new();
    for Packed { entry, content } in pack {
        let Some(wanted) = awaited.take(entry) else {
            // Of a large file that has arrived: its sender had not heard of that when it gave the file up.
            if content.is_err() && entry < told {
                continue;
            }
            return Err(Malformed("a file that was not asked for").into());
        };
        let done = content.and_then(|(digest, content)| {
            if !is_small(wanted.size) {
                return Err(NotDone::new(EntryFailure::Limit, "too large for a pack"));
            }
            if content.len() as u64 != wanted.size || wanted.digest.is_some_and(|told| told != digest) {
                return Err(NotDone::new(EntryFailure::Changed, "is not what was announced"));
            }
            if Digest::of(&content) != digest {
                return Err(NotDone::new(EntryFailure::DigestMismatch, "did not arrive as it was sent"));
            }
            write(root, &wanted, &content)
        });
        match done {
            Ok(at) => {
                let Wanted { path, size, .. } = wanted;
                staged.push(Staged { entry, at, path, bytes: size, attributes: None });
            }
            Err(why) => settled.push(Settled::not_done(entry, wanted.path, why)),
        }
    }
    Ok(settled)
}

fn write(root: &mut Root, wanted: &Wanted, content: &[u8]) -> Result<PathBuf, NotDone> {
    let at = root.next_staged();
    let file = root.base.open(&at, OpenMode::CreateNew).map_err(failed("creating a file"))?;
    // Its mode comes last: until then nobody else may read it.
    let written =
        file.write_all_at(content, 0).and_then(|()| file.set_attributes(wanted.mode, Some(wanted.modified)));
    drop(file);
    if let Err(e) = written {
        discard(&root.base, &at);
        return Err(failed("writing")(e));
    }
    Ok(at)
}

/// Makes a symbolic link under a hidden name. Blocks.
pub(crate) fn stage_link(root: &mut Root, target: &[u8]) -> Result<PathBuf, NotDone> {
    let at = root.next_staged();
    let target = std::ffi::OsStr::from_bytes(target);
    root.base.create_link(&at, target).map_err(failed("making a link"))?;
    Ok(at)
}

/// Gives `staged` their names and `closing` their modes and times: durable when this returns. An error means that nothing is
/// known of any of them, and nothing more should be written there. Blocks.
pub(crate) fn commit(
    base: &Arc<dyn octopii_vfs::VfsDir>,
    base_path: &std::path::Path,
    staged: Vec<Staged>,
    closing: Vec<Closing>,
) -> Result<Vec<Settled>, TransferError> {
    let sync = || base.sync_file_system().map_err(|e| TransferError::store("syncing", base_path, e));
    let mut settled = Vec::with_capacity(staged.len() + closing.len());
    let mut ready = Vec::with_capacity(staged.len());
    for file in staged {
        let set = match file.attributes {
            Some((mode, modified)) => base.set_attributes(&file.at, mode, Some(modified)),
            None => Ok(()),
        };
        match set {
            Ok(()) => ready.push(file),
            Err(e) => {
                discard(base, &file.at);
                settled.push(Settled::not_done(file.entry, file.path, failed("setting mode and time")(e)));
            }
        }
    }
    if !ready.is_empty()
        && let Err(error) = sync()
    {
        ready.iter().for_each(|file| discard(base, &file.at));
        return Err(error);
    }
    for Staged { entry, at, path, bytes, .. } in ready {
        match base.rename(&at, &path, true) {
            Ok(()) => settled.push(Settled { entry, path, outcome: EntryOutcome::Stored { bytes } }),
            Err(e) => {
                discard(base, &at);
                settled.push(Settled::not_done(entry, path, failed("renaming")(e)));
            }
        }
    }
    for Closing { entry, path, mode, modified } in closing {
        match base.set_attributes(&path, mode, Some(modified)) {
            Ok(()) => settled.push(Settled { entry, path, outcome: EntryOutcome::Directory }),
            Err(e) => settled.push(Settled::not_done(entry, path, failed("setting mode and time")(e))),
        }
    }
    sync()?;
    Ok(settled)
}

/// Removes what will not get its name. If that fails too, the next transfer of this tree does it.
fn discard(base: &DirHandle, at: &std::path::Path) {
    if let Err(e) = base.remove_file(at) {
        tracing::debug!(path = %at.display(), "cannot remove a temporary file: {e}");
    }
}
