//! The sending side of one attempt at one tree.
//!
//! Four futures in one task: the walk writes the manifest, a page at a time, as far ahead of what is settled as the window
//! allows; the packer reads what the receiver asked for; the writer writes both to the stream; the reader hears verdicts and
//! results. Nothing is remembered of an entry once it is settled.

mod serving;
mod unsettled;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{RecvStream, SendStream, StreamError, StreamKind};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use self::serving::Serving;
use self::unsettled::State;
use super::link::{Message, enqueue, read_message, read_messages, write_messages};
use super::options::TreeOptions;
use super::outcome::{EntryOutcome, Ledger, NotDone};
use super::pulse::Pulse;
use super::source::Source;
use super::together::Seat;
use super::walk::{Step, Walk};
use super::wire::{self, Open, PAGE_BYTES, PAGE_ENTRIES, Ready, Tag, WINDOW};
use crate::shared::{AbortOnDrop, Shared};
use crate::{Digest, FailureCode, Refusal, TransferError, TransferId};

/// Messages between the walk, the packer and the network.
const QUEUE: usize = 2;

/// Who gets it.
#[derive(Debug, Clone)]
pub(super) struct Receiver {
    pub(super) addr: SocketAddr,
    /// Its place among others that get the same.
    pub(super) seat: Option<Arc<Seat>>,
}

/// One attempt.
pub(super) struct Sending {
    shared: Arc<Shared>,
    addr: SocketAddr,
    seat: Option<Arc<Seat>>,
    id: TransferId,
    source: Arc<Source>,
    options: Arc<TreeOptions>,
    state: Mutex<State>,
    /// The state has changed.
    changed: Notify,
    pulse: Arc<Pulse>,
    connected: AtomicBool,
    /// Bytes of large files that the receiver has verified.
    verified: Arc<AtomicU64>,
    /// Bytes of all files that are settled, for whoever gives the attempt up.
    settled: Arc<AtomicU64>,
}

impl Sending {
    pub(super) fn new(
        shared: Arc<Shared>,
        Receiver { addr, seat }: Receiver,
        id: TransferId,
        source: Arc<Source>,
        options: Arc<TreeOptions>,
        settled: Arc<AtomicU64>,
    ) -> Self {
        let state = State { dry_run: options.dry_run, ..State::default() };
        Self {
            shared,
            addr,
            seat,
            id,
            source,
            options,
            state: Mutex::new(state),
            changed: Notify::new(),
            pulse: Arc::default(),
            connected: AtomicBool::new(false),
            verified: Arc::default(),
            settled,
        }
    }

    /// Whether the receiver could be reached.
    pub(super) fn was_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether anything new has happened on the receiver's disk.
    pub(super) fn has_advanced(&self) -> bool {
        let tally = self.lock().ledger.tally;
        let done = tally.stored > 0 || tally.removed > 0 || self.verified.load(Ordering::Relaxed) > 0;
        done && !self.options.dry_run
    }

    /// What became of entries so far.
    pub(super) fn take_ledger(&self) -> Ledger {
        std::mem::take(&mut self.lock().ledger)
    }

    /// Sends the tree and waits until all of it is settled. Gives back its name at the receiver and the manifest's digest.
    pub(super) async fn run(&self, walk: Walk) -> Result<(PathBuf, Digest), TransferError> {
        let connection = self.shared.endpoint.connect(self.addr).await?;
        self.connected.store(true, Ordering::Relaxed);
        let (send, recv) = connection.open(StreamKind::Tree).await?;
        let idle = self.options.idle_timeout;
        tokio::select! {
            biased;
            result = self.talk(send, recv, walk) => result,
            error = self.pulse.stalled(idle) => Err(error),
        }
    }

