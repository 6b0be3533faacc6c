//! Where a topic's entries lie on disk: runs of neighbours, one or a few for each segment.
//!
//! Of the segment that is being written, the place of every entry is in memory, 8 bytes each. A sealed segment carries
//! that list itself, in its footer, and only the run is left in memory.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::format::record::HEADER_LEN;

/// The place of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    pub(crate) slot: Slot,
}

/// The place of one entry within its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Byte of its record's header.
    pub(crate) offset: u32,
    /// Bytes of the entry.
    pub(crate) len: u32,
}

impl Slot {
    fn bytes(self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.len)
    }
}

/// Where the slots of a run are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slots {
    Memory(Vec<Slot>),
    /// In the footer of the segment.
    Footer(FooterSlots),
}

impl Slots {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(slots) => slots.len() as u64,
            Self::Footer(footer) => footer.count,
        }
    }
}

/// A stretch of slots in a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterSlots {
    /// Byte of the segment at which the footer's slots begin.
    pub(crate) pages: u64,
    /// Number of the stretch's first slot among them.
    pub(crate) number: u64,
    pub(crate) count: u64,
    /// Bytes of the records the slots stand for.
    pub(crate) bytes: u64,
    /// Checksum of the summary the slots belong to.
    pub(crate) summary: u32,
}

/// Entries `first..end` of a topic, in one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) segment: u64,
    /// Whether the entries were first written to an older segment.
    pub(crate) relocated: bool,
    /// Index of the entry that the first slot is for; slots before `first` are of no use any more.
    pub(crate) base: u64,
    pub(crate) first: u64,
    pub(crate) end: u64,
    pub(crate) slots: Slots,
}

/// A stretch of neighbours found by [`Index::find`].
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) segment: u64,
    /// The slots of the entry looked for and those after it.
    pub(crate) slots: Slots,
}

impl Run {
    fn len(&self) -> u64 {
        self.end - self.first
    }

    /// Bytes of its records; those of a run that was cut since it was sealed are estimated.
    pub(crate) fn bytes(&self) -> u64 {
        match &self.slots {
            Slots::Memory(slots) => {
                slots[(self.first - self.base) as usize..].iter().map(|slot| slot.bytes()).sum()
            }
            Slots::Footer(f) => (u128::from(f.bytes) * u128::from(self.len()) / u128::from(f.count)) as u64,
        }
    }

    fn cut_front(&mut self, to: u64) {
        self.first = to;
        if let Slots::Memory(slots) = &mut self.slots {
            let useless = (self.first - self.base) as usize;
            // Not every time, or dropping entries one by one would take quadratic time.
            if useless > slots.len() / 2 {
                slots.drain(..useless);
                self.base = self.first;
            }
        }
    }

    fn cut_end(&mut self, from: u64) {
        self.end = from;
        if let Slots::Memory(slots) = &mut self.slots {
            slots.truncate((self.end - self.base) as usize);
        }
    }

    fn split_off(&mut self, at: u64) -> Self {
        let mut tail = self.clone();
        tail.cut_front(at);
        self.cut_end(at);
        tail
    }

    fn accepts(&self, index: u64, segment: u64, relocated: bool) -> bool {
        self.segment == segment
            && self.relocated == relocated
            && self.end == index
            && matches!(self.slots, Slots::Memory(_))
    }

    fn push(&mut self, slot: Slot) {
        if let Slots::Memory(slots) = &mut self.slots {
            slots.push(slot);
            self.end += 1;
        }
    }
}

/// The entries `first..next` of a topic as they are on disk.
#[derive(Debug, Default)]
pub(crate) struct Index {
    first: u64,
    next: u64,
    /// In order of their entries, without overlap.
    runs: VecDeque<Run>,
}

