//! The receiving side of one tree.
//!
//! One future reads messages, one writes answers, and the third checks pages, writes files and commits them, on blocking
//! threads. Files are committed while the next ones are being written.

mod work;

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{RecvStream, SendStream};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep, timeout};

pub(super) use self::work::Work;
use super::check::Checked;
use super::commit::{self, Settled};
use super::link::{Message, enqueue, read_messages, say_last, write_messages};
use super::outcome::{Earlier, EntryOutcome};
use super::policy::ReceivedTree;
use super::pulse::Pulse;
use super::removal::{Extras, Removal};
use super::sessions::{Arrival, Registered};
use super::wire::{self, RECORDS, Ready, Tag, Verdict, WINDOW};
use crate::shared::{AbortOnDrop, Shared};
use crate::{Digest, TransferError};

/// Files and bytes that are committed together.
const COMMIT_FILES: usize = 4096;
const COMMIT_BYTES: u64 = 64 << 20;

/// What is written is committed when nothing has arrived for this long.
const COMMIT_IDLE: Duration = Duration::from_millis(100);

/// Things that are removed in one step on a blocking thread.
pub(super) const REMOVED_AT_ONCE: usize = 1024;

/// Messages between network and disk.
pub(super) const QUEUE: usize = 2;

/// A tree that was taken.
pub(super) struct Accepted {
    pub(super) work: Work,
    pub(super) checksum: bool,
    pub(super) arrivals: mpsc::UnboundedReceiver<Arrival>,
    pub(super) session: Registered,
}

/// Receives the tree, tells the policy and then the sender what came of it.
pub(super) async fn receive(
    shared: &Arc<Shared>,
    accepted: Accepted,
    slot: OwnedSemaphorePermit,
    send: SendStream,
    mut recv: RecvStream,
) {
    let (out, queued) = mpsc::channel(QUEUE);
    let pulse = Arc::new(Pulse::default());
    let idle = shared.options.idle_timeout;
    let writing = AbortOnDrop(shared.executor.spawn(write_messages(send, queued, Arc::clone(&pulse))));
    let (messages, incoming) = mpsc::channel(QUEUE);
    let Accepted { work, checksum, arrivals, session } = accepted;
    let name = work.root.path.as_os_str().as_bytes().to_vec();
    let ready = wire::ready(&Ready { decompresses: work.decompressor.is_some(), name });
    let work = Arc::new(Mutex::new(work));
    let mut receiving = Receiving {
        shared,
        work: Arc::clone(&work),
        out: &out,
        pulse: Arc::clone(&pulse),
        checksum,
        started: Instant::now(),
        manifest: Sha256::new(),
        open: BTreeSet::new(),
        unclosed: BTreeSet::new(),
        committing: None,
        ended: None,
    };
    let outcome = tokio::select! {
        biased;
        outcome = receiving.run(ready, incoming, arrivals) => outcome,
        error = read_messages(&mut recv, messages, &pulse) => Err(error),
        error = pulse.stalled(idle) => Err(error),
        () = session.superseded() => Err(TransferError::Superseded),
    };
    // Once it has begun nothing else ends the tree: the policy hears of one end, whatever the sender does meanwhile.
    let outcome = match outcome {
        Ok(manifest) => receiving.end(manifest).await,
        Err(error) => Err(error),
    };
    let last = match outcome {
        Ok(done) => done,
        Err(error) => {
            let refusal = error.to_peer();
            recv.stop(u32::from(refusal.code.to_u16()));
            // What is getting its names gets them before the tree is free for others.
            let _ = timeout(idle, finished(&mut receiving.committing)).await;
            let failed = Arc::clone(&work);
            let ending = shared.executor.blocking(move || {
                let work = lock(&failed);
                tracing::debug!(id = %work.offer.id, "tree failed: {error}");
                if let Err(e) = work.root.clear() {
                    tracing::warn!(dir = %work.root.base_path.display(), "cannot clean up: {e}");
                }
                work.policy.failed(&work.offer, &error);
            });
            ending.await;
            wire::fail(&refusal)
        }
    };
    // Free before anyone hears of the end, so that whoever does can send the next one at once.
    drop((session, receiving, work, slot));
    say_last(out, last, writing, idle).await;
}

/// The part between the messages and the disk.
struct Receiving<'a> {
    shared: &'a Arc<Shared>,
    work: Arc<Mutex<Work>>,
    out: &'a mpsc::Sender<Bytes>,
    pulse: Arc<Pulse>,
    checksum: bool,
    started: Instant,
    manifest: Sha256,
    /// Files and links that are wanted and not settled.
    open: BTreeSet<u64>,
    /// Directories that are not closed, by the numbers of their ends.
    unclosed: BTreeSet<u64>,
    committing: Option<AbortOnDrop<Result<Vec<Settled>, TransferError>>>,
    /// The digest of the manifest, once it has ended.
    ended: Option<Digest>,
}

