//! The receiver's view of a manifest: every entry is checked against the rules and against the disk.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::iter::Peekable;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec;

use octopii_vfs::{EntryKind, Timestamp, Vfs};

use super::foresight::{cannot_tell, is_closed, would_create};
use super::name::{MAX_NAME, check_entry_name, stays_inside};
use super::outcome::{EntryFailure, EntryOutcome, NotDone, failed};
use super::policy::TreeDestination;
use super::removal::Extras;
use super::root::Root;
use super::walk::{MAX_DEPTH, MAX_DIRECTORY_PATH, hash};
use super::wire::{Entry, SMALL, Verdict};
use crate::framing::Malformed;
use crate::name::TEMPORARY_PREFIX;
use crate::{Digest, TransferError};

/// Longest path beneath the destination in bytes: the kernel takes 4,095.
const MAX_PATH: usize = 3500;

/// A file that the receiver wants.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Beneath the destination's base.
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) modified: Timestamp,
    pub(crate) digest: Option<Digest>,
}

/// Files that were asked for and have not arrived. Shared with the policy that takes large ones.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    files: Mutex<BTreeMap<u64, Wanted>>,
    /// Bytes of disk that they will take.
    promised: AtomicU64,
}

impl Awaited {
    fn files(&self) -> MutexGuard<'_, BTreeMap<u64, Wanted>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, entry: u64) -> Option<Wanted> {
        self.files().get(&entry).cloned()
    }

    pub(crate) fn take(&self, entry: u64) -> Option<Wanted> {
        let wanted = self.files().remove(&entry)?;
        self.promised.fetch_sub(wanted.size, Ordering::Relaxed);
        Some(wanted)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files().is_empty()
    }

    fn add(&self, entry: u64, wanted: Wanted) {
        self.promised.fetch_add(wanted.size, Ordering::Relaxed);
        self.files().insert(entry, wanted);
    }
}

/// A directory whose entries are being told.
#[derive(Debug)]
struct Level {
    path: PathBuf,
    /// The latest name in it.
    last: Vec<u8>,
    state: State,
    /// What is in it at the receiver and was not told of yet, if that is to be removed.
    present: Option<Peekable<vec::IntoIter<OsString>>>,
}

impl Level {
    /// Collects the names before `told`, or all that are left: the source does not have them. Says whether `told` is listed, if a list
    /// was made.
    fn pass(&mut self, told: Option<&[u8]>, extras: &mut Extras) -> Result<bool, TransferError> {
        let Some(present) = &mut self.present else { return Ok(true) };
        while let Some(name) = present.next_if(|name| told.is_none_or(|told| name.as_bytes() < told)) {
            // The source may have a name that is too long to be told of.
            let untold = name.len() > MAX_NAME;
            if !untold && !name.as_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
                extras.add(self.path.join(name))?;
            }
        }
        Ok(told.is_some_and(|told| present.next_if(|name| name.as_bytes() == told).is_some()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing can be in it but what this transfer has put there.
    Fresh,
    Existing,
    Refused,
}

/// A directory to be given its mode and time when its entries are all settled.
#[derive(Debug)]
pub(crate) struct Closing {
    pub(crate) entry: u64,
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
    pub(crate) modified: Timestamp,
}

/// What an entry needs beside its verdict.
#[derive(Debug)]
pub(crate) enum Task {
    /// A link to be made.
    Link { entry: u64, path: PathBuf, target: Vec<u8> },
    /// A directory that is complete as soon as everything told before it is settled.
    Close(Closing),
}

/// What was found out about one page.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) first: u64,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) tasks: Vec<Task>,
    /// The numbers of the ends among them.
    pub(crate) closing: Vec<u64>,
    /// Entries that are settled by their verdict.
    pub(crate) settled: Vec<(PathBuf, EntryOutcome)>,
}

/// Checks pages one after the other. Every call blocks.
#[derive(Debug)]
pub(crate) struct Checker {
    to: TreeDestination,
    levels: Vec<Level>,
    next: u64,
    wanted_bytes: u64,
    awaited: Arc<Awaited>,
    leave_free: u64,
    vfs: Arc<dyn Vfs>,
    delete: bool,
    /// Nothing is changed, and what is wanted is settled by that.
    dry_run: bool,
    /// A directory of which a dry run cannot tell what is in it.
    closed: Option<PathBuf>,
    pub(crate) extras: Extras,
}

impl Checker {
    pub(crate) fn new(
        root: &Root,
        to: TreeDestination,
        awaited: Arc<Awaited>,
        vfs: Arc<dyn Vfs>,
        leave_free: u64,
        (delete, dry_run): (bool, bool),
    ) -> Result<Self, TransferError> {
        let state = if root.fresh { State::Fresh } else { State::Existing };
        let present = match state {
            State::Existing if delete => {
                let names = root.base.names(&root.path);
                Some(names.map_err(|e| TransferError::store("listing", &root.base_path, e))?)
            }
            _ => None,
        };
        let present = present.map(|names| names.into_iter().peekable());
        let levels = vec![Level { path: root.path.clone(), last: Vec::new(), state, present }];
        let (closed, extras) = (None, Extras::default());
        let (next, wanted_bytes) = (0, 0);
        Ok(Self { to, levels, next, wanted_bytes, awaited, leave_free, vfs, delete, dry_run, closed, extras })
    }

