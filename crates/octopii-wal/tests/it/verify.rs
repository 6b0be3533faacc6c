//! Verifying and dumping logs, whole and damaged.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use octopii_wal::vfs::Vfs;
use octopii_wal::{
    Damage, Dumped, DumpedChange, DumpedRecord, OpenError, Options, Tail, WriteAheadLog, dump, inspect,
    verify,
};

use crate::crash::options;
use crate::disk::Disk;

fn entry(i: u64) -> Vec<u8> {
    let mut entry = i.to_le_bytes().to_vec();
    entry.resize(2000, i as u8);
    entry
}

/// A log of several segments with all kinds of records, closed.
fn image() -> Disk {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    let topic = log.topic("t").unwrap();
    topic.set_metadata("key", "value").unwrap().wait().unwrap();
    for i in 0..60 {
        topic.append(entry(i)).unwrap().wait().unwrap();
    }
    topic.purge(1).unwrap().wait().unwrap();
    topic.truncate(59).unwrap().wait().unwrap();
    let mut cursor = topic.cursor("reader").unwrap();
    cursor.next_batch(1).unwrap();
    cursor.ack(2).unwrap().wait().unwrap();
    topic.remove_cursor("reader").unwrap().wait().unwrap();
    log.close().unwrap();
    disk
}

fn segment(n: u64) -> PathBuf {
    PathBuf::from(format!("/wal/{n:016x}.wal"))
}

