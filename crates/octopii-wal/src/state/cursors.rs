//! Cursors of a topic: their positions in both views, and how far those that are open have read.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Operation, State, TopicState, Written};
use crate::error::Error;
use crate::format::record::{CURSOR_REMOVED, RecordKind};

/// Cursors that a topic may have. Each is in memory, and in every segment's checkpoint.
pub(crate) const MAX_CURSORS: usize = 1024;

/// Acknowledged positions by the cursors' names, each within the topic's bounds.
pub(crate) type Cursors = BTreeMap<Bytes, u64>;

/// How far an open cursor has read.
#[derive(Debug)]
pub(crate) struct ReadPosition {
    /// The cursor's name.
    pub(crate) name: Bytes,
    /// The next entry to hand out, or one that was purged. Never beyond the topic's end.
    pub(crate) next: u64,
    /// The same, going by the operations written: a truncation that fails for lack of space moves nobody back.
    next_written: u64,
    /// Indexes passed over because they were purged.
    pub(crate) skipped: u64,
    /// The cursor was removed after it had been opened.
    removed: bool,
}

/// What an operation does to the cursors of a topic whose entries are `first..next` after it. A cursor follows its topic's
/// ends: what was purged need not be read, and what comes in place of a truncated entry has not been read yet.
pub(super) fn apply(cursors: &mut Cursors, operation: &Operation, first: u64, next: u64) {
    match operation.kind {
        RecordKind::Cursor if operation.index == CURSOR_REMOVED => {
            cursors.remove(&operation.payload);
        }
        RecordKind::Cursor => {
            cursors.insert(operation.payload.clone(), operation.index);
        }
        RecordKind::Truncate | RecordKind::Purge => {
            cursors.values_mut().for_each(|position| *position = (*position).clamp(first, next));
        }
        _ => {}
    }
}

impl TopicState {
    /// Position of the cursor called `name`, if there is one.
    pub(crate) fn cursor(&self, name: &[u8]) -> Option<u64> {
        self.cursors.get(name).copied()
    }

    pub(crate) fn cursors(&self) -> &Cursors {
        &self.cursors
    }

    /// Opens a cursor at its position. Returns the reader's number.
    pub(crate) fn open_reader(&mut self, name: Bytes) -> u64 {
        let at = self.cursor(&name).unwrap_or(self.first);
        let reader = ReadPosition { name, next: at, next_written: at, skipped: 0, removed: false };
        self.next_reader += 1;
        self.readers.insert(self.next_reader, reader);
        self.next_reader
    }

    pub(crate) fn close_reader(&mut self, reader: u64) {
        self.readers.remove(&reader);
    }

    pub(crate) fn reader(&self, reader: u64) -> &ReadPosition {
        self.readers.get(&reader).expect("a reader lives as long as its cursor")
    }

    /// Entries before `to`, `handed_out` of them, went to a reader.
    pub(crate) fn read_to(&mut self, reader: u64, to: u64, handed_out: u64) {
        if let Some(reader) = self.readers.get_mut(&reader) {
            reader.skipped += (to - reader.next).saturating_sub(handed_out);
            (reader.next, reader.next_written) = (to, to);
        }
    }

    /// Moves a reader to `to` or as near as there are entries.
    pub(crate) fn seek(&mut self, reader: u64, to: u64) {
        let to = to.clamp(self.first, self.next);
        if let Some(reader) = self.readers.get_mut(&reader) {
            (reader.next, reader.next_written) = (to, to);
        }
    }

    /// Whether a reader may acknowledge.
    pub(crate) fn check_acknowledge(&self, reader: u64) -> Result<(), Error> {
        let reader = self.reader(reader);
        if reader.removed {
            let cursor = String::from_utf8_lossy(&reader.name).into_owned();
            return Err(Error::CursorRemoved { topic: self.name.to_string(), cursor });
        }
        self.check_cursor(&reader.name)
    }

    /// Whether there may be a cursor called `name`.
    pub(crate) fn check_cursor(&self, name: &[u8]) -> Result<(), Error> {
        if self.cursors.len() >= MAX_CURSORS && !self.cursors.contains_key(name) {
            return Err(Error::TooManyCursors { topic: self.name.to_string(), limit: MAX_CURSORS });
        }
        Ok(())
    }

    /// What an operation that was called does to the cursors, after everything else.
    pub(super) fn call_cursors(&mut self, operation: &Operation) {
        apply(&mut self.cursors, operation, self.first, self.next);
        match operation.kind {
            RecordKind::Cursor if operation.index == CURSOR_REMOVED => {
                let removed = self.readers.values_mut().filter(|r| r.name == operation.payload);
                removed.for_each(|reader| reader.removed = true);
            }
            RecordKind::Truncate => {
                self.rewrites += 1;
                self.readers.values_mut().for_each(|reader| reader.next = reader.next.min(self.next));
            }
            _ => {}
        }
    }

    /// The same for one that was written.
    pub(super) fn wrote_cursors(&mut self, operation: &Operation) {
        if operation.kind == RecordKind::Truncate {
            let end = self.written.entries.next();
            self.readers.values_mut().for_each(|r| r.next_written = r.next_written.min(end));
        }
    }

    /// Makes the visible cursors equal to the written ones.
    pub(super) fn fall_back_cursors(&mut self) {
        self.cursors = self.written.cursors.clone();
        self.rewrites += 1;
        let end = self.written.entries.next();
        for reader in self.readers.values_mut() {
            reader.removed &= !self.cursors.contains_key(&reader.name);
            reader.next = reader.next_written.min(end);
            reader.next_written = reader.next;
        }
    }
}

impl Written {
    /// Whether a cursor may be called `name` and be at `index`.
    pub(crate) fn accepts_cursor(&self, index: u64, name: &[u8]) -> bool {
        let is_in_bounds = (self.entries.first()..=self.entries.next()).contains(&index);
        (is_in_bounds || index == CURSOR_REMOVED)
            && (1..256).contains(&name.len())
            && std::str::from_utf8(name).is_ok()
    }
}

impl State {
    /// Queues the operation of a reader that acknowledges the entries before `operation.index`: those that it has been
    /// given, and that are still there. A cursor never moves back.
    pub(crate) fn acknowledge(&mut self, reader: u64, mut operation: Operation) {
        let topic = self.topic(operation.topic);
        let at = topic.cursor(&operation.payload).unwrap_or(topic.first());
        operation.index = operation.index.min(topic.reader(reader).next).max(at);
        self.call(operation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Index;

    #[test]
    fn a_cursor_on_disk_has_a_name_and_is_within_its_topic() {
        let written = Written { entries: Index::with_bounds(5, 7), ..Written::default() };
        let accepted: Vec<_> = (0..20).filter(|index| written.accepts_cursor(*index, b"c")).collect();
        assert_eq!(accepted, [5, 6, 7]);
        assert!(written.accepts_cursor(CURSOR_REMOVED, b"c"));
        assert!(written.accepts_cursor(5, &[b'c'; 255]));
        for name in [&b""[..], &[b'c'; 256], b"\xff"] {
            assert!(!written.accepts_cursor(5, name) && !written.accepts_cursor(CURSOR_REMOVED, name));
        }
    }
}
