//! Consumers' places: what is handed out, what a crash does to it, exactly-once.

use std::collections::BTreeMap;
use std::io;

use octopii_wal::{Cursor, Durability, Error, Options, Topic, WriteAheadLog, inspect};

use crate::crash::options;
use crate::disk::{Coin, Disk, Fault, Survivors};

fn open(disk: &Disk) -> WriteAheadLog {
    WriteAheadLog::open("/wal", options(disk)).unwrap()
}

fn indexes(cursor: &mut Cursor, max_bytes: usize) -> Vec<u64> {
    cursor.next_batch(max_bytes).unwrap().into_iter().map(|(index, _)| index).collect()
}

/// Appends numbered entries of 100 bytes and waits.
fn fill(topic: &Topic, range: std::ops::Range<u64>) {
    for i in range {
        topic.append(vec![i as u8; 100]).unwrap().wait().unwrap();
    }
}

#[test]
fn a_cursor_hands_out_in_order_and_goes_on_where_it_acknowledged() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    fill(&topic, 0..10);
    let mut cursor = topic.cursor("c").unwrap();
    assert_eq!((cursor.name(), cursor.position(), cursor.acknowledged(), cursor.lag()), ("c", 0, 0, 10));
    assert_eq!(cursor.next_batch(250).unwrap(), [(0, vec![0; 100].into()), (1, vec![1; 100].into())]);
    assert_eq!(indexes(&mut cursor, 0), [2], "one at least");
    assert_eq!(indexes(&mut cursor, usize::MAX), [3, 4, 5, 6, 7, 8, 9]);
    assert!(indexes(&mut cursor, usize::MAX).is_empty());
    cursor.ack(4).unwrap().wait().unwrap();
    // Never back.
    cursor.ack(2).unwrap().wait().unwrap();
    assert_eq!((cursor.position(), cursor.acknowledged(), cursor.lag()), (10, 4, 6));
    cursor.seek(6);
    assert_eq!(indexes(&mut cursor, 0), [6]);
    // Nor beyond what was handed out.
    cursor.ack(u64::MAX).unwrap().wait().unwrap();
    assert_eq!(topic.cursors(), [("c".to_owned(), 7)]);
    // Another of the same name begins there; one of another name at the first entry.
    assert_eq!(indexes(&mut topic.cursor("c").unwrap(), 0), [7]);
    topic.cursor("d").unwrap().seek(100);
    drop((cursor, topic));
    log.close().unwrap();

    for disk in [disk.after_crash(Survivors::Nothing), disk] {
        let found = inspect("/wal", &disk.vfs()).unwrap();
        let expected = [("c".to_owned(), 7), ("d".to_owned(), 0)];
        assert_eq!(found.topics[0].cursors, expected);
        let log = open(&disk);
        let topic = log.topic("t").unwrap();
        assert_eq!(topic.cursors(), expected);
        assert_eq!(indexes(&mut topic.cursor("c").unwrap(), 150), [7]);
    }
}

#[test]
fn only_what_is_as_durable_as_promised_is_handed_out() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    let mut cursor = topic.cursor("c").unwrap();
    let _first = topic.append("0").unwrap();
    let second = topic.append("1").unwrap();
    assert_eq!(topic.next_index(), 2);
    assert!(indexes(&mut cursor, usize::MAX).is_empty(), "an entry that a crash may take back");
    second.wait().unwrap();
    assert_eq!(indexes(&mut cursor, usize::MAX), [0, 1]);
    drop((cursor, topic, log));

    for durability in [Durability::None, Durability::Interval(std::time::Duration::from_secs(3600))] {
        let disk = Disk::default();
        let log = WriteAheadLog::open("/wal", Options { durability, ..options(&disk) }).unwrap();
        let topic = log.topic("t").unwrap();
        let _ticket = topic.append("0").unwrap();
        assert_eq!(indexes(&mut topic.cursor("c").unwrap(), usize::MAX), [0]);
    }
}

