//! The directory that a tree goes into: chosen, locked, and remembered as whose it is.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use octopii_vfs::{
    Attributes, DirHandle, EntryKind, LockGuard, Timestamp, Vfs, create_dir_all_durable, read_file,
    write_file_durable,
};

use octopii_transport::{NodeId, PeerIdentity, PeerRole};

use super::name::check_entry_name;
use super::policy::{ExistingTree, TreeDestination};
use crate::{Digest, FailureCode, Refusal, TransferError};

/// Where Octopii keeps, beside the trees, what is not complete yet: a directory for each tree's name.
const HIDDEN: &str = ".octopii-trees";
/// In each of them: held by whoever receives the tree.
const LOCK: &str = "lock";
/// In each of them: which directory it is about, and which source made that.
const OWNER: &str = "owner";
const OWNER_VERSION: u8 = 1;
const OWNER_LEN: usize = 1 + 1 + 8 + 12 + 32 + 8;

/// Longest name for a tree in bytes: a taken name needs room for its ` (n)`.
const MAX_ROOT_NAME: usize = 240;
/// How many names are tried.
const MAX_NUMBER: u32 = 999;

/// What is remembered of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    /// The inode of its directory: one of the same name that somebody else has made is another, …
    inode: u64,
    /// … unless it was given the number of the one that was removed: then this differs. The default where file systems do not
    /// tell it.
    born: Timestamp,
    source: [u8; 32],
    /// Who made it: a source is only what a sender says of itself.
    node: NodeId,
    complete: bool,
}

/// Who wants to send a tree, and what it wants with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    /// The sender's word.
    pub(crate) source: [u8; 32],
    /// From its verified certificate.
    pub(crate) peer: PeerIdentity,
    /// What the source no longer has is to be removed.
    pub(crate) delete: bool,
}

/// An open destination. Its lock keeps other transfers, of any process, from the same tree.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) base: DirHandle,
    /// Where `base` is, for what takes paths. Trusted by the policy's word.
    pub(crate) base_path: PathBuf,
    /// The tree's directory, beneath `base`.
    pub(crate) path: PathBuf,
    /// Whether it was made a moment ago.
    pub(crate) fresh: bool,
    vfs: Arc<dyn Vfs>,
    hidden: PathBuf,
    owner: Owner,
    staged: u64,
    lock: Arc<dyn LockGuard>,
}

/// Of what is only looked at.
#[derive(Debug)]
struct Unlocked;

impl LockGuard for Unlocked {}

impl Root {
    /// Chooses, makes and locks the tree's directory. Blocks.
    pub(crate) fn open(
        vfs: &Arc<dyn Vfs>,
        to: &TreeDestination,
        claim: &Claim,
    ) -> Result<Self, TransferError> {
        let wanted = to.name.as_os_str();
        check_name(wanted)?;
        let store = |doing, e| TransferError::store(doing, &to.dir, e);
        create_dir_all_durable(&**vfs, &to.dir).map_err(|e| store("creating directory", e))?;
        let base = vfs.open_dir(&to.dir).map_err(|e| store("opening directory", e))?;
        make_dir(&base, Path::new(HIDDEN)).map_err(|e| store("creating a directory in", e))?;
        for n in 0..=MAX_NUMBER {
            let name = numbered(wanted, n);
            match Self::try_name(vfs, &base, to, Path::new(&name), claim)? {
                Tried::Taken => {}
                Tried::Ours(root) => return Ok(*root),
            }
        }
        Err(refused(
            FailureCode::Rejected,
            "every numbered name for the tree is taken; send it under another",
        ))
    }

