//! What all handles of a log share, and how waiting operations are committed.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use octopii_vfs::{FileHandle, LockGuard};

use crate::error::{Error, Failure};
use crate::follow::wakes_on_append;
use crate::format::frame::FrameKind;
use crate::format::record::RecordKind;
use crate::index::{Location, Slot};
use crate::options::{Committer, Durability, Options};
use crate::room::{Need, Room};
use crate::state::{Epoch, Lsn, Operation, Queued, Segment, State, Waiter};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::thread::{self, Thread};
use crate::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use crate::writer::Writer;

/// A frame takes whole batches until it is about this large.
const FRAME_TARGET: usize = 8 << 20;
/// Without durability by sync, the log writes when this much has gathered.
const GATHER: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    state: Mutex<State>,
    writer: Mutex<Commit>,
    /// The committing thread, once it runs.
    pub(crate) thread: OnceLock<Thread>,
    pub(crate) closing: AtomicBool,
    /// How many waiters the last commit woke, to guess whether the next one will have company.
    last_woken: AtomicUsize,
    lock: Mutex<Option<Box<dyn LockGuard>>>,
}

/// The writer with what a commit reuses from the one before.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) writer: Writer,
    taken: Vec<Queued>,
    offsets: Vec<u32>,
    woken: Vec<Waiter>,
    /// Others to wake: those who follow a topic, and those who wait for room.
    followers: Vec<Waiter>,
    /// Number of the last operation whose frame is synced.
    synced: Lsn,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while holding a lock is a bug elsewhere; waiting callers should not panic in turn.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        dir: PathBuf,
        options: Options,
        mut state: State,
        writer: Writer,
        guard: Box<dyn LockGuard>,
    ) -> Self {
        state.room = Room::new(options.max_pending_bytes);
        state.wakes_on_append = wakes_on_append(options.durability, options.committer);
        let commit = Commit {
            writer,
            taken: Vec::new(),
            offsets: Vec::new(),
            woken: Vec::new(),
            followers: Vec::new(),
            synced: 0,
        };
        Self {
            dir,
            options,
            state: Mutex::new(state),
            writer: Mutex::new(commit),
            thread: OnceLock::new(),
            closing: AtomicBool::new(false),
            last_woken: AtomicUsize::new(0),
            lock: Mutex::new(Some(guard)),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn writer(&self) -> MutexGuard<'_, Commit> {
        lock(&self.writer)
    }

    pub(crate) fn release_directory(&self) {
        lock(&self.lock).take();
    }

    pub(crate) fn stopped_error(&self) -> Option<Error> {
        self.state().stopped.clone()
    }

    /// Why the log takes no more operations, if it does not.
    pub(crate) fn refusal(&self, state: &State) -> Option<Error> {
        let closing = self.closing.load(Ordering::Acquire);
        state.stopped.clone().or(closing.then_some(Error::Closed))
    }

    /// Lets `call` queue one batch, waiting for room first. Returns its result and the batch's number.
    pub(crate) fn enqueue<T>(
        &self,
        need: &Need,
        call: impl FnOnce(&mut State) -> T,
    ) -> Result<(T, Lsn, Arc<Epoch>), Error> {
        let mut place = None;
        loop {
            if let Some(state) = self.admit(need, &mut place, || Waiter::Thread(thread::current()))? {
                return self.queue(state, call);
            }
            match self.hurry() {
                Ok(true) => {}
                Ok(false) => thread::park(),
                Err(error) => {
                    self.withdraw(&mut place);
                    return Err(error);
                }
            }
        }
    }

    /// Queues a batch that was let in.
    pub(crate) fn queue<T>(
        &self,
        mut state: MutexGuard<'_, State>,
        call: impl FnOnce(&mut State) -> T,
    ) -> Result<(T, Lsn, Arc<Epoch>), Error> {
        let before = state.last;
        let was_empty = state.queue.is_empty();
        let out = call(&mut state);
        state.end_batch();
        let lsn = state.last;
        let epoch = Arc::clone(&state.epoch);
        let has_queued = lsn != before;
        state.end_charging(has_queued);
        let mut stirred = std::mem::take(&mut state.stirred);
        // It may have taken less than it was granted.
        state.grant_room(&mut stirred);
        let is_room_awaited = state.room.is_awaited();
        let is_awaited = std::mem::take(&mut state.is_awaited) || is_room_awaited;
        let gathered = state.pending_bytes >= GATHER.min(self.options.max_pending_bytes / 2);
        drop(state);
        stirred.into_iter().for_each(Waiter::wake);
        if is_awaited {
            self.kick();
        }
        let in_thread = self.options.committer == Committer::Thread;
        if is_room_awaited && !in_thread && has_queued {
            // Whoever waits for room relies on those who have it.
            self.commit_once()?;
        }
        match self.options.durability {
            Durability::Interval(_) if was_empty && in_thread => self.kick(),
            Durability::Interval(_) | Durability::None if gathered && in_thread => self.kick(),
            Durability::Interval(_) | Durability::None if gathered => self.commit_once()?,
            _ => {}
        }
        Ok((out, lsn, epoch))
    }

    /// Wakes the committing thread, if there is one.
    pub(crate) fn kick(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Whether something asks for a commit now, rather than when more has gathered.
    pub(crate) fn is_urgent(&self) -> bool {
        let state = self.state();
        state.stopped.is_none()
            && (state.sync_wanted > state.epoch.durable()
                || (!state.queue.is_empty()
                    && (self.options.durability == Durability::Synced
                        || state.room.is_awaited()
                        || self.closing.load(Ordering::Acquire)
                        || state.pending_bytes >= GATHER.min(self.options.max_pending_bytes / 2))))
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.state().queue.is_empty()
    }

    /// Commits on the waiter's own thread if it is likely to be alone and nobody else is committing.
    pub(crate) fn try_commit_inline(&self) {
        if self.last_woken.load(Ordering::Relaxed) > 1 {
            return;
        }
        let commit = match self.writer.try_lock() {
            Ok(commit) => commit,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // The waiter learns of a failure from its ticket.
        let _ = self.commit_with(commit, false, false);
        if self.is_urgent() {
            self.kick();
        }
    }

    /// Commits what is queued, up to a frame's worth, after waiting for a commit under way.
    pub(crate) fn commit_once(&self) -> Result<(), Error> {
        self.commit_with(self.writer(), false, false)
    }

    /// Writes and syncs everything queued.
    pub(crate) fn commit_everything(&self) -> Result<(), Error> {
        while self.has_queued() {
            self.commit_with(self.writer(), false, false)?;
        }
        self.commit_with(self.writer(), true, false)
    }

    /// Commits everything, then writes an empty frame that vouches for all before it: after an orderly close, damage to
    /// the last entries can be told from a torn tail.
    pub(crate) fn finish(&self) -> Result<(), Error> {
        self.commit_everything()?;
        match self.commit_with(self.writer(), true, true) {
            // There is no room for the finishing touch; all that was called is durable.
            Err(Error::StorageFull { .. }) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn find_space(&self, bytes: u64) -> Result<(), Error> {
        let mut commit = self.writer();
        match self.make_room(&mut commit.writer, bytes, true) {
            Ok(_) => {
                self.state().full = false;
                Ok(())
            }
            // Operations that already wait, a purge for one, may still find room.
            Err(failure @ Failure::Full(_)) => Err(failure.into_error()),
            Err(failure) => Err(self.fail(commit, failure)),
        }
    }

    /// Whether a new segment was begun to make room.
    fn make_room(&self, writer: &mut Writer, body: u64, has_entries: bool) -> Result<bool, Failure> {
        let begun = writer.make_room(body, has_entries, || self.checkpoint())?;
        let Some((header, file)) = begun else { return Ok(false) };
        self.state().segments.insert(header.sequence, Segment { file, header, has_footer: false });
        self.seal()?;
        Ok(true)
    }

    /// Operations that restate every topic as it is after the last frame written.
    fn checkpoint(&self) -> Vec<Operation> {
        let state = self.state();
        let mut out = Vec::new();
        for (id, topic) in &state.topics {
            if !topic.written.defined {
                continue;
            }
            let name = bytes::Bytes::copy_from_slice(topic.name.as_bytes());
            out.push(Operation::new(RecordKind::Define, *id, 0, name));
            let next = topic.written.entries.next().to_le_bytes();
            let bounds = bytes::Bytes::copy_from_slice(&next);
            out.push(Operation::new(RecordKind::Bounds, *id, topic.written.entries.first(), bounds));
            for (key, value) in &topic.written.metadata {
                let payload = bytes::Bytes::from([key.as_ref(), value.as_ref()].concat());
                out.push(Operation::new(RecordKind::Metadata, *id, key.len() as u64, payload));
            }
            for (name, position) in &topic.written.cursors {
                out.push(Operation::new(RecordKind::Cursor, *id, *position, name.clone()));
            }
        }
        out
    }

    fn commit_with(
        &self,
        mut commit: MutexGuard<'_, Commit>,
        force_sync: bool,
        seal: bool,
    ) -> Result<(), Error> {
        match self.try_commit(&mut commit, force_sync, seal) {
            Ok(()) => {
                let mut woken = std::mem::take(&mut commit.woken);
                let mut followers = std::mem::take(&mut commit.followers);
                self.last_woken.store(woken.len(), Ordering::Relaxed);
                drop(commit);
                woken.drain(..).chain(followers.drain(..)).for_each(Waiter::wake);
                // Whoever commits pays for the space, so that it cannot be used up faster than it is reclaimed.
                if self.reclaim() {
                    self.kick();
                }
                Ok(())
            }
            Err(failure) => Err(self.fail(commit, failure)),
        }
    }

    fn try_commit(&self, commit: &mut Commit, force_sync: bool, seal: bool) -> Result<(), Failure> {
        let Commit { writer, taken, offsets, woken, followers, synced } = commit;
        let mut state = self.state();
        if state.stopped.is_some() {
            return Ok(());
        }
        let upto = take(&mut state, taken);
        let sync_wanted = state.sync_wanted;
        drop(state);

        let bytes: usize = taken.iter().map(|q| q.operation.len()).sum();
        let relocates = taken.iter().any(|q| q.operation.kind == RecordKind::Relocate);
        let frees = |q: &Queued| matches!(q.operation.kind, RecordKind::Purge | RecordKind::Truncate);
        let mut may_free = relocates || taken.iter().any(frees);
        let mut has_begun_segment = false;
        if !taken.is_empty() || (seal && writer.active_sequence().is_some()) {
            let has_entries = relocates || taken.iter().any(|q| q.operation.kind == RecordKind::Append);
            has_begun_segment = self.make_room(writer, bytes as u64, has_entries)?;
            may_free |= has_begun_segment;
            offsets.clear();
            let operations = taken.iter().map(|q| &q.operation);
            writer.write_frame(FrameKind::Batches, operations, |offset| offsets.push(offset))?;
        }
        // Segments may go only when the purge, or the copy, that made them useless is durable.
        let sync = force_sync
            || may_free
            || self.options.durability == Durability::Synced
            || (matches!(self.options.durability, Durability::Interval(_)) && !taken.is_empty())
            || sync_wanted > *synced;
        if sync {
            writer.sync()?;
            *synced = upto;
        }

        let segment = writer.active_sequence().unwrap_or(0);
        let mut state = self.state();
        for (queued, offset) in taken.iter().zip(offsets.iter()) {
            let Queued { lsn, operation, .. } = queued;
            let slot = Slot { offset: *offset, len: operation.payload.len() as u32 };
            let location = Location { segment, slot };
            if let Some(topic) = state.topics.get_mut(&operation.topic) {
                topic.pending = topic.pending.saturating_sub(queued.charge);
                topic.wrote(*lsn, operation, location);
                if operation.kind == RecordKind::Append && !topic.followers.is_empty() {
                    followers.extend(std::mem::take(&mut topic.followers).into_values());
                }
            }
        }
        state.pending_bytes = state.pending_bytes.saturating_sub(bytes);
        for queued in taken.iter() {
            state.room.release(queued.charge, queued.is_lent);
        }
        state.grant_room(followers);
        state.written = upto;
        if sync {
            state.became_durable(upto, woken);
        }
        let unneeded = if may_free { self.unneeded_segments(&mut state, segment) } else { Vec::new() };
        if relocates {
            state.relocated();
        }
        if has_begun_segment || !unneeded.is_empty() {
            state.plan_reclaim(self.options.segment_size);
        }
        let is_full = state.full;
        drop(state);
        taken.clear();
        if !unneeded.is_empty() {
            writer.retire_segments(unneeded, is_full);
        }
        Ok(())
    }

    fn unneeded_segments(&self, state: &mut State, active: u64) -> Vec<(u64, FileHandle)> {
        let oldest = state.topics.values().filter_map(|t| t.written.entries.oldest_segment()).min();
        let needed_from = oldest.unwrap_or(active).min(active);
        let kept = state.segments.split_off(&needed_from);
        let unneeded = std::mem::replace(&mut state.segments, kept);
        unneeded.into_iter().map(|(sequence, segment)| (sequence, segment.file)).collect()
    }

    pub(crate) fn fail(&self, mut commit: MutexGuard<'_, Commit>, failure: Failure) -> Error {
        let full = matches!(failure, Failure::Full(_));
        let error = failure.into_error();
        let mut state = self.state();
        commit.taken.clear();
        let waiters = if full {
            state.full = true;
            state.fail_unwritten(error.clone())
        } else {
            state.stop(error.clone())
        };
        drop(state);
        drop(commit);
        waiters.into_iter().for_each(Waiter::wake);
        error
    }

    /// Stops the log in good order; what is not durable by now never will be.
    pub(crate) fn stop(&self, error: Error) {
        let waiters = self.state().stop(error);
        waiters.into_iter().for_each(Waiter::wake);
    }
}

/// Moves whole batches from the queue, a frame's worth. Returns the number of the last operation they cover.
fn take(state: &mut State, taken: &mut Vec<Queued>) -> Lsn {
    taken.clear();
    if state.pending_bytes <= FRAME_TARGET {
        taken.extend(state.queue.drain(..));
        return state.last;
    }
    let mut bytes = 0;
    let mut ends_batch = true;
    while let Some(next) = state.queue.front() {
        if ends_batch && bytes > 0 && bytes + next.operation.len() > FRAME_TARGET {
            break;
        }
        bytes += next.operation.len();
        ends_batch = next.ends_batch;
        taken.extend(state.queue.pop_front());
    }
    if state.queue.is_empty() { state.last } else { taken.last().map_or(state.written, |q| q.lsn) }
}
