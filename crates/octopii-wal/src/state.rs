//! What a log knows in memory: its topics, the operations that wait to be written, and who waits for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::OnceLock;
use std::task::Waker;

use bytes::Bytes;
use octopii_vfs::FileHandle;

use crate::error::Error;
use crate::follow::Signal;
use crate::format::record::{HEADER_LEN, RecordKind};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::Thread;
use cursors::{Cursors, ReadPosition};

mod cursors;
use crate::format::segment::SegmentHeader;
use crate::index::{Found, Index, Location};
use crate::room::Room;

/// Operations are numbered in the order they were called, from 1.
pub(crate) type Lsn = u64;

/// One change to one topic.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) kind: RecordKind,
    pub(crate) topic: u32,
    pub(crate) index: u64,
    pub(crate) payload: Bytes,
    pub(crate) payload_crc: u32,
}

impl Operation {
    pub(crate) fn new(kind: RecordKind, topic: u32, index: u64, payload: Bytes) -> Self {
        let payload_crc = crc32c::crc32c(&payload);
        Self { kind, topic, index, payload, payload_crc }
    }

    /// Bytes on disk.
    pub(crate) fn len(&self) -> usize {
        HEADER_LEN + self.payload.len()
    }
}

/// An operation that waits to be written.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) lsn: Lsn,
    pub(crate) operation: Operation,
    /// Whether the batch it belongs to ends here.
    pub(crate) ends_batch: bool,
    /// Bytes that it takes of the room, or that it is beyond.
    pub(crate) charge: usize,
    pub(crate) is_lent: bool,
}

/// A topic as the operations *written* so far leave it, and as those *called* so far do.
///
/// The second view is what users see. When waiting operations fail for lack of space, it falls back to the first.
#[derive(Debug, Default)]
pub(crate) struct TopicState {
    pub(crate) name: Arc<str>,
    pub(crate) written: Written,
    /// Whether the operation that defines the topic was called.
    defined: bool,
    first: u64,
    next: u64,
    metadata: BTreeMap<Bytes, Bytes>,
    /// Acknowledged positions by the cursors' names, each in `first..=next`.
    cursors: Cursors,
    /// Cursors that are open.
    readers: BTreeMap<u64, ReadPosition>,
    next_reader: u64,
    /// Bytes charged for what of this topic is granted, queued or being written.
    pub(crate) pending: usize,
    /// How many wait for room for this topic.
    pub(crate) waiting: usize,
    /// Who waits for entries to hand out.
    pub(crate) followers: BTreeMap<u64, Waiter>,
    /// Counts the times that entries a reader may have seen were taken back.
    pub(crate) rewrites: u64,
    /// Entries up to `next` that are not written yet, with the number of the operation that appended each.
    unwritten: VecDeque<(Lsn, Bytes)>,
}

/// The written view of a topic.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) defined: bool,
    pub(crate) entries: Index,
    pub(crate) metadata: BTreeMap<Bytes, Bytes>,
    pub(crate) cursors: Cursors,
}

/// Where an entry, and those right after it, can be had.
#[derive(Debug)]
pub(crate) enum Source {
    Memory(Vec<Bytes>),
    Disk(Found),
}

/// A segment that is there.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: FileHandle,
    pub(crate) header: SegmentHeader,
    pub(crate) has_footer: bool,
}

impl TopicState {
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self { name, ..Self::default() }
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<Bytes> {
        self.metadata.get(key.as_bytes()).cloned()
    }

    /// Entries from here on are not written yet.
    pub(crate) fn written_end(&self) -> u64 {
        self.next - self.unwritten.len() as u64
    }

    /// Where the entry at `index` and up to `limit` in all from there on are to be found. There may be more.
    pub(crate) fn find(&self, index: u64, limit: u64) -> Option<Source> {
        if index < self.first || index >= self.next {
            return None;
        }
        let unwritten_from = self.next - self.unwritten.len() as u64;
        if let Some(from) = index.checked_sub(unwritten_from) {
            let entries = self.unwritten.iter().skip(from as usize).take(limit as usize);
            return Some(Source::Memory(entries.map(|(_, entry)| entry.clone()).collect()));
        }
        self.written.entries.find(index, limit.min(unwritten_from - index)).map(Source::Disk)
    }

    /// Makes the visible view equal to the written one.
    pub(crate) fn fall_back(&mut self) {
        self.fall_back_cursors();
        self.defined = self.written.defined;
        self.first = self.written.entries.first();
        self.next = self.written.entries.next();
        self.metadata = self.written.metadata.clone();
        self.unwritten.clear();
    }

