//! Logs of every version of the format that must always open. `tests/fixtures/v1` holds the files of one, and what is in it;
//! `OCTOPII_WAL_FIXTURE=<directory> cargo test -p octopii-wal --test it fixture` writes those of a new version.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use octopii_wal::vfs::{RealVfs, read_file, write_file_durable};
use octopii_wal::{Committer, Dumped, DumpedChange, Options, WriteAheadLog, dump, verify};

use crate::disk::Disk;

const EXPECTED: &str = "expected.txt";

fn options(disk: &Disk) -> Options {
    Options {
        vfs: disk.vfs(),
        segment_size: 32 << 10,
        committer: Committer::Caller,
        seed: Some(1),
        ..Options::default()
    }
}

/// A closed log in which every kind of record and file occurs.
fn make() -> Disk {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    let [slow, fast, empty] = ["slow", "fast", "empty"].map(|name| log.topic(name).unwrap());
    slow.set_metadata("owner", "nobody").unwrap().wait().unwrap();
    let mut batch = log.batch();
    batch.append(&slow, "first").append(&slow, "").append(&slow, vec![7; 5000]).append(&slow, "dropped");
    log.commit(batch).unwrap().wait().unwrap();
    slow.truncate(3).unwrap().wait().unwrap();
    empty.purge(9).unwrap().wait().unwrap();
    fast.cursor("gone").unwrap();
    fast.remove_cursor("gone").unwrap().wait().unwrap();
    for i in 0..80u64 {
        fast.append(vec![i as u8; 1000 + i as usize]).unwrap().wait().unwrap();
        if i % 10 == 9 {
            fast.purge(i - 5).unwrap().wait().unwrap();
        }
    }
    slow.append("last").unwrap().wait().unwrap();
    slow.append("dropped as well").unwrap().wait().unwrap();
    slow.truncate(4).unwrap().wait().unwrap();
    let mut cursor = fast.cursor("reader").unwrap();
    cursor.next_batch(2000).unwrap();
    cursor.ack(u64::MAX).unwrap().wait().unwrap();
    log.close().unwrap();
    disk.image()
}

/// What is in a log, in words that do not depend on this crate.
fn describe(log: &WriteAheadLog) -> String {
    let mut out = String::new();
    for name in log.topics() {
        let topic = log.topic(&name).unwrap();
        writeln!(out, "topic {name} {}..{}", topic.first_index(), topic.next_index()).unwrap();
        if let Some(owner) = topic.metadata("owner") {
            writeln!(out, "  metadata owner = {}", String::from_utf8_lossy(&owner)).unwrap();
        }
        for (cursor, position) in topic.cursors() {
            writeln!(out, "  cursor {cursor} at {position}").unwrap();
        }
        for (index, entry) in topic.read_range(0..u64::MAX, usize::MAX).unwrap() {
            writeln!(out, "  entry {index}: {} bytes, crc32c {:08x}", entry.len(), crc32c::crc32c(&entry))
                .unwrap();
        }
    }
    out
}

fn open(disk: &Disk) -> WriteAheadLog {
    WriteAheadLog::open("/wal", options(disk)).unwrap()
}

#[test]
fn the_log_of_version_1_opens_and_holds_what_it_held() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    let expected = std::fs::read_to_string(dir.join(EXPECTED)).unwrap();
    let disk = Disk::default();
    for file in std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|extension| extension == "wal" || extension == "spare") {
            let name = PathBuf::from("/wal").join(file.file_name().unwrap());
            disk.add(&name, &read_file(&RealVfs, &file, 1 << 20).unwrap());
        }
    }
    let found = verify("/wal", &disk.vfs()).unwrap();
    assert_eq!((found.damage.len(), found.without_footer), (0, 0), "{found:?}");
    let log = open(&disk);
    assert_eq!(describe(&log), expected);
    // And it goes on.
    let topic = log.topic("slow").unwrap();
    topic.append("new").unwrap().wait().unwrap();
    log.close().unwrap();
    assert_eq!(open(&disk).topic("slow").unwrap().read(4).unwrap().unwrap(), "new");
}

#[test]
fn the_fixture_holds_everything_the_format_has() {
    let disk = make();
    assert!(disk.contents() == make().contents(), "it is the same whenever it is made");
    let mut kinds = BTreeMap::<&str, u32>::new();
    dump("/wal", &disk.vfs(), |item| {
        let kind = match item {
            Dumped::Damaged(damage) => panic!("{damage}"),
            Dumped::Record(record) => match record.change {
                DumpedChange::Entry { relocated: false, .. } => "append",
                DumpedChange::Entry { relocated: true, .. } => "relocate",
                DumpedChange::Truncate(_) => "truncate",
                DumpedChange::Purge(_) => "purge",
                DumpedChange::Metadata { .. } => "metadata",
                DumpedChange::Cursor { .. } => "cursor",
                DumpedChange::Define => "define",
                DumpedChange::Bounds { .. } => "bounds",
                _ => "another",
            },
        };
        *kinds.entry(kind).or_default() += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    for kind in ["append", "relocate", "truncate", "purge", "metadata", "cursor", "define", "bounds"] {
        assert!(kinds.contains_key(kind), "no {kind}: {kinds:?}");
    }
    let files = disk.contents();
    let has = |extension: &str, test: &dyn Fn(&[u8]) -> bool| {
        files.iter().any(|(path, data)| path.extension().is_some_and(|e| e == extension) && test(data))
    };
    assert!(has("spare", &|_| true) && has("wal", &|data| data[12] == 1), "no spare, or none used");
    assert!(has("wal", &|data| data.chunks(4096).any(|page| page.starts_with(b"OCTOPIDX"))), "no footer");
    if let Some(dir) = std::env::var_os("OCTOPII_WAL_FIXTURE") {
        let dir = Path::new(&dir);
        for (path, bytes) in files {
            write_file_durable(&RealVfs, &dir.join(path.file_name().unwrap()), &bytes).unwrap();
        }
        let expected = describe(&open(&disk));
        write_file_durable(&RealVfs, &dir.join(EXPECTED), expected.as_bytes()).unwrap();
    }
}
