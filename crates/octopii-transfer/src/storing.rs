//! From the network to the destination: blocks are checked and stored on blocking threads, damaged ones are asked for again,
//! and what is on the disk is vouched for from time to time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use octopii_transport::Executor;
use octopii_vfs::FileHandle;
use tokio::sync::mpsc;

use crate::activity::Activity;
use crate::checker::still_damaged;
use crate::journal::{Journal, Prefix};
use crate::relay::shelf::Shelved;
use crate::shared::AbortOnDrop;
use crate::sink::Sink;
use crate::store::IncomingBlock;
use crate::wire::Span;
use crate::{Digest, TransferError};

/// Blocks that are checked, or written, in one step on a blocking thread: a hand-over between threads is paid for by several
/// blocks.
const STEP: usize = 4;

/// Blocks behind a repaired one that are read back and checked in one step.
const WAITING_STEP: usize = 64;

/// Stored bytes after which they are pushed to the disk in the background: the final sync then finds little to do, and a
/// killed transfer loses little.
const EARLY_SYNC: u64 = 16 << 20;

/// The same with holes among them, which cost nothing but the time to hash them again.
const EARLY_SYNC_WITH_HOLES: u64 = 256 << 20;

/// Blocks that are asked for again in one transfer, at the most.
pub(crate) const MAX_REPAIRS: usize = 256;

/// How often one block of an earlier transfer is asked for.
const ATTEMPTS: u32 = 3;

/// What arrives, in this order: blocks, then the end; repairs in between and after it.
#[derive(Debug)]
pub(crate) enum Arrival {
    Block(IncomingBlock),
    Repair {
        offset: u64,
        parts: Vec<Bytes>,
    },
    /// The digest that the sender claims for the whole.
    Done(Digest),
}

/// How storing ended without an error.
#[derive(Debug)]
pub(crate) enum Stored {
    /// Everything is there and checked; the digest is the one that the sender claims.
    Whole(Box<Sink>, Digest),
    /// Nothing more comes, and something is missing. So many bytes are stored and checked.
    Cut(Box<Sink>, u64),
    /// The next block was not what it should be. Everything before it is stored and checked, and storing can go on from
    /// there.
    Mismatch(Box<Sink>, Box<Storing>, TransferError),
}

/// Whether there is nothing more to do.
enum End {
    NotYet,
    Whole(Digest),
    Cut,
    Mismatch(Span),
}

/// What to do about a block that is not what it should be.
#[derive(Debug)]
pub(crate) enum Damage {
    /// Ask for it here, and go on meanwhile. Takes [`MAX_REPAIRS`] requests without waiting.
    Ask(mpsc::Sender<Span>),
    /// Let whoever hands blocks over find a better one; ask here only for what an earlier transfer has left damaged.
    Stop(mpsc::Sender<Span>),
}

/// The storing of one chunk.
#[derive(Debug)]
pub(crate) struct Storing {
    executor: Executor,
    activity: Arc<Activity>,
    verified: Arc<AtomicU64>,
    damage: Damage,
    asked: usize,
    mismatch: Option<Span>,
    /// For those who fetch content from here.
    shelved: Option<Arc<Shelved>>,
    /// Checked, and not written yet.
    checked: Vec<IncomingBlock>,
    /// Everything before this is checked and written.
    stored: u64,
    /// Sync has begun for everything before this.
    synced: u64,
    /// Bytes that had been written then.
    written: u64,
    syncing: Option<AbortOnDrop<Result<Option<Journal>, TransferError>>>,
    checking_earlier: Option<AbortOnDrop<Result<Vec<Span>, TransferError>>>,
    /// Blocks of an earlier transfer that are damaged on the disk, and how often they were asked for.
    damaged_earlier: BTreeMap<u64, (Span, u32)>,
    done: Option<Digest>,
}

impl Storing {
    pub(crate) fn new(
        executor: Executor,
        activity: Arc<Activity>,
        verified: Arc<AtomicU64>,
        shelved: Option<Arc<Shelved>>,
        damage: Damage,
        sink: &Sink,
    ) -> Self {
        let have = sink.checker.offset();
        verified.store(have, Ordering::Relaxed);
        let earlier = sink.store.file().filter(|_| !sink.earlier.entries.is_empty());
        let checking_earlier = earlier.map(|temporary| {
            let (on, activity) = (executor.clone(), Arc::clone(&activity));
            let (file, earlier) = (FileHandle::clone(temporary.file()), Arc::clone(&sink.earlier));
            AbortOnDrop(executor.spawn(check_earlier(on, activity, file, earlier, sink.block_size)))
        });
        Self {
            executor,
            activity,
            verified,
            damage,
            asked: 0,
            mismatch: None,
            shelved,
            checked: Vec::new(),
            stored: have,
            synced: have,
            written: 0,
            syncing: None,
            checking_earlier,
            damaged_earlier: BTreeMap::new(),
            done: None,
        }
    }

