//! The log itself: opening, topics, batches, closing.

use std::io;
use std::path::Path;
use std::sync::Arc;

use octopii_vfs::create_dir_all_durable;

use crate::appending::{Appending, Work};
use crate::batch::Batch;
use crate::committer;
use crate::error::{Error, OpenError};
use crate::format::record::RecordKind;
use crate::options::{Committer, Durability, MAX_ENTRY, MAX_INDEX, Options, SEGMENT_SIZES};
use crate::reclaim::Laggard;
use crate::recovery;
use crate::room::Need;
use crate::scan::SegmentFile;
use crate::shared::{Shared, lock};
use crate::spares::Spares;
use crate::state::{Epoch, Lsn, Operation, Segment, State, TopicState};
use crate::sync::atomic::Ordering;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, MutexGuard};
use crate::ticket::Ticket;
use crate::topic::Topic;
use crate::writer::Writer;

/// Name of the lock file in a log's directory.
const LOCK_FILE: &str = "lock";
pub(crate) const NAME_LENGTHS: std::ops::Range<usize> = 1..256;
const VALUE_LENGTHS: std::ops::Range<usize> = 0..(64 << 10) + 1;

/// A write-ahead log in a directory of its own. A clone is the same log; the last one dropped closes it.
#[derive(Debug, Clone)]
pub struct WriteAheadLog {
    handle: Arc<Handle>,
}

/// What users' handles share. The committing thread holds only [`Shared`], so that the log can be dropped.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Counters since the log was opened, and sizes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Commits: groups of operations written together.
    pub commits: u64,
    /// Syncs of segment files.
    pub syncs: u64,
    /// Bytes of frames written, padding included.
    pub bytes_written: u64,
    /// Bytes of operations that wait for the disk.
    pub pending_bytes: u64,
    /// Segment files.
    pub segments: u64,
    /// Files of former segments, kept for segments to come.
    pub spares: u64,
}

