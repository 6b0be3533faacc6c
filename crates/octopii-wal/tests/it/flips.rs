//! Every bit of a small log flipped, files cut, lost, swapped and doubled: an error that says so, or the right data.

use std::path::PathBuf;

use octopii_wal::{Error, OpenError, Options, WriteAheadLog};

use crate::crash::options;
use crate::disk::Disk;
use crate::model::{self, Model, TopicModel, content};
use crate::seeds::for_each_seed;
use crate::session::DIR;

/// What a damaged log may say.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It opened, and all is as in this one of the states allowed.
    Right(usize),
    /// It would not open.
    Refused,
    /// It opened with the bounds of the state, and reading some entries fails. All others are right.
    Unreadable(usize),
}

fn small(disk: &Disk) -> Options {
    Options { segment_size: 32 << 10, ..options(disk) }
}

/// Opens a damaged log, in which one of the states `allowed` is expected.
fn judge(disk: &Disk, allowed: &[Model], what: &str) -> Verdict {
    let log = match WriteAheadLog::open(DIR, small(disk)) {
        Ok(log) => log,
        Err(OpenError::Damaged(_) | OpenError::UnsupportedVersion { .. }) => return Verdict::Refused,
        Err(other) => panic!("{what}: {other}"),
    };
    let shown = |name: &String| {
        let topic = log.topic(name).unwrap();
        (topic.first_index(), topic.next_index(), model::metadata(&topic), model::cursors(&topic))
    };
    let expected = |t: &TopicModel| (t.first, t.next(), t.metadata.clone(), t.cursors.clone());
    let fits = |model: &Model| {
        log.topics().iter().all(|name| shown(name) == expected(&model.get(name).cloned().unwrap_or_default()))
            && model.keys().all(|name| log.topics().contains(name))
    };
    let at = allowed.iter().position(fits);
    let at = at
        .unwrap_or_else(|| panic!("{what}: shows {:?}", log.topics().iter().map(shown).collect::<Vec<_>>()));
    let mut unreadable = false;
    for (name, model) in &allowed[at] {
        let topic = log.topic(name).unwrap();
        for (index, entry) in (model.first..).zip(&model.entries) {
            match topic.read(index) {
                Ok(found) => assert_eq!(found.as_ref(), Some(entry), "{what}: entry {index} of {name}"),
                Err(Error::Damaged(damage)) => {
                    let named = damage.topics.iter().any(|(t, range)| t == name && range.contains(&index));
                    assert!(named, "{what}: entry {index} of {name} is lost, but the error names {damage}");
                    unreadable = true;
                }
                Err(other) => panic!("{what}: {other}"),
            }
        }
    }
    if unreadable { Verdict::Unreadable(at) } else { Verdict::Right(at) }
}

/// A log in one segment, with the states that it may be found in: the last one, and if it crashed, the one before.
fn image(close: bool) -> (Disk, Vec<Model>) {
    let disk = Disk::default();
    let log = WriteAheadLog::open(DIR, small(&disk)).unwrap();
    let (a, b) = (log.topic("a").unwrap(), log.topic("b").unwrap());
    let mut batch = log.batch();
    for i in 0..4 {
        batch.append(&a, content(i << 32, 40));
    }
    log.commit(batch).unwrap().wait().unwrap();
    let mut models = vec![model::observe(&log).unwrap()];
    let mut batch = log.batch();
    batch.append(&b, content(9 << 32, 20)).purge(&a, 1).truncate(&a, 3).set_metadata(&b, "key", "value");
    log.commit(batch).unwrap().wait().unwrap();
    models.insert(0, model::observe(&log).unwrap());
    let crashed = disk.image();
    if close {
        log.close().unwrap();
        models.truncate(1);
        return (disk.image(), models);
    }
    (crashed, models)
}