    async fn talk(
        &self,
        mut send: SendStream,
        mut recv: RecvStream,
        walk: Walk,
    ) -> Result<(PathBuf, Digest), TransferError> {
        let sent = send.write_chunk(wire::opening(&self.opening()?)).await;
        let Message { tag, body } = match read_message(&mut recv).await {
            Ok(message) => message,
            // The transport turns away streams of a kind that nobody accepts.
            Err(TransferError::Lost(StreamError::Reset(1))) => {
                let refusal = Refusal::new(FailureCode::UnknownPurpose, "no trees are received there");
                return Err(TransferError::Refused { peer: self.addr, refusal });
            }
            Err(error) => return Err(sent.map_err(TransferError::Lost).err().unwrap_or(error)),
        };
        let Ready { decompresses, name } = match tag {
            Tag::Ready => wire::decode_ready(&body)?,
            Tag::Refuse => {
                return Err(TransferError::from_peer(self.addr, wire::decode_refusal(&body)?, false));
            }
            Tag::Fail => return Err(TransferError::from_peer(self.addr, wire::decode_refusal(&body)?, true)),
            _ => return Err(TransferError::Protocol("a tree is taken or refused, nothing else")),
        };
        if decompresses && self.options.compress.is_none() {
            return Err(TransferError::Protocol("the receiver takes compressed packs that were not offered"));
        }
        let name = PathBuf::from(OsString::from_vec(name));
        let compress = self.options.compress.filter(|_| decompresses);
        let (out, queued) = mpsc::channel(QUEUE);
        let mut writing =
            AbortOnDrop(self.shared.executor.spawn(write_messages(send, queued, Arc::clone(&self.pulse))));
        let (messages, incoming) = mpsc::channel(QUEUE);
        let listening = self.listen(incoming);
        tokio::pin!(listening);
        let (pages, packs) = (out.clone(), out.clone());
        let working = async move {
            let serving = Serving::new(self, packs, compress);
            tokio::try_join!(self.tell(walk, pages), serving.run())?;
            Ok::<_, TransferError>(())
        };
        let reading = read_messages(&mut recv, messages, &self.pulse);
        tokio::pin!(reading, working);
        let (mut lost, mut worked) = (None, false);
        let digest = loop {
            tokio::select! {
                biased;
                // What has arrived is heard even if nothing can arrive any more.
                heard = &mut listening => match heard? {
                    Some(digest) => break digest,
                    None => return Err(lost.unwrap_or(TransferError::Cancelled)),
                },
                error = &mut reading, if lost.is_none() => lost = Some(error),
                ended = &mut working, if !worked => match ended {
                    // It no longer reads because it has something to say.
                    Ok(()) | Err(TransferError::Lost(StreamError::Finished)) => worked = true,
                    Err(error) => return Err(error),
                },
            }
        };
        drop(out);
        // The receiver has everything: whether it hears the stream's end changes nothing.
        let _ = timeout(Duration::from_secs(1), &mut writing.0).await;
        Ok((name, digest))
    }

    fn opening(&self) -> Result<Open, TransferError> {
        let name = match &self.options.name {
            Some(name) => name.as_bytes().to_vec(),
            None => match self.source.path.file_name() {
                Some(name) => name.as_bytes().to_vec(),
                None => {
                    return Err(TransferError::InvalidOptions(
                        "this directory has no name: give the tree one",
                    ));
                }
            },
        };
        let mut source = Sha256::new();
        match &self.options.source {
            Some(own) => source.update([b"octopii tree of ", own.as_bytes()].concat()),
            None => {
                source.update(b"octopii tree at ");
                source.update(self.shared.endpoint.node_id().to_le_bytes());
                source.update(self.source.path.as_os_str().as_bytes());
            }
        }
        Ok(Open {
            id: self.id,
            source: source.finalize().into(),
            checksum: self.options.checksum,
            delete: self.options.delete,
            dry_run: self.options.dry_run,
            compressed: self.options.compress.is_some(),
            purpose: self.options.purpose.clone(),
            name,
            meta: self.options.meta.clone(),
        })
    }

