//! Places of consumers, kept in the log.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::Error;
use crate::format::record::{HEADER_LEN, RecordKind};
use crate::options::Durability;
use crate::read;
use crate::room::Need;
use crate::state::{Operation, State};
use crate::ticket::Ticket;
use crate::topic::Topic;

/// A consumer's place in a topic: it hands out entry after entry, and keeps in the log which of them are done.
///
/// It has two positions. The *read position* is in memory and moves with [`Self::next_batch`]. The *acknowledged position*
/// is in the log and moves with [`Self::ack`] or [`Batch::ack`](crate::Batch::ack), never back except with a truncation. A
/// cursor that is opened reads on from the acknowledged position. So the order of acknowledging and acting decides what a
/// crash does:
///
/// - **At least once**: act, make the effect durable, then acknowledge. After a crash every entry that was not acknowledged
///   comes again, also those that had been acted on.
/// - **Exactly once**: put the effects, as entries or metadata of any topics of the same log, and the acknowledgement into
///   one [`Batch`](crate::Batch). After a crash both are there, or neither.
/// - **At most once**: acknowledge, wait for the ticket, then act. What was acknowledged and not yet acted on is not
///   handed out again.
///
/// ```
/// # use octopii_wal::{Options, WriteAheadLog};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let log = WriteAheadLog::open(dir.path().join("wal"), Options::default())?;
/// # log.topic("orders")?.append("three pieces")?.wait()?;
/// let (orders, totals) = (log.topic("orders")?, log.topic("totals")?);
/// let mut cursor = orders.cursor("adder")?;
/// loop {
///     let entries = cursor.next_batch(64 << 10)?;
///     let Some((last, _)) = entries.last() else { break };
///     let mut batch = log.batch();
///     batch.append(&totals, format!("{} more", entries.len())).ack(&cursor, last + 1);
///     log.commit(batch)?.wait()?; // the effect and the acknowledgement, both or neither
/// }
/// orders.purge_acknowledged()?.wait()?;
/// # assert_eq!((totals.next_index(), orders.first_index()), (1, 1));
/// # Ok(())
/// # }
/// ```
///
/// Handed out is only what is as durable as the log's [`Durability`] promises: with [`Durability::Synced`] entries that
/// are synced, otherwise everything appended.
///
/// Where the topic changes under a cursor:
///
/// - Purged entries are passed over, see [`Self::skipped`]; an acknowledged position that lay among them moves to the
///   topic's first entry.
/// - When the topic is truncated, both positions move back to its new end if they lay beyond it: what is appended in place
///   of the old entries is new, and is handed out.
/// - When operations fail for lack of space ([`Error::StorageFull`]), the acknowledged position falls back with them. The
///   read position stays; [`Self::seek`] moves it to read something again. Without `Synced`, entries that were handed out
///   may be among those that failed; what is then appended in their place is handed out.
///
/// Cursors of the same name share the acknowledged position and read independently of each other. A cursor keeps its log
/// open.
#[derive(Debug)]
pub struct Cursor {
    reader: Arc<Reader>,
}

/// The registration of an open cursor. Batches that acknowledge hold it too.
#[derive(Debug)]
pub(crate) struct Reader {
    topic: Topic,
    name: Bytes,
    id: u64,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.topic.handle().shared.state().topic_mut(self.topic.id()).close_reader(self.id);
    }
}

impl Reader {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn check_acknowledge(&self, state: &State) -> Result<(), Error> {
        state.topic(self.topic.id()).check_acknowledge(self.id)
    }
}

