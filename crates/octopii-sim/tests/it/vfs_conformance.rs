//! The simulated file system and the real one answer alike.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use octopii_sim::SimDisk;
use octopii_vfs::{
    OpenMode, RealVfs, Vfs, create_dir_all_durable, create_file_durable, read_file, write_file_durable,
};

/// Runs `script` in an empty directory of either file system and compares what it saw, line by line.
fn compare(script: impl Fn(&dyn Vfs, &Path) -> Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    // A base as long as wanted, so that messages which name it could be compared as well.
    let real = script(&RealVfs, &dir.path().canonicalize().unwrap());

    let vfs = SimDisk::new(7).vfs();
    let base = PathBuf::from("/base");
    create_dir_all_durable(vfs.as_ref(), &base).unwrap();
    let simulated = script(vfs.as_ref(), &base);
    for (real, simulated) in real.iter().zip(&simulated) {
        assert_eq!(real, simulated, "left: the real file system, right: the simulated one");
    }
    assert_eq!(real.len(), simulated.len());
}

fn outcome<T>(what: &str, result: io::Result<T>) -> String {
    match result {
        Ok(_) => format!("{what}: ok"),
        Err(e) => format!("{what}: {:?} {:?}", e.kind(), e.raw_os_error()),
    }
}

fn listing(vfs: &dyn Vfs, dir: &Path) -> String {
    match vfs.read_dir(dir) {
        Ok(entries) => format!("{entries:?}"),
        Err(e) => format!("{:?}", e.kind()),
    }
}

fn put(vfs: &dyn Vfs, path: &Path, data: &[u8]) {
    vfs.open(path, OpenMode::CreateNew).unwrap().write_all_at(data, 0).unwrap();
}

fn get(vfs: &dyn Vfs, path: &Path) -> String {
    match read_file(vfs, path, 1 << 20) {
        Ok(data) => String::from_utf8_lossy(&data).into_owned(),
        Err(e) => format!("{:?}", e.kind()),
    }
}

#[test]
fn open_modes() {
    compare(|vfs, base| {
        let file = base.join("file");
        let mut seen = vec![
            outcome("read a missing file", vfs.open(&file, OpenMode::Read)),
            outcome("write a missing file", vfs.open(&file, OpenMode::ReadWrite)),
            outcome("missing parent", vfs.open(&base.join("no/file"), OpenMode::CreateNew)),
            outcome("create", vfs.open(&file, OpenMode::CreateNew)),
            outcome("create again", vfs.open(&file, OpenMode::CreateNew)),
            outcome("file as directory", vfs.open(&file.join("x"), OpenMode::CreateNew)),
            outcome("file as directory, reading", vfs.open(&file.join("x"), OpenMode::Read)),
            outcome("write a directory", vfs.open(base, OpenMode::ReadWrite)),
            outcome("create over a directory", vfs.open(base, OpenMode::CreateNew)),
            outcome("empty path", vfs.open(Path::new(""), OpenMode::Read)),
        ];
        let read_only = vfs.open(&file, OpenMode::Read).unwrap();
        seen.push(outcome("write through a reader", read_only.write_all_at(b"x", 0)));
        seen.push(outcome("cut through a reader", read_only.set_len(0)));
        seen.push(outcome("reserve through a reader", read_only.allocate(1)));
        seen.push(outcome("sync through a reader", read_only.sync_data()));
        let directory = vfs.open(base, OpenMode::Read).unwrap();
        seen.push(outcome("read a directory", directory.read_at(&mut [0], 0)));
        seen
    });
}

#[test]
fn reading_and_writing() {
    compare(|vfs, base| {
        let file = vfs.open(&base.join("file"), OpenMode::CreateNew).unwrap();
        let mut seen = Vec::new();
        let mut look = |what: &str| {
            let mut buf = vec![0xAA; 3000];
            let got: Vec<_> =
                [0, 1, 511, 512, 1500, 5000].map(|at| file.read_at(&mut buf, at).unwrap()).to_vec();
            let n = file.read_at(&mut buf, 0).unwrap();
            seen.push(format!(
                "{what}: len {} empty {} {got:?} {:?}",
                file.len().unwrap(),
                file.is_empty().unwrap(),
                &buf[..n]
            ));
        };
        look("new");
        file.write_all_at(b"hello", 0).unwrap();
        look("short");
        file.write_all_at(&[1; 1000], 700).unwrap();
        look("with a hole");
        file.write_all_at(&[2; 100], 650).unwrap();
        look("overlapping");
        file.write_all_at(b"", 9000).unwrap();
        look("nothing written beyond the end");
        file.set_len(690).unwrap();
        look("cut");
        file.set_len(1200).unwrap();
        look("extended");
        file.allocate(100_000).unwrap();
        look("reserved");
        file.sync_data().unwrap();
        look("synced");
        seen.push(outcome("read_exact past the end", file.read_exact_at(&mut [0; 10], 1195)));
        seen.push(outcome("reserve nothing", file.allocate(0)));
        seen
    });
}