fn dumped(disk: &Disk) -> (Vec<DumpedRecord>, Vec<Damage>) {
    let (mut records, mut damage) = (Vec::new(), Vec::new());
    dump("/wal", &disk.vfs(), |item| {
        match item {
            Dumped::Record(record) => records.push(record),
            Dumped::Damaged(found) => damage.push(found),
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    (records, damage)
}

fn entries(records: &[DumpedRecord]) -> Vec<u64> {
    let entries = records.iter().filter_map(|record| match &record.change {
        DumpedChange::Entry { index, entry: data, .. } => {
            assert_eq!((&*record.topic, &data[..]), ("t", &entry(*index)[..]));
            Some(*index)
        }
        _ => None,
    });
    entries.collect()
}

#[test]
fn a_good_log_is_verified_whole() {
    let disk = image();
    let before = disk.contents();
    let found = verify("/wal", &disk.vfs()).unwrap();
    assert_eq!((found.damage.as_slice(), found.without_footer, found.tail), (&[][..], 0, Tail::Clean));
    assert!(found.segments > 2 && found.frames > 60 && found.bytes > 60 * 4096);
    assert_eq!(found.entries, 59, "entry 0 was purged in a later segment, 59 was truncated in its own");
    assert_eq!(disk.contents(), before);
}

#[test]
fn every_damaged_segment_is_reported_although_the_log_can_be_opened() {
    let disk = image();
    for n in [1, 2] {
        disk.edit(&segment(n), |data| data[6 * 4096 + 500] ^= 1);
    }
    drop(WriteAheadLog::open("/wal", options(&disk)).unwrap());
    let found = verify("/wal", &disk.vfs()).unwrap();
    let places: Vec<_> = found.damage.iter().map(|d| (d.segment.clone(), d.offset)).collect();
    assert_eq!(places, [1, 2].map(|n| (segment(n), 6 * 4096)));
    assert!(found.damage.iter().all(|d| d.topics.len() == 1 && d.topics[0].0 == "t"), "{found:?}");
}

#[test]
fn a_missing_segment_and_a_missing_footer_are_told_apart() {
    let disk = image();
    let without_footer = disk.image();
    without_footer.edit(&segment(1), |data| data[60 << 10..].fill(0));
    let found = verify("/wal", &without_footer.vfs()).unwrap();
    assert_eq!((found.damage.len(), found.without_footer), (0, 1));
    disk.vfs().remove_file(&segment(2)).unwrap();
    let found = verify("/wal", &disk.vfs()).unwrap();
    assert_eq!(found.damage.len(), 1, "{found:?}");
}

#[test]
fn a_dump_tells_all_records_in_order() {
    let (records, damage) = dumped(&image());
    assert_eq!(damage, []);
    assert_eq!(entries(&records), (0..60).collect::<Vec<_>>());
    let has = |change: DumpedChange| records.iter().any(|r| r.change == change && &*r.topic == "t");
    assert!(has(DumpedChange::Define));
    assert!(has(DumpedChange::Metadata { key: "key".into(), value: "value".into() }));
    assert!(has(DumpedChange::Purge(1)) && has(DumpedChange::Truncate(59)));
    assert!(has(DumpedChange::Cursor { name: "reader".into(), position: Some(2) }));
    assert!(has(DumpedChange::Cursor { name: "reader".into(), position: None }));
    assert!(records.iter().any(|r| matches!(r.change, DumpedChange::Bounds { first: 0, .. })));
}

#[test]
fn a_dump_of_a_damaged_log_gives_all_that_is_whole() {
    let disk = image();
    // A payload in the middle, a frame's header, both copies of a segment's header, and the last frame of all.
    let (before, _) = dumped(&disk);
    let in_segment = |n: u64| before.iter().filter(move |r| r.segment == n);
    let in_three = in_segment(3).filter(|r| matches!(r.change, DumpedChange::Entry { .. })).count();
    disk.edit(&segment(1), |data| data[6 * 4096 + 500] ^= 1);
    disk.edit(&segment(2), |data| data[6 * 4096 + 5] ^= 1);
    disk.edit(&segment(3), |data| [20, 2048 + 20].into_iter().for_each(|at| data[at] ^= 1));
    let opened = WriteAheadLog::open("/wal", options(&disk));
    assert!(matches!(opened, Err(OpenError::Damaged(_))), "{opened:?}");
    let (records, damage) = dumped(&disk);
    assert_eq!(entries(&records).len(), 60 - 2 - in_three);
    let places: Vec<_> = damage.iter().map(|d| (d.segment.clone(), d.offset)).collect();
    assert_eq!(places, [(segment(1), 6 * 4096 + 32), (segment(2), 6 * 4096), (segment(3), 0)]);
}

#[test]
fn a_dump_stops_when_told_to() {
    let mut seen = 0;
    dump("/wal", &image().vfs(), |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(seen, 3);
}

#[test]
fn one_damaged_copy_of_a_header_costs_nothing() {
    let disk = image();
    for at in [20, 2048 + 20] {
        let disk = disk.image();
        disk.edit(&segment(2), |data| data[at] ^= 1);
        let log = WriteAheadLog::open("/wal", Options { ..options(&disk) }).unwrap();
        assert_eq!(log.topic("t").unwrap().read_range(0..100, usize::MAX).unwrap().len(), 58);
    }
}

/// Calls `look` again and again while another thread appends and purges.
fn beside_a_writer(mut look: impl FnMut(&Path, &Arc<dyn Vfs>)) {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_size: 64 << 10, ..Options::default() };
    let vfs = options.vfs.clone();
    let log = WriteAheadLog::open(dir.path(), options).unwrap();
    let topic = log.topic("t").unwrap();
    topic.append("0").unwrap().wait().unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 1..400u64 {
                topic.append(vec![1; 3000]).unwrap().wait().unwrap();
                if i % 10 == 0 {
                    topic.purge(i).unwrap().wait().unwrap();
                }
            }
            done.send(()).unwrap();
        });
        while is_done.try_recv().is_err() {
            look(dir.path(), &vfs);
        }
    });
}

#[test]
fn a_live_log_can_be_inspected_at_any_time() {
    let mut seen = 0;
    beside_a_writer(|dir, vfs| {
        let found = inspect(dir, vfs).unwrap();
        assert_eq!(found.topics.len(), 1);
        assert!(found.topics[0].next_index >= seen);
        seen = found.topics[0].next_index;
    });
    assert!(seen > 0);
}

#[test]
fn a_live_log_can_be_verified_at_any_time() {
    beside_a_writer(|dir, vfs| assert_eq!(verify(dir, vfs).unwrap().damage, []));
}
