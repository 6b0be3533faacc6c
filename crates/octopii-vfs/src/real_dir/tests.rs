use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::{RealVfs, Vfs};

/// Both ways of resolving, over the same directory.
fn both(path: &Path) -> [RealDir; 2] {
    let old = RealDir::open(path).unwrap();
    old.by_component.store(true, Ordering::Relaxed);
    [RealDir::open(path).unwrap(), old]
}

#[test]
fn nothing_leads_out_of_the_directory() {
    let home = tempfile::tempdir().unwrap();
    let (inside, outside) = (home.path().join("inside"), home.path().join("outside"));
    std::fs::create_dir_all(inside.join("real/deep")).unwrap();
    std::fs::create_dir_all(outside.join("sub")).unwrap();
    std::fs::write(outside.join("sub/secret"), "s").unwrap();
    std::fs::write(outside.join("secret"), "s").unwrap();
    symlink(&outside, inside.join("abs")).unwrap();
    symlink("../outside", inside.join("rel")).unwrap();
    symlink("real", inside.join("within")).unwrap();
    symlink("../outside/secret", inside.join("file")).unwrap();
    symlink("/proc/self/root", inside.join("real/magic")).unwrap();
    for dir in both(&inside) {
        for path in [
            "abs/sub/secret",
            "abs/sub/new",
            "rel/sub/secret",
            "within/deep/new",
            "abs/secret",
            "rel/secret",
            "within/new",
            "real/magic/etc",
            "../outside/secret",
            "real/../../outside/secret",
            "/etc/passwd",
            "file/x",
            "real/./../x",
        ] {
            let path = Path::new(path);
            assert!(dir.open(path, OpenMode::Read).is_err(), "{path:?}");
            assert!(dir.open(path, OpenMode::CreateNew).is_err(), "{path:?}");
            assert!(dir.create_dir(path).is_err(), "{path:?}");
            assert!(dir.create_link(path, OsStr::new("x")).is_err(), "{path:?}");
            assert!(dir.remove_file(path).is_err(), "{path:?}");
            assert!(dir.attributes(path).is_err(), "{path:?}");
            assert!(dir.set_attributes(path, 0o777, None).is_err(), "{path:?}");
            assert!(dir.rename(Path::new("real"), path, true).is_err(), "{path:?}");
        }
        for link in ["abs", "rel", "within"] {
            assert!(dir.names(Path::new(link)).is_err());
            assert!(dir.sync_dir(Path::new(link)).is_err());
            assert!(dir.set_attributes(Path::new(link), 0o700, None).is_err());
        }
        // The last name is a link itself: it is seen, and never opened.
        assert_eq!(dir.attributes(Path::new("file")).unwrap().kind, EntryKind::Link);
        assert!(dir.open(Path::new("file"), OpenMode::Read).is_err());
        assert!(dir.open(Path::new("file"), OpenMode::CreateNew).is_err());
        assert_eq!(dir.read_link(Path::new("rel")).unwrap(), "../outside");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 2);
    assert_eq!(std::fs::read_dir(outside.join("sub")).unwrap().count(), 1);
}

#[test]
fn an_open_directory_stays_the_same_one() {
    let home = tempfile::tempdir().unwrap();
    let (base, moved) = (home.path().join("base"), home.path().join("moved"));
    std::fs::create_dir(&base).unwrap();
    for dir in both(&base) {
        std::fs::rename(&base, &moved).unwrap();
        symlink("/", &base).unwrap();
        dir.open(Path::new("new"), OpenMode::CreateNew).unwrap();
        assert!(moved.join("new").exists());
        dir.remove_file(Path::new("new")).unwrap();
        std::fs::remove_file(&base).unwrap();
        std::fs::rename(&moved, &base).unwrap();
    }
}

