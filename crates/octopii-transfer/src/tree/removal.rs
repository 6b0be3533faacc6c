//! Removing at the receiver what the source no longer has.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::vec;

use octopii_vfs::{Attributes, DirHandle, EntryKind};

use super::foresight::is_closed;
use super::outcome::{EntryFailure, EntryOutcome, NotDone, failed};
use crate::{FailureCode, Refusal, TransferError};

/// What is remembered of names to remove, in bytes.
const MAX_BYTES: usize = 64 << 20;
/// What a path costs beside its length.
const PATH_COST: usize = 48;

/// What is in the tree's directory and not in the manifest, beneath the base; of a directory its own path only.
#[derive(Debug, Default)]
pub(crate) struct Extras {
    paths: Vec<PathBuf>,
    bytes: usize,
}

impl Extras {
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    pub(crate) fn add(&mut self, path: PathBuf) -> Result<(), TransferError> {
        self.bytes += path.as_os_str().len() + PATH_COST;
        if self.bytes > MAX_BYTES {
            let message = "there is more to remove than can be remembered; remove some of it at the receiver";
            return Err(TransferError::Unacceptable(Refusal::new(FailureCode::TooLarge, message)));
        }
        self.paths.push(path);
        Ok(())
    }
}

/// A removal under way. Nothing is followed: every path is resolved beneath the base without links. Given up before its end,
/// it leaves modes and times of directories as they are: the next time that the tree is sent, they are set again. All calls block.
#[derive(Debug)]
pub(crate) struct Removal {
    base: DirHandle,
    todo: vec::IntoIter<PathBuf>,
    /// Directories that are being emptied, what they were like before, and what is still in them.
    emptying: Vec<(PathBuf, Attributes, vec::IntoIter<OsString>)>,
    /// What directories of the tree must have again when things have been removed from them.
    parents: BTreeMap<PathBuf, Attributes>,
    /// Only tells.
    dry_run: bool,
    /// A directory of which a dry run cannot tell what is in it: then it is of no use to go on.
    pub(crate) closed: Option<PathBuf>,
}

impl Removal {
    pub(crate) fn new(base: DirHandle, extras: Extras, dry_run: bool) -> Self {
        let todo = extras.paths.into_iter();
        Self { base, todo, emptying: Vec::new(), parents: BTreeMap::new(), dry_run, closed: None }
    }

    /// Removes up to `most` things and tells what came of each; nothing means that all is done.
    pub(crate) fn step(&mut self, most: usize) -> Vec<(PathBuf, EntryOutcome)> {
        let mut outcomes = Vec::new();
        while outcomes.len() < most {
            let Some(outcome) = self.next() else { break };
            outcomes.push(outcome);
        }
        outcomes
    }

    fn next(&mut self) -> Option<(PathBuf, EntryOutcome)> {
        loop {
            let (path, removed) = match self.emptying.last_mut() {
                Some((dir, _, names)) => match names.next() {
                    Some(name) => {
                        let path = dir.join(name);
                        let removed = self.begin(&path);
                        (path, removed)
                    }
                    None => {
                        let (dir, before, _) = self.emptying.pop()?;
                        let removed = if self.dry_run { Ok(()) } else { self.base.remove_dir(&dir) };
                        let removed = removed.map(|()| true).inspect_err(|_| self.give_back(&dir, &before));
                        (dir, removed)
                    }
                },
                None => {
                    let path = self.todo.next()?;
                    let removed = self.open_parent(&path).and_then(|()| self.begin(&path));
                    (path, removed)
                }
            };
            match removed {
                Ok(true) => return Some((path, EntryOutcome::Removed)),
                Ok(false) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Some((path, EntryOutcome::NotDone(not_removed(e)))),
            }
        }
    }

    /// Removes what is no directory; begins to empty one, which says `false`.
    fn begin(&mut self, path: &Path) -> io::Result<bool> {
        let found = self.base.attributes(path)?;
        if found.kind != EntryKind::Directory {
            let removed = if self.dry_run { Ok(()) } else { self.base.remove_file(path) };
            return removed.map(|()| true);
        }
        if self.base.crosses_mount(path)? {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        if self.dry_run && found.mode & 0o700 != 0o700 && is_closed(&self.base, path) {
            self.closed = Some(path.to_owned());
        }
        self.open_up(path, &found)?;
        let names = self.base.names(path).inspect_err(|_| self.give_back(path, &found))?;
        self.emptying.push((path.to_owned(), found, names.into_iter()));
        Ok(false)
    }

    /// Of a directory that stays although it was to go: it is reported, also if this fails.
    fn give_back(&self, dir: &Path, before: &Attributes) {
        if !self.dry_run
            && let Err(e) = self.base.set_attributes(dir, before.mode, Some(before.modified))
        {
            tracing::debug!(path = %dir.display(), "cannot set mode and time of what was not removed: {e}");
        }
    }

    /// Remembers what the directory above is like before it changes.
    fn open_parent(&mut self, path: &Path) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if !self.dry_run && !self.parents.contains_key(parent) {
            let found = self.base.attributes(parent)?;
            self.open_up(parent, &found)?;
            self.parents.insert(parent.to_owned(), found);
        }
        Ok(())
    }

    fn open_up(&self, dir: &Path, found: &Attributes) -> io::Result<()> {
        match found.mode & 0o700 {
            0o700 => Ok(()),
            _ if self.dry_run => Ok(()),
            _ => self.base.set_attributes(dir, (found.mode | 0o700) & 0o777, None),
        }
    }

    /// Gives directories their modes and times back, and makes all of it durable. Tells which could not be given theirs.
    pub(crate) fn finish(self) -> io::Result<Vec<(PathBuf, EntryOutcome)>> {
        let mut outcomes = Vec::new();
        for (path, found) in self.parents {
            if let Err(e) = self.base.set_attributes(&path, found.mode, Some(found.modified)) {
                let why = failed("setting mode and time")(e);
                outcomes.push((path, EntryOutcome::NotDone(why)));
            }
        }
        self.base.sync_file_system()?;
        Ok(outcomes)
    }
}

fn not_removed(error: io::Error) -> NotDone {
    match error.kind() {
        io::ErrorKind::CrossesDevices => NotDone::new(
            EntryFailure::Clash,
            "another file system is mounted there: unmount it, or keep it elsewhere",
        ),
        _ => failed("removing what the source no longer has")(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_removed_is_remembered_within_bounds() {
        let mut extras = Extras::default();
        let path = PathBuf::from("x".repeat(4000));
        let fit = MAX_BYTES / (4000 + PATH_COST);
        (0..fit).for_each(|_| extras.add(path.clone()).unwrap());
        let error = extras.add(path).unwrap_err();
        let is_refused =
            matches!(&error, TransferError::Unacceptable(why) if why.code == FailureCode::TooLarge);
        assert!(is_refused && extras.paths().len() == fit, "{error}");
    }
}
