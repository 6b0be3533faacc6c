//! What a power cut leaves, seen through the file-system seam.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use octopii_sim::{Operation, SimDisk, Trace};
use octopii_vfs::{
    OpenMode, Vfs, create_dir_all_durable, create_file_durable, read_file, write_file_durable,
};

fn names(vfs: &dyn Vfs, dir: &str) -> BTreeSet<String> {
    let entries = vfs.read_dir(Path::new(dir)).unwrap();
    entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect()
}

#[test]
fn handles_and_locks_die_with_their_boot() {
    let disk = SimDisk::new(1);
    let old = disk.vfs();
    let file = old.open(Path::new("/file"), OpenMode::CreateNew).unwrap();
    let _lock = old.lock(Path::new("/lock")).unwrap();
    old.sync_dir(Path::new("/")).unwrap();
    disk.crash();

    assert!(file.write_all_at(b"late", 0).is_err());
    assert!(file.sync_data().is_err());
    assert!(file.len().is_err());
    assert!(old.open(Path::new("/new"), OpenMode::CreateNew).is_err());
    assert!(old.read_dir(Path::new("/")).is_err());

    let new = disk.vfs();
    let guard = new.lock(Path::new("/lock")).expect("the lock died with its holder");
    drop((_lock, file));
    assert_eq!(
        new.lock(Path::new("/lock")).unwrap_err().kind(),
        io::ErrorKind::WouldBlock,
        "an old guard lets go of nothing"
    );
    drop(guard);
    assert_eq!(new.metadata(Path::new("/file")).unwrap().len, 0);
}

#[test]
fn a_killed_process_loses_nothing() {
    let disk = SimDisk::new(1);
    let file = disk.vfs().open(Path::new("/file"), OpenMode::CreateNew).unwrap();
    file.write_all_at(b"unsynced", 0).unwrap();
    disk.kill();
    assert!(file.len().is_err());
    assert_eq!(read_file(disk.vfs().as_ref(), Path::new("/file"), 100).unwrap(), b"unsynced");
}

#[test]
fn names_need_a_directory_sync() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let vfs = disk.vfs();
        create_dir_all_durable(vfs.as_ref(), Path::new("/d")).unwrap();
        vfs.open(Path::new("/d/kept"), OpenMode::CreateNew).unwrap();
        vfs.open(Path::new("/d/removed"), OpenMode::CreateNew).unwrap();
        vfs.open(Path::new("/d/old"), OpenMode::CreateNew).unwrap();
        vfs.sync_dir(Path::new("/d")).unwrap();
        vfs.open(Path::new("/d/created"), OpenMode::CreateNew).unwrap().sync_data().unwrap();
        vfs.remove_file(Path::new("/d/removed")).unwrap();
        vfs.rename(Path::new("/d/old"), Path::new("/d/new")).unwrap();
        disk.crash();
        let after = names(disk.vfs().as_ref(), "/d");
        assert!(after.contains("kept"), "seed {seed}");
        assert!(
            after.contains("old") != after.contains("new"),
            "seed {seed}: a rename is never torn: {after:?}"
        );
        outcomes.insert(after);
    }
    assert_eq!(outcomes.len(), 8, "each change is lost or kept by itself");
}

#[test]
fn a_move_between_directories_never_loses_the_file() {
    for seed in 0..200 {
        let disk = SimDisk::new(seed);
        let vfs = disk.vfs();
        create_dir_all_durable(vfs.as_ref(), Path::new("/a")).unwrap();
        create_dir_all_durable(vfs.as_ref(), Path::new("/b")).unwrap();
        write_file_durable(vfs.as_ref(), Path::new("/a/file"), b"data").unwrap();
        vfs.rename(Path::new("/a/file"), Path::new("/b/file")).unwrap();
        if seed % 2 == 0 {
            vfs.sync_dir(Path::new("/a")).unwrap();
        }
        disk.crash();
        let vfs = disk.vfs();
        let found = ["/a/file", "/b/file"].map(|path| read_file(vfs.as_ref(), Path::new(path), 100).ok());
        assert!(found.iter().flatten().count() >= 1, "seed {seed}");
        assert!(found.iter().flatten().all(|data| data == b"data"), "seed {seed}");
        assert!(seed % 2 == 1 || found[0].is_none(), "seed {seed}: the synced departure came back");
    }
}