impl Cursor {
    pub(crate) fn open(topic: Topic, name: &str) -> Result<Self, Error> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        let shared = &topic.handle().shared;
        let exists = {
            let mut state = shared.state();
            let state = state.topic_mut(topic.id());
            state.cursor(&name).map(|_| state.open_reader(name.clone()))
        };
        if let Some(id) = exists {
            return Ok(Self { reader: Arc::new(Reader { topic, name, id }) });
        }
        let mut id = None;
        let ticket =
            topic.handle().enqueue(&Need::of_topic(topic.id(), HEADER_LEN + name.len(), false), |state| {
                state.topic(topic.id()).check_cursor(&name)?;
                // Another caller may have been first.
                if state.topic(topic.id()).cursor(&name).is_none() {
                    let first = state.topic(topic.id()).first();
                    state.call(Operation::new(RecordKind::Cursor, topic.id(), first, name.clone()));
                }
                id = Some(state.topic_mut(topic.id()).open_reader(name.clone()));
                Ok(None)
            });
        // Made before looking at the error, which may have come after the registration.
        let reader = id.map(|id| Arc::new(Reader { topic, name, id }));
        // Acknowledgements are durable only after this, so there is nothing to wait for.
        drop(ticket?);
        Ok(Self { reader: reader.ok_or(Error::Closed)? })
    }

    pub(crate) fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    pub(crate) fn name_bytes(&self) -> &Bytes {
        &self.reader.name
    }

    /// The cursor's name.
    pub fn name(&self) -> &str {
        // It was made from a `str`.
        std::str::from_utf8(&self.reader.name).unwrap_or_default()
    }

    /// The topic it reads.
    pub fn topic(&self) -> &Topic {
        &self.reader.topic
    }

    /// The next entries in order, with their indexes, until they come to more than `max_bytes`; one at least, if there is
    /// any, and none if there is none yet. Blocks for disk reads only; see [`Self::wait`] and [`Self::ready`] for waiting.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Io`] leave the read position where it is. A log that has stopped hands out what it
    /// has, then fails with the reason.
    pub fn next_batch(&mut self, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, Error> {
        let shared = &self.topic().handle().shared;
        let id = self.topic().id();
        loop {
            let (from, to, rewrites) = {
                let state = shared.state();
                let topic = state.topic(id);
                let (from, to) = self.available(&state);
                if from >= to {
                    return state.stopped.clone().map_or(Ok(Vec::new()), Err);
                }
                (from, to, topic.rewrites)
            };
            let entries = read::range(shared, id, from..to, max_bytes)?;
            let mut state = shared.state();
            let topic = state.topic_mut(id);
            if topic.rewrites != rewrites || (entries.is_empty() && topic.first() > from) {
                continue;
            }
            if let Some((last, _)) = entries.last() {
                topic.read_to(self.reader.id, last + 1, entries.len() as u64);
            }
            return Ok(entries);
        }
    }

    /// The next entry to hand out, and where those end that may be.
    pub(crate) fn available(&self, state: &State) -> (u64, u64) {
        let topic = state.topic(self.topic().id());
        let to = match self.topic().handle().shared.options.durability {
            // A commit that writes also syncs before anything counts as written.
            Durability::Synced => topic.written_end(),
            Durability::Interval(_) | Durability::None => topic.next(),
        };
        (topic.reader(self.reader.id).next.max(topic.first()), to)
    }

    /// Acknowledges the entries before index `upto`: they are done, and a cursor opened later does not hand them out.
    ///
    /// What was not handed out cannot be acknowledged, so any large number stands for everything that was. An
    /// acknowledgement of less than the one before changes nothing.
    ///
    /// # Errors
    /// [`Error::CursorRemoved`], or why the log takes no more operations.
    pub fn ack(&self, upto: u64) -> Result<Ticket, Error> {
        let operation = Operation::new(RecordKind::Cursor, self.topic().id(), upto, self.reader.name.clone());
        let need = Need::of_topic(self.topic().id(), operation.len(), false);
        self.topic().handle().enqueue(&need, |state| {
            self.reader.check_acknowledge(state)?;
            state.acknowledge(self.reader.id, operation);
            Ok(None)
        })
    }

    /// Index of the next entry that [`Self::next_batch`] will hand out.
    pub fn position(&self) -> u64 {
        let state = self.topic().handle().shared.state();
        self.available(&state).0
    }

    /// Index of the first entry that is not acknowledged; the topic's first if the cursor was removed.
    pub fn acknowledged(&self) -> u64 {
        let state = self.topic().handle().shared.state();
        let topic = state.topic(self.topic().id());
        topic.cursor(&self.reader.name).unwrap_or(topic.first())
    }

    /// Number of entries in the topic that are not acknowledged, those that are not durable yet included.
    pub fn lag(&self) -> u64 {
        let state = self.topic().handle().shared.state();
        let topic = state.topic(self.topic().id());
        topic.next() - topic.cursor(&self.reader.name).unwrap_or(topic.first())
    }

    /// Number of indexes that this cursor, since it was opened, has passed over because they were purged before it got there.
    pub fn skipped(&self) -> u64 {
        self.topic().handle().shared.state().topic(self.topic().id()).reader(self.reader.id).skipped
    }

    /// Moves the read position, in memory only, to index `to` or as near as the topic has entries: forward to leave some out,
    /// back to read some again. `cursor.seek(cursor.acknowledged())` begins where a cursor opened now would.
    pub fn seek(&mut self, to: u64) {
        let topic = self.topic();
        topic.handle().shared.state().topic_mut(topic.id()).seek(self.reader.id, to);
    }
}