impl Receiving<'_> {
    /// Until everything is settled. Gives back the digest of the manifest.
    async fn run(
        &mut self,
        ready: Bytes,
        mut incoming: mpsc::Receiver<Message>,
        mut arrivals: mpsc::UnboundedReceiver<Arrival>,
    ) -> Result<Digest, TransferError> {
        enqueue(self.out, ready).await?;
        loop {
            if let Some(manifest) = self.ended
                && self.open.is_empty()
                && self.unclosed.is_empty()
            {
                // Still watched: a sender that does not hear what is removed is given up.
                self.remove().await?;
                return Ok(manifest);
            }
            let (full, has_work, nothing_awaited) = {
                let work = lock(&self.work);
                let full = work.staged.len() >= COMMIT_FILES || work.staged_bytes >= COMMIT_BYTES;
                let earliest = self.open.first().copied().unwrap_or(u64::MAX);
                let closable = work.closing.front().is_some_and(|first| first.entry < earliest);
                (full, closable || !work.staged.is_empty(), self.ended.is_some() && work.awaited.is_empty())
            };
            if self.committing.is_none() && has_work && (full || nothing_awaited) {
                self.start_commit();
            }
            let idle = has_work && self.committing.is_none();
            tokio::select! {
                biased;
                settled = finished(&mut self.committing), if self.committing.is_some() => {
                    self.committing = None;
                    self.settle(settled?).await?;
                }
                Some(arrival) = arrivals.recv() => self.arrived(arrival).await?,
                message = incoming.recv(), if !full => match message {
                    Some(message) => self.take(message).await?,
                    // The reader has failed, and is about to say so.
                    None => std::future::pending().await,
                },
                () = sleep(COMMIT_IDLE), if idle => self.start_commit(),
            }
        }
    }

    async fn take(&mut self, Message { tag, body }: Message) -> Result<(), TransferError> {
        match tag {
            Tag::Page if self.ended.is_none() => self.page(&body).await,
            Tag::Pack => {
                let pack = wire::decode_pack(&body)?;
                let settled = self.with_disk(move |work| work.stage(pack)).await?;
                self.settle(settled).await
            }
            Tag::Compressed => {
                let settled = self.with_disk(move |work| work.stage_compressed(&body)).await?;
                self.settle(settled).await
            }
            Tag::Unpack => {
                let unpack = wire::decode_unpack(&body)?;
                let settled = self.with_disk(move |work| work.unpack(unpack)).await?;
                self.settle(settled).await
            }
            Tag::End if self.ended.is_none() => {
                let (entries, manifest, all_told) = wire::decode_end(&body)?;
                let mut work = lock(&self.work);
                if !work.checker.is_complete() || entries != work.checker.next() {
                    return Err(TransferError::Protocol("the manifest ended early"));
                }
                let own = Digest(self.manifest.clone().finalize().into());
                if manifest != own {
                    let message =
                        format!("the sender's SHA-256 of the manifest is {manifest}, the receiver's {own}");
                    return Err(TransferError::DigestMismatch(message));
                }
                if !all_told {
                    // What is missing may be what has no entry.
                    work.checker.extras = Extras::default();
                }
                self.ended = Some(manifest);
                Ok(())
            }
            _ => Err(TransferError::Protocol("unexpected message in a tree")),
        }
    }

    async fn page(&mut self, body: &Bytes) -> Result<(), TransferError> {
        let entries = wire::decode_page(body, self.checksum)?;
        // The entries as they travelled; how they were cut into pages does not count.
        self.manifest.update(&body[2..]);
        let next = lock(&self.work).checker.next();
        let oldest =
            self.open.first().into_iter().chain(self.unclosed.first()).min().copied().unwrap_or(next);
        if next + entries.len() as u64 - oldest > WINDOW {
            return Err(TransferError::Protocol("too many entries are under way"));
        }
        let (checked, settled) = self.with_disk(move |work| work.check(entries)).await?;
        let Checked { first, verdicts, closing, .. } = checked;
        let wanted = verdicts.iter().enumerate().filter(|(_, verdict)| **verdict == Verdict::Wanted);
        self.open.extend(wanted.map(|(at, _)| first + at as u64));
        for end in closing {
            self.open.remove(&end);
            self.unclosed.insert(end);
        }
        enqueue(self.out, wire::verdicts(first, &verdicts)).await?;
        self.settle(settled).await
    }

    /// A large file lies under its hidden name, verified and durable.
    async fn arrived(&mut self, arrival: Arrival) -> Result<(), TransferError> {
        let settled = self.with_disk(move |work| work.arrived(arrival)).await;
        self.settle(settled.into_iter().collect()).await
    }

    /// Begins to make durable what waits for it, in the background.
    fn start_commit(&mut self) {
        let mut work = lock(&self.work);
        let staged = std::mem::take(&mut work.staged);
        work.staged_bytes = 0;
        // A directory is closed when every file before its end has its name or will have none, which this commit sees to
        // first for those it is about.
        let own: BTreeSet<u64> = staged.iter().map(|file| file.entry).collect();
        let earliest = self.open.iter().find(|entry| !own.contains(entry)).copied().unwrap_or(u64::MAX);
        let mut closing = Vec::new();
        while let Some(first) = work.closing.pop_front_if(|first| first.entry < earliest) {
            closing.push(first);
        }
        let (base, base_path) = (Arc::clone(&work.root.base), work.root.base_path.clone());
        // A disk may take longer than anyone waits for it. What it renames then must still be this tree's.
        let locked = work.root.lock();
        let working = self.pulse.working();
        let executor = self.shared.executor.clone();
        self.committing = Some(AbortOnDrop(self.shared.executor.spawn(async move {
            let committing = executor.blocking(move || {
                let settled = commit::commit(&base, &base_path, staged, closing);
                drop(locked);
                settled
            });
            let settled = committing.await;
            drop(working);
            settled
        })));
    }

    /// Tells everyone what became of entries.
    async fn settle(&mut self, settled: Vec<Settled>) -> Result<(), TransferError> {
        if settled.is_empty() {
            return Ok(());
        }
        let settled = self.with_disk(move |work| work.settle(settled)).await;
        for entry in &settled {
            self.open.remove(&entry.entry);
            self.unclosed.remove(&entry.entry);
        }
        for some in settled.chunks(RECORDS) {
            let told: Vec<_> = some.iter().map(Settled::told).collect();
            enqueue(self.out, wire::results(&told)).await?;
        }
        Ok(())
    }

    /// Removes what the source does not have, if that is wanted, and tells of each.
    async fn remove(&self) -> Result<(), TransferError> {
        let (mut removal, base_path) = {
            let mut work = lock(&self.work);
            let extras = std::mem::take(&mut work.checker.extras);
            // Something may be missing because it could not be told or taken: then nothing goes.
            if extras.is_empty() || work.ledger.tally.not_done > 0 {
                return Ok(());
            }
            let base_path = work.root.base_path.clone();
            (Removal::new(Arc::clone(&work.root.base), extras, false), base_path)
        };
        loop {
            let step = move |work: &mut Work| {
                let outcomes = removal.step(REMOVED_AT_ONCE);
                (work.settle_removed(outcomes), removal)
            };
            let (outcomes, rest) = self.with_disk(step).await;
            removal = rest;
            if outcomes.is_empty() {
                break;
            }
            self.tell_removed(&outcomes).await?;
        }
        let finish = move |work: &mut Work| {
            let outcomes = removal.finish().map_err(|e| TransferError::store("syncing", base_path, e))?;
            Ok::<_, TransferError>(work.settle_removed(outcomes))
        };
        let outcomes = self.with_disk(finish).await?;
        self.tell_removed(&outcomes).await
    }

    async fn tell_removed(&self, outcomes: &[(PathBuf, EntryOutcome)]) -> Result<(), TransferError> {
        for message in wire::removed(outcomes) {
            enqueue(self.out, message).await?;
        }
        Ok(())
    }

    /// Everything is settled: remembers that, tells the policy, and gives back the last word.
    async fn end(&self, manifest: Digest) -> Result<Bytes, TransferError> {
        let duration = self.started.elapsed();
        let service = Arc::clone(self.shared);
        self.with_disk(move |work| {
            let Work { root, offer, policy, ledger, .. } = work;
            root.complete().map_err(|e| TransferError::store("remembering", &root.base_path, e))?;
            // Packs that the sender has not asked to remove.
            if let Err(e) = root.clear() {
                tracing::warn!(dir = %root.base_path.display(), "cannot clean up: {e}");
            }
            // Large files of earlier attempts, if they are too old or too many.
            service.sweep(&root.staging_dir());
            let tally = ledger.tally;
            let report = std::mem::take(ledger).report(
                offer.id,
                root.path.clone(),
                manifest,
                duration,
                Earlier::default(),
            );
            let path = root.base_path.join(&root.path);
            policy.received(ReceivedTree { offer: offer.clone(), path, report });
            Ok(wire::done(&tally, manifest))
        })
        .await
    }

    async fn with_disk<T: Send + 'static>(&self, f: impl FnOnce(&mut Work) -> T + Send + 'static) -> T {
        let work = Arc::clone(&self.work);
        let working = self.pulse.working();
        let done = self.shared.executor.blocking(move || f(&mut lock(&work))).await;
        drop(working);
        done
    }
}

async fn finished(
    committing: &mut Option<AbortOnDrop<Result<Vec<Settled>, TransferError>>>,
) -> Result<Vec<Settled>, TransferError> {
    match committing {
        Some(task) => (&mut task.0).await.unwrap_or(Err(TransferError::ShuttingDown)),
        None => Ok(Vec::new()),
    }
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}