#[test]
fn purged_entries_are_passed_over() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    fill(&topic, 0..10);
    let mut cursor = topic.cursor("c").unwrap();
    assert_eq!(indexes(&mut cursor, 250), [0, 1]);
    topic.purge(5).unwrap().wait().unwrap();
    assert_eq!((cursor.acknowledged(), cursor.position(), cursor.lag()), (5, 5, 5));
    assert_eq!(indexes(&mut cursor, 250), [5, 6]);
    assert_eq!(cursor.skipped(), 3);
    topic.purge(100).unwrap().wait().unwrap();
    assert!(indexes(&mut cursor, 250).is_empty());
    topic.append("100").unwrap().wait().unwrap();
    assert_eq!(indexes(&mut cursor, 250), [100]);
    assert_eq!(topic.cursors(), [("c".to_owned(), 100)]);
    drop((cursor, topic));
    log.close().unwrap();
    assert_eq!(open(&disk).topic("t").unwrap().cursors(), [("c".to_owned(), 100)]);
}

#[test]
fn what_comes_in_place_of_truncated_entries_is_handed_out() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    fill(&topic, 0..10);
    let mut cursor = topic.cursor("c").unwrap();
    assert_eq!(indexes(&mut cursor, usize::MAX).len(), 10);
    cursor.ack(8).unwrap().wait().unwrap();
    topic.truncate(6).unwrap().wait().unwrap();
    for i in 6..20 {
        topic.append(format!("new {i}")).unwrap().wait().unwrap();
    }
    // Of what was handed out, only this much is still there.
    cursor.ack(10).unwrap().wait().unwrap();
    assert_eq!((cursor.acknowledged(), cursor.position(), cursor.skipped()), (6, 6, 0));
    assert_eq!(cursor.next_batch(0).unwrap(), [(6, "new 6".into())]);
    drop((cursor, topic));
    log.close().unwrap();
    assert_eq!(open(&disk).topic("t").unwrap().cursors(), [("c".to_owned(), 6)]);
}

#[test]
fn purging_what_is_acknowledged_waits_for_the_slowest_cursor() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    fill(&topic, 0..10);
    topic.purge_acknowledged().unwrap().wait().unwrap();
    assert_eq!(topic.first_index(), 0, "nobody has a cursor");
    let (mut fast, mut slow) = (topic.cursor("fast").unwrap(), topic.cursor("slow").unwrap());
    let _unused = topic.cursor("unused").unwrap();
    indexes(&mut fast, usize::MAX);
    indexes(&mut slow, 350);
    drop((fast.ack(10).unwrap(), slow.ack(3).unwrap()));
    topic.purge_acknowledged().unwrap().wait().unwrap();
    assert_eq!(topic.first_index(), 0, "a cursor counts from when it was opened first");
    topic.remove_cursor("unused").unwrap().wait().unwrap();
    topic.purge_acknowledged().unwrap().wait().unwrap();
    assert_eq!((topic.first_index(), topic.next_index()), (3, 10));
}

