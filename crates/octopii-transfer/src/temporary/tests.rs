//! On the real file system.

use std::time::{Duration, SystemTime};

use octopii_vfs::RealVfs;

use super::*;
use crate::wire::ResumeKey;

const KEEPING: Keeping = Keeping { time: Duration::from_secs(3600), count: 9, bytes: 1 << 20 };

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
        assert_eq!(tmp.publish("a.txt", false, true).unwrap(), dir.path().join(expected));
    }
    assert_eq!(octopii_vfs::read_file(&*vfs, &dir.path().join("a.txt"), 9).unwrap(), [0]);
    let tmp = TemporaryFile::create(&vfs, dir.path()).unwrap();
    tmp.file().write_all_at(b"new", 0).unwrap();
    tmp.publish("a.txt", true, true).unwrap();
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
    assert_eq!(sweep(&*vfs, dir.path(), KEEPING, SystemTime::now()).unwrap().removed, 1);
    let left = names(dir.path());
    assert!(!left.contains(&dead));
    assert_eq!(left.len(), others.len() + 1);
    drop(live);
    assert_eq!(names(dir.path()).len(), others.len());
    let missing = dir.path().join("missing");
    assert_eq!(sweep(&*vfs, &missing, KEEPING, SystemTime::now()).unwrap().removed, 0);
}

fn abandon(vfs: &Arc<dyn Vfs>, dir: &Path, n: u8) {
    let about = About { key: ResumeKey([n; 16]), size: None, block_size: 4096 };
    let (mut file, _, _) = TemporaryFile::open_resumable(vfs, dir, about).unwrap().unwrap();
    assert!(TemporaryFile::open_resumable(vfs, dir, about).unwrap().is_none(), "it is in use");
    file.file().write_all_at(&[n; 1000], 0).unwrap();
    file.set_keep(true);
}

#[test]
fn what_can_be_resumed_is_kept_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, vfs) = (dir.path(), RealVfs::shared());
    (0..4).for_each(|n| abandon(&vfs, dir, n));
    let orphan = dir.join(format!("{TEMPORARY_PREFIX}{:032x}{JOURNAL_SUFFIX}", 7));
    vfs.open(&orphan, OpenMode::CreateNew).unwrap();
    let now = SystemTime::now();
    let swept = |keeping, now| sweep(&*vfs, dir, keeping, now).unwrap().removed;
    assert_eq!((swept(KEEPING, now), names(dir).len()), (0, 8), "but the journal of nothing");
    assert_eq!(swept(Keeping { count: 3, ..KEEPING }, now), 1);
    assert_eq!(swept(Keeping { bytes: 2999, ..KEEPING }, now), 1);
    assert_eq!(names(dir).len(), 4);
    assert_eq!(swept(KEEPING, now + 2 * KEEPING.time), 2);
    assert!(names(dir).is_empty());
}

/// It would otherwise take away all that is older, and still not fit.
#[test]
fn what_does_not_fit_takes_nobody_elses_place() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, vfs) = (dir.path(), RealVfs::shared());
    abandon(&vfs, dir, 1);
    abandon(&vfs, dir, 2);
    let large = names(dir).into_iter().filter(|name| name.ends_with(TEMPORARY_SUFFIX));
    // Of the same moment, the first by name.
    let latest = large.max_by_key(|name| {
        let journal = name.replace(TEMPORARY_SUFFIX, JOURNAL_SUFFIX);
        let modified = vfs.open(&dir.join(journal), OpenMode::Read).unwrap().modified().unwrap();
        (modified, std::cmp::Reverse(name.clone()))
    });
    vfs.open(&dir.join(latest.unwrap()), OpenMode::ReadWrite).unwrap().set_len(5000).unwrap();
    let keeping = Keeping { bytes: 4000, ..KEEPING };
    assert_eq!(sweep(&*vfs, dir, keeping, SystemTime::now()).unwrap().removed, 1);
    assert_eq!(names(dir).len(), 2, "the older one fits");
}

/// Otherwise a file of which little was there would go for its length, or others for it.
#[test]
fn holes_of_what_is_kept_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, vfs) = (dir.path(), RealVfs::shared());
    abandon(&vfs, dir, 1);
    abandon(&vfs, dir, 2);
    for name in names(dir).into_iter().filter(|name| name.ends_with(TEMPORARY_SUFFIX)) {
        vfs.open(&dir.join(name), OpenMode::ReadWrite).unwrap().set_len(1 << 30).unwrap();
    }
    let keeping = |bytes| Keeping { bytes, ..KEEPING };
    assert_eq!(sweep(&*vfs, dir, keeping(64 << 10), SystemTime::now()).unwrap().removed, 0);
    assert_eq!(sweep(&*vfs, dir, keeping(1 << 10), SystemTime::now()).unwrap().removed, 2);
}

/// What is reserved beyond its end would be counted nowhere and fill the disk.
#[test]
fn what_is_kept_takes_no_more_room_than_it_has_bytes() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (dir, vfs) = (dir.path(), RealVfs::shared());
    let about = About { key: ResumeKey([1; 16]), size: None, block_size: 4096 };
    let open = || TemporaryFile::open_resumable(&vfs, dir, about).unwrap().unwrap().0;
    let mut file = open();
    file.file().allocate(64 << 20).unwrap();
    file.file().write_all_at(&[1; 1000], 0).unwrap();
    let path = file.path().to_owned();
    let taken = || std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(taken() >= 64 << 20, "this file system does not reserve: {}", taken());
    file.set_keep(true);
    drop(file);
    assert!(taken() < 1 << 20, "{}", taken());
    // The same for what a killed process has left.
    vfs.open(&path, OpenMode::ReadWrite).unwrap().allocate(64 << 20).unwrap();
    assert_eq!(sweep(&*vfs, dir, KEEPING, SystemTime::now()).unwrap().removed, 0);
    assert!(taken() < 1 << 20, "{}", taken());
}