#[test]
fn a_durable_replacement_is_all_or_nothing() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        let vfs = disk.vfs();
        write_file_durable(vfs.as_ref(), Path::new("/state"), &[1; 2000]).unwrap();
        // Dies at each step of the second replacement in turn.
        let operations =
            [Operation::Open, Operation::Write, Operation::SyncData, Operation::Rename, Operation::SyncDir];
        disk.fail_nth(operations[seed as usize % operations.len()], 1);
        write_file_durable(vfs.as_ref(), Path::new("/state"), &[2; 1500]).unwrap_err();
        disk.crash();
        let after = read_file(disk.vfs().as_ref(), Path::new("/state"), 10_000).unwrap();
        assert!(after == [1; 2000] || after == [2; 1500], "seed {seed}: {} bytes", after.len());
        outcomes.insert(after);
    }
    assert_eq!(outcomes.len(), 2);
}

/// Such as an authority's key: half of one under its name would be in the way of the next attempt, and one whose name is not
/// durable would be missed after others rely on it.
#[test]
fn a_new_durable_file_is_all_or_nothing() {
    let path = Path::new("/authority.pem");
    let (mut whole, mut died) = (0, 0);
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        // The power fails before each step in turn, and after the last.
        disk.crash_after(seed % 8);
        let written = create_file_durable(disk.vfs().as_ref(), path, &[1; 2000]);
        died += usize::from(written.is_err());
        disk.stay_up();
        disk.crash();
        match read_file(disk.vfs().as_ref(), path, 10_000) {
            Ok(content) => {
                assert_eq!(content, [1; 2000], "seed {seed}");
                whole += 1;
            }
            Err(e) => assert!(e.kind() == io::ErrorKind::NotFound && written.is_err(), "seed {seed}: {e}"),
        }
        if written.is_ok() {
            let again = create_file_durable(disk.vfs().as_ref(), path, b"another").unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(read_file(disk.vfs().as_ref(), path, 10_000).unwrap(), [1; 2000]);
        }
    }
    assert!(died > 100 && whole > 50 && whole < 300 - 50, "{died} died, {whole} left a file");

    for operation in
        [Operation::Open, Operation::Write, Operation::SyncData, Operation::Rename, Operation::SyncDir]
    {
        let disk = SimDisk::new(1);
        disk.fail_nth(operation, 1);
        create_file_durable(disk.vfs().as_ref(), path, b"secret").unwrap_err();
        assert_eq!(disk.vfs().read_dir(Path::new("/")).unwrap().len(), 0, "{operation:?} left something");
    }
}

#[test]
fn planned_failures_hit_the_call_they_name() {
    let disk = SimDisk::new(1);
    let vfs = disk.vfs();
    let file = vfs.open(Path::new("/file"), OpenMode::CreateNew).unwrap();
    disk.fail_nth(Operation::SyncData, 2);
    file.sync_data().unwrap();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
    file.sync_data().unwrap();
    assert_eq!(disk.counters().of(Operation::SyncData), 3);
}

#[test]
fn the_same_seed_meets_the_same_fate() {
    let run = |seed| {
        let trace = Trace::new(0);
        let disk = SimDisk::recorded(seed, "host", trace.clone());
        let mut fates = Vec::new();
        for round in 0..20_u8 {
            let vfs = disk.vfs();
            let path = format!("/file{round}");
            let file = vfs.open(Path::new(&path), OpenMode::CreateNew).unwrap();
            file.write_all_at(&[round + 1; 5000], 0).unwrap();
            disk.crash();
            fates.push(read_file(disk.vfs().as_ref(), Path::new(&path), 10_000).ok());
        }
        (fates, trace.digest())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn decay_is_durable() {
    let disk = SimDisk::new(1);
    write_file_durable(disk.vfs().as_ref(), Path::new("/file"), b"abc").unwrap();
    disk.corrupt(Path::new("/file"), 1, 0x20).unwrap();
    disk.crash();
    assert_eq!(read_file(disk.vfs().as_ref(), Path::new("/file"), 10).unwrap(), b"aBc");
}

#[test]
fn a_process_killed_at_its_sync_has_written_all_the_same() {
    let disk = SimDisk::new(1);
    let file = disk.vfs().open(Path::new("/file"), OpenMode::CreateNew).unwrap();
    file.write_all_at(&[1; 1000], 0).unwrap();
    disk.kill_after(0);
    file.sync_data().unwrap_err();
    let vfs = disk.vfs();
    let again = vfs.open(Path::new("/file"), OpenMode::ReadWrite).unwrap();
    again.sync_data().unwrap();
    vfs.sync_dir(Path::new("/")).unwrap();
    disk.crash();
    assert_eq!(read_file(disk.vfs().as_ref(), Path::new("/file"), 2000).unwrap(), [1; 1000]);
}