impl WriteAheadLog {
    /// Opens the log in `dir`, creating the directory if it is missing, and recovers what is there.
    ///
    /// Everything that was acknowledged is there again, and everything that is there is durable when this returns.
    pub fn open(dir: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        check(&options)?;
        let dir = dir.as_ref();
        let vfs = Arc::clone(&options.vfs);
        let io = |operation, path: &Path, reason| OpenError::Io { operation, path: path.to_owned(), reason };
        create_dir_all_durable(&*vfs, dir).map_err(|e| io("create", dir, e))?;
        let dir = vfs.canonicalize(dir).map_err(|e| io("resolve", dir, e))?;
        let guard = vfs.lock(&dir.join(LOCK_FILE)).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked { dir: dir.clone() },
            _ => io("lock", &dir.join(LOCK_FILE), e),
        })?;

        let files =
            recovery::list(&*vfs, &dir, |path, sequence| SegmentFile::open(&*vfs, path, sequence).map(Some))?;
        let threads = match options.committer {
            Committer::Thread => recovery::threads(),
            Committer::Caller => 1,
        };
        let recovered = recovery::recover(files, threads)?;
        // After a mere crash of the process the tail may exist only in memory of the system; and if a sync failed before, the
        // system takes what it has in memory for what is on disk, and would not write it. So it is written once more: the
        // same bytes, which a power cut meanwhile cannot tear.
        if let Some(last) = recovered.segments.last() {
            last.file
                .write_again(recovered.unproven..last.end)
                .map_err(|e| io("write again", &last.file.path, e))?;
            last.file.file.sync_data().map_err(|e| io("sync", &last.file.path, e))?;
        }
        // Should a power cut bring one of them back, it will be just as useless.
        for useless in &recovered.useless {
            vfs.remove_file(&useless.path).map_err(|e| io("remove", &useless.path, e))?;
        }

        let spares = Spares::find(&*vfs, &dir, options.segment_size)?;
        let segments = recovered.segments.into_iter().map(|s| {
            let segment = Segment { file: s.file.file, header: s.header, has_footer: s.has_footer };
            (s.file.sequence, segment)
        });
        let state = State::new(recovered.topics, segments.collect());
        let writer =
            Writer::new(vfs, dir.clone(), options.segment_size, options.seed, recovered.position, spares);
        let committer = options.committer;
        let shared = Arc::new(Shared::new(dir.clone(), options, state, writer, guard));
        shared
            .seal()
            .map_err(|failure| io("write the footer of a segment in", &dir, failure.into_reason()))?;
        let thread = match committer {
            Committer::Caller => None,
            Committer::Thread => {
                Some(committer::spawn(&shared).map_err(|e| io("start a thread for", &dir, e))?)
            }
        };
        Ok(Self { handle: Arc::new(Handle { shared, thread: Mutex::new(thread) }) })
    }

    /// The topic called `name`, 1 to 255 bytes, which comes into being if it is not there.
    pub fn topic(&self, name: &str) -> Result<Topic, Error> {
        check_length("the topic's name", name.len(), NAME_LENGTHS)?;
        if let Some((name, id)) = self.handle.shared.state().names.get_key_value(name) {
            return Ok(Topic::new(Arc::clone(&self.handle), *id, Arc::clone(name)));
        }
        let mut found = None;
        // Whatever is done to the topic later is durable only after this, so there is nothing to wait for.
        drop(self.handle.enqueue(&Need::NONE, |state| {
            found = Some(define(state, name));
            Ok(None)
        })?);
        let (id, name) = found.ok_or(Error::Closed)?;
        Ok(Topic::new(Arc::clone(&self.handle), id, name))
    }

    /// The names of all topics, sorted.
    pub fn topics(&self) -> Vec<String> {
        self.handle.shared.state().names.keys().map(|name| name.to_string()).collect()
    }

    /// An empty batch for [`Self::commit`].
    pub fn batch(&self) -> Batch {
        Batch::default()
    }

    /// Makes the changes of a batch, all of them or, after an error, none. Like [`Topic::append`] it does not wait for the
    /// disk, only for room; after a crash all of the changes are there, or none.
    pub fn commit(&self, mut batch: Batch) -> Result<Ticket, Error> {
        batch.check(&self.handle)?;
        self.handle.enqueue(&batch.need(), |state| batch.run(state))
    }

    /// As [`Self::commit`], waiting for room without blocking the thread. Cancel safe: dropped before it is ready, nothing
    /// was changed.
    pub fn commit_async(&self, batch: Batch) -> Appending {
        let need = batch.need();
        Appending::new(&self.handle, need, batch.check(&self.handle).map(|()| Work::Batch(batch)))
    }

    /// A ticket for everything called so far, fulfilled by a sync whatever the log's durability.
    pub fn sync(&self) -> Result<Ticket, Error> {
        let shared = &self.handle.shared;
        let mut state = shared.state();
        if let Some(error) = shared.refusal(&state) {
            return Err(error);
        }
        // A number of its own, so that operations written without a sync do not count as fulfilled.
        state.last += 1;
        state.sync_wanted = state.last;
        let (lsn, epoch) = (state.last, Arc::clone(&state.epoch));
        drop(state);
        Ok(Ticket::new(Arc::clone(shared), epoch, lsn, None, false))
    }

    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        let shared = &self.handle.shared;
        let (work, spares) = {
            let commit = shared.writer();
            (commit.writer.work, commit.writer.spares())
        };
        let state = shared.state();
        Stats {
            commits: work.commits,
            syncs: work.syncs,
            bytes_written: work.bytes,
            pending_bytes: state.pending_bytes as u64,
            segments: state.segments.len() as u64,
            spares: spares as u64,
        }
    }

    /// Topics with entries in sealed segments, those with the oldest ones first: what keeps the log from shrinking. Topics are
    /// not in each other's way for long: when segments take more than twice what is alive, the survivors of the oldest are
    /// moved.
    pub fn laggards(&self) -> Vec<Laggard> {
        self.handle.shared.state().laggards()
    }

    /// The directory, in the one spelling under which it is locked.
    pub fn dir(&self) -> &Path {
        &self.handle.shared.dir
    }

    /// Makes everything durable, stops the log for all its handles and topics, and releases the directory. Dropping the last
    /// handle does the same, without the result. Closing twice is no error.
    pub fn close(&self) -> Result<(), Error> {
        self.handle.close()
    }
}

