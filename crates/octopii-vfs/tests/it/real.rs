//! [`octopii_vfs::RealVfs`] against the contracts of the traits.

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use octopii_vfs::{FileKind, OpenMode, RealVfs, Vfs};

#[test]
fn files_are_used_by_offset_and_read_as_zero_where_nothing_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = RealVfs.open(&path, OpenMode::CreateNew).unwrap();
    assert!(file.is_empty().unwrap());
    file.write_all_at(b"late", 6).unwrap();
    file.write_all_at(b"soon", 0).unwrap();
    file.sync_data().unwrap();
    let mut buf = [1; 10];
    file.read_exact_at(&mut buf, 0).unwrap();
    assert_eq!(&buf, b"soon\0\0late");
    assert_eq!(file.read_exact_at(&mut buf, 1).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(file.read_at(&mut buf, 100).unwrap(), 0);
    file.set_len(3).unwrap();
    file.set_len(5).unwrap();
    file.read_exact_at(&mut buf[..5], 0).unwrap();
    assert_eq!(&buf[..5], b"soo\0\0");
}

/// Whatever the alignment and whatever the cache holds already, the bytes are where they belong and nothing else changes.
#[test]
fn what_is_written_past_the_cache_is_read_through_it() {
    const PAGE: usize = 4096;
    let dir = tempfile::tempdir().unwrap();
    let file = RealVfs.open(&dir.path().join("f"), OpenMode::CreateNew).unwrap();
    let len = 96 * PAGE;
    let mut expected = vec![7; len + PAGE];
    file.write_all_at(&expected, 0).unwrap();
    let buffer: Vec<u8> = (0..len + 2 * PAGE).map(|i| (i % 251) as u8).collect();
    let aligned = buffer.as_ptr().align_offset(PAGE);
    for (memory, offset, n) in [
        (aligned, PAGE, 32 * PAGE),
        (aligned + 1, 40 * PAGE, 20 * PAGE),
        (aligned, 61 * PAGE + 5, PAGE),
        (aligned, 64 * PAGE, 20 * PAGE + 77),
        (aligned, 0, 0),
    ] {
        file.write_all_at_uncached(&buffer[memory..memory + n], offset as u64).unwrap();
        expected[offset..offset + n].copy_from_slice(&buffer[memory..memory + n]);
        let mut read = vec![0; expected.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == expected, "{n} bytes from {memory} at {offset}");
    }
    file.write_all_at_uncached(&buffer[aligned..aligned + 8 * PAGE], expected.len() as u64).unwrap();
    assert_eq!(file.len().unwrap(), (expected.len() + 8 * PAGE) as u64);
}

/// What is written past the cache is not in it: reading it without waiting for the disk fails.
#[test]
fn the_cache_is_not_filled_by_what_is_written_past_it() {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    const LEN: usize = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let buffer = vec![7; LEN + 4096];
    let aligned = buffer.as_ptr().align_offset(4096);
    let data = &buffer[aligned..aligned + LEN];
    let is_cached = |name: &str| {
        let file = std::fs::File::options().read(true).open(dir.path().join(name)).unwrap();
        let mut read = vec![0; LEN];
        let mut into = [std::io::IoSliceMut::new(&mut read)];
        rustix::io::preadv2(&file, &mut into, 0, rustix::io::ReadWriteFlags::NOWAIT)
    };
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let by_hand = std::fs::File::options()
        .write(true)
        .create_new(true)
        .custom_flags(direct)
        .open(dir.path().join("by hand"))
        .and_then(|file| file.write_all_at(data, 0));
    if by_hand.is_err() || is_cached("by hand") != Err(rustix::io::Errno::AGAIN) {
        eprintln!("skipped: the file system of {} always uses the cache", dir.path().display());
        return;
    }
    let file = RealVfs.open(&dir.path().join("cached"), OpenMode::CreateNew).unwrap();
    file.write_all_at(data, 0).unwrap();
    assert_eq!(is_cached("cached"), Ok(LEN));
    let file = RealVfs.open(&dir.path().join("past it"), OpenMode::CreateNew).unwrap();
    file.write_all_at_uncached(data, 0).unwrap();
    assert_eq!(is_cached("past it"), Err(rustix::io::Errno::AGAIN));
}