    /// Stores what arrives until everything is there or nothing more comes. On an error the sink is dropped, on a blocking
    /// thread: what is not kept of its file is gone when this returns.
    pub(crate) async fn run(
        mut self,
        sink: Box<Sink>,
        mut arrivals: mpsc::Receiver<Arrival>,
    ) -> Result<Stored, TransferError> {
        let executor = self.executor.clone();
        let mut sink = Some(sink);
        let ended = self.store(&mut sink, &mut arrivals).await;
        match (ended, sink) {
            (Ok(End::Whole(digest)), Some(sink)) => Ok(Stored::Whole(sink, digest)),
            (Ok(End::Mismatch(span)), Some(sink)) => {
                (self.mismatch, self.done) = (None, None);
                Ok(Stored::Mismatch(sink, Box::new(self), damaged(span)))
            }
            (Ok(End::Cut | End::NotYet), Some(sink)) => Ok(Stored::Cut(sink, self.stored)),
            (Err(error), sink) => {
                executor
                    .blocking(move || {
                        if let Some(mut sink) = sink {
                            sink.store.set_keep(false);
                        }
                    })
                    .await;
                Err(error)
            }
            (Ok(_), None) => Err(TransferError::ShuttingDown),
        }
    }

    /// The sink is missing afterwards if the work that had it failed.
    async fn store(
        &mut self,
        place: &mut Option<Box<Sink>>,
        arrivals: &mut mpsc::Receiver<Arrival>,
    ) -> Result<End, TransferError> {
        let mut open = true;
        loop {
            let mut arrived = Vec::new();
            if !self.checked.is_empty() && self.mismatch.is_some() {
                // Only what came before it counts.
            } else if !self.checked.is_empty() {
                // What was checked is not kept waiting for more.
                arrived.extend(std::iter::from_fn(|| arrivals.try_recv().ok()).take(STEP));
            } else {
                match self.end(place, open) {
                    End::NotYet => {}
                    end => {
                        if let End::Mismatch(_) = end {
                            self.take_repairs(place, arrivals).await?;
                        }
                        self.finish_sync(place).await?;
                        return Ok(end);
                    }
                }
                tokio::select! {
                    biased;
                    damaged = finished(&mut self.checking_earlier) => {
                        self.checking_earlier = None;
                        for span in damaged? {
                            self.damaged_earlier.insert(span.offset, (span, 1));
                            self.ask(span)?;
                        }
                    }
                    count = arrivals.recv_many(&mut arrived, STEP), if open => open = count > 0,
                }
            }
            let mut blocks = Vec::new();
            for arrival in arrived {
                match arrival {
                    // Behind a wrong one nothing counts.
                    Arrival::Block(_) if self.mismatch.is_some() => {}
                    Arrival::Block(block) => blocks.push(block),
                    Arrival::Repair { offset, parts } => {
                        self.step(place, std::mem::take(&mut blocks)).await?;
                        self.step(place, Vec::new()).await?;
                        self.repair(place, offset, parts).await?;
                    }
                    Arrival::Done(digest) => self.done = Some(digest),
                }
            }
            self.step(place, blocks).await?;
            self.sync_early(place).await?;
        }
    }

    fn end(&self, place: &Option<Box<Sink>>, open: bool) -> End {
        let whole = self.damaged_earlier.is_empty()
            && self.checking_earlier.is_none()
            && place.as_ref().is_some_and(|sink| sink.checker.is_whole());
        if let Some(span) = self.mismatch {
            return End::Mismatch(span);
        }
        match (self.done, whole) {
            (Some(digest), true) => End::Whole(digest),
            // Without an end to come, only the check of what was there before may still make it whole.
            _ if !open && (self.done.is_none() || self.checking_earlier.is_none()) => End::Cut,
            _ => End::NotYet,
        }
    }