impl Handle {
    /// Queues a batch, waiting for room; `call` returns the index for the ticket, or an error, having changed nothing.
    pub(crate) fn enqueue(
        &self,
        need: &Need,
        call: impl FnOnce(&mut State) -> Result<Option<u64>, Error>,
    ) -> Result<Ticket, Error> {
        self.ticket(self.shared.enqueue(need, call)?)
    }

    /// Queues a batch that was let in.
    pub(crate) fn queue(
        &self,
        state: MutexGuard<'_, State>,
        call: impl FnOnce(&mut State) -> Result<Option<u64>, Error>,
    ) -> Result<Ticket, Error> {
        self.ticket(self.shared.queue(state, call)?)
    }

    fn ticket(&self, queued: (Result<Option<u64>, Error>, Lsn, Arc<Epoch>)) -> Result<Ticket, Error> {
        let (index, lsn, epoch) = queued;
        let accepted = self.shared.options.durability != Durability::Synced;
        Ok(Ticket::new(Arc::clone(&self.shared), epoch, lsn, index?, accepted))
    }

    fn close(&self) -> Result<(), Error> {
        let mut thread = lock(&self.thread);
        self.shared.closing.store(true, Ordering::Release);
        self.shared.kick();
        if let Some(thread) = thread.take() {
            // A waker run by the committing thread may drop the last handle there; it cannot wait for itself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
        let outcome = match self.shared.stopped_error() {
            Some(Error::Closed) => return Ok(()),
            Some(error) => Err(error),
            None => self.shared.finish(),
        };
        self.shared.stop(Error::Closed);
        self.shared.release_directory();
        outcome
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Whoever wants the outcome calls `close`.
        let _ = self.close();
    }
}

fn define(state: &mut State, name: &str) -> (u32, Arc<str>) {
    // Another caller may have been first.
    if let Some((name, id)) = state.names.get_key_value(name) {
        return (*id, Arc::clone(name));
    }
    let id = state.topics.keys().next_back().map_or(0, |last| last + 1);
    let name: Arc<str> = name.into();
    state.topics.insert(id, TopicState::new(Arc::clone(&name)));
    state.names.insert(Arc::clone(&name), id);
    let payload = bytes::Bytes::copy_from_slice(name.as_bytes());
    state.call(Operation::new(RecordKind::Define, id, 0, payload));
    (id, name)
}

pub(crate) fn check_index(index: u64) -> Result<(), Error> {
    if index <= MAX_INDEX { Ok(()) } else { Err(Error::IndexTooLarge { index, limit: MAX_INDEX }) }
}

pub(crate) fn check_metadata(key: &str, value: &[u8]) -> Result<(), Error> {
    check_length("the metadata key", key.len(), NAME_LENGTHS)?;
    check_length("the metadata value", value.len(), VALUE_LENGTHS)
}

pub(crate) fn check_length(
    what: &'static str,
    len: usize,
    allowed: std::ops::Range<usize>,
) -> Result<(), Error> {
    if allowed.contains(&len) { Ok(()) } else { Err(Error::InvalidLength { what, len, allowed }) }
}

fn check(options: &Options) -> Result<(), OpenError> {
    let (size, entry) = (options.segment_size, options.max_entry);
    if !SEGMENT_SIZES.contains(&size) {
        let allowed = format!("{} to {}", SEGMENT_SIZES.start(), SEGMENT_SIZES.end());
        return Err(OpenError::InvalidOption { option: "segment_size", value: size, allowed });
    }
    if entry > MAX_ENTRY {
        let allowed = format!("up to {MAX_ENTRY}");
        return Err(OpenError::InvalidOption { option: "max_entry", value: entry as u64, allowed });
    }
    Ok(())
}