#[test]
fn holes() {
    const PAGE: u64 = 4096;
    compare(|vfs, base| {
        let file = vfs.open(&base.join("file"), OpenMode::CreateNew).unwrap();
        let mut seen = Vec::new();
        let mut look = |what: &str| {
            let stretches: Vec<_> = [0, 1, PAGE, 3 * PAGE + 5, 7 * PAGE, 8 * PAGE, 100 * PAGE]
                .map(|at| file.content_from(at).unwrap())
                .to_vec();
            let mut buf = vec![0xAA; 10 * PAGE as usize];
            let n = file.read_at(&mut buf, 0).unwrap();
            let sum: u64 = (1..).zip(&buf[..n]).map(|(at, byte): (u64, _)| at * u64::from(*byte)).sum();
            let stored = file.stored().unwrap();
            seen.push(format!("{what}: {stretches:?} {stored} {} {sum}", file.len().unwrap()));
        };
        look("new");
        file.set_len(8 * PAGE).unwrap();
        look("nothing but a hole");
        file.write_all_at(&[7; PAGE as usize], 2 * PAGE).unwrap();
        file.write_all_at(&[7; 3 * PAGE as usize], 4 * PAGE).unwrap();
        look("with stretches");
        file.punch_hole(5 * PAGE, PAGE).unwrap();
        look("with another hole");
        file.punch_hole(2 * PAGE + 100, 200).unwrap();
        look("with zeroes");
        file.write_all_at(&[9; PAGE as usize], 9 * PAGE).unwrap();
        file.punch_hole(9 * PAGE + 1, 2).unwrap();
        file.punch_hole(4 * PAGE, PAGE).unwrap();
        look("longer");
        file.punch_hole(0, u64::MAX).unwrap();
        look("all of it");
        let read_only = vfs.open(&base.join("file"), OpenMode::Read).unwrap();
        seen.push(outcome("a hole through a reader", read_only.punch_hole(0, 1)));
        seen
    });
}

#[test]
fn a_removed_file_lives_while_it_is_open() {
    compare(|vfs, base| {
        let path = base.join("file");
        put(vfs, &path, b"old");
        let open = vfs.open(&path, OpenMode::ReadWrite).unwrap();
        vfs.remove_file(&path).unwrap();
        put(vfs, &path, b"new");
        open.write_all_at(b"still", 0).unwrap();
        let mut buf = [0; 10];
        let n = open.read_at(&mut buf, 0).unwrap();
        vec![format!("{:?}", &buf[..n]), get(vfs, &path), listing(vfs, base)]
    });
}

#[test]
fn renaming() {
    compare(|vfs, base| {
        let at = |name: &str| base.join(name);
        put(vfs, &at("a"), b"a");
        put(vfs, &at("b"), b"b");
        for dir in ["dir/sub", "empty", "other"] {
            vfs.create_dir_all(&at(dir)).unwrap();
        }
        let mut seen = Vec::new();
        let cases = [
            ("missing", "x"),
            ("missing", "a"),
            ("a", "no/x"),
            ("a", "a"),
            ("a", "b/x"),
            ("a", "dir"),
            ("dir", "b"),
            ("empty", "dir"),
            ("b", "new"),
            ("a", "new"),
            ("new", "other/new"),
            ("dir", "empty"),
        ];
        for (from, to) in cases {
            seen.push(outcome(&format!("no replace {from} {to}"), vfs.rename_no_replace(&at(from), &at(to))));
            seen.push(outcome(&format!("replace {from} {to}"), vfs.rename(&at(from), &at(to))));
            for dir in ["", "dir", "empty", "other"] {
                seen.push(listing(vfs, &at(dir)));
            }
        }
        vfs.create_dir_all(&at("over/below")).unwrap();
        seen.push(outcome("into itself", vfs.rename(&at("over"), &at("over/below/x"))));
        for name in ["a", "b", "new", "other/new"] {
            seen.push(get(vfs, &at(name)));
        }
        seen
    });
}

