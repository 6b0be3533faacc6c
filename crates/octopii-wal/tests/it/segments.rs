//! Sealed segments: found by their footers, and their files used again.

use std::path::PathBuf;

use octopii_wal::{Error, OpenError, Topic, WriteAheadLog};

use crate::crash::options;
use crate::disk::{Disk, Survivors};

fn entry(i: u64) -> Vec<u8> {
    let mut entry = i.to_le_bytes().to_vec();
    entry.resize(2000, i as u8);
    entry
}

fn append(topic: &Topic, entries: std::ops::Range<u64>) {
    for i in entries {
        let ticket = topic.append(entry(i)).unwrap();
        assert_eq!(ticket.index(), Some(i));
        ticket.wait().unwrap();
    }
}

/// A log of several segments, closed.
fn image() -> Disk {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    append(&log.topic("t").unwrap(), 0..100);
    assert!(log.stats().segments > 3);
    log.close().unwrap();
    disk
}

fn open(disk: &Disk) -> (WriteAheadLog, Topic) {
    let log = WriteAheadLog::open("/wal", options(disk)).unwrap();
    let topic = log.topic("t").unwrap();
    (log, topic)
}

fn segment(n: u64) -> PathBuf {
    PathBuf::from(format!("/wal/{n:016x}.wal"))
}

/// Where the footer of a segment begins: its successor's header says so.
fn footer(disk: &Disk, n: u64) -> usize {
    let successor = disk.contents().into_iter().find(|(path, _)| *path == segment(n + 1)).unwrap().1;
    u64::from_le_bytes(successor[40..48].try_into().unwrap()) as usize
}

#[test]
fn opening_does_not_read_sealed_segments_and_reading_finds_their_damage() {
    let disk = image();
    disk.edit(&segment(1), |data| data[5 * 4096 + 32 + 24 + 500] ^= 1);
    let (_log, topic) = open(&disk);
    let damaged: Vec<u64> = (0..100).filter(|i| topic.read(*i).is_err()).collect();
    assert_eq!(damaged.len(), 1);
    let Err(Error::Damaged(damage)) = topic.read(damaged[0]) else { panic!("it was damaged a moment ago") };
    assert_eq!(damage.segment, segment(1));
    assert_eq!(damage.topics, [("t".to_owned(), damaged[0]..damaged[0] + 1)]);
    // The others, in one go from there on.
    let rest = topic.read_range(damaged[0] + 1..100, usize::MAX).unwrap();
    assert!(rest.iter().all(|(i, data)| *data == entry(*i)));
    assert_eq!(rest.len() as u64, 99 - damaged[0]);
}

#[test]
fn a_footer_that_is_missing_or_torn_costs_nothing_but_time() {
    let disk = image();
    let at = footer(&disk, 1);
    type Change = fn(&mut Vec<u8>, usize);
    let changes: [Change; 5] = [
        |data, at| data.truncate(at),
        |data, at| data[at..].fill(0),
        |data, at| data[at + 20] ^= 1,
        // The list of entries behind a good summary.
        |data, at| data[at + 4096..].fill(0),
        |data, at| data.truncate(at + 4096),
    ];
    for change in changes {
        let disk = disk.image();
        disk.edit(&segment(1), |data| change(data, at));
        for _ in 0..2 {
            let (log, topic) = open(&disk);
            for (i, data) in topic.read_range(0..100, usize::MAX).unwrap() {
                assert_eq!(data, entry(i));
            }
            assert_eq!(topic.next_index(), 100);
            log.close().unwrap();
        }
        // It is there again, if not at once, then after the next segment was begun.
        let (log, topic) = open(&disk);
        assert_eq!(topic.read(0).unwrap().unwrap(), entry(0));
        append(&topic, 100..120);
        log.close().unwrap();
        disk.edit(&segment(1), |data| data[4096..at].fill(0));
        let (_log, topic) = open(&disk);
        assert_eq!(topic.first_index(), 0);
        assert!(topic.read(0).is_err(), "it was found by a scan");
    }
}

#[test]
fn a_missing_segment_in_the_middle_is_damage() {
    let disk = image();
    let without = disk.image();
    without.vfs().remove_file(&segment(2)).unwrap();
    let opened = WriteAheadLog::open("/wal", options(&without));
    assert!(matches!(opened, Err(OpenError::Damaged(_))), "{opened:?}");
}

#[test]
fn files_of_purged_segments_are_used_again_and_old_bytes_never_show() {
    let disk = Disk::default();
    let (log, topic) = open(&disk);
    let mut most = 0;
    for i in 0..40 {
        append(&topic, i * 20..i * 20 + 20);
        topic.purge(i * 20).unwrap().wait().unwrap();
        most = most.max(disk.used());
        if i % 5 == 4 {
            for survivors in [Survivors::Nothing, Survivors::Everything] {
                let disk = disk.after_crash(survivors);
                let (_log, topic) = open(&disk);
                let found = topic.read_range(0..u64::MAX, usize::MAX).unwrap();
                assert_eq!(found.len(), 20);
                assert!(found.iter().all(|(n, data)| *data == entry(*n)));
            }
        }
    }
    // The live entries are 40 kB; 800 were appended in all.
    assert!(most < 64 * 1024 * 6, "{most}");
    assert!(log.stats().spares > 0);
    let files = disk.contents().len() as u64;
    assert_eq!(files, log.stats().segments + log.stats().spares);
    let is_reused =
        |(path, data): &(PathBuf, Vec<u8>)| path.extension().is_some_and(|e| e == "wal") && data[12] == 1;
    assert!(disk.contents().iter().any(is_reused));
    log.close().unwrap();
    // They are found again.
    let spares = log.stats().spares;
    drop((topic, log));
    let (log, topic) = open(&disk);
    assert_eq!(log.stats().spares, spares);
    append(&topic, 800..830);
    assert!(log.stats().spares < spares);
}

#[test]
fn spares_are_given_up_when_the_disk_is_full() {
    let disk = Disk::default();
    let (log, topic) = open(&disk);
    append(&topic, 0..100);
    topic.purge(99).unwrap().wait().unwrap();
    assert!(log.stats().spares > 0);
    // A new file for a batch that is larger than a spare.
    disk.set_capacity(Some(disk.used() + 1000));
    topic.append(vec![1; 80 << 10]).unwrap().wait().unwrap();
    assert_eq!(log.stats().spares, 0);
    assert_eq!(topic.read(100).unwrap().unwrap().len(), 80 << 10);
}

#[test]
fn a_file_is_not_used_again_while_somebody_reads_from_it() {
    let disk = Disk::default();
    let (log, topic) = open(&disk);
    append(&topic, 0..40);
    let meddled = topic.clone();
    disk.meddle(move || {
        meddled.purge(39).unwrap().wait().unwrap();
        append(&meddled, 40..120);
    });
    let found = topic.read_range(0..10, usize::MAX).unwrap();
    assert_eq!(found, (0..10).map(|i| (i, entry(i).into())).collect::<Vec<_>>());
    assert_eq!(topic.first_index(), 39, "nothing happened during the read");
    // Nobody reads now.
    topic.purge(110).unwrap().wait().unwrap();
    append(&topic, 120..160);
    assert!(
        disk.contents()
            .iter()
            .any(|(path, data)| path.extension().is_some_and(|e| e == "wal") && data[12] == 1)
    );
    log.close().unwrap();
}
