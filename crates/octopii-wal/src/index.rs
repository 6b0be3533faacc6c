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