    /// Finds the directory that [`open`](Self::open) would choose, changes nothing and keeps nobody from anything. What it gives
    /// back is to be looked at only. Blocks.
    pub(crate) fn look(
        vfs: &Arc<dyn Vfs>,
        to: &TreeDestination,
        claim: &Claim,
    ) -> Result<Self, TransferError> {
        let wanted = to.name.as_os_str();
        check_name(wanted)?;
        let base = vfs.open_dir(&to.dir).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                refused(FailureCode::Rejected, "no directory is there for trees yet: all would be sent")
            }
            _ => TransferError::store("opening directory", &to.dir, e),
        })?;
        for n in 0..=MAX_NUMBER {
            let name = numbered(wanted, n);
            let path = Path::new(&name);
            let store = |e| TransferError::store("looking at", to.dir.join(path), e);
            let hidden = hidden(path);
            let found = present(&base, path).map_err(store)?;
            let is_taken = match found {
                None => false,
                Some(found) if found.kind == EntryKind::Directory => {
                    let known = present(&base, &hidden).map_err(store)?.is_some();
                    let owner = read_owner(&**vfs, &to.dir.join(&hidden));
                    made_by(&base, to, path, (found, known), owner, claim)?.is_none()
                }
                Some(_) if matches!(to.existing, ExistingTree::Refuse | ExistingTree::Update) => {
                    return Err(exists());
                }
                Some(_) => true,
            };
            if !is_taken {
                return Ok(Self {
                    base,
                    base_path: to.dir.clone(),
                    path: path.to_owned(),
                    fresh: found.is_none(),
                    vfs: Arc::clone(vfs),
                    hidden,
                    owner: Owner {
                        inode: 0,
                        born: Timestamp::default(),
                        source: claim.source,
                        node: claim.peer.node_id,
                        complete: false,
                    },
                    staged: 0,
                    lock: Arc::new(Unlocked),
                });
            }
        }
        Err(refused(FailureCode::Rejected, "every numbered name for the tree is taken"))
    }

    fn try_name(
        vfs: &Arc<dyn Vfs>,
        base: &DirHandle,
        to: &TreeDestination,
        path: &Path,
        claim: &Claim,
    ) -> Result<Tried, TransferError> {
        let store = |doing, e| TransferError::store(doing, to.dir.join(path), e);
        let found = present(base, path).map_err(|e| store("looking at", e))?;
        match found.map(|attributes| attributes.kind) {
            None | Some(EntryKind::Directory) => {}
            Some(_) if to.existing == ExistingTree::Refuse || to.existing == ExistingTree::Update => {
                return Err(refused(
                    FailureCode::Rejected,
                    "something else than a directory has the name there",
                ));
            }
            Some(_) => return Ok(Tried::Taken),
        }
        let hidden = hidden(path);
        let known = present(base, &hidden).map_err(|e| store("looking beside", e))?.is_some();
        if found.is_some() && !known {
            match to.existing {
                ExistingTree::Update => {}
                ExistingTree::Refuse => return Err(exists()),
                ExistingTree::UpdateOwn | ExistingTree::Fresh => return Ok(Tried::Taken),
            }
        }
        make_dir(base, &hidden).map_err(|e| store("creating a directory beside", e))?;
        let lock = match vfs.lock(&to.dir.join(hidden.join(LOCK))) {
            Ok(lock) => lock,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // Whose it is can be told without the lock.
                let theirs =
                    read_owner(&**vfs, &to.dir.join(&hidden)).is_some_and(|o| o.source != claim.source);
                if theirs && matches!(to.existing, ExistingTree::UpdateOwn | ExistingTree::Fresh) {
                    return Ok(Tried::Taken);
                }
                let message = "this tree is being received by another transfer; try again later";
                return Err(refused(FailureCode::Busy, message));
            }
            Err(e) => return Err(store("locking", e)),
        };
        // It may have changed until the lock was there.
        let found = present(base, path).map_err(|e| store("looking at", e))?;
        let owner = read_owner(&**vfs, &to.dir.join(&hidden));
        let node = match found {
            None => claim.peer.node_id,
            Some(found) => match made_by(base, to, path, (found, known), owner, claim)? {
                Some(node) => node,
                None => return Ok(Tried::Taken),
            },
        };
        let fresh = found.is_none();
        if fresh {
            // Known before it is there: whoever finds it after a power cut knows that it is no stranger's.
            for path in [Path::new(HIDDEN), Path::new("")] {
                base.sync_dir(path).map_err(|e| store("syncing the directory of", e))?;
            }
            base.create_dir(path).map_err(|e| store("creating", e))?;
        }
        let inode = base.attributes(path).map_err(|e| store("looking at", e))?.id.1;
        let born = born(base, path).map_err(|e| store("looking at", e))?;
        let owner = Owner { inode, born, source: claim.source, node, complete: false };
        let root = Self {
            base: Arc::clone(base),
            base_path: to.dir.clone(),
            path: path.to_owned(),
            fresh,
            vfs: Arc::clone(vfs),
            hidden,
            owner,
            staged: 0,
            lock: lock.into(),
        };
        // From here on it is known whose it is, or it is not there.
        root.remember().map_err(|e| store("remembering the owner of", e))?;
        root.clear().map_err(|e| store("cleaning up beside", e))?;
        Ok(Tried::Ours(Box::new(root)))
    }

    /// Where the next small file grows, beneath `base`.
    pub(crate) fn next_staged(&mut self) -> PathBuf {
        self.staged += 1;
        self.hidden.join(format!("s{}", self.staged))
    }

    /// Where the large file for `path` grows, beneath `base`.
    pub(crate) fn staged_large(&self, path: &Path) -> PathBuf {
        self.hidden.join(large_name(path))
    }

    /// Where the chunk of packs of this number is, beneath `base`.
    pub(crate) fn staged_packs(&self, number: u64) -> PathBuf {
        self.hidden.join(packs_name(number))
    }

    /// Keeps others from the tree. For whoever may go on with its files after everyone else has let go of it.
    pub(crate) fn lock(&self) -> Arc<dyn LockGuard> {
        Arc::clone(&self.lock)
    }

    /// The directory in which large files grow.
    pub(crate) fn staging_dir(&self) -> PathBuf {
        self.base_path.join(&self.hidden)
    }

    /// The tree's name was given all that could be given to it.
    pub(crate) fn complete(&mut self) -> io::Result<()> {
        self.owner.complete = true;
        self.remember()
    }

    fn remember(&self) -> io::Result<()> {
        let Owner { inode, born, source, node, complete } = self.owner;
        let mut out = vec![OWNER_VERSION, u8::from(complete)];
        out.extend_from_slice(&inode.to_le_bytes());
        out.extend_from_slice(&born.seconds.to_le_bytes());
        out.extend_from_slice(&born.nanoseconds.to_le_bytes());
        out.extend_from_slice(&source);
        out.extend_from_slice(&node.to_le_bytes());
        let dir = self.base_path.join(&self.hidden);
        write_file_durable(&*self.vfs, &dir.join(OWNER), &out)?;
        // The names above it: made a moment ago, or not; a sync of what is synced costs little.
        for path in [Path::new(HIDDEN), Path::new("")] {
            self.base.sync_dir(path)?;
        }
        Ok(())
    }

    /// Removes what an earlier transfer of this tree has left, but for large files that can be resumed.
    pub(crate) fn clear(&self) -> io::Result<()> {
        clear(&self.base, &self.hidden)
    }
}