/// A log of several segments, closed: entries of several topics, purged and truncated.
fn long_image() -> (Disk, Model) {
    let disk = Disk::default();
    let log = WriteAheadLog::open(DIR, small(&disk)).unwrap();
    let topics = ["a", "b"].map(|name| log.topic(name).unwrap());
    for i in 0..14u64 {
        let topic = &topics[i as usize % 2];
        topic.append(content(i << 32, 10 + i as usize * 30)).unwrap().wait().unwrap();
    }
    topics[0].set_metadata("key", "value").unwrap().wait().unwrap();
    let mut cursor = topics[1].cursor("cursor").unwrap();
    assert_eq!(cursor.next_batch(200).unwrap().len(), 2);
    cursor.ack(2).unwrap().wait().unwrap();
    topics[0].purge(1).unwrap().wait().unwrap();
    topics[1].truncate(5).unwrap().wait().unwrap();
    let model = model::observe(&log).unwrap();
    log.close().unwrap();
    (disk.image(), model)
}

fn segments(disk: &Disk) -> Vec<(PathBuf, Vec<u8>)> {
    disk.contents().into_iter().filter(|(path, _)| path.extension().is_some()).collect()
}

/// Flips every bit and inverts every byte of every segment. `everywhere`: in long stretches of zeroes too, where otherwise
/// one byte in 61 is tried. Returns how many were not noticed.
fn flip(disk: &Disk, allowed: &[Model], everywhere: bool, test: &str) {
    let segments = segments(disk);
    let chunks: Vec<_> = segments
        .iter()
        .flat_map(|(path, data)| (0..data.len() / 512).map(move |n| (path, data, n * 512)))
        .collect();
    for_each_seed(test, 0..chunks.len() as u64, |seed, place| {
        let Some((path, data, from)) = chunks.get(seed as usize) else { return };
        for at in *from..from + 512 {
            let around = &data[at.saturating_sub(40)..(at + 40).min(data.len())];
            if !everywhere && at % 61 > 0 && around.iter().all(|b| *b == 0) {
                continue;
            }
            for bit in (0..8).map(|bit| 1 << bit).chain([0xff]) {
                if place.enter(at, bit as usize) {
                    let copy = disk.image();
                    copy.flip(path, at, bit);
                    judge(&copy, allowed, &format!("{} byte {at} flipped by {bit:#x}", path.display()));
                }
            }
        }
    });
}

#[test]
fn every_bit_of_a_closed_log() {
    let (disk, allowed) = image(true);
    flip(&disk, &allowed, true, "every_bit_of_a_closed_log");
}

#[test]
fn every_bit_of_a_log_that_crashed() {
    let (disk, allowed) = image(false);
    flip(&disk, &allowed, true, "every_bit_of_a_log_that_crashed");
}

#[test]
fn every_bit_of_a_log_of_several_segments() {
    let (disk, model) = long_image();
    assert!(segments(&disk).len() >= 3);
    flip(&disk, &[model], false, "every_bit_of_a_log_of_several_segments");
}

#[test]
fn damage_to_what_matters_is_noticed() {
    let (disk, allowed) = image(true);
    let (path, data) = segments(&disk).remove(0);
    let mut silent = 0;
    let mut noticed = 0;
    // The header stands in the first page twice, so nobody needs to notice what happens to one of the two.
    for at in (4096..data.len()).filter(|at| data[*at] != 0) {
        let copy = disk.image();
        copy.flip(&path, at, 0x10);
        match judge(&copy, &allowed, &format!("byte {at}")) {
            Verdict::Right(_) => silent += 1,
            _ => noticed += 1,
        }
    }
    // Nearly all that is written is vouched for by a checksum.
    assert!(noticed > 20 * silent, "{noticed} noticed, {silent} not");
}

