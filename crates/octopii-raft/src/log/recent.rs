//! The end of the log in memory: entries are read back right after they were appended, to be sent and to be applied.

use std::collections::VecDeque;

use crate::group::Entry;

/// Bytes kept. What followers need beyond it is read from the log.
const LIMIT: usize = 16 << 20;

/// Consecutive entries, the last of which is the log's last.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl Recent {
    pub(crate) fn push(&mut self, entry: Entry, bytes: usize) {
        if self.entries.back().is_some_and(|(last, _)| last.log_id.index + 1 != entry.log_id.index) {
            self.clear();
        }
        self.entries.push_back((entry, bytes));
        self.bytes += bytes;
        while self.bytes > LIMIT && self.entries.len() > 1 {
            self.pop_front();
        }
    }

    /// The entries of `start..end`, at most about `max_bytes` but at least one; `None` if some are not held.
    pub(crate) fn read(&self, start: u64, end: u64, max_bytes: usize) -> Option<Vec<Entry>> {
        let first = self.entries.front()?.0.log_id.index;
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        let count = usize::try_from(end.saturating_sub(start)).ok()?;
        if skip + count > self.entries.len() {
            return None;
        }
        let mut out = Vec::with_capacity(count);
        let mut bytes = 0;
        for (entry, len) in self.entries.range(skip..skip + count) {
            if bytes > 0 && bytes + len > max_bytes {
                break;
            }
            bytes += len;
            out.push(entry.clone());
        }
        Some(out)
    }

    /// Forgets entries from `from` on.
    pub(crate) fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.log_id.index >= from) {
            if let Some((_, bytes)) = self.entries.pop_back() {
                self.bytes -= bytes;
            }
        }
    }

    /// Forgets entries before `to`.
    pub(crate) fn purge(&mut self, to: u64) {
        while self.entries.front().is_some_and(|(entry, _)| entry.log_id.index < to) {
            self.pop_front();
        }
    }

    fn pop_front(&mut self) {
        if let Some((_, bytes)) = self.entries.pop_front() {
            self.bytes -= bytes;
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;

    use super::*;
    use crate::group::{LeaderId, LogId};

    fn entry(index: u64) -> Entry {
        Entry {
            log_id: LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index },
            payload: EntryPayload::Blank,
        }
    }

    fn indexes(entries: Option<Vec<Entry>>) -> Option<Vec<u64>> {
        entries.map(|entries| entries.iter().map(|e| e.log_id.index).collect())
    }

    #[test]
    fn only_whole_ranges_are_answered() {
        let mut recent = Recent::default();
        for index in 10..20 {
            recent.push(entry(index), 100);
        }
        assert_eq!(indexes(recent.read(12, 15, usize::MAX)), Some(vec![12, 13, 14]));
        assert_eq!(indexes(recent.read(12, 19, 250)), Some(vec![12, 13]));
        assert_eq!(indexes(recent.read(12, 19, 1)), Some(vec![12]), "at least one");
        assert_eq!(recent.read(9, 12, usize::MAX), None);
        assert_eq!(recent.read(18, 21, usize::MAX), None);
        recent.truncate(15);
        recent.purge(12);
        assert_eq!(indexes(recent.read(12, 15, usize::MAX)), Some(vec![12, 13, 14]));
        assert_eq!(recent.bytes, 300);
        recent.push(entry(40), 1);
        assert_eq!(recent.read(12, 13, usize::MAX), None, "a gap starts over");
    }

    #[test]
    fn memory_is_bounded() {
        let mut recent = Recent::default();
        for index in 0..100 {
            recent.push(entry(index), LIMIT / 10);
        }
        assert_eq!(recent.entries.len(), 10);
        recent.push(entry(100), 2 * LIMIT);
        assert_eq!(indexes(recent.read(100, 101, usize::MAX)), Some(vec![100]));
    }
}