#[test]
fn a_removed_cursor_is_gone_and_its_number_is_bounded() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    fill(&topic, 0..3);
    let mut cursor = topic.cursor("c").unwrap();
    topic.remove_cursor("never was").unwrap().wait().unwrap();
    topic.remove_cursor("c").unwrap().wait().unwrap();
    assert_eq!(indexes(&mut cursor, usize::MAX), [0, 1, 2]);
    let refused = cursor.ack(3).unwrap_err();
    assert!(matches!(&refused, Error::CursorRemoved { cursor, .. } if cursor == "c"), "{refused}");
    // Nothing of a batch is done when one of its acknowledgements is refused.
    let mut batch = log.batch();
    batch.append(&topic, "effect").ack(&cursor, 3);
    assert!(matches!(log.commit(batch), Err(Error::CursorRemoved { .. })));
    assert_eq!((topic.next_index(), topic.cursors()), (3, vec![]));

    for i in 0..1024 {
        topic.cursor(&format!("{i:04}")).unwrap();
    }
    let refused = topic.cursor("one more").unwrap_err();
    assert!(matches!(refused, Error::TooManyCursors { limit: 1024, .. }), "{refused}");
    topic.cursor("0007").unwrap();
    topic.remove_cursor("0007").unwrap().wait().unwrap();
    topic.cursor("one more").unwrap();
    assert!(matches!(topic.cursor(""), Err(Error::InvalidLength { .. })));
    assert!(matches!(topic.cursor(&"x".repeat(256)), Err(Error::InvalidLength { .. })));
    let names = topic.cursors();
    drop((cursor, topic));
    log.close().unwrap();
    let log = open(&disk);
    assert_eq!(log.topic("t").unwrap().cursors(), names);
    assert_eq!(names.len(), 1024);
}

#[test]
fn a_log_that_stopped_hands_out_what_it_has_and_then_the_reason() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    fill(&topic, 0..3);
    let mut cursor = topic.cursor("c").unwrap();
    disk.set_fault(disk.calls() + 1, Fault::Fail(io::ErrorKind::Other));
    topic.append("lost").unwrap().wait().unwrap_err();
    assert_eq!(indexes(&mut cursor, usize::MAX), [0, 1, 2]);
    assert!(matches!(cursor.next_batch(usize::MAX), Err(Error::Poisoned { .. })));
    assert!(matches!(cursor.ack(3), Err(Error::Poisoned { .. })));
}

#[test]
fn without_space_an_acknowledgement_falls_back_and_reading_goes_on() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    fill(&topic, 0..10);
    let mut cursor = topic.cursor("c").unwrap();
    assert_eq!(indexes(&mut cursor, 550), [0, 1, 2, 3, 4]);
    cursor.ack(2).unwrap().wait().unwrap();
    disk.set_capacity(Some(disk.used()));
    // Fails for want of a new segment, and takes along the truncation and the acknowledgement that wait with it.
    let truncated = topic.truncate(3).unwrap();
    assert_eq!((cursor.position(), cursor.acknowledged()), (3, 2));
    let acknowledged = cursor.ack(5).unwrap();
    assert_eq!(cursor.acknowledged(), 3);
    let failed = topic.append(vec![0; 60_000]).unwrap().wait();
    assert!(matches!(failed, Err(Error::StorageFull { .. })), "{failed:?}");
    assert!(truncated.wait().is_err() && acknowledged.wait().is_err());
    // Nothing was truncated, so nothing is handed out twice.
    assert_eq!((cursor.acknowledged(), cursor.position()), (2, 5));
    assert_eq!(indexes(&mut cursor, 250), [5, 6]);
    cursor.ack(7).unwrap().wait().unwrap();
    assert_eq!(topic.cursors(), [("c".to_owned(), 7)]);
}

#[test]
fn entries_truncated_while_they_are_read_are_not_handed_out() {
    let disk = Disk::default();
    let log = open(&disk);
    let topic = log.topic("t").unwrap();
    fill(&topic, 0..6);
    let mut cursor = topic.cursor("c").unwrap();
    let meddled = topic.clone();
    disk.meddle(move || {
        meddled.truncate(2).unwrap().wait().unwrap();
        meddled.append("new 2").unwrap().wait().unwrap();
        meddled.append("new 3").unwrap().wait().unwrap();
    });
    let old = |i: u64| (i, vec![i as u8; 100].into());
    let batch = cursor.next_batch(usize::MAX).unwrap();
    assert_eq!(batch, [old(0), old(1), (2, "new 2".into()), (3, "new 3".into())]);
    assert_eq!((cursor.position(), cursor.skipped()), (4, 0));
}

/// What a topic with cursors should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    first: u64,
    entries: Vec<u64>,
    cursors: BTreeMap<String, u64>,
}