    /// Tells the manifest.
    async fn tell(&self, mut walk: Walk, out: mpsc::Sender<Bytes>) -> Result<(), TransferError> {
        let mut manifest = Sha256::new();
        loop {
            loop {
                let changed = self.changed.notified();
                {
                    let state = self.lock();
                    let oldest = state.unsettled.first_key_value().map_or(state.next, |(oldest, _)| *oldest);
                    if state.next + PAGE_ENTRIES as u64 - oldest <= WINDOW {
                        break;
                    }
                }
                changed.await;
            }
            let pulse = Arc::clone(&self.pulse);
            let (rest, steps, body) = self
                .shared
                .executor
                .blocking(move || next_page(&mut walk, &pulse).map(|(steps, body)| (walk, steps, body)))
                .await?;
            walk = rest;
            self.settle_untold(walk.take_untold());
            if steps.is_empty() {
                let manifest = Digest(manifest.finalize().into());
                let (entries, all_told) = {
                    let mut state = self.lock();
                    state.manifest = Some(manifest);
                    state.progress.complete = true;
                    (state.next, state.ledger.is_all_told())
                };
                self.changed.notify_waiters();
                return enqueue(&out, wire::end(entries, manifest, all_told)).await;
            }
            manifest.update(&body);
            let page = wire::page(steps.len(), &body);
            self.lock().add(steps);
            enqueue(&out, page).await?;
        }
    }

    /// Reports what the receiver does not hear of.
    fn settle_untold(&self, untold: Vec<(PathBuf, NotDone)>) {
        for (path, why) in untold {
            self.lock().ledger.settle_untold(&path, &why);
            if let Some(on_entry) = &self.options.on_entry {
                on_entry(&path, &EntryOutcome::NotDone(why));
            }
        }
    }

    /// Hears what the receiver says, until it is done; `None` if it falls silent before.
    async fn listen(&self, mut incoming: mpsc::Receiver<Message>) -> Result<Option<Digest>, TransferError> {
        loop {
            let Some(Message { tag, body }) = incoming.recv().await else { return Ok(None) };
            let settled = match tag {
                Tag::Verdicts => {
                    let (first, verdicts) = wire::decode_verdicts(&body)?;
                    self.lock().verdicts(first, verdicts)?
                }
                Tag::Results => {
                    let outcomes = wire::decode_results(&body)?;
                    self.lock().results(outcomes)?
                }
                Tag::Removed if self.options.delete => {
                    let outcomes = wire::decode_removed(&body)?;
                    self.lock().removed(&outcomes)?;
                    outcomes
                }
                Tag::Done => {
                    let (tally, manifest) = wire::decode_done(&body)?;
                    let state = self.lock();
                    if state.manifest != Some(manifest) || !state.unsettled.is_empty() {
                        return Err(TransferError::Protocol("the receiver is done, but not with everything"));
                    }
                    if state.ledger.tally != tally {
                        return Err(TransferError::Protocol("the receiver counts another number of entries"));
                    }
                    return Ok(Some(manifest));
                }
                Tag::Fail => {
                    return Err(TransferError::from_peer(self.addr, wire::decode_refusal(&body)?, true));
                }
                _ => return Err(TransferError::Protocol("unexpected message from the receiver")),
            };
            self.changed.notify_waiters();
            if let Some(on_entry) = &self.options.on_entry {
                settled.iter().for_each(|(path, outcome)| on_entry(path, outcome));
            }
            self.report_progress();
        }
    }

    pub(super) fn report_progress(&self) {
        let now = self.lock().progress;
        self.settled.store(now.settled_bytes, Ordering::Relaxed);
        if let Some(progress) = &self.options.progress {
            progress(now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries for one page with their encoding; none at the end. Blocks.
fn next_page(walk: &mut Walk, pulse: &Pulse) -> Result<(Vec<Step>, Vec<u8>), TransferError> {
    let (mut steps, mut body) = (Vec::new(), Vec::new());
    while steps.len() < PAGE_ENTRIES && body.len() < PAGE_BYTES {
        let Some(step) = walk.next(&|| pulse.work())? else { break };
        wire::put_entry(&mut body, &step.entry);
        steps.push(step);
    }
    Ok((steps, body))
}
