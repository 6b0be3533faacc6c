//! Several changes as one.

use std::sync::Arc;

use bytes::Bytes;

use crate::cursor::{Cursor, Reader};
use crate::error::Error;
use crate::format::record::RecordKind;
use crate::log::{Handle, check_index, check_metadata};
use crate::room::Need;
use crate::state::{Operation, State};
use crate::topic::Topic;

/// Bytes that a batch may have as stored.
const MAX_BATCH: usize = 1 << 30;

/// Changes to any topics of one log that take effect together: after a crash all of them are there, or none.
///
/// Filled without touching the log; see [`WriteAheadLog::commit`](crate::WriteAheadLog::commit). Changes take effect in
/// the order in which they were added.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) operations: Vec<(Topic, Operation)>,
    /// Who acknowledges, in the order of the cursor records in `operations`.
    pub(crate) acknowledging: Vec<Arc<Reader>>,
    pub(crate) bytes: usize,
    /// The first argument that is out of its range; reported on commit.
    pub(crate) refused: Option<Error>,
}

impl Batch {
    /// Adds an entry at the end of `topic`.
    pub fn append(&mut self, topic: &Topic, entry: impl Into<Bytes>) -> &mut Self {
        let entry = entry.into();
        let limit = topic.max_entry();
        if entry.len() > limit {
            self.refused.get_or_insert(Error::EntryTooLarge { len: entry.len(), limit });
            return self;
        }
        self.push(topic, RecordKind::Append, 0, entry)
    }

    /// Drops the entries of `topic` from index `from` on. See [`Topic::truncate`].
    pub fn truncate(&mut self, topic: &Topic, from: u64) -> &mut Self {
        self.push(topic, RecordKind::Truncate, from, Bytes::new())
    }

    /// Drops the entries of `topic` before index `to`. See [`Topic::purge`].
    pub fn purge(&mut self, topic: &Topic, to: u64) -> &mut Self {
        if let Err(error) = check_index(to) {
            self.refused.get_or_insert(error);
            return self;
        }
        self.push(topic, RecordKind::Purge, to, Bytes::new())
    }

    /// Sets a metadata value of `topic`. See [`Topic::set_metadata`].
    pub fn set_metadata(&mut self, topic: &Topic, key: &str, value: impl Into<Bytes>) -> &mut Self {
        let value = value.into();
        if let Err(error) = check_metadata(key, &value) {
            self.refused.get_or_insert(error);
            return self;
        }
        let payload = Bytes::from([key.as_bytes(), value.as_ref()].concat());
        self.push(topic, RecordKind::Metadata, key.len() as u64, payload)
    }

    /// Acknowledges the entries before index `upto` that `cursor` has handed out, as [`Cursor::ack`] does, and together with
    /// the other changes of the batch: a consumer whose effects are in the same log takes each entry into account exactly
    /// once.
    pub fn ack(&mut self, cursor: &Cursor, upto: u64) -> &mut Self {
        let reader = Arc::clone(cursor.reader());
        self.push(cursor.topic(), RecordKind::Cursor, upto, cursor.name_bytes().clone());
        self.acknowledging.push(reader);
        self
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Whether there are no changes.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Whether `log` can commit it.
    pub(crate) fn check(&self, log: &Arc<Handle>) -> Result<(), Error> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        if self.bytes > MAX_BATCH {
            return Err(Error::BatchTooLarge { len: self.bytes, limit: MAX_BATCH });
        }
        match self.operations.iter().find(|(topic, _)| !Arc::ptr_eq(topic.handle(), log)) {
            Some((topic, _)) => Err(Error::ForeignTopic { topic: topic.name().to_owned() }),
            None => Ok(()),
        }
    }

    pub(crate) fn need(&self) -> Need {
        let has_entries = self.operations.iter().any(|(_, o)| o.kind == RecordKind::Append);
        Need::of_topics(self.operations.iter().map(|(topic, o)| (topic.id(), o.len())), has_entries)
    }

    /// Queues the changes. Returns the index of the last entry. Called once; what holds on to cursors stays, since it may not
    /// be dropped while the state is locked.
    pub(crate) fn run(&mut self, state: &mut State) -> Result<Option<u64>, Error> {
        for reader in &self.acknowledging {
            reader.check_acknowledge(state)?;
        }
        let mut acknowledging = self.acknowledging.iter();
        let mut last = None;
        for (_, operation) in self.operations.drain(..) {
            match operation.kind {
                RecordKind::Append => last = Some(state.call(operation)),
                RecordKind::Cursor => {
                    // Only an acknowledgement puts one into a batch.
                    let reader = acknowledging.next().expect("each cursor record has its reader");
                    state.acknowledge(reader.id(), operation);
                }
                _ => {
                    state.call(operation);
                }
            }
        }
        Ok(last)
    }

    fn push(&mut self, topic: &Topic, kind: RecordKind, index: u64, payload: Bytes) -> &mut Self {
        let operation = Operation::new(kind, topic.id(), index, payload);
        self.bytes += operation.len();
        self.operations.push((topic.clone(), operation));
        self
    }
}
