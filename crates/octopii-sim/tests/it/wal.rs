//! The write-ahead log on a disk that loses power at any call.
//!
//! Whatever was acknowledged, or shown by an earlier boot, is there after the crash; what was called but not acknowledged
//! is there up to some point in the order of the calls, and nothing after it. The log never takes a torn tail for damage.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use octopii_sim::{Operation, Rng, SimDisk};
use octopii_vfs::Vfs;
use octopii_wal::{Committer, Options, Ticket, WriteAheadLog};

use crate::replay::seeds;

const TOPICS: [&str; 3] = ["raft", "state", "other"];

/// What the log should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    topics: BTreeMap<&'static str, TopicModel>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct TopicModel {
    first: u64,
    entries: VecDeque<Bytes>,
    metadata: BTreeMap<String, Bytes>,
}

impl TopicModel {
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn truncate(&mut self, from: u64) {
        let keep = from.saturating_sub(self.first).min(self.entries.len() as u64);
        self.entries.truncate(keep as usize);
    }

    fn purge(&mut self, to: u64) {
        let gone = to.saturating_sub(self.first).min(self.entries.len() as u64);
        self.entries.drain(..gone as usize);
        self.first = self.first.max(to);
    }
}

fn options(vfs: Arc<dyn Vfs>, seed: u64) -> Options {
    Options {
        vfs,
        committer: Committer::Caller,
        // Small, so that segments change often.
        segment_size: 64 << 10,
        seed: Some(seed),
        ..Options::default()
    }
}

/// Reads everything that a log holds.
fn contents(log: &WriteAheadLog) -> Model {
    let mut model = Model::default();
    let present = log.topics();
    for name in TOPICS.into_iter().filter(|name| present.iter().any(|topic| topic == name)) {
        let topic = log.topic(name).unwrap();
        let (first, next) = (topic.first_index(), topic.next_index());
        let entries = topic.read_range(first..next, usize::MAX).unwrap();
        assert!(entries.iter().map(|(index, _)| *index).eq(first..next), "every index once");
        let entries = entries.into_iter().map(|(_, entry)| entry).collect();
        let metadata = ["vote", "committed"].into_iter();
        let metadata = metadata.filter_map(|key| Some((key.to_owned(), topic.metadata(key)?))).collect();
        model.topics.insert(name, TopicModel { first, entries, metadata });
    }
    // A topic that was defined and never used is as good as none.
    model.topics.retain(|_, topic| *topic != TopicModel::default());
    model
}

/// Makes one change, or one batch of changes, to the log and the model.
fn change(log: &WriteAheadLog, model: &mut Model, rng: &mut Rng) -> Result<Ticket, octopii_wal::Error> {
    let mut batch = log.batch();
    for _ in 0..=rng.below(3) {
        let name = TOPICS[rng.below(3) as usize];
        let topic = log.topic(name)?;
        let expected = model.topics.entry(name).or_default();
        match rng.below(12) {
            0 => {
                let from = expected.next().saturating_sub(rng.below(4));
                batch.truncate(&topic, from);
                expected.truncate(from);
            }
            1 => {
                let to = expected.first + rng.below(expected.entries.len() as u64 + 3);
                batch.purge(&topic, to);
                expected.purge(to);
            }
            2 | 3 => {
                let key = if rng.one_in(2) { "vote" } else { "committed" };
                let value = Bytes::copy_from_slice(&rng.next().to_le_bytes());
                batch.set_metadata(&topic, key, value.clone());
                expected.metadata.insert(key.to_owned(), value);
            }
            _ => {
                let longest = if rng.one_in(20) { 40_000 } else { 2000 };
                let mut entry = vec![0; rng.below(longest) as usize];
                rng.fill(&mut entry);
                let entry = Bytes::from(entry);
                batch.append(&topic, entry.clone());
                expected.entries.push_back(entry);
            }
        }
    }
    model.topics.retain(|_, topic| *topic != TopicModel::default());
    log.commit(batch)
}

/// Several boots on a disk, each ended by a power cut or, one in three, by the death of the process. Returns how many changes survived unacknowledged.
fn play(seed: u64, disk: &SimDisk) -> u64 {
    let mut rng = Rng::labelled(seed, "wal");
    let mut unacknowledged = 0;
    // What the log may hold now: the state after the last acknowledged change, and after each one since.
    let mut possible = vec![Model::default()];
    for boot in 0..12 {
        if rng.one_in(4) {
            disk.crash_after(rng.below(30));
        }
        let power = disk.power();
        let log = match WriteAheadLog::open("/wal", options(disk.vfs(), rng.next())) {
            Ok(log) => log,
            // Power lost while opening: nothing was acknowledged, the same states are possible.
            Err(octopii_wal::OpenError::Io { .. }) if !power.is_on() => continue,
            Err(e) => panic!("seed {seed}, boot {boot}: {e}"),
        };
        let found = contents(&log);
        let position = possible.iter().rposition(|model| *model == found);
        let Some(position) = position else {
            panic!(
                "seed {seed}, boot {boot}: the log holds none of {} possible states: {found:?}",
                possible.len()
            );
        };
        unacknowledged += position as u64;
        possible = vec![found];

        match rng.below(3) {
            0 => disk.kill_after(rng.below(80)),
            _ => disk.crash_after(rng.below(80)),
        }
        for _ in 0..200 {
            let mut next = possible.last().unwrap().clone();
            let Ok(ticket) = change(&log, &mut next, &mut rng) else {
                // Called, but not known to have been taken: it may be there all the same.
                possible.push(next);
                break;
            };
            possible.push(next.clone());
            if rng.one_in(3) && ticket.wait().is_ok() {
                possible = vec![next];
            }
        }
        disk.stay_up();
        if power.is_on() {
            disk.crash();
        }
        drop(log);
    }
    unacknowledged
}

#[test]
fn acknowledged_entries_survive_power_cuts() {
    let seeds = seeds(0..60);
    let many = seeds.len() > 10;
    let unacknowledged: u64 = seeds.into_iter().map(|seed| play(seed, &SimDisk::new(seed))).sum();
    assert!(!many || unacknowledged > 0, "the crashes never came between writing and acknowledging");
}

#[test]
fn a_missing_sync_would_be_noticed() {
    let noticed = |seed| {
        let disk = SimDisk::new(seed);
        disk.ignore_syncs();
        std::panic::catch_unwind(|| play(seed, &disk)).is_err()
    };
    assert!((0..5).all(noticed));
}

#[test]
fn a_failed_sync_is_never_acknowledged_nor_retried() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let log = WriteAheadLog::open("/wal", options(disk.vfs(), seed)).unwrap();
        let topic = log.topic("raft").unwrap();
        topic.append("acknowledged").unwrap().wait().unwrap();
        disk.fail_nth(Operation::SyncData, 1);
        let ticket = topic.append("in doubt").unwrap();
        ticket.wait().unwrap_err();
        topic.append("after").map(|ticket| ticket.wait()).and_then(|result| result).unwrap_err();
        disk.crash();
        let log = WriteAheadLog::open("/wal", options(disk.vfs(), seed)).unwrap();
        let topic = log.topic("raft").unwrap();
        let entries = topic.read_range(0..10, usize::MAX).unwrap();
        assert_eq!(entries[0].1, "acknowledged");
        assert!(entries.len() < 3, "seed {seed}: {entries:?}");
    }
}