/// Who made the directory that is there, if it may be brought up to date. `known`: something is remembered of its name.
fn made_by(
    base: &DirHandle,
    to: &TreeDestination,
    path: &Path,
    (found, known): (Attributes, bool),
    owner: Option<Owner>,
    claim: &Claim,
) -> Result<Option<NodeId>, TransferError> {
    let born = born(base, path).map_err(|e| TransferError::store("looking at", to.dir.join(path), e))?;
    let ours =
        owner.filter(|owner| owner.inode == found.id.1 && owner.born == born && owner.source == claim.source);
    let may_update = match (to.existing, ours) {
        (ExistingTree::Update, _) | (ExistingTree::UpdateOwn, Some(_)) => true,
        (_, Some(owner)) if !owner.complete => true,
        // Made a moment before the power went, or by somebody who has put nothing in it.
        (ExistingTree::UpdateOwn | ExistingTree::Fresh | ExistingTree::Refuse, _)
            if known && owner.is_none() && base.names(path).is_ok_and(|names| names.is_empty()) =>
        {
            true
        }
        (ExistingTree::Refuse, _) => return Err(exists()),
        _ => false,
    };
    if let Some(owner) = ours.filter(|_| claim.delete && to.existing != ExistingTree::Update) {
        may_remove(&owner, claim)?;
    }
    Ok(may_update.then(|| ours.map_or(claim.peer.node_id, |owner| owner.node)))
}

/// Whether who sends may have something removed from what `owner` made, where not everybody may.
fn may_remove(owner: &Owner, claim: &Claim) -> Result<(), TransferError> {
    if owner.born == Timestamp::default() {
        let message = "it cannot be told there that the directory is the one that was sent before: nothing is removed from it, unless \
            the receiver lets everybody update what has its name";
        return Err(refused(FailureCode::Rejected, message));
    }
    // Operators may do worse to a cluster.
    if owner.node != claim.peer.node_id && claim.peer.role != PeerRole::Operator {
        let message = "another node has made that directory: that node or an operator may have something removed from it";
        return Err(refused(FailureCode::Rejected, message));
    }
    Ok(())
}

enum Tried {
    Taken,
    Ours(Box<Root>),
}