    /// Entries told so far.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Whether the root has been closed.
    pub(crate) fn is_complete(&self) -> bool {
        self.levels.is_empty()
    }

    pub(crate) fn page(&mut self, root: &Root, entries: Vec<Entry>) -> Result<Checked, TransferError> {
        let mut checked = Checked { first: self.next, ..Checked::default() };
        let mut free = None;
        for entry in entries {
            let verdict = self.entry(root, entry, &mut free, &mut checked)?;
            checked.verdicts.push(verdict);
            self.next += 1;
        }
        Ok(checked)
    }

    fn entry(
        &mut self,
        root: &Root,
        entry: Entry,
        free: &mut Option<u64>,
        checked: &mut Checked,
    ) -> Result<Verdict, TransferError> {
        let number = self.next;
        let Some(level) = self.levels.last_mut() else {
            return Err(Malformed("entries follow the end of the tree").into());
        };
        let name = match &entry {
            Entry::End { mode, modified } => {
                let mut level = self.levels.pop().ok_or(Malformed("more ends than directories"))?;
                level.pass(None, &mut self.extras)?;
                if level.state == State::Refused {
                    return Ok(Verdict::Noted);
                }
                if self.dry_run {
                    let path = self.shown(root, &level.path);
                    checked.settled.push((path, EntryOutcome::Directory));
                    return Ok(Verdict::Wanted);
                }
                let mode = u32::from(*mode) & self.to.mode_mask;
                let closing = Closing { entry: number, path: level.path, mode, modified: *modified };
                checked.tasks.push(Task::Close(closing));
                return Ok(Verdict::Wanted);
            }
            Entry::File { name, .. }
            | Entry::Directory { name }
            | Entry::Link { name, .. }
            | Entry::LeftOut { name, .. } => name,
        };
        // Strictly ascending: no name comes twice, and all that must be remembered is the last.
        if *name <= level.last {
            return Err(Malformed("names in a directory are not in order").into());
        }
        level.last.clone_from(name);
        let is_listed = level.pass(Some(name), &mut self.extras)?;
        let path = level.path.join(OsStr::from_bytes(&name.clone()));
        let (parent, is_directory) = (level.state, matches!(entry, Entry::Directory { .. }));
        // A sender leaves such a directory out. Refused ones are remembered too: nothing else bounds how many and how long.
        if is_directory
            && (self.levels.len() > MAX_DEPTH
                || self.shown(root, &path).as_os_str().len() > MAX_DIRECTORY_PATH)
        {
            return Err(Malformed("directories are nested too deeply").into());
        }
        let bytes = if let Entry::File { size, .. } = &entry { *size } else { 0 };
        let outcome = self.allowed(parent, name, &path).and_then(|()| match is_listed {
            true => Ok(()),
            false => nothing_there(root, &path),
        });
        let outcome = outcome.and_then(|()| match entry {
            Entry::File { name: _, size, mode, modified, digest } => {
                let mode = u32::from(mode) & self.to.mode_mask;
                let wanted = Wanted { path: path.clone(), size, mode, modified, digest };
                self.file(root, parent, wanted, free)
            }
            Entry::Directory { .. } => self.directory(root, &path),
            Entry::Link { target, .. } => self.link(root, parent, &path, target, checked),
            Entry::LeftOut { why, .. } => Err(NotDone::new(why, "left out by the sender")),
            Entry::End { .. } => Ok(Verdict::Noted),
        });
        if let Some(closed) = self.closed.take() {
            return Err(cannot_tell(&closed));
        }
        match outcome {
            Ok(Verdict::Unchanged) => {
                checked.settled.push((self.shown(root, &path), EntryOutcome::Unchanged));
                Ok(Verdict::Unchanged)
            }
            Ok(Verdict::Wanted) if self.dry_run => {
                checked.settled.push((self.shown(root, &path), EntryOutcome::Stored { bytes }));
                Ok(Verdict::Wanted)
            }
            Ok(verdict) => Ok(verdict),
            Err(why) => {
                if is_directory {
                    self.levels.push(Level {
                        path: path.clone(),
                        last: Vec::new(),
                        state: State::Refused,
                        present: None,
                    });
                }
                checked.settled.push((self.shown(root, &path), EntryOutcome::NotDone(why.clone())));
                Ok(Verdict::Refused(why))
            }
        }
    }

