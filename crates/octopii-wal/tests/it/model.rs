//! What a log should hold, and actions that change the log and the model alike.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use octopii_wal::{Error, Topic, WriteAheadLog};

use crate::disk::Coin;

pub(crate) const TOPICS: [&str; 4] = ["a", "b", "c", "d"];
const KEYS: [&str; 2] = ["key", "other key"];
pub(crate) const CURSORS: [&str; 2] = ["cursor", "other cursor"];

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TopicModel {
    pub(crate) first: u64,
    pub(crate) entries: Vec<Bytes>,
    pub(crate) metadata: BTreeMap<&'static str, Bytes>,
    /// With the first entry that each has not acknowledged.
    pub(crate) cursors: BTreeMap<&'static str, u64>,
}

/// Topics that hold anything. A clone shares what neither changes.
pub(crate) type Model = BTreeMap<String, Arc<TopicModel>>;

impl TopicModel {
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }
}

/// A change as scripts have it: it makes sense in any state of the log, so scripts can be cut short anywhere.
#[derive(Debug, Clone)]
pub(crate) enum Raw {
    /// Topic, size, and a number that determines the content.
    Append(usize, usize, u64),
    /// Topic, and a number that determines the index.
    Truncate(usize, u64),
    Purge(usize, u64),
    /// Topic, key, size, and a number that determines the value.
    Metadata(usize, usize, usize, u64),
    /// Topic, cursor, bytes to take from it first, and a number that determines how much of it is done.
    Acknowledge(usize, usize, usize, u64),
    RemoveCursor(usize, usize),
    PurgeAcknowledged(usize),
}

/// A change to the log.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Append(usize, Bytes),
    Truncate(usize, u64),
    Purge(usize, u64),
    Metadata(usize, &'static str, Bytes),
    OpenCursor(usize, usize),
    Acknowledge(usize, usize, u64),
    RemoveCursor(usize, usize),
    PurgeAcknowledged(usize),
}

#[derive(Debug, Clone)]
pub(crate) enum Action {
    One(Raw),
    /// These together.
    Batch(Vec<Raw>),
    /// Wait for one of the tickets held: from the last, so many back.
    Wait(usize),
    /// Drop the tickets held.
    Forget,
    /// A ticket for everything, and wait for it.
    Sync,
    /// Close, or just drop, and open again.
    Reopen {
        close: bool,
    },
    /// Compare everything with the model.
    Check,
}

/// Bytes that no other tag has, and that are recognisable in any sector.
pub(crate) fn content(tag: u64, size: usize) -> Bytes {
    let words = (0..size.div_ceil(8) as u64).flat_map(|i| (tag.wrapping_add(i) | 1).to_le_bytes());
    let mut out: Vec<u8> = words.collect();
    out.truncate(size);
    out.into()
}

fn size(coin: &mut Coin) -> usize {
    // A page less the headers of a frame and of a record.
    let page = 4096 - 32 - 24;
    match coin.below(40) {
        0..4 => 0,
        4..16 => coin.below(40) as usize,
        16..22 => 480 + coin.below(64) as usize,
        22..28 => page - 4 + coin.below(9) as usize,
        28..34 => coin.below(3000) as usize,
        34..39 => coin.below(13_000) as usize,
        _ => 20_000 + coin.below(30_000) as usize,
    }
}

fn raw(coin: &mut Coin) -> Raw {
    let topic = coin.below(TOPICS.len() as u64) as usize;
    let cursor = coin.below(CURSORS.len() as u64) as usize;
    match coin.below(16) {
        12..14 => Raw::Acknowledge(topic, cursor, coin.below(5000) as usize, coin.next()),
        14 if coin.one_in(4) => Raw::RemoveCursor(topic, cursor),
        14 => Raw::PurgeAcknowledged(topic),
        0 => Raw::Truncate(topic, coin.next()),
        1..3 => Raw::Purge(topic, coin.next()),
        3 => Raw::Metadata(topic, coin.below(2) as usize, coin.below(60) as usize, coin.next()),
        _ => Raw::Append(topic, size(coin), coin.next()),
    }
}

/// A change that leaves the last topic behind while the others are filled and emptied.
fn raw_beside_a_slow_topic(coin: &mut Coin) -> Raw {
    let topic = coin.below(2) as usize;
    match coin.below(20) {
        0 => Raw::Append(TOPICS.len() - 1, coin.below(700) as usize, coin.next()),
        1..5 => Raw::Purge(topic, 1 + 8 * coin.below(1000)),
        5 => raw(coin),
        _ => Raw::Append(topic, 2000 + coin.below(7000) as usize, coin.next()),
    }
}

/// A script of `n` actions.
pub(crate) fn script(coin: &mut Coin, n: usize) -> Vec<Action> {
    script_of(raw, coin, n)
}

/// A script in which one topic keeps old segments from being removed, so that its entries have to move.
pub(crate) fn slow_script(coin: &mut Coin, n: usize) -> Vec<Action> {
    script_of(raw_beside_a_slow_topic, coin, n)
}

fn script_of(raw: fn(&mut Coin) -> Raw, coin: &mut Coin, n: usize) -> Vec<Action> {
    let action = |coin: &mut Coin| match coin.below(40) {
        0..4 => Action::Batch((0..coin.below(5)).map(|_| raw(coin)).collect()),
        4..10 => Action::Wait(0),
        10..12 => Action::Wait(coin.below(4) as usize),
        12..14 => Action::Sync,
        14 => Action::Forget,
        15 if coin.one_in(2) => Action::Reopen { close: coin.toss() },
        16 => Action::Check,
        _ => Action::One(raw(coin)),
    };
    (0..n).map(|_| action(coin)).collect()
}

