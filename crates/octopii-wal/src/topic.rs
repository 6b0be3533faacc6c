//! One topic of a log.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::appending::{Appending, Work};
use crate::cursor::Cursor;
use crate::error::Error;
use crate::format::record::{CURSOR_REMOVED, HEADER_LEN, RecordKind};
use crate::log::{Handle, NAME_LENGTHS, check_index, check_length, check_metadata};
use crate::read;
use crate::room::Need;
use crate::state::Operation;
use crate::ticket::Ticket;

/// A named sequence of entries within a log. A clone is the same topic.
///
/// Entries are numbered from 0, without gaps. A topic keeps its log open.
#[derive(Debug, Clone)]
pub struct Topic {
    handle: Arc<Handle>,
    id: u32,
    name: Arc<str>,
}

impl Topic {
    pub(crate) fn new(handle: Arc<Handle>, id: u32, name: Arc<str>) -> Self {
        Self { handle, id, name }
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(crate) fn max_entry(&self) -> usize {
        self.handle.shared.options.max_entry
    }

    /// The topic's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds an entry at the end. It can be read as soon as this returns, and is durable when the ticket says so.
    ///
    /// Blocks only while this topic has its share of [`Options::max_pending_bytes`](crate::Options::max_pending_bytes)
    /// waiting for the disk.
    pub fn append(&self, entry: impl Into<Bytes>) -> Result<Ticket, Error> {
        self.call(self.entry(entry.into())?)
    }

    /// As [`Self::append`], waiting for its share without blocking the thread. Cancel safe: dropped before it is ready,
    /// nothing was appended. The ticket's [`durable`](Ticket::durable) is the future of the next step.
    ///
    /// The thread is blocked all the same for the disk's answer when it was full the last time, and with
    /// [`Committer::Caller`](crate::Committer::Caller), where waiting for room means committing.
    pub fn append_async(&self, entry: impl Into<Bytes>) -> Appending {
        let entry = self.entry(entry.into());
        let need = Need::of_topic(self.id, entry.as_ref().map_or(0, Operation::len), true);
        Appending::new(&self.handle, need, entry.map(|entry| Work::Operation(Some(entry))))
    }

    fn entry(&self, entry: Bytes) -> Result<Operation, Error> {
        let limit = self.max_entry();
        if entry.len() > limit {
            return Err(Error::EntryTooLarge { len: entry.len(), limit });
        }
        Ok(Operation::new(RecordKind::Append, self.id, 0, entry))
    }

    /// Drops the entries from index `from` on; the next entry appended gets that index. Dropping from beyond the end does
    /// nothing; from before the first entry, it empties the topic.
    pub fn truncate(&self, from: u64) -> Result<Ticket, Error> {
        self.call(Operation::new(RecordKind::Truncate, self.id, from, Bytes::new()))
    }

    /// Drops the entries before index `to`, which may lie beyond the end: then the topic is empty and goes on at `to`.
    /// Segments in which no topic has an entry left are removed when this is durable.
    pub fn purge(&self, to: u64) -> Result<Ticket, Error> {
        check_index(to)?;
        self.call(Operation::new(RecordKind::Purge, self.id, to, Bytes::new()))
    }

    /// Keeps a small value beside the entries: a key of 1 to 255 bytes, a value of up to 64 KiB. All metadata of a log is
    /// held in memory and written anew into every segment.
    pub fn set_metadata(&self, key: &str, value: impl Into<Bytes>) -> Result<Ticket, Error> {
        let value = value.into();
        check_metadata(key, &value)?;
        let payload = Bytes::from([key.as_bytes(), value.as_ref()].concat());
        self.call(Operation::new(RecordKind::Metadata, self.id, key.len() as u64, payload))
    }

    /// The value last set under `key`.
    pub fn metadata(&self, key: &str) -> Option<Bytes> {
        self.handle.shared.state().topic(self.id).metadata(key)
    }

    /// Opens the cursor called `name`, 1 to 255 bytes: a consumer's place in this topic, kept in the log. One that is not
    /// there yet comes into being at the first entry, and from then on holds [`Self::purge_acknowledged`] back.
    ///
    /// # Errors
    /// [`Error::TooManyCursors`] if the topic has 1024 others.
    pub fn cursor(&self, name: &str) -> Result<Cursor, Error> {
        check_length("the cursor's name", name.len(), NAME_LENGTHS)?;
        Cursor::open(self.clone(), name)
    }

    /// The topic's cursors, sorted by name, with the index of the first entry that each has not acknowledged.
    pub fn cursors(&self) -> Vec<(String, u64)> {
        let state = self.handle.shared.state();
        let cursors = state.topic(self.id).cursors().iter();
        cursors.map(|(name, position)| (String::from_utf8_lossy(name).into_owned(), *position)).collect()
    }

    /// Removes a cursor; does nothing if there is none of that name. Where it is open, it goes on reading, and acknowledging
    /// fails with [`Error::CursorRemoved`].
    pub fn remove_cursor(&self, name: &str) -> Result<Ticket, Error> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.handle.enqueue(&Need::of_topic(self.id, HEADER_LEN + name.len(), false), |state| {
            if state.topic(self.id).cursor(&name).is_some() {
                state.call(Operation::new(RecordKind::Cursor, self.id, CURSOR_REMOVED, name));
            }
            Ok(None)
        })
    }

    /// Purges the entries that every cursor has acknowledged; none, if there are no cursors.
    pub fn purge_acknowledged(&self) -> Result<Ticket, Error> {
        self.handle.enqueue(&Need::of_topic(self.id, HEADER_LEN, false), |state| {
            let topic = state.topic(self.id);
            let to = topic.cursors().values().min().copied();
            if let Some(to) = to.filter(|to| *to > topic.first()) {
                state.call(Operation::new(RecordKind::Purge, self.id, to, Bytes::new()));
            }
            Ok(None)
        })
    }

    /// Index of the first entry; equal to [`Self::next_index`] if there is none. A new topic begins at 0.
    pub fn first_index(&self) -> u64 {
        self.handle.shared.state().topic(self.id).first()
    }

    /// Index that the next entry will get.
    pub fn next_index(&self) -> u64 {
        self.handle.shared.state().topic(self.id).next()
    }

    /// The entry at `index`, or `None` if there is none. Blocks for a disk read unless the entry has not been written yet.
    pub fn read(&self, index: u64) -> Result<Option<Bytes>, Error> {
        let entries = self.read_range(index..index.saturating_add(1), usize::MAX)?;
        Ok(entries.into_iter().next().map(|(_, entry)| entry))
    }

    /// The entries in `range` in order, with their indexes, until they come to more than `max_bytes`; one entry at least,
    /// if there is any. Indexes outside the topic are left out. Neighbours may share memory, up to 256 KiB: who keeps a few small
    /// entries of many for long copies them.
    pub fn read_range(&self, range: Range<u64>, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, Error> {
        read::range(&self.handle.shared, self.id, range, max_bytes)
    }

    fn call(&self, operation: Operation) -> Result<Ticket, Error> {
        let has_entry = operation.kind == RecordKind::Append;
        self.handle.enqueue(&Need::of_topic(self.id, operation.len(), has_entry), |state| {
            let index = state.call(operation);
            Ok(has_entry.then_some(index))
        })
    }
}
