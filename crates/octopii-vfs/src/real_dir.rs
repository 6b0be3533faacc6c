//! Directories of the machine's own file system, resolved by the kernel beneath a handle.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RawMode, RenameFlags, ResolveFlags, Stat, StatxFlags, Timespec,
    Timestamps,
};
use rustix::io::Errno;

use crate::real::RealFile;
use crate::{Attributes, EntryKind, FileHandle, OpenMode, Timestamp, VfsDir};

/// An open directory of the machine's own file system.
#[derive(Debug)]
pub(crate) struct RealDir {
    fd: OwnedFd,
    /// Old kernels and some sandboxes lack `openat2`; then every component is opened by itself.
    by_component: AtomicBool,
    /// The directories used last: thousands of calls in a row are about names in the same one or two.
    latest: Mutex<[Option<Latest>; 2]>,
}

/// A directory on the way that is kept open.
#[derive(Debug)]
struct Latest {
    path: PathBuf,
    fd: Arc<OwnedFd>,
    uses: u32,
}

/// A directory that is kept open is looked up again after so many uses, and whenever something in it is not found: what others
/// rename or replace is noticed soon. Nothing is removed by way of it.
const MAX_USES: u32 = 256;

/// What every directory on the way is opened with.
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How often a lookup is tried again that the kernel gave up because of renames at the same time.
const TRIES: usize = 16;

impl RealDir {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, by_component: AtomicBool::new(false), latest: Mutex::default() })
    }

    /// Opens the directory at `path`, which is not the handle itself.
    fn descend(&self, path: &Path, flags: OFlags, also: ResolveFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | also;
        for _ in 0..TRIES {
            if self.by_component.load(Ordering::Relaxed) {
                break;
            }
            match rustix::fs::openat2(&self.fd, path, DIRECTORY | flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::LOOP) => return Err(Errno::NOTDIR.into()),
                Err(Errno::NOSYS | Errno::PERM) => self.by_component.store(true, Ordering::Relaxed),
                Err(e) => return Err(e.into()),
            }
        }
        self.descend_by_component(path, flags)
    }

    /// Plain names, each opened without following it: no name can lead elsewhere.
    fn descend_by_component(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let mut at: Option<OwnedFd> = None;
        for name in path.iter() {
            let from = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            at = Some(rustix::fs::openat(from, name, DIRECTORY | OFlags::PATH, Mode::empty())?);
        }
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(rustix::fs::openat(&at, ".", DIRECTORY | flags, Mode::empty())?)
    }

    /// Does something with the last name of `path`, in the directory that holds it.
    fn at<T>(&self, path: &Path, work: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>) -> io::Result<T> {
        check(path)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => return Ok(work(self.fd.as_fd(), name)?),
        };
        if let Some(fd) = self.kept(parent) {
            match work(fd.as_fd(), name) {
                Err(Errno::NOENT) => {}
                other => return Ok(other?),
            }
        }
        let fd = Arc::new(self.descend(parent, OFlags::PATH, ResolveFlags::empty())?);
        self.keep(parent, &fd);
        Ok(work(fd.as_fd(), name)?)
    }

    /// Like [`at`](Self::at), for what cannot be taken back: in the directory that has this path at this moment, and only where no other
    /// file system is mounted on the way.
    fn at_now(
        &self,
        path: &Path,
        work: impl Fn(BorrowedFd<'_>, &OsStr) -> Result<(), Errno>,
    ) -> io::Result<()> {
        check(path)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => return Ok(work(self.fd.as_fd(), name)?),
        };
        let fd = self.descend(parent, OFlags::PATH, ResolveFlags::NO_XDEV)?;
        // Without the call that knows of mounts.
        if self.by_component.load(Ordering::Relaxed)
            && mount_of_open(fd.as_fd())? != mount_of_open(self.fd.as_fd())?
        {
            return Err(Errno::XDEV.into());
        }
        Ok(work(fd.as_fd(), name)?)
    }

    fn kept(&self, path: &Path) -> Option<Arc<OwnedFd>> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let found = latest.iter_mut().flatten().find(|kept| kept.path == path)?;
        found.uses += 1;
        (found.uses <= MAX_USES).then(|| Arc::clone(&found.fd))
    }

    fn keep(&self, path: &Path, fd: &Arc<OwnedFd>) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        // The first of the two is the older one, unless this path had the other.
        if latest[1].as_ref().is_none_or(|kept| kept.path != path) {
            latest.swap(0, 1);
        }
        latest[1] = Some(Latest { path: path.to_owned(), fd: Arc::clone(fd), uses: 0 });
    }

    /// A directory that can be listed and synced.
    fn readable(&self, path: &Path) -> io::Result<OwnedFd> {
        check(path)?;
        if path.as_os_str().is_empty() {
            return Ok(rustix::fs::openat(&self.fd, ".", DIRECTORY | OFlags::RDONLY, Mode::empty())?);
        }
        self.descend(path, OFlags::RDONLY, ResolveFlags::empty())
    }
}