fn of(model: &Model, topic: usize) -> Arc<TopicModel> {
    model.get(TOPICS[topic]).cloned().unwrap_or_default()
}

/// The change that `raw` stands for when the log holds `model`.
pub(crate) fn resolve(raw: &Raw, model: &Model) -> Change {
    match *raw {
        Raw::Append(t, size, tag) => Change::Append(t, content(tag, size)),
        // How far it may go is up to the cursor.
        Raw::Acknowledge(t, cursor, _, n) => Change::Acknowledge(t, cursor, n),
        Raw::RemoveCursor(t, cursor) => Change::RemoveCursor(t, cursor),
        Raw::PurgeAcknowledged(t) => Change::PurgeAcknowledged(t),
        Raw::Metadata(t, key, size, tag) => Change::Metadata(t, KEYS[key], content(tag, size)),
        Raw::Truncate(t, n) => {
            let topic = of(model, t);
            let near_end = topic.next().saturating_sub(n / 4 % 4);
            Change::Truncate(t, if n % 4 == 0 { n / 4 % (topic.next() + 2) } else { near_end })
        }
        Raw::Purge(t, n) => {
            let topic = of(model, t);
            let len = topic.entries.len() as u64;
            Change::Purge(
                t,
                match n % 8 {
                    0 => topic.next() + n / 8 % 1000,
                    1..3 => topic.next(),
                    3 => n / 8 % (topic.next() + 1),
                    _ => topic.first + n / 8 % (len + 1),
                },
            )
        }
    }
}

impl Change {
    pub(crate) fn topic(&self) -> usize {
        match self {
            Self::Append(t, _)
            | Self::Truncate(t, _)
            | Self::Purge(t, _)
            | Self::Metadata(t, ..)
            | Self::OpenCursor(t, _)
            | Self::Acknowledge(t, ..)
            | Self::RemoveCursor(t, _)
            | Self::PurgeAcknowledged(t) => *t,
        }
    }
}

impl TopicModel {
    fn purge(&mut self, to: u64) {
        let drop = to.saturating_sub(self.first).min(self.entries.len() as u64);
        self.entries.drain(..drop as usize);
        self.first = self.first.max(to);
        self.cursors.values_mut().for_each(|at| *at = (*at).max(self.first));
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Append(_, entry) => self.entries.push(entry.clone()),
            Change::Truncate(_, from) => {
                self.entries.truncate(from.saturating_sub(self.first) as usize);
                let next = self.next();
                self.cursors.values_mut().for_each(|at| *at = (*at).min(next));
            }
            Change::Purge(_, to) => self.purge(*to),
            Change::Metadata(_, key, value) => drop(self.metadata.insert(key, value.clone())),
            Change::OpenCursor(_, cursor) => {
                self.cursors.entry(CURSORS[*cursor]).or_insert(self.first);
            }
            Change::Acknowledge(_, cursor, upto) => {
                if let Some(at) = self.cursors.get_mut(CURSORS[*cursor]) {
                    *at = (*at).max(*upto);
                }
            }
            Change::RemoveCursor(_, cursor) => drop(self.cursors.remove(CURSORS[*cursor])),
            Change::PurgeAcknowledged(_) => {
                if let Some(to) = self.cursors.values().min().copied() {
                    self.purge(to);
                }
            }
        }
    }
}

pub(crate) fn apply(model: &mut Model, change: &Change) {
    let name = TOPICS[change.topic()];
    let topic = Arc::make_mut(model.entry(name.to_owned()).or_default());
    topic.apply(change);
    if *topic == TopicModel::default() {
        model.remove(name);
    }
}

/// What a log holds, as a model. Topics without anything in them are left out.
pub(crate) fn observe(log: &WriteAheadLog) -> Result<Model, Error> {
    let mut model = Model::new();
    for name in log.topics() {
        let topic = log.topic(&name)?;
        let entries = topic.read_range(0..u64::MAX, usize::MAX)?;
        let first = topic.first_index();
        assert_eq!(entries.len() as u64, topic.next_index() - first);
        for (i, (index, _)) in entries.iter().enumerate() {
            assert_eq!(*index, first + i as u64);
        }
        let entries = entries.into_iter().map(|(_, e)| e).collect();
        let topic = TopicModel { first, entries, metadata: metadata(&topic), cursors: cursors(&topic) };
        if topic != TopicModel::default() {
            model.insert(name, Arc::new(topic));
        }
    }
    Ok(model)
}

pub(crate) fn metadata(topic: &Topic) -> BTreeMap<&'static str, Bytes> {
    KEYS.into_iter().filter_map(|key| Some((key, topic.metadata(key)?))).collect()
}

pub(crate) fn cursors(topic: &Topic) -> BTreeMap<&'static str, u64> {
    let known = |name: String| CURSORS.into_iter().find(|c| *c == name).expect("a cursor of the model");
    topic.cursors().into_iter().map(|(name, at)| (known(name), at)).collect()
}

/// In a few words, for messages.
pub(crate) fn summary(model: &Model) -> String {
    let topic = |(name, t): (&String, &Arc<TopicModel>)| {
        let bytes: usize = t.entries.iter().map(Bytes::len).sum();
        let cursors: Vec<_> = t.cursors.values().collect();
        format!(
            "{name}: {}..{} ({bytes} B, {} keys, cursors {cursors:?})",
            t.first,
            t.next(),
            t.metadata.len()
        )
    };
    model.iter().map(topic).collect::<Vec<_>>().join(", ")
}