    fn call(&mut self, lsn: Lsn, operation: &Operation) {
        let index = operation.index;
        match operation.kind {
            RecordKind::Append => {
                self.unwritten.push_back((lsn, operation.payload.clone()));
                self.next += 1;
            }
            RecordKind::Truncate => {
                let from = index.clamp(self.first, self.next);
                let keep = self.unwritten.len().saturating_sub((self.next - from) as usize);
                self.unwritten.truncate(keep);
                self.next = from;
            }
            RecordKind::Purge if index > self.first => {
                let unwritten_from = self.next - self.unwritten.len() as u64;
                let drop = index.saturating_sub(unwritten_from).min(self.unwritten.len() as u64);
                self.unwritten.drain(..drop as usize);
                self.first = index;
                self.next = self.next.max(index);
            }
            RecordKind::Metadata => {
                let (key, value) = split_metadata(operation);
                self.metadata.insert(key, value);
            }
            RecordKind::Define => self.defined = true,
            RecordKind::Cursor | RecordKind::Purge | RecordKind::Bounds | RecordKind::Relocate => {}
        }
        self.call_cursors(operation);
    }

    /// Notes that an operation has been written; an entry now lies at `location`.
    pub(crate) fn wrote(&mut self, lsn: Lsn, operation: &Operation, location: Location) {
        if operation.kind == RecordKind::Append && self.unwritten.front().is_some_and(|(l, _)| *l == lsn) {
            self.unwritten.pop_front();
        }
        self.written.apply(operation, location);
        self.wrote_cursors(operation);
    }
}

impl Written {
    pub(crate) fn apply(&mut self, operation: &Operation, location: Location) {
        match operation.kind {
            RecordKind::Append => self.entries.push(location),
            RecordKind::Truncate => self.entries.truncate(operation.index),
            RecordKind::Purge => self.entries.purge(operation.index),
            RecordKind::Metadata => {
                let (key, value) = split_metadata(operation);
                self.metadata.insert(key, value);
            }
            RecordKind::Define => self.defined = true,
            RecordKind::Cursor | RecordKind::Bounds => {}
            // An entry that was dropped while its copy waited to be written stays dropped.
            RecordKind::Relocate => {
                self.entries.relocate(operation.index, location);
            }
        }
        cursors::apply(&mut self.cursors, operation, self.entries.first(), self.entries.next());
    }
}

/// Key and value; the key's length has been checked when the operation was made.
fn split_metadata(operation: &Operation) -> (Bytes, Bytes) {
    let at = (operation.index as usize).min(operation.payload.len());
    (operation.payload.slice(..at), operation.payload.slice(at..))
}

/// How a stretch of operations ended. Shared by their tickets.
#[derive(Debug, Default)]
pub(crate) struct Epoch {
    durable: AtomicU64,
    failed: OnceLock<Error>,
}

impl Epoch {
    pub(crate) fn starting_at(durable: Lsn) -> Arc<Self> {
        Arc::new(Self { durable: AtomicU64::new(durable), failed: OnceLock::new() })
    }

    pub(crate) fn durable(&self) -> Lsn {
        self.durable.load(Ordering::Acquire)
    }

    /// The outcome for operation `lsn`, if it is known.
    pub(crate) fn outcome(&self, lsn: Lsn) -> Option<Result<(), Error>> {
        if self.durable() >= lsn {
            return Some(Ok(()));
        }
        let failed = self.failed.get()?;
        // `durable` never moves again once the epoch has failed, but it may have moved since it was read above.
        Some(if self.durable() >= lsn { Ok(()) } else { Err(failed.clone()) })
    }
}

/// Someone to be woken.
#[derive(Debug)]
pub(crate) enum Waiter {
    Thread(Thread),
    Task(Waker),
    Signal(Arc<Signal>),
}

impl Waiter {
    pub(crate) fn wake(self) {
        match self {
            Self::Thread(thread) => thread.unpark(),
            Self::Task(waker) => waker.wake(),
            Self::Signal(signal) => signal.fire(),
        }
    }
}

/// How far the survivors of the oldest segment have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Reclaim {
    /// There is nothing to do.
    #[default]
    Idle,
    /// The survivors of this segment are to be written again.
    Wanted(u64),
    /// A piece of them waits to be written.
    Waiting(u64),
    /// This segment could not be read. It stays, and so do those after it.
    Stuck(u64),
}

/// Everything behind the log's one lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) topics: BTreeMap<u32, TopicState>,
    pub(crate) names: BTreeMap<Arc<str>, u32>,
    pub(crate) segments: BTreeMap<u64, Segment>,
    pub(crate) reclaim: Reclaim,
    /// Operations not yet taken by a commit.
    pub(crate) queue: VecDeque<Queued>,
    /// Bytes of the operations that are queued or being written.
    pub(crate) pending_bytes: usize,
    /// Number of the last operation called.
    pub(crate) last: Lsn,
    /// Number of the last operation written.
    pub(crate) written: Lsn,
    /// An operation up to which someone wants a sync that the durability alone would not bring.
    pub(crate) sync_wanted: Lsn,
    pub(crate) epoch: Arc<Epoch>,
    /// By operation, so that they are woken in order; the second number tells waiters of one operation apart.
    pub(crate) waiters: BTreeMap<(Lsn, u64), Waiter>,
    pub(crate) next_waiter: u64,
    /// Followers have their entries when they are appended, not when they are committed.
    pub(crate) wakes_on_append: bool,
    /// Followers to be woken when the lock is free.
    pub(crate) stirred: Vec<Waiter>,
    /// Somebody waits for an entry that was just appended to be committed.
    pub(crate) is_awaited: bool,
    /// How much more may wait.
    pub(crate) room: Room,
    /// The last attempt to get space failed.
    pub(crate) full: bool,
    /// Set once the log was poisoned or closed.
    pub(crate) stopped: Option<Error>,
}