impl VfsDir for RealDir {
    fn attributes(&self, path: &Path) -> io::Result<Attributes> {
        if path.as_os_str().is_empty() {
            return Ok(attributes_of(&rustix::fs::fstat(&self.fd)?));
        }
        self.at(path, |dir, name| {
            Ok(attributes_of(&rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?))
        })
    }

    fn born(&self, path: &Path) -> io::Result<Option<Timestamp>> {
        let asked = |dir: BorrowedFd<'_>, name: &OsStr, flags| {
            match rustix::fs::statx(dir, name, flags, StatxFlags::BTIME) {
                Ok(stat) if stat.stx_mask & StatxFlags::BTIME.bits() == 0 => Ok(None),
                Ok(stat) => Ok(Some(Timestamp {
                    seconds: stat.stx_btime.tv_sec,
                    nanoseconds: stat.stx_btime.tv_nsec,
                })),
                // Old kernels and some sandboxes lack the call.
                Err(Errno::NOSYS | Errno::PERM) => Ok(None),
                Err(e) => Err(e),
            }
        };
        if path.as_os_str().is_empty() {
            return Ok(asked(self.fd.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)?);
        }
        self.at(path, |dir, name| asked(dir, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    fn crosses_mount(&self, path: &Path) -> io::Result<bool> {
        if path.as_os_str().is_empty() {
            return Ok(false);
        }
        let there = self.at(path, |dir, name| mount_of(dir, name, AtFlags::SYMLINK_NOFOLLOW))?;
        Ok(there != mount_of_open(self.fd.as_fd())?)
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        let mut dir = Dir::new(self.readable(path)?)?;
        for entry in dir.by_ref() {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(OsString::from_vec(name.to_bytes().to_vec()));
            }
        }
        // One that was removed still opens, if it is open, and lists as if it were empty.
        if dir.stat()?.st_nlink == 0 {
            return Err(Errno::NOENT.into());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        // A pipe at the name must not be waited for.
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = flags
            | match mode {
                OpenMode::Read => OFlags::RDONLY,
                OpenMode::ReadWrite => OFlags::RDWR,
                OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
            };
        let fd = self.at(path, |dir, name| rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR))?;
        if mode != OpenMode::CreateNew {
            let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode as RawMode);
            if kind != FileType::RegularFile {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
        }
        Ok(Arc::new(RealFile(File::from(fd))))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.at(path, |dir, name| rustix::fs::mkdirat(dir, name, Mode::RWXU))
    }

    fn read_link(&self, path: &Path) -> io::Result<OsString> {
        let target = self.at(path, |dir, name| rustix::fs::readlinkat(dir, name, Vec::new()))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    fn create_link(&self, path: &Path, target: &OsStr) -> io::Result<()> {
        self.at(path, |dir, name| rustix::fs::symlinkat(target, dir, name))
    }

    fn rename(&self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let moved = |from_dir: BorrowedFd<'_>, from: &OsStr, to_dir: BorrowedFd<'_>, to: &OsStr| {
            if replace {
                return rustix::fs::renameat(from_dir, from, to_dir, to);
            }
            match rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
                // Some file systems lack the flag. A hard link refuses an existing name just as atomically; a crash
                // between the two calls leaves the complete file under both names.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty())?;
                    rustix::fs::unlinkat(from_dir, from, AtFlags::empty())
                }
                other => other,
            }
        };
        // What fails within is not about the first directory: told apart, so that its kind is kept.
        self.at(from, |from_dir, from_name| {
            Ok(self.at(to, |to_dir, to_name| moved(from_dir, from_name, to_dir, to_name)))
        })?
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.at_now(path, |dir, name| rustix::fs::unlinkat(dir, name, AtFlags::empty()))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.at_now(path, |dir, name| rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
    }

    fn set_attributes(&self, path: &Path, mode: u32, modified: Option<Timestamp>) -> io::Result<()> {
        if path.as_os_str().is_empty() {
            return set_attributes_of(self.fd.as_fd(), mode, modified);
        }
        // Opened first, so that it is changed and not what may take its name meanwhile.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd =
            self.at(path, |parent, name| match rustix::fs::openat(parent, name, flags, Mode::empty()) {
                // Its owner may change what its mode lets nobody open. The handle is of the thing itself, never of a link.
                Err(Errno::ACCESS) => {
                    let path_only = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let fd = rustix::fs::openat(parent, name, path_only, Mode::empty())?;
                    if attributes_of(&rustix::fs::fstat(&fd)?).kind == EntryKind::Link {
                        return Err(Errno::LOOP);
                    }
                    let through = format!("/proc/self/fd/{}", fd.as_raw_fd());
                    rustix::fs::chmod(&through, Mode::from_raw_mode(mode as RawMode) | Mode::RUSR)?;
                    rustix::fs::openat(parent, name, flags, Mode::empty())
                }
                other => other,
            })?;
        set_attributes_of(fd.as_fd(), mode, modified)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.readable(path)?)?)
    }

    fn sync_file_system(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.fd)?)
    }
}

