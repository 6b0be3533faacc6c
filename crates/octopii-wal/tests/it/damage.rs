//! Flipped bits, missing files, foreign bytes.

use std::path::PathBuf;
use std::sync::Arc;

use octopii_wal::{Error, OpenError, Tail, WriteAheadLog, inspect};

use crate::crash::options;
use crate::disk::{Disk, Fault};
use crate::model::{self, Model};

fn entry(i: u64) -> Vec<u8> {
    format!("entry {i} of this log").into_bytes()
}

/// A log of a few entries, and what it holds.
fn image(close: bool) -> (Disk, Model) {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    let (a, b) = (log.topic("a").unwrap(), log.topic("b").unwrap());
    for i in 0..4 {
        a.append(entry(i)).unwrap().wait().unwrap();
    }
    let mut batch = log.batch();
    batch.append(&b, entry(100)).purge(&a, 1).set_metadata(&b, "key", "value").append(&a, entry(4));
    log.commit(batch).unwrap().wait().unwrap();
    let model = model::observe(&log).unwrap();
    if close {
        log.close().unwrap();
    } else {
        disk.set_fault(disk.calls() + 1, Fault::Crash);
        drop(log);
    }
    (disk.image(), model)
}

fn open(disk: &Disk) -> Result<Model, String> {
    let log = WriteAheadLog::open("/wal", options(disk)).map_err(|e| e.to_string())?;
    model::observe(&log).map_err(|e| e.to_string())
}

/// The bits worth flipping: all that are not in a long stretch of zeroes, and a few of those.
fn bits(data: &[u8]) -> impl Iterator<Item = (usize, u8)> {
    let near = |at: usize| data[at.saturating_sub(24)..(at + 24).min(data.len())].iter().any(|b| *b != 0);
    (0..data.len())
        .filter(move |at| near(*at) || at % 97 == 0)
        .flat_map(|at| (0..8).map(move |bit| (at, bit)))
}