impl Model {
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn observe(topic: &Topic) -> Self {
        let entries = topic.read_range(0..u64::MAX, usize::MAX).unwrap();
        let number = |e: &[u8]| u64::from_le_bytes(e[..8].try_into().unwrap());
        Self {
            first: topic.first_index(),
            entries: entries.iter().map(|(_, e)| number(e)).collect(),
            cursors: topic.cursors().into_iter().collect(),
        }
    }
}

/// Appends, reads, acknowledges, truncates, purges, waits, as `seed` has it, noting in `states` what there should be after
/// every call, and in the result which of these was the last that had to be durable.
fn drive(log: &WriteAheadLog, seed: u64, states: &mut Vec<Model>, durable: &mut usize) -> Result<(), Error> {
    let mut coin = Coin(seed);
    let topic = log.topic("t")?;
    let mut cursors: Vec<Cursor> = Vec::new();
    for step in 0..70u64 {
        let mut model = states.last().unwrap().clone();
        let which = coin.below(3) as usize;
        let name = ["x", "y", "z"][which];
        let ticket = match coin.below(12) {
            0..=3 => {
                let mut entry = step.to_le_bytes().to_vec();
                entry.resize([8, 100, 3000, 9000][coin.below(4) as usize], 0);
                model.entries.push(step);
                topic.append(entry)?
            }
            4 | 5 => {
                model.cursors.entry(name.to_owned()).or_insert(model.first);
                cursors.push(topic.cursor(name)?);
                log.sync()?
            }
            6..=8 if !cursors.is_empty() => {
                let at = coin.below(cursors.len() as u64) as usize;
                let cursor = &mut cursors[at];
                log.sync()?.wait()?;
                let read = cursor.next_batch(4000)?;
                let upto = read.last().map_or(0, |(i, _)| i + 1) - coin.below(2).min(read.len() as u64);
                let mut batch = log.batch();
                batch.append(&topic, step.to_le_bytes().to_vec()).ack(cursor, upto);
                let position = cursor.position();
                let name = cursor.name().to_owned();
                if !model.cursors.contains_key(&name) {
                    // Removed, and its old handles with it.
                    assert!(matches!(log.commit(batch), Err(Error::CursorRemoved { .. })));
                    cursors.remove(at);
                    continue;
                }
                let outcome = match log.commit(batch) {
                    // Removed and made anew since this one was opened.
                    Err(Error::CursorRemoved { .. }) => {
                        cursors.remove(at);
                        continue;
                    }
                    outcome => outcome?,
                };
                model.entries.push(step);
                let stored = model.cursors.get_mut(&name).unwrap();
                *stored = (*stored).max(upto.min(position));
                outcome
            }
            9 => {
                let from = model.first + coin.below(model.entries.len() as u64 + 2);
                model.entries.truncate((from - model.first) as usize);
                let next = model.next();
                model.cursors.values_mut().for_each(|c| *c = (*c).min(next));
                topic.truncate(from)?
            }
            10 => {
                let to = model.cursors.values().min().copied().unwrap_or(0).max(model.first);
                model.entries.drain(..(to - model.first) as usize);
                model.first = to;
                topic.purge_acknowledged()?
            }
            11 if coin.below(3) == 0 => {
                model.cursors.remove(name);
                topic.remove_cursor(name)?
            }
            _ => {
                let to = model.first + coin.below(3);
                model.entries.drain(..((to - model.first) as usize).min(model.entries.len()));
                model.first = to;
                model.cursors.values_mut().for_each(|c| *c = (*c).max(to));
                topic.purge(to)?
            }
        };
        states.push(model);
        let called = states.len() - 1;
        if coin.below(3) == 0 {
            ticket.wait()?;
            *durable = called;
        }
        assert_eq!(Model::observe(&topic), states[called]);
    }
    Ok(())
}