#[test]
fn removing_and_listing() {
    compare(|vfs, base| {
        for name in ["b", "a", "c", "B", "10", "9", "ä"] {
            put(vfs, &base.join(name), name.as_bytes());
        }
        vfs.create_dir_all(&base.join("dir")).unwrap();
        vec![
            listing(vfs, base),
            listing(vfs, &base.join("missing")),
            listing(vfs, &base.join("a")),
            outcome("remove", vfs.remove_file(&base.join("a"))),
            outcome("remove again", vfs.remove_file(&base.join("a"))),
            outcome("remove a directory", vfs.remove_file(&base.join("dir"))),
            outcome("remove below a file", vfs.remove_file(&base.join("b/x"))),
            listing(vfs, base),
            format!("{:?}", vfs.metadata(&base.join("b")).unwrap()),
            format!("{:?}", vfs.metadata(&base.join("dir")).unwrap()),
            outcome("metadata of a missing file", vfs.metadata(&base.join("a"))),
            outcome("metadata below a file", vfs.metadata(&base.join("b/x"))),
        ]
    });
}

#[test]
fn directories() {
    compare(|vfs, base| {
        put(vfs, &base.join("file"), b"");
        vec![
            outcome("create", vfs.create_dir_all(&base.join("a/b/c"))),
            outcome("create again", vfs.create_dir_all(&base.join("a/b/c"))),
            outcome("create a file's name", vfs.create_dir_all(&base.join("file"))),
            outcome("create below a file", vfs.create_dir_all(&base.join("file/x"))),
            outcome("durable", create_dir_all_durable(vfs, &base.join("d/e"))),
            outcome("durable below a file", create_dir_all_durable(vfs, &base.join("file/x"))),
            outcome("sync", vfs.sync_dir(&base.join("a"))),
            outcome("sync a missing one", vfs.sync_dir(&base.join("x"))),
            outcome("space", vfs.free_space(&base.join("a"))),
            outcome("space of nothing", vfs.free_space(&base.join("x"))),
            outcome("canonicalize nothing", vfs.canonicalize(&base.join("x"))),
            outcome("canonicalize through nothing", vfs.canonicalize(&base.join("x/../a"))),
            outcome("canonicalize through a file", vfs.canonicalize(&base.join("file/../a"))),
            format!("{}", vfs.canonicalize(&base.join("a/./b/../b//c")).unwrap() == base.join("a/b/c")),
            listing(vfs, base),
        ]
    });
}

#[test]
fn locks() {
    compare(|vfs, base| {
        let path = base.join("lock");
        let mut seen = vec![outcome("missing parent", vfs.lock(&base.join("no/lock")))];
        let guard = vfs.lock(&path).unwrap();
        seen.push(outcome("twice", vfs.lock(&path)));
        seen.push(outcome("another", vfs.lock(&base.join("other"))));
        seen.push(outcome("open a locked file", vfs.open(&path, OpenMode::ReadWrite)));
        vfs.rename(&path, &base.join("moved")).unwrap();
        seen.push(outcome("by its new name", vfs.lock(&base.join("moved"))));
        seen.push(outcome("a new file by the old name", vfs.lock(&path)));
        drop(guard);
        seen.push(outcome("after release", vfs.lock(&base.join("moved"))));
        seen.push(outcome("and again", vfs.lock(&base.join("moved"))));
        seen.push(outcome("a directory", vfs.lock(base)));
        seen.push(listing(vfs, base));
        seen
    });
}

#[test]
fn durable_replacement() {
    compare(|vfs, base| {
        let path = base.join("state");
        let mut seen = vec![outcome("first", write_file_durable(vfs, &path, b"one")), get(vfs, &path)];
        seen.push(outcome("second", write_file_durable(vfs, &path, b"two")));
        seen.push(get(vfs, &path));
        seen.push(outcome("too long", read_file(vfs, &path, 2)));
        seen.push(outcome("taken", create_file_durable(vfs, &path, b"three")));
        seen.push(get(vfs, &path));
        seen.push(outcome("new", create_file_durable(vfs, &base.join("new"), b"four")));
        seen.push(listing(vfs, base));
        seen
    });
}

#[test]
fn a_full_disk_says_so() {
    let disk = SimDisk::new(1);
    let vfs: Arc<dyn Vfs> = disk.vfs();
    disk.set_capacity(4096);
    let file = vfs.open(Path::new("/file"), OpenMode::CreateNew).unwrap();
    file.write_all_at(&[1; 2048], 0).unwrap();
    assert_eq!(vfs.free_space(Path::new("/")).unwrap(), 2048);
    assert_eq!(file.write_all_at(&[1; 4096], 2048).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.allocate(4097).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.allocate(4096).unwrap();
    file.write_all_at(&[1; 2048], 2048).unwrap();
    file.write_all_at(&[2; 4096], 0).unwrap();
    drop(file);
    vfs.remove_file(Path::new("/file")).unwrap();
    assert_eq!(vfs.free_space(Path::new("/")).unwrap(), 4096);
}