#[test]
fn any_flipped_bit_of_a_closed_log_gives_an_error_or_the_right_data() {
    let (disk, model) = image(true);
    let (path, data) = disk.contents().into_iter().find(|(p, _)| p.extension().is_some()).unwrap();
    let mut refused = 0;
    for (at, bit) in bits(&data) {
        let copy = disk.image();
        copy.edit(&path, |data| data[at] ^= 1 << bit);
        match open(&copy) {
            Ok(found) => assert_eq!(found, model, "byte {at} bit {bit}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn any_flipped_bit_of_a_log_that_crashed_costs_at_most_the_last_commit() {
    let (disk, model) = image(false);
    let (path, data) = disk.contents().into_iter().find(|(p, _)| p.extension().is_some()).unwrap();
    let mut before_last = model.clone();
    before_last.remove("b");
    let a = Arc::make_mut(before_last.get_mut("a").unwrap());
    (a.first, a.entries) = (0, (0..4).map(|i| entry(i).into()).collect());
    for (at, bit) in bits(&data) {
        let copy = disk.image();
        copy.edit(&path, |data| data[at] ^= 1 << bit);
        if let Ok(found) = open(&copy) {
            assert!(found == model || found == before_last, "byte {at} bit {bit}");
        }
    }
}

#[test]
fn damage_names_the_topic_and_the_entries_lost() {
    let (disk, _) = image(true);
    let path = PathBuf::from("/wal/0000000000000001.wal");
    // Header page, checkpoint, topics a and b with the first entry of a: the fourth page has entry 1.
    disk.edit(&path, |data| data[3 * 4096 + 60] ^= 1);
    let Err(OpenError::Damaged(damage)) = WriteAheadLog::open("/wal", options(&disk)) else { panic!() };
    assert_eq!((damage.segment, damage.offset), (path, 3 * 4096));
    assert_eq!(damage.topics, [("a".to_owned(), 1..2)]);
}

#[test]
fn a_bit_that_flips_under_an_open_log_is_found_on_reading() {
    let (disk, _) = image(true);
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    disk.edit(&PathBuf::from("/wal/0000000000000001.wal"), |data| data[3 * 4096 + 60] ^= 1);
    let topic = log.topic("a").unwrap();
    let Err(Error::Damaged(damage)) = topic.read(1) else { panic!() };
    assert_eq!(damage.topics, [("a".to_owned(), 1..2)]);
    assert!(matches!(topic.read_range(1..4, 1000), Err(Error::Damaged(_))));
    assert_eq!(topic.read(2).unwrap().unwrap(), entry(2));
}

/// A log of several segments, closed.
fn long_image() -> (Disk, Model) {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    let topic = log.topic("a").unwrap();
    for i in 0..60 {
        topic.append(entry(i)).unwrap().wait().unwrap();
    }
    let model = model::observe(&log).unwrap();
    log.close().unwrap();
    assert!(log.stats().segments >= 4);
    (disk.image(), model)
}

#[test]
fn a_missing_segment_is_damage() {
    let (disk, _) = long_image();
    for (path, _) in disk.contents().into_iter().filter(|(p, _)| p.extension().is_some()).rev().skip(1) {
        let copy = disk.image();
        copy.vfs().remove_file(&path).unwrap();
        let opened = WriteAheadLog::open("/wal", options(&copy));
        assert!(matches!(opened, Err(OpenError::Damaged(_))), "{}", path.display());
        // And nothing was tidied away before it was noticed.
        assert_eq!(copy.contents().len(), disk.contents().len() - 1);
    }
}

#[test]
fn a_segment_that_lost_its_end_or_its_header_is_damage() {
    let (disk, model) = long_image();
    let segments: Vec<_> = disk.contents().into_iter().filter(|(p, _)| p.extension().is_some()).collect();
    for (i, (path, data)) in segments.iter().enumerate() {
        for len in [0, 100, 4096, 3 * 4096, 3 * 4096 + 50] {
            let copy = disk.image();
            copy.edit(path, |data| data.truncate(len));
            // The end of the last segment is all that a crash may take.
            if i + 1 < segments.len() {
                assert!(open(&copy).is_err(), "{} cut to {len}", path.display());
            }
        }
        let copy = disk.image();
        copy.edit(path, |data| data[..4096].fill(0));
        assert!(open(&copy).is_err(), "{} without header", path.display());
        let copy = disk.image();
        copy.edit(path, |now| *now = segments[(i + 1) % segments.len()].1.clone());
        assert!(open(&copy).is_err(), "{} replaced by another", path.display());
        assert!(data.len() > 4096);
    }
    assert_eq!(open(&disk), Ok(model));
}

/// Changes the frame at `page` of the only segment and makes its checksums right again, as `docs/formats/wal.md` has it.
fn forge(disk: &Disk, page: usize, change: impl FnOnce(&mut [u8])) {
    disk.edit(&PathBuf::from("/wal/0000000000000001.wal"), |data| {
        let salt: [u8; 8] = data[24..32].try_into().unwrap();
        let frame = &mut data[page * 4096..(page + 1) * 4096];
        change(frame);
        let (header, body) = frame.split_at_mut(32);
        let body_len = u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
        let body = &mut body[..body_len];
        // Of the records only the first; the tests use frames with one.
        let crc = crc32c::crc32c(&[&body[24..], &body[..20], &salt].concat());
        body[20..24].copy_from_slice(&crc.to_le_bytes());
        header[12..16].copy_from_slice(&crc32c::crc32c(&body[..24]).to_le_bytes());
        let crc = crc32c::crc32c(&[&header[4..], &salt, &(page as u64 * 4096).to_le_bytes()].concat());
        header[..4].copy_from_slice(&crc.to_le_bytes());
    });
}

#[test]
fn frames_and_entries_out_of_turn_are_damage_even_with_valid_checksums() {
    let (disk, model) = image(true);
    forge(&disk, 3, |_| {});
    assert_eq!(open(&disk), Ok(model));
    for at in [16, 32 + 8, 32 + 4, 32] {
        // The frame's number; the entry's index; its topic; the kind of the record.
        let copy = disk.image();
        forge(&copy, 3, |frame| frame[at] += 8);
        assert!(
            matches!(WriteAheadLog::open("/wal", options(&copy)), Err(OpenError::Damaged(_))),
            "byte {at}"
        );
    }
}

#[test]
fn a_later_version_is_refused_by_name() {
    let (disk, _) = image(true);
    disk.edit(&PathBuf::from("/wal/0000000000000001.wal"), |data| {
        data[8] = 2;
        let crc = crc32c::crc32c(&data[..48]);
        data[48..52].copy_from_slice(&crc.to_le_bytes());
    });
    let opened = WriteAheadLog::open("/wal", options(&disk));
    assert!(matches!(opened, Err(OpenError::UnsupportedVersion { found: 2, supported: 1, .. })));
}

#[test]
fn inspection_tells_what_is_there_and_changes_nothing() {
    let (disk, _) = image(false);
    let before = disk.contents();
    let found = inspect("/wal", &disk.vfs()).unwrap();
    assert_eq!(disk.contents(), before);
    let topics: Vec<_> =
        found.topics.iter().map(|t| (t.name.as_str(), t.first_index, t.next_index)).collect();
    assert_eq!(topics, [("a", 1, 5), ("b", 0, 1), ("c", 0, 0)][..2]);
    assert_eq!(found.topics[1].metadata, [("key".to_owned(), 5)]);
    assert_eq!((found.segments.len(), found.tail), (1, Tail::Clean));
    assert_eq!(found.bytes, 64 << 10);
    let segment = &found.segments[0];
    assert_eq!(segment.used, 4096 * (1 + segment.frames));

    // Half a frame behind the last one.
    disk.edit(&segment.path, |data| data[segment.used as usize + 7] = 1);
    let found = inspect("/wal", &disk.vfs()).unwrap();
    assert_eq!(found.tail, Tail::Torn { offset: segment.used });
    disk.edit(&segment.path, |data| data[4096 + 5] ^= 1);
    assert!(matches!(inspect("/wal", &disk.vfs()), Err(OpenError::Damaged(_))));
}