impl State {
    pub(crate) fn new(topics: BTreeMap<u32, TopicState>, segments: BTreeMap<u64, Segment>) -> Self {
        let names = topics.iter().map(|(id, topic)| (Arc::clone(&topic.name), *id)).collect();
        Self {
            topics,
            names,
            segments,
            reclaim: Reclaim::default(),
            queue: VecDeque::new(),
            pending_bytes: 0,
            last: 0,
            written: 0,
            sync_wanted: 0,
            epoch: Epoch::starting_at(0),
            waiters: BTreeMap::new(),
            next_waiter: 0,
            wakes_on_append: false,
            stirred: Vec::new(),
            is_awaited: false,
            room: Room::new(0),
            full: false,
            stopped: None,
        }
    }

    /// A topic that some handle refers to. Topics are never removed.
    pub(crate) fn topic(&self, id: u32) -> &TopicState {
        self.topics.get(&id).expect("topics live as long as the log")
    }

    pub(crate) fn topic_mut(&mut self, id: u32) -> &mut TopicState {
        self.topics.get_mut(&id).expect("topics live as long as the log")
    }

    /// Queues an operation, making it visible. An `Append` gets the topic's next index, which is returned. The caller
    /// marks the end of the batch.
    pub(crate) fn call(&mut self, mut operation: Operation) -> u64 {
        let id = operation.topic;
        let topic = self.topics.get(&id).expect("topics live as long as the log");
        if !topic.defined && operation.kind != RecordKind::Define {
            let name = Bytes::copy_from_slice(topic.name.as_bytes());
            self.call(Operation::new(RecordKind::Define, id, 0, name));
        }
        self.last += 1;
        let lsn = self.last;
        let topic = self.topics.get_mut(&id).expect("topics live as long as the log");
        if operation.kind == RecordKind::Append {
            operation.index = topic.next;
            match (topic.followers.is_empty(), self.wakes_on_append) {
                (true, _) => {}
                (false, true) => self.stirred.extend(std::mem::take(&mut topic.followers).into_values()),
                (false, false) => self.is_awaited = true,
            }
        }
        let index = operation.index;
        topic.call(lsn, &operation);
        self.pending_bytes += operation.len();
        let (charge, is_lent) = match operation.kind {
            // The log's own, a piece at a time; it takes nothing from those who append.
            RecordKind::Relocate => (0, false),
            _ => self.room.charge(operation.len()),
        };
        topic.pending += charge;
        self.queue.push_back(Queued { lsn, operation, ends_batch: false, charge, is_lent });
        index
    }

    /// Marks the last operation called as the end of its batch.
    pub(crate) fn end_batch(&mut self) {
        if let Some(last) = self.queue.back_mut() {
            last.ends_batch = true;
        }
    }

    /// Everything not yet written fails with `error`, and the users' view falls back to what was written.
    pub(crate) fn fail_unwritten(&mut self, error: Error) -> Vec<Waiter> {
        self.relocation_failed();
        self.queue.clear();
        self.pending_bytes = 0;
        for topic in self.topics.values_mut() {
            topic.fall_back();
        }
        self.written = self.last;
        let mut waiters = self.end_epoch(error);
        self.reset_room(&mut waiters);
        waiters
    }

    /// Everything not yet durable fails with `error`, and so will everything to come.
    pub(crate) fn stop(&mut self, error: Error) -> Vec<Waiter> {
        self.queue.clear();
        self.pending_bytes = 0;
        self.stopped.get_or_insert_with(|| error.clone());
        let mut waiters = self.end_epoch(error);
        self.dissolve_line(&mut waiters);
        waiters
    }

    fn end_epoch(&mut self, error: Error) -> Vec<Waiter> {
        // The first failure stands.
        self.epoch.failed.get_or_init(|| error);
        self.epoch = Epoch::starting_at(self.last);
        let followers = self.topics.values_mut().map(|topic| std::mem::take(&mut topic.followers));
        let followers: Vec<_> = followers.flat_map(BTreeMap::into_values).collect();
        std::mem::take(&mut self.waiters).into_values().chain(followers).collect()
    }

    /// Operations up to `lsn` are durable. Returns who waited for them.
    pub(crate) fn became_durable(&mut self, lsn: Lsn, waiters: &mut Vec<Waiter>) {
        self.epoch.durable.store(lsn, Ordering::Release);
        while let Some(first) = self.waiters.first_entry() {
            if first.key().0 > lsn {
                break;
            }
            waiters.push(first.remove());
        }
    }
}