impl Index {
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter()
    }

    pub(crate) fn into_runs(self) -> VecDeque<Run> {
        self.runs
    }

    /// Begins with the bounds a checkpoint states. The entries within are in earlier segments, hence unknown:
    /// [`Self::hole`].
    pub(crate) fn with_bounds(first: u64, next: u64) -> Self {
        Self { first, next, runs: VecDeque::new() }
    }

    /// Drops what is outside of `first..next`, which is what the last checkpoint and the operations after it made of the
    /// topic.
    pub(crate) fn clip(&mut self, first: u64, next: u64) {
        self.cut(0..first);
        self.cut(next..u64::MAX);
        (self.first, self.next) = (first, next);
    }

    /// Adds the entry `next()`.
    pub(crate) fn push(&mut self, at: Location) {
        match self.runs.back_mut().filter(|run| run.accepts(self.next, at.segment, false)) {
            Some(run) => run.push(at.slot),
            None => self.runs.push_back(Run::of(self.next, at, false)),
        }
        self.next += 1;
    }

    /// Notes that an entry now lies in a newer segment. `false`: there is no such entry, or it lies there already.
    pub(crate) fn relocate(&mut self, index: u64, at: Location) -> bool {
        if !(self.first..self.next).contains(&index) {
            return false;
        }
        let place = self.runs.partition_point(|run| run.end <= index);
        if self.runs.get(place).is_some_and(|run| run.first <= index && run.segment == at.segment) {
            return false;
        }
        self.cut(index..index + 1);
        let place = self.runs.partition_point(|run| run.end <= index);
        match place.checked_sub(1).and_then(|before| self.runs.get_mut(before)) {
            Some(run) if run.accepts(index, at.segment, true) => run.push(at.slot),
            _ => self.runs.insert(place, Run::of(index, at, true)),
        }
        true
    }

    /// Adds a run of the next segment, segments being replayed in order.
    pub(crate) fn adopt(&mut self, run: Run) {
        if run.relocated {
            self.cut(run.first..run.end);
        } else {
            // An entry is appended where the topic ends, so whatever was beyond had been dropped.
            self.cut(run.first..u64::MAX);
        }
        let place = self.runs.partition_point(|other| other.end <= run.first);
        self.next = self.next.max(run.end);
        self.runs.insert(place, run);
    }

    /// Drops the entries from `from` on.
    pub(crate) fn truncate(&mut self, from: u64) {
        let from = from.max(self.first);
        if from < self.next {
            self.cut(from..u64::MAX);
            self.next = from;
        }
    }

    /// Drops the entries before `to`.
    pub(crate) fn purge(&mut self, to: u64) {
        if to > self.first {
            self.cut(0..to);
            self.first = to;
            self.next = self.next.max(to);
        }
    }

    fn cut(&mut self, range: Range<u64>) {
        let mut at = self.runs.partition_point(|run| run.end <= range.start);
        while let Some(run) = self.runs.get_mut(at).filter(|run| run.first < range.end) {
            if run.first < range.start {
                let tail = (run.end > range.end).then(|| run.split_off(range.end));
                run.cut_end(range.start);
                at += 1;
                if let Some(tail) = tail {
                    self.runs.insert(at, tail);
                    return;
                }
            } else if run.end > range.end {
                run.cut_front(range.end);
                return;
            } else {
                self.runs.remove(at);
            }
        }
    }

    /// Where the entry at `index` is to be found, with up to `limit` entries in all that follow it in the same run.
    pub(crate) fn find(&self, index: u64, limit: u64) -> Option<Found> {
        if !(self.first..self.next).contains(&index) {
            return None;
        }
        let run = self.runs.get(self.runs.partition_point(|run| run.end <= index))?;
        let from = index.checked_sub(run.first).map(|_| index - run.base)?;
        let count = limit.min(run.end - index);
        let slots = match &run.slots {
            Slots::Memory(slots) => Slots::Memory(slots[from as usize..(from + count) as usize].to_vec()),
            Slots::Footer(f) => Slots::Footer(FooterSlots { number: f.number + from, count, ..*f }),
        };
        Some(Found { segment: run.segment, slots })
    }

    /// The oldest segment that holds an entry.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.runs.iter().map(|run| run.segment).min()
    }

    /// Adds the bytes of the records in each segment to `sum`.
    pub(crate) fn add_bytes(&self, sum: &mut BTreeMap<u64, u64>) {
        for run in &self.runs {
            let bytes = sum.entry(run.segment).or_default();
            *bytes = bytes.saturating_add(run.bytes());
        }
    }

    /// Says where the slots of `segment` that were in memory are from now on: `place` gets each run.
    /// `None`: they stay where they are.
    pub(crate) fn move_slots(&mut self, segment: u64, mut place: impl FnMut(&Run) -> Option<Slots>) {
        for run in self.runs.iter_mut().filter(|run| run.segment == segment) {
            if let Some(slots) = place(run) {
                run.slots = slots;
                run.base = run.first;
            }
        }
    }

    /// Entries that should exist and whose place is unknown: their segments are missing.
    pub(crate) fn hole(&self) -> Option<Range<u64>> {
        let mut known = self.first;
        for run in &self.runs {
            if run.first != known {
                return Some(known..run.first);
            }
            known = run.end;
        }
        (known < self.next).then_some(known..self.next)
    }
}