    /// The path within the tree, for reports.
    fn shown(&self, root: &Root, path: &Path) -> PathBuf {
        path.strip_prefix(&root.path).unwrap_or(path).to_owned()
    }

    fn allowed(&self, parent: State, name: &[u8], path: &Path) -> Result<(), NotDone> {
        check_entry_name(name).map_err(|why| NotDone::new(EntryFailure::BadName, why))?;
        if parent == State::Refused {
            return Err(NotDone::new(EntryFailure::InRefusedDirectory, "its directory was not taken"));
        }
        if self.next >= self.to.limits.entries {
            let why = format!("at most {} entries are taken here", self.to.limits.entries);
            return Err(NotDone::new(EntryFailure::Limit, why));
        }
        if path.as_os_str().len() > MAX_PATH {
            return Err(NotDone::new(EntryFailure::Limit, "the path is too long"));
        }
        Ok(())
    }

    fn directory(&mut self, root: &Root, path: &Path) -> Result<Verdict, NotDone> {
        let depth = self.to.limits.depth.min(MAX_DEPTH);
        if self.levels.len() > depth {
            return Err(NotDone::new(EntryFailure::Limit, format!("at most {depth} directories deep here")));
        }
        let made = match self.dry_run {
            true => would_create(&root.base, path),
            false => root.base.create_dir(path),
        };
        let state = match made {
            Ok(()) => State::Fresh,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let found = root.base.attributes(path).map_err(failed("looking at it"))?;
                if found.kind != EntryKind::Directory {
                    return Err(NotDone::new(EntryFailure::Clash, "something that is no directory is there"));
                }
                if found.mode & 0o700 != 0o700 && self.dry_run {
                    self.closed = is_closed(&root.base, path).then(|| self.shown(root, path));
                } else if found.mode & 0o700 != 0o700 {
                    let mode = (found.mode | 0o700) & 0o777;
                    root.base.set_attributes(path, mode, None).map_err(failed("changing its mode"))?;
                }
                State::Existing
            }
            Err(e) => return Err(failed("creating the directory")(e)),
        };
        let present = match state {
            State::Existing if self.delete => {
                Some(root.base.names(path).map_err(failed("listing it"))?.into_iter().peekable())
            }
            _ => None,
        };
        self.levels.push(Level { path: path.to_owned(), last: Vec::new(), state, present });
        Ok(Verdict::Noted)
    }

    fn file(
        &mut self,
        root: &Root,
        parent: State,
        wanted: Wanted,
        free: &mut Option<u64>,
    ) -> Result<Verdict, NotDone> {
        if parent == State::Existing && self.is_unchanged(root, &wanted)? {
            return Ok(Verdict::Unchanged);
        }
        let total = self.wanted_bytes.checked_add(wanted.size).filter(|sum| *sum <= self.to.limits.bytes);
        let Some(total) = total else {
            let why = format!("at most {} bytes are taken here", self.to.limits.bytes);
            return Err(NotDone::new(EntryFailure::Limit, why));
        };
        let free = match *free {
            Some(free) => free,
            None => {
                let now = self.vfs.free_space(&root.base_path).map_err(failed("asking the free space"))?;
                *free.insert(now)
            }
        };
        let promised = self.awaited.promised.load(Ordering::Relaxed);
        let room = free.saturating_sub(self.leave_free).saturating_sub(promised);
        if wanted.size > room {
            let why = format!("{} bytes do not fit, {free} are free: make room there", wanted.size);
            return Err(NotDone::new(EntryFailure::StorageFull, why));
        }
        self.wanted_bytes = total;
        match self.dry_run {
            true => drop(self.awaited.promised.fetch_add(wanted.size, Ordering::Relaxed)),
            false => self.awaited.add(self.next, wanted),
        }
        Ok(Verdict::Wanted)
    }