#[test]
fn a_version_changes_with_the_content_and_its_time_cannot_be_hidden() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = RealVfs.open(&path, OpenMode::CreateNew).unwrap();
    file.write_all_at(b"one", 0).unwrap();
    let before = file.version().unwrap();
    assert_eq!(file.version().unwrap(), before);
    assert_eq!(before.len, 3);
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!((before.device, before.inode), (metadata.dev(), metadata.ino()));
    // The clock of a file system ticks every few milliseconds.
    std::thread::park_timeout(std::time::Duration::from_millis(50));
    file.write_all_at(b"two", 0).unwrap();
    let hidden = std::fs::File::options().write(true).open(&path).unwrap();
    hidden.set_modified(metadata.modified().unwrap()).unwrap();
    let after = file.version().unwrap();
    assert_eq!((after.len, after.modified_ns), (before.len, before.modified_ns));
    assert_ne!(after.changed_ns, before.changed_ns);
}

#[test]
fn opening_never_truncates_and_creates_only_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for mode in [OpenMode::Read, OpenMode::ReadWrite] {
        assert_eq!(RealVfs.open(&path, mode).unwrap_err().kind(), ErrorKind::NotFound);
    }
    RealVfs.open(&path, OpenMode::CreateNew).unwrap().write_all_at(b"kept", 0).unwrap();
    assert_eq!(RealVfs.open(&path, OpenMode::CreateNew).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(RealVfs.open(&path, OpenMode::ReadWrite).unwrap().len().unwrap(), 4);
    let read_only = RealVfs.open(&path, OpenMode::Read).unwrap();
    assert!(read_only.write_all_at(b"x", 0).is_err());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn creating_does_not_follow_a_symbolic_link() {
    let dir = tempfile::tempdir().unwrap();
    symlink(dir.path().join("target"), dir.path().join("link")).unwrap();
    let opened = RealVfs.open(&dir.path().join("link"), OpenMode::CreateNew);
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(!dir.path().join("target").exists());
    assert_eq!(RealVfs.metadata(&dir.path().join("link")).unwrap().kind, FileKind::Other);
}

#[test]
fn renaming_replaces_or_refuses_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    for (path, content) in [(&a, b"a"), (&b, b"b")] {
        RealVfs.open(path, OpenMode::CreateNew).unwrap().write_all_at(content, 0).unwrap();
    }
    assert_eq!(RealVfs.rename_no_replace(&a, &b).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(octopii_vfs::read_file(&RealVfs, &b, 9).unwrap(), b"b");
    RealVfs.rename(&a, &b).unwrap();
    assert_eq!(octopii_vfs::read_file(&RealVfs, &b, 9).unwrap(), b"a");
    RealVfs.rename_no_replace(&b, &a).unwrap();
    RealVfs.sync_dir(dir.path()).unwrap();
    assert_eq!(RealVfs.metadata(&b).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn directories_are_listed_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["c", "a", "b"] {
        RealVfs.open(&dir.path().join(name), OpenMode::CreateNew).unwrap().write_all_at(&[0; 7], 0).unwrap();
    }
    RealVfs.create_dir_all(&dir.path().join("d/e")).unwrap();
    let found = RealVfs.read_dir(dir.path()).unwrap();
    let names: Vec<_> =
        found.iter().map(|e| (e.name.to_str().unwrap(), e.metadata.kind, e.metadata.len)).collect();
    assert_eq!(
        names,
        [
            ("a", FileKind::File, 7),
            ("b", FileKind::File, 7),
            ("c", FileKind::File, 7),
            ("d", FileKind::Directory, 0)
        ]
    );
    RealVfs.remove_file(&dir.path().join("b")).unwrap();
    assert_eq!(RealVfs.read_dir(dir.path()).unwrap().len(), 3);
    assert_eq!(RealVfs.read_dir(&dir.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_lock_excludes_others_until_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let guard = RealVfs.lock(&path).unwrap();
    assert_eq!(RealVfs.lock(&path).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(guard);
    RealVfs.lock(&path).unwrap();
}

#[test]
fn reserving_space_takes_it_without_changing_the_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let file = RealVfs.open(&path, OpenMode::CreateNew).unwrap();
    file.allocate(1 << 20).unwrap();
    assert_eq!(file.len().unwrap(), 0);
    let reserved = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(reserved == 0 || reserved >= 1 << 20, "{reserved}");
    assert!(RealVfs.free_space(dir.path()).unwrap() > 0);
}

/// Where a file has holes is told in whole blocks of the file system, or not at all; what is told to be one is one.
#[test]
fn holes_are_told_and_made() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let file = RealVfs.open(&path, OpenMode::CreateNew).unwrap();
    assert_eq!(file.content_from(0).unwrap(), None, "there is nothing");
    file.punch_hole(0, 100).unwrap();
    assert_eq!(file.len().unwrap(), 0);
    file.set_len(16 * MIB).unwrap();
    for at in [2, 3, 10] {
        file.write_all_at(&vec![7; MIB as usize], at * MIB).unwrap();
    }
    if file.content_from(0).unwrap() == Some(0..16 * MIB) {
        eprintln!("skipped: the file system of {} does not tell of holes", dir.path().display());
        return;
    }
    let stretches = || {
        let (mut at, mut found) = (0, Vec::new());
        while let Some(stretch) = file.content_from(at).unwrap() {
            at = stretch.end;
            found.push((stretch.start / MIB, stretch.end / MIB));
        }
        found
    };
    assert_eq!(stretches(), [(2, 4), (10, 11)]);
    assert_eq!(file.content_from(3 * MIB).unwrap(), Some(3 * MIB..4 * MIB), "from there on");
    for (offset, nothing) in [(11 * MIB, "a hole to the end"), (16 * MIB, "the end"), (u64::MAX, "beyond it")]
    {
        assert_eq!(file.content_from(offset).unwrap(), None, "{nothing}");
    }
    let before = file.stored().unwrap();
    assert!((3 * MIB..4 * MIB).contains(&before), "{before}");
    // Also what is reserved only.
    file.allocate(20 * MIB).unwrap();
    file.punch_hole(2 * MIB + 100, 2 * MIB - 200).unwrap();
    file.punch_hole(4 * MIB, u64::MAX).unwrap();
    let mut read = vec![1; 2 * MIB as usize];
    file.read_exact_at(&mut read, 2 * MIB).unwrap();
    assert!(
        read[..100].iter().chain(&read[read.len() - 100..]).all(|byte| *byte == 7),
        "not beyond what was asked"
    );
    assert!(read[100..read.len() - 100].iter().all(|byte| *byte == 0));
    read.truncate(MIB as usize);
    file.read_exact_at(&mut read, 10 * MIB).unwrap();
    assert!(read.iter().all(|byte| *byte == 0));
    assert_eq!(file.len().unwrap(), 16 * MIB);
    file.set_len(16 * MIB).unwrap();
    assert!(file.stored().unwrap() < 3 * MIB, "{}", file.stored().unwrap());
    let read_only = RealVfs.open(&path, OpenMode::Read).unwrap();
    assert!(read_only.punch_hole(0, 1).is_err());
}

/// A file system that knows nothing of holes keeps the promises.
#[test]
fn without_holes_there_are_zeroes() {
    #[derive(Debug)]
    struct Plain(octopii_vfs::FileHandle);
    impl octopii_vfs::VfsFile for Plain {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_all_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
            self.0.write_all_at(data, offset)
        }
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
        fn allocate(&self, len: u64) -> std::io::Result<()> {
            self.0.allocate(len)
        }
        fn sync_data(&self) -> std::io::Result<()> {
            self.0.sync_data()
        }
    }
    use octopii_vfs::VfsFile as _;
    const LEN: usize = 200_000;
    let dir = tempfile::tempdir().unwrap();
    let file = Plain(RealVfs.open(&dir.path().join("f"), OpenMode::CreateNew).unwrap());
    assert_eq!(file.content_from(0).unwrap(), None);
    file.write_all_at(&[7; LEN], 0).unwrap();
    assert_eq!((file.stored().unwrap(), file.content_from(9).unwrap()), (LEN as u64, Some(9..LEN as u64)));
    assert_eq!(file.content_from(LEN as u64).unwrap(), None);
    file.punch_hole(10, 150_000).unwrap();
    file.punch_hole(LEN as u64 - 5, u64::MAX).unwrap();
    file.punch_hole(LEN as u64 + 5, 10).unwrap();
    let mut expected = vec![7; LEN];
    expected[10..150_010].fill(0);
    expected[LEN - 5..].fill(0);
    let mut read = vec![1; LEN];
    file.read_exact_at(&mut read, 0).unwrap();
    assert!(read == expected && file.len().unwrap() == LEN as u64);
}

/// What a layer does not do anew reaches what is beneath it, the calls included that a file system need not have.
#[test]
fn a_layer_passes_on_what_it_does_not_change() {
    #[derive(Debug)]
    struct Reading(&'static [u8]);
    impl octopii_vfs::VfsLayer for Reading {
        fn beneath(&self) -> &dyn Vfs {
            &RealVfs
        }
        fn open(&self, path: &std::path::Path, mode: OpenMode) -> std::io::Result<octopii_vfs::FileHandle> {
            Ok(std::sync::Arc::new(Read(RealVfs.open(path, mode)?, self.0)))
        }
    }
    #[derive(Debug)]
    struct Read(octopii_vfs::FileHandle, &'static [u8]);
    impl octopii_vfs::FileLayer for Read {
        fn beneath(&self) -> &dyn octopii_vfs::VfsFile {
            &*self.0
        }
        fn read_at(&self, buf: &mut [u8], _: u64) -> std::io::Result<usize> {
            buf[..self.1.len()].copy_from_slice(self.1);
            Ok(self.1.len())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let vfs: Box<dyn Vfs> = Box::new(Reading(b"other"));
    let file = vfs.open(&a, OpenMode::CreateNew).unwrap();
    file.write_all_at(b"12345", 0).unwrap();
    file.write_all_at_uncached(b"67890", 5).unwrap();
    let mut read = [0; 10];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"otherother");
    assert_eq!(octopii_vfs::read_file(&RealVfs, &a, 99).unwrap(), b"1234567890");
    let real = RealVfs.open(&a, OpenMode::Read).unwrap();
    assert_eq!(file.version().unwrap(), real.version().unwrap());
    assert_eq!((file.len().unwrap(), file.modified().unwrap()), (10, real.modified().unwrap()));
    assert_eq!(file.stored().unwrap(), real.stored().unwrap());
    file.punch_hole(2, 3).unwrap();
    file.set_attributes(0o640, None).unwrap();
    assert_eq!(octopii_vfs::read_file(&RealVfs, &a, 99).unwrap(), b"12\x00\x00\x0067890");
    assert_eq!(std::fs::metadata(&a).unwrap().permissions().mode() & 0o777, 0o640);
    file.set_len(1 << 20).unwrap();
    assert_eq!(file.content_from(0).unwrap(), real.content_from(0).unwrap());
    vfs.rename_no_replace(&a, &b).unwrap();
    assert_eq!(vfs.open_dir(dir.path()).unwrap().names(std::path::Path::new("")).unwrap(), ["b"]);
    assert_eq!(vfs.metadata(&b).unwrap(), RealVfs.metadata(&b).unwrap());
    assert_eq!(vfs.canonicalize(&b).unwrap(), RealVfs.canonicalize(&b).unwrap());
    vfs.lock(&b).unwrap();
    vfs.remove_file(&b).unwrap();
    assert!(vfs.read_dir(dir.path()).unwrap().is_empty());
}