/// The device and, where the kernel tells it, the number of the mount: part of a file system that is mounted a second time has the same
/// device there.
fn mount_of(dir: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> Result<(u64, u64), Errno> {
    match rustix::fs::statx(dir, name, flags, StatxFlags::MNT_ID) {
        Ok(stat) => {
            let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
            let tells = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
            Ok((device, if tells { stat.stx_mnt_id } else { 0 }))
        }
        // Old kernels and some sandboxes lack the call.
        Err(Errno::NOSYS | Errno::PERM) => Ok((rustix::fs::statat(dir, name, flags)?.st_dev, 0)),
        Err(e) => Err(e),
    }
}

fn mount_of_open(dir: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    mount_of(dir, OsStr::new(""), AtFlags::EMPTY_PATH)
}

/// Only plain names may be resolved, on every path through this file.
fn check(path: &Path) -> io::Result<()> {
    if path.components().all(|part| matches!(part, Component::Normal(_)))
        && !path.as_os_str().as_bytes().contains(&0)
    {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path of plain names"))
}

/// Sets what [`VfsDir::set_attributes`] and [`crate::VfsFile::set_attributes`] promise.
pub(crate) fn set_attributes_of(
    fd: BorrowedFd<'_>,
    mode: u32,
    modified: Option<Timestamp>,
) -> io::Result<()> {
    if let Some(modified) = modified {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ },
            last_modification: Timespec { tv_sec: modified.seconds, tv_nsec: modified.nanoseconds as _ },
        };
        rustix::fs::futimens(fd, &times)?;
    }
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode as RawMode))?)
}

fn attributes_of(stat: &Stat) -> Attributes {
    let kind = match FileType::from_raw_mode(stat.st_mode as RawMode) {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Link,
        _ => EntryKind::Special,
    };
    Attributes {
        kind,
        len: if kind == EntryKind::File { stat.st_size as u64 } else { 0 },
        mode: stat.st_mode & 0o7777,
        modified: Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
        id: (stat.st_dev, stat.st_ino),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "looks at the real thing from beside")]
mod tests;