/// Removes what dead transfers have left in `dir`; `large` is called with each directory in which there may be large files
/// that were cut off. Whose trees there are stays remembered. Blocks.
pub(crate) fn sweep(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    opening: &Mutex<()>,
    large: &dyn Fn(&Path),
) -> io::Result<()> {
    let base = match vfs.open_dir(dir) {
        Ok(base) => base,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let names = match base.names(Path::new(HIDDEN)) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    for name in names {
        let hidden = Path::new(HIDDEN).join(name);
        // A tree that arrives now must not find its lock taken.
        let _held = opening.lock().unwrap_or_else(PoisonError::into_inner);
        let at = dir.join(&hidden);
        let swept = vfs.lock(&at.join(LOCK)).and_then(|lock| {
            clear(&base, &hidden)?;
            large(&at);
            drop(lock);
            Ok(())
        });
        match swept {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // Whatever it is, the others are looked at.
            Err(e) => tracing::warn!(dir = %at.display(), "cannot clean up what is left of a tree: {e}"),
        }
    }
    Ok(())
}

/// But for what other names are for: the lock, the owner, and what is arriving.
fn clear(base: &DirHandle, hidden: &Path) -> io::Result<()> {
    for name in base.names(hidden)? {
        if name != LOCK && matches!(name.as_bytes().first(), Some(b's' | b'l' | b'p')) {
            base.remove_file(&hidden.join(name))?;
        }
    }
    Ok(())
}

fn hidden(path: &Path) -> PathBuf {
    let digest = Digest::of(path.as_os_str().as_bytes()).to_string();
    Path::new(HIDDEN).join(&digest[..32])
}

/// What was remembered; nothing if it is not there or not to be understood.
fn read_owner(vfs: &dyn Vfs, hidden: &Path) -> Option<Owner> {
    let bytes = read_file(vfs, &hidden.join(OWNER), OWNER_LEN as u64).ok()?;
    let (version, rest) = bytes.split_first()?;
    let (complete, rest) = rest.split_first()?;
    let (inode, rest) = rest.split_first_chunk()?;
    let (seconds, rest) = rest.split_first_chunk()?;
    let (nanoseconds, rest) = rest.split_first_chunk()?;
    let (source, node) = rest.split_first_chunk()?;
    if *version != OWNER_VERSION || *complete > 1 {
        return None;
    }
    Some(Owner {
        inode: u64::from_le_bytes(*inode),
        born: Timestamp {
            seconds: i64::from_le_bytes(*seconds),
            nanoseconds: u32::from_le_bytes(*nanoseconds),
        },
        source: *source,
        node: NodeId::from_le_bytes(node.try_into().ok()?),
        complete: *complete == 1,
    })
}

/// The hidden name of a chunk of packs.
pub(crate) fn packs_name(number: u64) -> String {
    format!("p{number:016x}")
}

/// The hidden name of the large file for `path`: the same for each attempt, so that it can be resumed.
pub(crate) fn large_name(path: &Path) -> String {
    let digest = Digest::of(path.as_os_str().as_bytes()).to_string();
    format!("l{}", &digest[..32])
}

fn numbered(name: &std::ffi::OsStr, n: u32) -> OsString {
    let mut name = name.to_owned();
    if n > 0 {
        name.push(format!(" ({n})"));
    }
    name
}

fn present(base: &DirHandle, path: &Path) -> io::Result<Option<Attributes>> {
    match base.attributes(path) {
        Ok(attributes) => Ok(Some(attributes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn born(base: &DirHandle, path: &Path) -> io::Result<Timestamp> {
    Ok(base.born(path)?.unwrap_or_default())
}

fn make_dir(base: &DirHandle, path: &Path) -> io::Result<()> {
    match base.create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn check_name(wanted: &std::ffi::OsStr) -> Result<(), TransferError> {
    if let Err(why) = check_entry_name(wanted.as_bytes()) {
        let message = format!("the tree's name cannot be used: {why}; send it under another name");
        return Err(refused(FailureCode::BadName, message));
    }
    if wanted.len() > MAX_ROOT_NAME {
        return Err(refused(FailureCode::BadName, "the tree's name is longer than 240 bytes"));
    }
    Ok(())
}

fn exists() -> TransferError {
    refused(FailureCode::Rejected, "a directory of this name exists there; send it under another name")
}

fn refused(code: FailureCode, message: impl Into<String>) -> TransferError {
    TransferError::Unacceptable(Refusal::new(code, message))
}