impl Run {
    fn of(index: u64, at: Location, relocated: bool) -> Self {
        let slots = Slots::Memory(vec![at.slot]);
        Self { segment: at.segment, relocated, base: index, first: index, end: index + 1, slots }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> Location {
        Location { segment: n / 10, slot: Slot { offset: n as u32, len: 1 } }
    }

    fn get(index: &Index, i: u64) -> Option<Location> {
        let found = index.find(i, 1)?;
        let Slots::Memory(slots) = found.slots else { panic!("nothing is sealed here") };
        assert_eq!(slots.len(), 1);
        Some(Location { segment: found.segment, slot: slots[0] })
    }

    #[test]
    fn entries_are_found_across_segments_after_truncating_and_purging() {
        let mut index = Index::default();
        (0..35).for_each(|n| index.push(at(n)));
        index.truncate(27);
        index.purge(12);
        assert_eq!((index.first(), index.next(), index.oldest_segment()), (12, 27, Some(1)));
        assert_eq!((get(&index, 11), get(&index, 27)), (None, None));
        for n in 12..27 {
            assert_eq!(get(&index, n), Some(at(n)));
        }
        index.truncate(20);
        index.push(at(99));
        assert_eq!((get(&index, 19), get(&index, 20)), (Some(at(19)), Some(at(99))));
        index.purge(20);
        assert_eq!(index.oldest_segment(), Some(9));
        index.purge(50);
        assert_eq!((index.first(), index.next(), index.oldest_segment()), (50, 50, None));
        index.push(at(3));
        assert_eq!(get(&index, 50), Some(at(3)));
        index.truncate(0);
        assert_eq!((index.first(), index.next()), (50, 50));
    }

    #[test]
    fn entries_of_missing_segments_are_a_hole_until_they_are_dropped() {
        let mut index = Index::with_bounds(5, 10);
        index.push(at(1));
        assert_eq!(index.hole(), Some(5..10));
        assert_eq!((get(&index, 7), get(&index, 10)), (None, Some(at(1))));
        index.purge(8);
        assert_eq!(index.hole(), Some(8..10));
        let mut purged = Index::with_bounds(5, 10);
        purged.purge(10);
        assert_eq!(purged.hole(), None);
        let mut truncated = Index::with_bounds(5, 10);
        truncated.truncate(7);
        truncated.push(at(1));
        assert_eq!(truncated.hole(), Some(5..7));
        truncated.purge(7);
        assert_eq!((truncated.hole(), get(&truncated, 7)), (None, Some(at(1))));
    }

    #[test]
    fn relocated_entries_are_found_in_their_new_segment_and_the_old_one_is_free() {
        let mut index = Index::default();
        (0..25).for_each(|n| index.push(at(n)));
        for n in 0..10 {
            assert!(index.relocate(n, at(n + 50)));
            assert!(!index.relocate(n, at(n + 50)), "it lies there already");
        }
        assert!(!index.relocate(25, at(75)));
        assert_eq!(index.oldest_segment(), Some(1));
        // In the middle of a run, as a replay of a damaged log might have it.
        assert!(index.relocate(14, at(64)));
        let expected = |n| if n < 10 || n == 14 { at(n + 50) } else { at(n) };
        for n in 0..25 {
            assert_eq!(get(&index, n), Some(expected(n)), "{n}");
        }
        assert_eq!((index.hole(), index.runs().filter(|run| run.relocated).count()), (None, 2));
        let mut bytes = BTreeMap::new();
        index.add_bytes(&mut bytes);
        assert_eq!(bytes, BTreeMap::from([(1, 9 * 25), (2, 5 * 25), (5, 10 * 25), (6, 25)]));
    }

    #[test]
    fn runs_of_segments_add_up_to_what_writing_them_made() {
        // Entries 5 to 9 were dropped and written anew in segment 1, where 0 to 2 also went.
        let mut written = Index::default();
        (0..10).for_each(|n| written.push(at(n)));
        written.truncate(5);
        (15..18).for_each(|n| written.push(at(n)));
        (0..3).for_each(|n| assert!(written.relocate(n, at(n + 10))));
        let mut segments: Vec<Vec<Run>> = vec![Vec::new(), Vec::new()];
        let mut first = Index::default();
        (0..10).for_each(|n| first.push(at(n)));
        segments[0].extend(first.into_runs());
        segments[1].extend(written.runs().filter(|run| run.segment == 1).cloned());

        let mut replayed = Index::default();
        segments.into_iter().flatten().for_each(|run| replayed.adopt(run));
        replayed.clip(1, 8);
        written.purge(1);
        assert_eq!((replayed.first(), replayed.next(), replayed.hole()), (1, 8, None));
        for n in 1..8 {
            assert_eq!(get(&replayed, n), get(&written, n), "{n}");
        }
    }

    #[test]
    fn dropping_entries_one_by_one_keeps_memory_within_twice_the_rest() {
        let mut index = Index::default();
        (0..10).for_each(|n| index.push(Location { segment: 1, ..at(n) }));
        for n in 1..10 {
            index.purge(n);
            let run = index.runs().next().unwrap();
            let Slots::Memory(slots) = &run.slots else { panic!("nothing is sealed here") };
            assert!(slots.len() as u64 <= 2 * (10 - n), "{n}: {}", slots.len());
            assert_eq!(get(&index, n).map(|at| at.slot.offset), Some(n as u32));
        }
    }
}