    /// Whether the file is there already. Its mode (and its time, where content decides) is put right.
    fn is_unchanged(&self, root: &Root, wanted: &Wanted) -> Result<bool, NotDone> {
        let found = match root.base.attributes(&wanted.path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(failed("looking at it")(e)),
        };
        match found.kind {
            EntryKind::File => {}
            // Replaced, as a file would be; never followed.
            EntryKind::Link => return Ok(false),
            EntryKind::Directory => {
                return Err(NotDone::new(EntryFailure::Clash, "a directory is there"));
            }
            EntryKind::Special => {
                return Err(NotDone::new(EntryFailure::Clash, "a device, a pipe or a socket is there"));
            }
        }
        let same = found.len == wanted.size
            && match wanted.digest {
                Some(digest) => {
                    hash(&root.base, &wanted.path, wanted.size, &|| {}).is_ok_and(|own| own == digest)
                }
                None => found.modified == wanted.modified,
            };
        if same && !self.dry_run && (found.mode != wanted.mode || found.modified != wanted.modified) {
            let set = root.base.set_attributes(&wanted.path, wanted.mode, Some(wanted.modified));
            set.map_err(failed("setting its mode and time"))?;
        }
        Ok(same)
    }

    fn link(
        &self,
        root: &Root,
        parent: State,
        path: &Path,
        target: Vec<u8>,
        checked: &mut Checked,
    ) -> Result<Verdict, NotDone> {
        if !self.to.links {
            return Err(NotDone::new(EntryFailure::Link, "no symbolic links are taken here"));
        }
        if !stays_inside(&target, self.levels.len() - 1) {
            return Err(NotDone::new(EntryFailure::Link, "the link may lead out of the tree"));
        }
        if parent == State::Existing {
            match root.base.attributes(path).map(|found| found.kind) {
                Ok(EntryKind::Link) => {
                    let found = root.base.read_link(path).map_err(failed("reading the link"))?;
                    if found.as_bytes() == target {
                        return Ok(Verdict::Unchanged);
                    }
                }
                Ok(EntryKind::File) => {}
                Ok(_) => return Err(NotDone::new(EntryFailure::Clash, "something else is there")),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("looking at it")(e)),
            }
        }
        if self.dry_run {
            return Ok(Verdict::Wanted);
        }
        checked.tasks.push(Task::Link { entry: self.next, path: path.to_owned(), target });
        Ok(Verdict::Wanted)
    }
}

/// What is not listed under a name and found under it all the same is listed under another one: file systems that take some names for
/// the same do that. That other one seems to be gone from the source; removed, it would take what was just stored with it.
fn nothing_there(root: &Root, path: &Path) -> Result<(), NotDone> {
    match root.base.attributes(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => {
            let why = "something is there under another spelling of the name, or since a moment ago";
            Err(NotDone::new(EntryFailure::Clash, why))
        }
        Err(e) => Err(failed("looking at it")(e)),
    }
}

/// Whether a file travels in a pack.
pub(crate) fn is_small(size: u64) -> bool {
    size <= SMALL
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names of more than 255 bytes exist on some file systems, and no test can make them on the others.
    #[test]
    fn what_cannot_be_told_of_is_not_missing() {
        let names =
            ["a".repeat(MAX_NAME + 1), "a".repeat(MAX_NAME), "b".into(), format!("{TEMPORARY_PREFIX}x")];
        let mut present: Vec<_> = names.iter().map(OsString::from).collect();
        present.sort();
        let mut level = Level {
            path: PathBuf::from("t"),
            last: Vec::new(),
            state: State::Existing,
            present: Some(present.into_iter().peekable()),
        };
        let mut extras = Extras::default();
        level.pass(None, &mut extras).unwrap();
        assert_eq!(extras.paths(), [PathBuf::from("t").join(&names[1]), "t/b".into()]);
    }
}
