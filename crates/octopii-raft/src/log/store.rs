//! The raft log and vote on one topic of the write-ahead log.
//!
//! The topic's index is the raft index. The vote, the commit position and the position purged up to are the topic's
//! metadata, so they share the log's order: what is durable later implies that everything before it is durable too.
//!
//! Entries are readable as soon as they are appended; the library hears of them as flushed only when the log's ticket says
//! that they are on stable storage, and a vote is saved only then.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use octopii_transport::Executor;
use octopii_wal::{Topic, WriteAheadLog};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend};

use crate::group::{Entry, Group, LogId, Vote};
use crate::log::entry;
use crate::log::recent::Recent;
use crate::wire;

/// The topic that holds the log.
pub(crate) const TOPIC: &str = "raft";

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// Entries of one append request, in bytes (a single longer entry goes alone).
const BATCH_BYTES: usize = 1 << 20;

/// The log. Clones share it.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    executor: Executor,
    wal: WriteAheadLog,
    topic: Topic,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Whether `committed` is newer than what the log has.
    committed_unsaved: bool,
    purged: Option<LogId>,
    recent: Recent,
}

impl LogStore {
    pub(crate) fn open(executor: Executor, wal: WriteAheadLog) -> io::Result<Self> {
        let topic = wal.topic(TOPIC).map_err(io::Error::other)?;
        let state = State {
            vote: metadata::<wire::Vote>(&topic, VOTE)?.map(Into::into),
            committed: metadata::<wire::LogId>(&topic, COMMITTED)?.map(Into::into),
            purged: metadata::<wire::LogId>(&topic, PURGED)?.map(Into::into),
            ..State::default()
        };
        Ok(Self { shared: Arc::new(Shared { executor, wal, topic, state: Mutex::new(state) }) })
    }

    /// Whether this node has never voted nor stored anything.
    pub(crate) fn is_blank(&self) -> bool {
        let state = self.shared.state();
        state.vote.is_none() && state.purged.is_none() && self.shared.topic.next_index() == 0
    }

    /// Writes the commit position if it is newer than what the log has, for a quicker next start.
    pub(crate) fn flush_committed(&self) {
        let mut state = self.shared.state();
        if let Some(committed) = state.committed.filter(|_| state.committed_unsaved) {
            let bytes = wire::encode(&wire::LogId::from(committed));
            state.committed_unsaved = self.shared.topic.set_metadata(COMMITTED, bytes).is_err();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries of `start..end` that the log has, at most about `max_bytes` of them but at least one.
    async fn read(self: &Arc<Self>, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let start = start.max(self.topic.first_index());
        let end = end.min(self.topic.next_index());
        if start >= end {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.state().recent.read(start, end, max_bytes) {
            return Ok(entries);
        }
        let shared = Arc::clone(self);
        self.executor.blocking(move || shared.read_stored(start, end, max_bytes)).await
    }

    fn read_stored(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let (mut next, mut budget) = (start, max_bytes);
        while next < end {
            let part = self.topic.read_range(next..end, budget.min(BATCH_BYTES)).map_err(io::Error::other)?;
            if part.is_empty() {
                // Purged while we read: the log no longer has them.
                break;
            }
            for (index, bytes) in part {
                budget = budget.saturating_sub(bytes.len());
                entries.push(decode(index, bytes)?);
                next = index + 1;
            }
            if budget == 0 {
                break;
            }
        }
        Ok(entries)
    }
}

fn metadata<T: serde::de::DeserializeOwned>(topic: &Topic, key: &str) -> io::Result<Option<T>> {
    topic.metadata(key).map(|bytes| wire::decode(&bytes)).transpose()
}

fn decode(index: u64, bytes: Bytes) -> io::Result<Entry> {
    let entry = entry::decode(bytes)?;
    if entry.log_id.index != index {
        let found = entry.log_id.index;
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the log holds entry {found} at position {index}"),
        ));
    }
    Ok(entry)
}

impl RaftLogReader<Group> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.shared.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.shared.read(start, end, BATCH_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.state().vote)
    }
}

impl RaftLogStorage<Group> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Group>> {
        let (first, next) = (self.shared.topic.first_index(), self.shared.topic.next_index());
        let purged = self.shared.state().purged;
        let last = if first < next {
            let last = self.shared.read(next - 1, next, usize::MAX).await?;
            last.last().map(|entry| entry.log_id)
        } else {
            purged
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let bytes = wire::encode(&wire::Vote::from(*vote));
        let ticket = self.shared.topic.set_metadata(VOTE, bytes).map_err(io::Error::other)?;
        ticket.durable().await.map_err(io::Error::other)?;
        self.shared.state().vote = Some(*vote);
        Ok(())
    }

    /// Kept in memory and written with the next entries: a write of its own would double the syncs, and a node that
    /// restarts with an older position only learns the newer one from its leader.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut state = self.shared.state();
        state.committed_unsaved |= state.committed != committed;
        state.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.state().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Group>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let shared = &self.shared;
        let mut batch = shared.wal.batch();
        let mut appended = Vec::new();
        let mut next = shared.topic.next_index();
        for entry in entries {
            let index = entry.log_id.index;
            if index != next {
                // Only a log without entries may begin anywhere: its start is wherever the first entry is.
                if !appended.is_empty() || shared.topic.first_index() < next || index < next {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("entry {index} does not follow the end of the log, {next}"),
                    ));
                }
                batch.purge(&shared.topic, index);
            }
            next = index + 1;
            let bytes = entry::encode(&entry);
            let len = bytes.len();
            batch.append(&shared.topic, bytes);
            appended.push((entry, len));
        }
        let ticket = {
            let mut state = shared.state();
            if let Some(committed) = state.committed.filter(|_| state.committed_unsaved) {
                batch.set_metadata(&shared.topic, COMMITTED, wire::encode(&wire::LogId::from(committed)));
                state.committed_unsaved = false;
            }
            let ticket = if appended.is_empty() { shared.wal.sync() } else { shared.wal.commit(batch) };
            let ticket = ticket.map_err(io::Error::other)?;
            for (entry, len) in appended {
                state.recent.push(entry, len);
            }
            ticket
        };
        shared.executor.spawn(async move {
            callback.io_completed(ticket.durable().await.map_err(io::Error::other));
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let shared = &self.shared;
        let from = last.map_or(0, |id| id.index + 1).max(shared.topic.first_index());
        let mut state = shared.state();
        if from < shared.topic.next_index() {
            state.recent.truncate(from);
            // Not waited for: whatever is appended later is durable only after this.
            let _unawaited = shared.topic.truncate(from).map_err(io::Error::other)?;
        }
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let shared = &self.shared;
        let mut state = shared.state();
        if state.purged >= Some(upto) {
            return Ok(());
        }
        let mut batch = shared.wal.batch();
        batch.purge(&shared.topic, upto.index + 1);
        batch.set_metadata(&shared.topic, PURGED, wire::encode(&wire::LogId::from(upto)));
        // Nor this: entries that come back after a crash are purged again.
        let _unawaited = shared.wal.commit(batch).map_err(io::Error::other)?;
        state.purged = Some(upto);
        state.recent.purge(upto.index + 1);
        Ok(())
    }
}