#[test]
fn every_crash_keeps_acknowledged_positions_with_their_batches() {
    for seed in 1..=4 {
        let total = {
            let disk = Disk::default();
            drive(&open(&disk), seed, &mut vec![Model::default()], &mut 0).unwrap();
            disk.calls()
        };
        for crash_at in 1..=total {
            let disk = Disk::default();
            disk.set_fault(crash_at, Fault::Crash);
            let (mut states, mut durable) = (vec![Model::default()], 0);
            if let Ok(log) = WriteAheadLog::open("/wal", options(&disk)) {
                let _ = drive(&log, seed, &mut states, &mut durable);
            }
            for survivors in [Survivors::Nothing, Survivors::Everything, Survivors::Random(crash_at)] {
                let disk = disk.after_crash(survivors);
                let log = open(&disk);
                let found = Model::observe(&log.topic("t").unwrap());
                assert!(
                    states[durable..].contains(&found),
                    "seed {seed}, crash at {crash_at}, {survivors:?}: {found:?} is not among {:?}",
                    &states[durable..]
                );
                // And it stays, through the checkpoint of another segment.
                log.topic("u").unwrap().append("x").unwrap().wait().unwrap();
                disk.set_fault(disk.calls() + 1, Fault::Crash);
                drop(log);
                let log = open(&disk.after_crash(Survivors::Nothing));
                assert_eq!(Model::observe(&log.topic("t").unwrap()), found);
            }
        }
    }
}

const INPUTS: u64 = 40;

/// Moves every input to the output with its acknowledgement, as a consumer does that may die at any moment.
fn consume(log: &WriteAheadLog, wait: bool) -> Result<(), Error> {
    let (input, output) = (log.topic("input")?, log.topic("output")?);
    let mut cursor = input.cursor("mover")?;
    loop {
        let entries = cursor.next_batch(3000)?;
        let Some((last, _)) = entries.last() else { return Ok(()) };
        let upto = last + 1;
        let mut batch = log.batch();
        for (_, entry) in &entries {
            batch.append(&output, entry.clone());
        }
        batch.ack(&cursor, upto);
        let ticket = log.commit(batch)?;
        if wait {
            ticket.wait()?;
            input.purge_acknowledged()?.wait()?;
        }
    }
}

#[test]
fn effects_in_the_same_log_happen_exactly_once_whenever_it_crashes() {
    for wait in [false, true] {
        for kind in [Fault::Crash, Fault::Fail(io::ErrorKind::StorageFull)] {
            for fault_at in 1.. {
                let disk = Disk::default();
                let log = open(&disk);
                let input = log.topic("input").unwrap();
                for i in 0..INPUTS {
                    let mut entry = i.to_le_bytes().to_vec();
                    entry.resize(1 + (i as usize * 37) % 1500 + 8, 0);
                    drop(input.append(entry).unwrap());
                }
                log.sync().unwrap().wait().unwrap();
                let before = disk.calls();
                disk.set_fault(before + fault_at, kind);
                let outcome = consume(&log, wait);
                drop((input, log));
                let is_over = disk.calls() < before + fault_at;
                for survivors in [Survivors::Nothing, Survivors::Everything, Survivors::Random(fault_at)] {
                    let log = open(&disk.after_crash(survivors));
                    consume(&log, wait).unwrap();
                    let output = log.topic("output").unwrap().read_range(0..u64::MAX, usize::MAX).unwrap();
                    let sum: Vec<_> =
                        output.iter().map(|(_, e)| u64::from_le_bytes(e[..8].try_into().unwrap())).collect();
                    assert!(
                        sum.into_iter().eq(0..INPUTS),
                        "{kind:?} at {fault_at}, wait {wait}, {survivors:?}, {outcome:?}"
                    );
                }
                if is_over {
                    assert!(fault_at > 5 && outcome.is_ok());
                    break;
                }
            }
        }
    }
}