#[test]
fn attributes_are_set_and_read_back() {
    let home = tempfile::tempdir().unwrap();
    for dir in both(home.path()) {
        dir.create_dir(Path::new("d")).unwrap();
        let file = dir.open(Path::new("d/f"), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        let early = Timestamp { seconds: -5, nanoseconds: 999_999_999 };
        file.set_attributes(0o640, Some(early)).unwrap();
        let seen = dir.attributes(Path::new("d/f")).unwrap();
        assert_eq!((seen.kind, seen.len, seen.mode, seen.modified), (EntryKind::File, 3, 0o640, early));
        dir.set_attributes(Path::new("d"), 0o750, Some(early)).unwrap();
        let seen = dir.attributes(Path::new("d")).unwrap();
        assert_eq!((seen.kind, seen.len, seen.mode, seen.modified), (EntryKind::Directory, 0, 0o750, early));
        let real = std::fs::metadata(home.path().join("d/f")).unwrap();
        assert_eq!((real.mtime(), real.permissions().mode() & 0o7777), (-5, 0o640));
        assert_eq!(dir.attributes(Path::new("d/f")).unwrap().id, (real.dev(), real.ino()));
        dir.set_attributes(Path::new("d"), 0o000, None).unwrap();
        dir.set_attributes(Path::new("d"), 0o700, None).unwrap();
        dir.rename(Path::new("d/f"), Path::new("g"), false).unwrap();
        dir.open(Path::new("d/f"), OpenMode::CreateNew).unwrap();
        let taken = dir.rename(Path::new("g"), Path::new("d/f"), false).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        dir.rename(Path::new("g"), Path::new("d/f"), true).unwrap();
        assert_eq!(dir.names(Path::new("")).unwrap(), ["d"]);
        assert_eq!(dir.names(Path::new("d")).unwrap(), ["f"]);
        dir.sync_dir(Path::new("d")).unwrap();
        dir.sync_dir(Path::new("")).unwrap();
        dir.sync_file_system().unwrap();
        dir.remove_file(Path::new("d/f")).unwrap();
        std::fs::remove_dir(home.path().join("d")).unwrap();
    }
}

#[test]
fn a_pipe_is_not_waited_for() {
    let home = tempfile::tempdir().unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, home.path().join("pipe"), Mode::RWXU).unwrap();
    let dir = RealVfs.open_dir(home.path()).unwrap();
    assert!(dir.open(Path::new("pipe"), OpenMode::Read).is_err());
    assert_eq!(dir.attributes(Path::new("pipe")).unwrap().kind, EntryKind::Special);
}

/// Whoever takes its list for what is in it would take everything for gone.
#[test]
fn a_removed_directory_is_not_an_empty_one() {
    let home = tempfile::tempdir().unwrap();
    for n in 0..2 {
        let base = home.path().join(n.to_string());
        std::fs::create_dir(&base).unwrap();
        let dir = &both(&base)[n];
        assert_eq!(dir.names(Path::new("")).unwrap(), [""; 0]);
        std::fs::remove_dir(&base).unwrap();
        assert_eq!(dir.names(Path::new("")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn nothing_is_removed_from_a_directory_that_was_moved_out() {
    let home = tempfile::tempdir().unwrap();
    for n in 0..2 {
        let (base, rescue) = (home.path().join(format!("base{n}")), home.path().join(format!("rescue{n}")));
        std::fs::create_dir_all(base.join("d/sub")).unwrap();
        std::fs::write(base.join("d/1"), "").unwrap();
        std::fs::write(base.join("d/2"), "").unwrap();
        let dir = &both(&base)[n];
        dir.attributes(Path::new("d/1")).unwrap();
        dir.remove_file(Path::new("d/1")).unwrap();
        std::fs::rename(base.join("d"), &rescue).unwrap();
        assert_eq!(dir.remove_file(Path::new("d/2")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(dir.remove_dir(Path::new("d/sub")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(rescue.join("2").exists() && rescue.join("sub").exists());
    }
}

/// Of a name that is not there: nothing is lost if it goes wrong.
#[test]
fn nothing_is_removed_from_another_file_system() {
    for dir in both(Path::new("/")) {
        for path in ["proc/no such name", "proc/sys/no such name"] {
            let path = Path::new(path);
            assert_eq!(dir.remove_file(path).unwrap_err().kind(), io::ErrorKind::CrossesDevices, "{path:?}");
            assert_eq!(dir.remove_dir(path).unwrap_err().kind(), io::ErrorKind::CrossesDevices, "{path:?}");
        }
        assert!(dir.crosses_mount(Path::new("proc")).unwrap());
        assert!(dir.crosses_mount(Path::new("proc/sys")).unwrap());
        assert!(!dir.crosses_mount(Path::new("")).unwrap());
    }
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("d")).unwrap();
    for dir in both(home.path()) {
        assert!(!dir.crosses_mount(Path::new("d")).unwrap());
        dir.remove_file(Path::new("d/no such name")).unwrap_err();
    }
}
