//! The sender's walk: every directory's names in the order of their bytes, each directory followed by what is in it.
//!
//! What is held at a time are the names, not yet visited, of the directories between the root and the present place: about
//! 60 bytes each and their length. Nothing is held of what has been visited.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

use octopii_vfs::{Attributes, DirHandle, EntryKind, OpenMode, Timestamp, Vfs};

use super::name::{MAX_NAME, check_entry_name, stays_inside};
use super::options::Links;
use super::outcome::{EntryFailure, NotDone};
use super::wire::{Entry, MAX_TARGET};
use crate::digest::PrefixHasher;
use crate::{Digest, SourceError, TransferError};

/// Directories within directories, at most.
pub(crate) const MAX_DEPTH: usize = 128;

/// Longest path of a directory in bytes, from the root: the kernel resolves no longer one.
pub(crate) const MAX_DIRECTORY_PATH: usize = 4095;

/// Bytes read at once when a file is hashed before it is sent.
const HASH_STEP: usize = 1 << 20;

/// A line of the manifest and where it is.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) entry: Entry,
    /// From the root.
    pub(crate) path: PathBuf,
    /// Why it is left out, if it is.
    pub(crate) left_out: Option<NotDone>,
}

/// What of a tree is told, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) links: Links,
    pub(crate) checksum: bool,
    /// An entry that cannot be read ends the walk.
    pub(crate) strict: bool,
    /// What is not told of is removed at the receiver: so what vanishes is told of, as left out.
    pub(crate) delete: bool,
}

/// A walk under way. Every call blocks.
#[derive(Debug)]
pub(crate) struct Walk {
    vfs: Arc<dyn Vfs>,
    /// Where the root is.
    at: PathBuf,
    root: DirHandle,
    levels: Vec<Level>,
    /// What is in the present directory and above.
    path: PathBuf,
    rules: Rules,
    /// What no line can be about, or could not be trusted to be about.
    untold: Vec<(PathBuf, NotDone)>,
}

#[derive(Debug)]
struct Level {
    names: vec::IntoIter<OsString>,
    attributes: Attributes,
}

impl Walk {
    /// `root` was opened at `at`.
    pub(crate) fn new(vfs: Arc<dyn Vfs>, at: PathBuf, root: DirHandle, rules: Rules) -> io::Result<Self> {
        let path = PathBuf::new();
        let level = Level { attributes: root.attributes(&path)?, names: root.names(&path)?.into_iter() };
        Ok(Self { vfs, at, root, levels: vec![level], path, rules, untold: Vec::new() })
    }

    /// What was met since this was last called and has no line, since its name does not fit into one, or has one that may be about
    /// another directory, and why.
    pub(crate) fn take_untold(&mut self) -> Vec<(PathBuf, NotDone)> {
        std::mem::take(&mut self.untold)
    }