    /// Checks `blocks` while those that were checked before are written.
    async fn step(
        &mut self,
        place: &mut Option<Box<Sink>>,
        blocks: Vec<IncomingBlock>,
    ) -> Result<(), TransferError> {
        let to_write = std::mem::take(&mut self.checked);
        if blocks.is_empty() && to_write.is_empty() {
            return Ok(());
        }
        let Some(sink) = place.take() else { return Err(TransferError::ShuttingDown) };
        let Sink { mut checker, mut store, journal, earlier, have, block_size, level } = *sink;
        let safe = checker.offset();
        let writing = async {
            if to_write.is_empty() {
                return Ok(store);
            }
            let write = move || match store.write(&to_write) {
                Ok(()) => Ok(store),
                Err(error) => {
                    store.set_keep(false);
                    Err(error)
                }
            };
            self.executor.blocking(write).await
        };
        let checking = async {
            if blocks.is_empty() {
                return (checker, Ok((Vec::new(), None)));
            }
            let stop = matches!(self.damage, Damage::Stop(_));
            let check = move || {
                let result = checker.check(blocks, stop);
                (checker, result)
            };
            self.executor.blocking(check).await
        };
        let (store, (checker, checked)) = tokio::join!(writing, checking);
        let store = store?;
        *place = Some(Box::new(Sink { checker, store, journal, earlier, have, block_size, level }));
        let (checked, wrong) = checked?;
        self.checked = checked;
        self.advance(safe);
        match (&self.damage, wrong) {
            (_, None) => Ok(()),
            (Damage::Ask(_), Some(span)) => self.ask(span),
            (Damage::Stop(_), wrong) => {
                self.mismatch = wrong;
                Ok(())
            }
        }
    }

    /// Everything before `stored` is there.
    fn advance(&mut self, stored: u64) {
        if stored > self.stored {
            self.stored = stored;
            self.verified.store(stored, Ordering::Relaxed);
            self.shelved.iter().for_each(|shelved| shelved.advance(stored));
            self.activity.tick();
        }
    }

    /// What was asked for again comes once: it counts, although what it comes among does not.
    async fn take_repairs(
        &mut self,
        place: &mut Option<Box<Sink>>,
        arrivals: &mut mpsc::Receiver<Arrival>,
    ) -> Result<(), TransferError> {
        arrivals.close();
        while let Some(arrival) = arrivals.recv().await {
            if let Arrival::Repair { offset, parts } = arrival {
                self.repair(place, offset, parts).await?;
            }
        }
        Ok(())
    }

    /// Takes a block that was asked for again. Everything checked has been written before.
    async fn repair(
        &mut self,
        place: &mut Option<Box<Sink>>,
        offset: u64,
        parts: Vec<Bytes>,
    ) -> Result<(), TransferError> {
        let Some(mut sink) = place.take() else { return Err(TransferError::ShuttingDown) };
        let earlier = self.damaged_earlier.get(&offset).copied();
        let repair = move || {
            let result = match earlier {
                Some((span, attempts)) => repair_earlier(&mut sink, span, attempts, &parts),
                None => sink.checker.repair(&mut sink.store, offset, parts),
            };
            if result.is_err() {
                sink.store.set_keep(false);
            }
            result.map(|again| (sink, again))
        };
        let (mut sink, mut again) = self.executor.blocking(repair).await?;
        while sink.checker.has_waiting() {
            self.advance(sink.checker.offset());
            let check = move || {
                let result = sink.checker.check_waiting(&sink.store, WAITING_STEP);
                if result.is_err() {
                    sink.store.set_keep(false);
                }
                result.map(|again| (sink, again))
            };
            (sink, again) = self.executor.blocking(check).await?;
        }
        let stored = sink.checker.offset();
        *place = Some(sink);
        match (earlier, again) {
            (Some((span, attempts)), Some(_)) => {
                self.damaged_earlier.insert(offset, (span, attempts + 1));
            }
            (Some(_), None) => {
                self.damaged_earlier.remove(&offset);
            }
            (None, _) => self.advance(stored),
        }
        self.activity.tick();
        again.map_or(Ok(()), |span| self.ask(span))
    }

    fn ask(&mut self, span: Span) -> Result<(), TransferError> {
        self.asked += 1;
        let (Damage::Ask(again) | Damage::Stop(again)) = &self.damage;
        if self.asked > MAX_REPAIRS || again.try_send(span).is_err() {
            let message = format!("more than {MAX_REPAIRS} blocks did not arrive as they were sent");
            return Err(TransferError::DigestMismatch(message));
        }
        tracing::warn!(offset = span.offset, "a damaged block is asked for again");
        Ok(())
    }

