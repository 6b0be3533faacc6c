//! Where a topic's entries lie on disk: eight bytes of memory each.

use std::collections::VecDeque;

/// The place of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    /// Byte of its record's header in the segment.
    pub(crate) offset: u32,
    /// Bytes of the entry.
    pub(crate) len: u32,
}

/// Entries that follow one another in one segment.
#[derive(Debug)]
struct Run {
    segment: u64,
    first: u64,
    slots: Vec<(u32, u32)>,
}

impl Run {
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }
}

/// The entries `first..next` of a topic as they are on disk, in runs by segment.
#[derive(Debug, Default)]
pub(crate) struct Index {
    first: u64,
    next: u64,
    runs: VecDeque<Run>,
}

impl Index {
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Adopts the bounds a checkpoint states. The entries within are in earlier segments, hence unknown: [`Self::hole`].
    pub(crate) fn set_bounds(&mut self, first: u64, next: u64) {
        *self = Self { first, next, runs: VecDeque::new() };
    }

    /// Adds the entry `next()`.
    pub(crate) fn push(&mut self, at: Location) {
        match self.runs.back_mut() {
            Some(run) if run.segment == at.segment => run.slots.push((at.offset, at.len)),
            _ => self.runs.push_back(Run {
                segment: at.segment,
                first: self.next,
                slots: vec![(at.offset, at.len)],
            }),
        }
        self.next += 1;
    }

    /// Drops the entries from `from` on.
    pub(crate) fn truncate(&mut self, from: u64) {
        let from = from.max(self.first);
        if from >= self.next {
            return;
        }
        self.next = from;
        while self.runs.back().is_some_and(|run| run.first >= from) {
            self.runs.pop_back();
        }
        if let Some(run) = self.runs.back_mut() {
            run.slots.truncate((from - run.first) as usize);
        }
    }

    /// Drops the entries before `to`.
    pub(crate) fn purge(&mut self, to: u64) {
        if to <= self.first {
            return;
        }
        self.first = to;
        self.next = self.next.max(to);
        while self.runs.front().is_some_and(|run| run.end() <= to) {
            self.runs.pop_front();
        }
    }

    pub(crate) fn get(&self, index: u64) -> Option<Location> {
        if index < self.first || index >= self.next {
            return None;
        }
        let run = self.runs.get(self.runs.partition_point(|run| run.end() <= index))?;
        let (offset, len) = *run.slots.get(index.checked_sub(run.first)? as usize)?;
        Some(Location { segment: run.segment, offset, len })
    }

    /// The oldest segment that holds an entry.
    pub(crate) fn oldest_segment(&self) -> Option<u64> {
        self.runs.front().map(|run| run.segment)
    }

    /// Entries that should exist and whose place is unknown: their segments are missing.
    pub(crate) fn hole(&self) -> Option<std::ops::Range<u64>> {
        let known_from = self.runs.front().map_or(self.next, |run| run.first);
        (self.first < known_from).then_some(self.first..known_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> Location {
        Location { segment: n / 10, offset: n as u32, len: 1 }
    }

    #[test]
    fn entries_are_found_across_segments_after_truncating_and_purging() {
        let mut index = Index::default();
        (0..35).for_each(|n| index.push(at(n)));
        index.truncate(27);
        index.purge(12);
        assert_eq!((index.first(), index.next(), index.oldest_segment()), (12, 27, Some(1)));
        assert_eq!((index.get(11), index.get(27)), (None, None));
        for n in 12..27 {
            assert_eq!(index.get(n), Some(at(n)));
        }
        index.truncate(20);
        index.push(at(99));
        assert_eq!((index.get(19), index.get(20)), (Some(at(19)), Some(at(99))));
        index.purge(20);
        assert_eq!(index.oldest_segment(), Some(9));
        index.purge(50);
        assert_eq!((index.first(), index.next(), index.oldest_segment()), (50, 50, None));
        index.push(at(3));
        assert_eq!(index.get(50), Some(at(3)));
        index.truncate(0);
        assert_eq!((index.first(), index.next()), (50, 50));
    }

    #[test]
    fn entries_of_missing_segments_are_a_hole_until_they_are_dropped() {
        let mut index = Index::default();
        index.set_bounds(5, 10);
        index.push(at(1));
        assert_eq!(index.hole(), Some(5..10));
        assert_eq!((index.get(7), index.get(10)), (None, Some(at(1))));
        index.purge(8);
        assert_eq!(index.hole(), Some(8..10));
        let mut purged = Index::default();
        purged.set_bounds(5, 10);
        purged.purge(10);
        assert_eq!(purged.hole(), None);
        let mut truncated = Index::default();
        truncated.set_bounds(5, 10);
        truncated.truncate(7);
        truncated.push(at(1));
        assert_eq!(truncated.hole(), Some(5..7));
        truncated.purge(7);
        assert_eq!((truncated.hole(), truncated.get(7)), (None, Some(at(1))));
    }
}