    /// The next line, or `None` behind the root's end. Calls `advance` now and then as long as it gets on.
    pub(crate) fn next(&mut self, advance: &dyn Fn()) -> Result<Option<Step>, TransferError> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            let Some(name) = level.names.next() else {
                let Attributes { mode, modified, id, .. } = level.attributes;
                if self.levels.len() == 1 {
                    self.still_there(id)?;
                } else if self.rules.delete
                    && self.root.attributes(&self.path).ok().map(|now| now.id) != Some(id)
                {
                    let why = "was removed or replaced while it was read; nothing is removed for that";
                    self.untold.push((self.path.clone(), NotDone::new(EntryFailure::Changed, why)));
                }
                let step = Step {
                    entry: Entry::End { mode: permissions(mode), modified },
                    path: self.path.clone(),
                    left_out: None,
                };
                self.levels.pop();
                self.path.pop();
                return Ok(Some(step));
            };
            let path = self.path.join(&name);
            advance();
            match self.entry(&path, name, advance) {
                Ok(entry) => return Ok(Some(Step { entry, path, left_out: None })),
                Err(Failed::Vanished(name)) if self.rules.delete => {
                    let why = "vanished while the directory was read; nothing is removed for that";
                    return Ok(Some(left_out(name, path, NotDone::new(EntryFailure::Changed, why))));
                }
                Err(Failed::Vanished(_)) => {}
                Err(Failed::Unreadable(_, error)) if self.rules.strict => {
                    let path = self.at.join(&path);
                    return Err(SourceError::Unreadable { path, error: Arc::new(error) }.into());
                }
                Err(Failed::Unreadable(name, error)) => {
                    let why = NotDone::new(EntryFailure::Unreadable, format!("cannot be read: {error}"));
                    return Ok(Some(left_out(name, path, why)));
                }
                Err(Failed::LeftOut(name, why)) if name.len() > MAX_NAME => {
                    if self.rules.strict {
                        let error = io::Error::new(io::ErrorKind::InvalidInput, why.message);
                        let path = self.at.join(&path);
                        return Err(SourceError::Unreadable { path, error: Arc::new(error) }.into());
                    }
                    self.untold.push((path, why));
                }
                Err(Failed::LeftOut(name, why)) => return Ok(Some(left_out(name, path, why))),
            }
        }
    }

    /// Whether what was told is what has the root's name: one that was removed or replaced looks empty, or like what it was.
    fn still_there(&self, id: (u64, u64)) -> Result<(), SourceError> {
        let now = self.vfs.open_dir(&self.at).and_then(|dir| dir.attributes(Path::new("")));
        match now {
            Ok(now) if now.id == id => Ok(()),
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(SourceError::Unreadable { path: self.at.clone(), error: Arc::new(error) })
            }
            Ok(_) | Err(_) => Err(SourceError::Replaced(self.at.clone())),
        }
    }

    fn entry(&mut self, path: &Path, name: OsString, advance: &dyn Fn()) -> Result<Entry, Failed> {
        let name = name.into_vec();
        if let Err(why) = check_entry_name(&name) {
            return Err(Failed::LeftOut(name, NotDone::new(EntryFailure::BadName, why)));
        }
        let attributes = self.root.attributes(path).map_err(|e| failed(&name, e))?;
        match attributes.kind {
            EntryKind::File => {
                let digest = match self.rules.checksum {
                    true => {
                        Some(hash(&self.root, path, attributes.len, advance).map_err(|e| failed(&name, e))?)
                    }
                    false => None,
                };
                Ok(Entry::File {
                    name,
                    size: attributes.len,
                    mode: permissions(attributes.mode),
                    modified: attributes.modified,
                    digest,
                })
            }
            EntryKind::Directory if self.levels.len() > MAX_DEPTH => {
                let why = format!("more than {MAX_DEPTH} directories deep");
                Err(Failed::LeftOut(name, NotDone::new(EntryFailure::Limit, why)))
            }
            EntryKind::Directory if path.as_os_str().len() > MAX_DIRECTORY_PATH => {
                let why = format!("its path has more than {MAX_DIRECTORY_PATH} bytes");
                Err(Failed::LeftOut(name, NotDone::new(EntryFailure::Limit, why)))
            }
            EntryKind::Directory => {
                let names = self.root.names(path).map_err(|e| failed(&name, e))?;
                self.levels.push(Level { names: names.into_iter(), attributes });
                self.path = path.to_owned();
                Ok(Entry::Directory { name })
            }
            EntryKind::Link if self.rules.links == Links::Skip => {
                let why = "symbolic links are not sent unless asked for";
                Err(Failed::LeftOut(name, NotDone::new(EntryFailure::Link, why)))
            }
            EntryKind::Link => {
                let target = self.root.read_link(path).map_err(|e| failed(&name, e))?;
                if target.len() > MAX_TARGET {
                    let why = format!("a symbolic link with a target of more than {MAX_TARGET} bytes");
                    return Err(Failed::LeftOut(name, NotDone::new(EntryFailure::Link, why)));
                }
                if !stays_inside(target.as_bytes(), self.levels.len() - 1) {
                    let why = "a symbolic link that may lead out of the tree";
                    return Err(Failed::LeftOut(name, NotDone::new(EntryFailure::Link, why)));
                }
                Ok(Entry::Link { name, target: target.into_vec() })
            }
            EntryKind::Special => {
                let why = "a device, a pipe or a socket";
                Err(Failed::LeftOut(name, NotDone::new(EntryFailure::Special, why)))
            }
        }
    }
}

enum Failed {
    /// Removed between listing and looking.
    Vanished(Vec<u8>),
    Unreadable(Vec<u8>, io::Error),
    LeftOut(Vec<u8>, NotDone),
}

fn failed(name: &[u8], error: io::Error) -> Failed {
    match error.kind() {
        io::ErrorKind::NotFound => Failed::Vanished(name.to_owned()),
        _ => Failed::Unreadable(name.to_owned(), error),
    }
}

fn left_out(name: Vec<u8>, path: PathBuf, why: NotDone) -> Step {
    Step { entry: Entry::LeftOut { name, why: why.failure }, path, left_out: Some(why) }
}

/// Set-id and sticky bits do not travel.
fn permissions(mode: u32) -> u16 {
    (mode & 0o777) as u16
}

