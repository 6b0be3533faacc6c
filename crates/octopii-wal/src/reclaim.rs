//! Keeping the disk within bounds: a topic with a few old entries must not hold on to every segment since.
//!
//! Segments can only go from the oldest on. When they take more than twice what is alive in them, the survivors of the oldest
//! one are written again at the end of the log, a piece with each commit, until it can go. Since at least half of what is
//! there is dead then, this writes no more than users do in the long run. The idea is that of log-structured file systems
//! (Rosenblum and Ousterhout, 1992).

use std::collections::BTreeMap;

use crate::format::record::RecordKind;
use crate::read;
use crate::shared::Shared;
use crate::state::{Operation, Reclaim, Source, State};
use crate::sync::atomic::Ordering;

/// Segments may take this many times what is alive, and as many segments more.
const FACTOR: u64 = 2;
const SLACK: u64 = 4;
/// Bytes of survivors that go with one commit.
const PIECE: usize = 1 << 20;
/// Survivors that go with one commit.
const COUNT: u64 = 4096;

/// A topic whose old entries keep segments from being removed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Laggard {
    /// The topic's name.
    pub topic: String,
    /// Index of its first entry.
    pub first_index: u64,
    /// Bytes of its entries in sealed segments, as stored; estimated where a segment's entries were purged in part.
    pub live_bytes: u64,
    /// Bytes of frames in the sealed segments from its oldest entry on: purging it frees so many at most.
    pub held_bytes: u64,
}

impl State {
    /// Bytes of frames in each segment whose end is settled.
    fn sealed_bytes(&self) -> BTreeMap<u64, u64> {
        let pairs = self.segments.iter().zip(self.segments.values().skip(1));
        pairs.map(|((sequence, _), next)| (*sequence, next.header.predecessor_end)).collect()
    }

    /// Decides whether the oldest segment's survivors should move. Called when a segment has been begun, or one removed.
    pub(crate) fn plan_reclaim(&mut self, segment_size: u64) {
        if matches!(self.reclaim, Reclaim::Waiting(_)) {
            return;
        }
        let sealed = self.sealed_bytes();
        let Some((oldest, _)) = sealed.first_key_value() else { return };
        if self.reclaim == Reclaim::Stuck(*oldest) {
            return;
        }
        let mut live = BTreeMap::new();
        self.topics.values().for_each(|topic| topic.written.entries.add_bytes(&mut live));
        // A footer with a matching checksum may still claim anything.
        let live = sealed
            .keys()
            .filter_map(|sequence| live.get(sequence))
            .fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        let is_wasteful =
            sealed.values().sum::<u64>() > FACTOR.saturating_mul(live).saturating_add(SLACK * segment_size);
        self.reclaim = if is_wasteful { Reclaim::Wanted(*oldest) } else { Reclaim::Idle };
    }

    /// Notes that the piece that waited was written.
    pub(crate) fn relocated(&mut self) {
        if let Reclaim::Waiting(sequence) = self.reclaim {
            self.reclaim = Reclaim::Wanted(sequence);
        }
    }

    /// Notes that the piece that waited will not be written.
    pub(crate) fn relocation_failed(&mut self) {
        if matches!(self.reclaim, Reclaim::Waiting(_)) {
            self.reclaim = Reclaim::Idle;
        }
    }

    /// The first stretch of entries to move out of `sequence`: topic, and indexes. Entries that users have dropped already
    /// are left alone, for they will go by themselves.
    fn survivors(&self, sequence: u64) -> Option<(u32, std::ops::Range<u64>)> {
        self.topics.iter().find_map(|(id, topic)| {
            let runs = topic.written.entries.runs().filter(|run| run.segment == sequence);
            let mut ranges = runs.map(|run| run.first.max(topic.first())..run.end.min(topic.written_end()));
            ranges.find(|range| !range.is_empty()).map(|range| (*id, range))
        })
    }

    pub(crate) fn laggards(&self) -> Vec<Laggard> {
        let sealed = self.sealed_bytes();
        let mut laggards: Vec<_> = self
            .topics
            .values()
            .filter_map(|topic| {
                let entries = &topic.written.entries;
                let oldest = entries.oldest_segment().filter(|oldest| sealed.contains_key(oldest))?;
                let mut live = BTreeMap::new();
                entries.add_bytes(&mut live);
                let live_bytes = sealed.keys().filter_map(|sequence| live.get(sequence)).sum();
                let held_bytes = sealed.range(oldest..).map(|(_, bytes)| bytes).sum();
                let (topic, first_index) = (topic.name.to_string(), topic.first());
                Some((oldest, Laggard { topic, first_index, live_bytes, held_bytes }))
            })
            .collect();
        laggards.sort_by(|(a, x), (b, y)| a.cmp(b).then_with(|| x.topic.cmp(&y.topic)));
        laggards.into_iter().map(|(_, laggard)| laggard).collect()
    }
}

impl Shared {
    /// Queues the next piece of survivors, if there is any to move. Whether it did.
    pub(crate) fn reclaim(&self) -> bool {
        if self.closing.load(Ordering::Acquire) {
            return false;
        }
        let (sequence, topic, range) = {
            let mut state = self.state();
            let Reclaim::Wanted(sequence) = state.reclaim else { return false };
            if state.stopped.is_some() || state.full {
                return false;
            }
            let Some((topic, range)) = state.survivors(sequence) else {
                state.reclaim = Reclaim::Idle;
                return false;
            };
            (sequence, topic, range)
        };
        let end = range.end.min(range.start.saturating_add(COUNT));
        let entries = read::range(self, topic, range.start..end, PIECE);
        let mut state = self.state();
        if state.reclaim != Reclaim::Wanted(sequence) || state.stopped.is_some() {
            return false;
        }
        let Ok(entries) = entries else {
            // Whoever reads the entry is told what is wrong with it. Here it is only not moved.
            state.reclaim = Reclaim::Stuck(sequence);
            return false;
        };
        let mut any = false;
        for (index, entry) in entries {
            // Meanwhile it may have been dropped, and another may have come in its place.
            let is_there = matches!(
                state.topic(topic).find(index, 1),
                Some(Source::Disk(found)) if found.segment == sequence
            );
            if is_there {
                state.call(Operation::new(RecordKind::Relocate, topic, index, entry));
                any = true;
            }
        }
        if any {
            state.end_batch();
            state.reclaim = Reclaim::Waiting(sequence);
        }
        any
    }
}