#[test]
fn files_cut_zeroed_lost_swapped_and_doubled() {
    let (disk, model) = long_image();
    let segments = segments(&disk);
    let allowed = [model];
    let last = segments.len() - 1;
    let (mut used, mut noticed) = (0, 0);
    for (i, (path, data)) in segments.iter().enumerate() {
        let name = path.display();
        for page in 0..data.len() / 4096 {
            let zeroed = disk.image();
            zeroed.edit(path, |data| data[page * 4096..(page + 1) * 4096].fill(0));
            let verdict = judge(&zeroed, &allowed, &format!("{name} page {page} zeroed"));
            used += u64::from(data[page * 4096..(page + 1) * 4096].iter().any(|b| *b != 0));
            noticed += u64::from(verdict != Verdict::Right(0));
            for within in [0, 1, 511, 2048] {
                let cut = disk.image();
                cut.edit(path, |data| data.truncate(page * 4096 + within));
                // The closing frame vouches for everything before it, but nothing vouches for the closing frame.
                if i < last || data[page * 4096 + within..].iter().all(|b| *b == 0) {
                    judge(&cut, &allowed, &format!("{name} cut to page {page} and {within}"));
                } else {
                    judge_cut_tail(&cut, &allowed[0], &format!("{name} cut to page {page} and {within}"));
                }
            }
        }
        let lost = disk.image();
        lost.vfs().remove_file(path).unwrap();
        if i < last {
            assert_ne!(judge(&lost, &allowed, &format!("{name} lost")), Verdict::Right(0));
        }
        for (other, bytes) in segments.iter().filter(|(other, _)| other != path) {
            let swapped = disk.image();
            swapped.edit(path, |now| *now = bytes.clone());
            swapped.edit(other, |now| *now = data.clone());
            let what = format!("{name} and {} swapped", other.display());
            assert_eq!(judge(&swapped, &allowed, &what), Verdict::Refused, "{what}");
            let replaced = disk.image();
            replaced.edit(path, |now| *now = bytes.clone());
            let what = format!("{name} replaced by {}", other.display());
            assert_eq!(judge(&replaced, &allowed, &what), Verdict::Refused, "{what}");
        }
        // Under the next name that is free, a copy is not the segment that belongs there.
        let next = PathBuf::from(DIR).join(format!("{:016x}.wal", segments.len() + 1));
        let doubled = disk.image();
        doubled.add(&next, data);
        judge(&doubled, &allowed, &format!("{name} doubled"));
    }
    // Some pages only restate what others say, and can be done without.
    assert!(noticed * 2 > used, "{noticed} of {used} pages zeroed were noticed");
}

/// A log whose end was cut off holds a state it was in.
fn judge_cut_tail(disk: &Disk, last: &Model, what: &str) {
    let log = match WriteAheadLog::open(DIR, small(disk)) {
        Ok(log) => log,
        Err(OpenError::Damaged(_)) => return,
        Err(other) => panic!("{what}: {other}"),
    };
    for name in log.topics() {
        let topic = log.topic(&name).unwrap();
        let of = |index: u64| last[&name].entries.get((index - last[&name].first) as usize).cloned();
        for index in topic.first_index().max(last[&name].first)..topic.next_index() {
            match topic.read(index) {
                // What was truncated later may be there again.
                Ok(found) => assert!(found == of(index) || of(index).is_none(), "{what}"),
                Err(Error::Damaged(_)) => {}
                Err(other) => panic!("{what}: {other}"),
            }
        }
    }
}

/// The same script in two logs with different entries: a frame of the one never passes for one of the other.
#[test]
fn frames_of_another_log_are_not_taken_for_its_own() {
    let log = |seed: u64| {
        let disk = Disk::default();
        let log = WriteAheadLog::open(DIR, Options { seed: Some(seed), ..small(&disk) }).unwrap();
        let topic = log.topic("a").unwrap();
        for i in 0..4 {
            topic.append(content(seed << 48 | i << 32, 100)).unwrap().wait().unwrap();
        }
        let model = model::observe(&log).unwrap();
        (disk.image(), model)
    };
    let ((mine, model), (other, _)) = (log(1), log(2));
    let (path, foreign) = segments(&other).remove(0);
    for page in 1..foreign.len() / 4096 {
        let mixed = mine.image();
        let range = page * 4096..(page + 1) * 4096;
        mixed.edit(&path, |data| data[range.clone()].copy_from_slice(&foreign[range.clone()]));
        judge_cut_tail(&mixed, &model, &format!("page {page} of another log"));
    }
}