/// The digest of a file that should have `len` bytes. Calls `advance` as it gets on.
pub(crate) fn hash(root: &DirHandle, path: &Path, len: u64, advance: &dyn Fn()) -> io::Result<Digest> {
    let file = root.open(path, OpenMode::Read)?;
    let mut hasher = PrefixHasher::default();
    let mut buffer = vec![0; HASH_STEP.min(len as usize + 1)];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(hasher.prefix()),
            n => {
                hasher.update(&buffer[..n]);
                advance();
                at += n as u64;
            }
        }
        if at > len {
            // It grows as fast as it is read: what it has become is found out when it is sent.
            return Ok(hasher.prefix());
        }
    }
}

/// A small file's content and digest, if it still is what the manifest says.
pub(crate) fn read_small(
    root: &DirHandle,
    path: &Path,
    size: u64,
    modified: Timestamp,
    buffer: &mut Vec<u8>,
) -> Result<Digest, NotDone> {
    let unreadable = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => NotDone::new(EntryFailure::Changed, "was removed before it was sent"),
        _ => NotDone::new(EntryFailure::Unreadable, format!("cannot be read: {e}")),
    };
    let file = root.open(path, OpenMode::Read).map_err(unreadable)?;
    let (start, size) = (buffer.len(), size as usize);
    buffer.resize(start + size, 0);
    file.read_exact_at(&mut buffer[start..], 0).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => changed(),
        _ => unreadable(e),
    })?;
    let seen = file.version().map_err(unreadable)?;
    if seen.len != size as u64 || seen.modified_ns != nanoseconds(modified) {
        return Err(changed());
    }
    Ok(Digest::of(&buffer[start..]))
}

/// As a file's version tells it.
pub(crate) fn nanoseconds(time: Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
}

/// The file is not what the manifest says any more.
pub(crate) fn changed() -> NotDone {
    NotDone::new(EntryFailure::Changed, "changed while the tree was being sent")
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "changes the real thing from beside")]
mod tests {
    use std::fs;

    use octopii_vfs::RealVfs;

    use super::*;

    fn walk(at: &Path, delete: bool) -> Walk {
        let rules = Rules { links: Links::Skip, checksum: false, strict: false, delete };
        Walk::new(RealVfs::shared(), at.to_owned(), RealVfs.open_dir(at).unwrap(), rules).unwrap()
    }

    /// What the next line says, in words.
    fn next(walk: &mut Walk) -> String {
        let step = walk.next(&|| {}).unwrap().unwrap();
        let path = step.path.display();
        match step.entry {
            Entry::Directory { .. } => format!("into {path}"),
            Entry::End { .. } => format!("out of {path}"),
            Entry::LeftOut { why, .. } => format!("{path} left out: {why}"),
            Entry::File { .. } | Entry::Link { .. } => format!("{path}"),
        }
    }

    /// A directory that is exchanged for another one while it is read: names of the old one are not in the new one, or not yet. Not
    /// to tell of them would have them removed.
    #[test]
    fn what_vanishes_is_told_of_if_what_is_not_told_of_goes() {
        for delete in [true, false] {
            let home = tempfile::tempdir().unwrap();
            let at = home.path().join("tree");
            fs::create_dir_all(at.join("d/sub")).unwrap();
            fs::write(at.join("d/a"), "").unwrap();
            fs::write(at.join("d/b"), "").unwrap();
            let mut walk = walk(&at, delete);
            assert_eq!(next(&mut walk), "into d");
            fs::rename(at.join("d"), at.join("old")).unwrap();
            fs::create_dir(at.join("d")).unwrap();
            fs::write(at.join("d/a"), "new").unwrap();
            assert_eq!(next(&mut walk), "d/a");
            if delete {
                assert_eq!(next(&mut walk), "d/b left out: changed meanwhile");
                assert_eq!(next(&mut walk), "d/sub left out: changed meanwhile");
            }
            assert_eq!(next(&mut walk), "out of d");
            let untold = walk.take_untold().into_iter().map(|(path, why)| (path, why.failure));
            let expected = (PathBuf::from("d"), EntryFailure::Changed);
            assert_eq!(untold.collect::<Vec<_>>(), [expected][usize::from(!delete)..]);
            assert_eq!(next(&mut walk), "out of ");
        }
    }

    #[test]
    fn a_tree_that_was_replaced_does_not_end() {
        for removed in [false, true] {
            let home = tempfile::tempdir().unwrap();
            let at = home.path().join("tree");
            fs::create_dir_all(at.join("d")).unwrap();
            let mut walk = walk(&at, false);
            assert_eq!(next(&mut walk), "into d");
            fs::rename(&at, home.path().join("old")).unwrap();
            if !removed {
                fs::create_dir_all(at.join("d")).unwrap();
            }
            assert_eq!(next(&mut walk), "out of d");
            let error = walk.next(&|| {}).unwrap_err();
            assert!(matches!(error, TransferError::Source(SourceError::Replaced(_))), "{error}");
        }
    }
}