    /// At most one early sync runs at a time. One that failed dooms the file: what it left unwritten, a later sync would no
    /// longer report.
    async fn sync_early(&mut self, place: &mut Option<Box<Sink>>) -> Result<(), TransferError> {
        let unsynced = self.stored - self.synced;
        let written = place.as_ref().map_or(0, |sink| sink.store.written);
        let is_due = written.saturating_sub(self.written) >= EARLY_SYNC || unsynced >= EARLY_SYNC_WITH_HOLES;
        if unsynced < EARLY_SYNC || !is_due {
            return Ok(());
        }
        self.finish_sync(place).await?;
        let Some(sink) = place.as_mut().filter(|sink| sink.is_synced_early()) else { return Ok(()) };
        let mut journal = sink.journal.take();
        let entries =
            journal.as_ref().map(|journal| sink.vouch_for(journal, self.stored)).unwrap_or_default();
        let Some(temporary) = sink.store.file() else { return Ok(()) };
        (self.synced, self.written) = (self.stored, written);
        let (file, path) = (FileHandle::clone(temporary.file()), temporary.path().to_owned());
        let (lock, fate) = (Arc::clone(temporary.lock()), temporary.fate());
        let executor = self.executor.clone();
        let sync = move || {
            // Whoever resumes waits until this is over.
            let _locked = lock;
            let failed = |e| TransferError::store("syncing", path, e);
            let synced = file.sync_data().and_then(|()| match &mut journal {
                Some(journal) => {
                    if journal.is_worth_keeping(entries.len()) {
                        // Once this is written, a receiver that is dropped in the middle leaves something to go on from.
                        fate.keep();
                    }
                    journal.append(&entries)
                }
                None => Ok(()),
            });
            synced.map(|()| journal).map_err(failed)
        };
        self.syncing = Some(AbortOnDrop(self.executor.spawn(async move { executor.blocking(sync).await })));
        Ok(())
    }

    async fn finish_sync(&mut self, place: &mut Option<Box<Sink>>) -> Result<(), TransferError> {
        let Some(mut syncing) = self.syncing.take() else { return Ok(()) };
        let journal = (&mut syncing.0).await.map_err(|_| TransferError::ShuttingDown).flatten()?;
        if let Some(sink) = place.as_mut() {
            sink.journal = journal;
        }
        Ok(())
    }
}

fn damaged(span: Span) -> TransferError {
    let end = span.offset + u64::from(span.len);
    TransferError::DigestMismatch(format!("bytes {} to {end} did not arrive as they were sent", span.offset))
}

/// The result of a task, if there is one to wait for.
async fn finished<T>(task: &mut Option<AbortOnDrop<Result<T, TransferError>>>) -> Result<T, TransferError> {
    match task {
        Some(task) => (&mut task.0).await.map_err(|_| TransferError::ShuttingDown).flatten(),
        None => std::future::pending().await,
    }
}

/// Reads back what an earlier transfer left, while the rest arrives, and finds the blocks that are not what they were.
async fn check_earlier(
    executor: Executor,
    activity: Arc<Activity>,
    file: FileHandle,
    earlier: Arc<Prefix>,
    block_size: u32,
) -> Result<Vec<Span>, TransferError> {
    let mut damaged = Vec::new();
    let mut content = Vec::new();
    let per_step = (8 << 20) / block_size as usize;
    let mut offset = 0;
    for entries in earlier.entries.chunks(per_step) {
        let crcs: Vec<u32> = entries.iter().map(|entry| entry.crc).collect();
        let file = FileHandle::clone(&file);
        let check = move || {
            let mut found = Vec::new();
            content.resize(block_size as usize, 0);
            for (crc, at) in crcs.into_iter().zip((offset..).step_by(block_size as usize)) {
                // What cannot be read is as bad as what is wrong.
                let read = file.read_exact_at(&mut content, at);
                if read.is_err() || crc32c::crc32c(&content) != crc {
                    found.push(Span { offset: at, len: block_size });
                }
            }
            (content, found)
        };
        let found;
        (content, found) = executor.blocking(check).await;
        damaged.extend(found);
        offset += entries.len() as u64 * u64::from(block_size);
        activity.tick();
        if damaged.len() > MAX_REPAIRS {
            break;
        }
    }
    Ok(damaged)
}

/// Puts a block of an earlier transfer in order, or asks for it once more.
fn repair_earlier(
    sink: &mut Sink,
    span: Span,
    attempts: u32,
    parts: &[Bytes],
) -> Result<Option<Span>, TransferError> {
    let index = span.offset / u64::from(sink.block_size);
    let expected = sink.earlier.entries.get(index as usize).map(|entry| entry.chain);
    let mut hasher = sink.earlier.hasher_after(index, sink.block_size).unwrap_or_default();
    parts.iter().for_each(|part| hasher.update(part));
    let len = parts.iter().map(Bytes::len).sum::<usize>();
    if len == span.len as usize && hasher.chain() == expected && expected.is_some() {
        return sink.store.write_at(span.offset, parts).map(|()| None);
    }
    if attempts >= ATTEMPTS { Err(still_damaged(span)) } else { Ok(Some(span)) }
}
