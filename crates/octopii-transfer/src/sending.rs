//! The sending side of one transfer.
//!
//! A task reads and hashes the source on blocking threads, a bounded queue ahead of the network; this one writes blocks to
//! the stream and listens at the same time for what the receiver says. A transfer that is cut off may be tried again.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use octopii_transport::{Connection, SendStream, StreamError, StreamKind};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use crate::activity::Activity;
use crate::asking::{connect, may_have_arrived, read_acceptance, what_became_of_it};
use crate::compression::compress_all;
use crate::link::Inlet;
use crate::options::SendOptions;
use crate::pace::Pace;
use crate::progress::{Meter, Phase, Progress};
use crate::retry::Retry;
use crate::shared::{AbortOnDrop, Shared};
use crate::source::Block;
use crate::storing::MAX_REPAIRS;
use crate::supply::{QUEUE, Reading, Supply, Whole};
use crate::wire::{self, Acceptance, Acknowledgement, OfferBody, ResumeKey, Span, Tag};
use crate::{FailureCode, TransferError, TransferId};

/// What is wrong with an acknowledgement of less than was asked for.
pub(crate) const TOO_LITTLE: &str = "less was acknowledged than was asked for";

/// Requests for blocks that wait to be answered; the receiver may wait, too.
const REQUESTS: usize = 64;

/// Nothing is sent that is further than this ahead of what the receiver says it has checked: of holes, which cost nothing on the way,
/// more would otherwise be under way than a receiver can keep in mind behind a damaged block.
const MAX_AHEAD: u64 = 2 << 30;

/// What is known about a transfer while it runs.
#[derive(Debug, Default)]
struct Flight {
    activity: Activity,
    sent: AtomicU64,
    verified: AtomicU64,
    resumed: AtomicU64,
    /// Content bytes as they travelled, in all attempts.
    travelled: AtomicU64,
    id: Mutex<Option<TransferId>>,
    /// Whether the receiver could be reached at all.
    connected: AtomicBool,
    /// From here on the receiver may have everything.
    done: AtomicBool,
    meter: Meter,
    /// The receiver has told how far it is.
    told: Notify,
}

/// One transfer's fixed facts.
pub(crate) struct Sending {
    shared: Arc<Shared>,
    addr: SocketAddr,
    options: SendOptions,
    size: Option<u64>,
    flight: Flight,
}

enum Exchanged {
    Acknowledged(Acknowledgement),
    /// What the receiver has is something else.
    OtherContent,
}

impl Sending {
    pub(crate) fn new(
        shared: Arc<Shared>,
        addr: SocketAddr,
        options: SendOptions,
        size: Option<u64>,
    ) -> Self {
        Self { shared, addr, options, size, flight: Flight::default() }
    }

    pub(crate) fn options(&self) -> &SendOptions {
        &self.options
    }

    pub(crate) fn was_connected(&self) -> bool {
        self.flight.connected.load(Ordering::Relaxed)
    }

    pub(crate) fn verified(&self) -> u64 {
        self.flight.verified.load(Ordering::Relaxed)
    }

    pub(crate) fn resumed(&self) -> u64 {
        self.flight.resumed.load(Ordering::Relaxed)
    }

    pub(crate) fn travelled(&self) -> u64 {
        self.flight.travelled.load(Ordering::Relaxed)
    }

    /// The id of the latest attempt.
    pub(crate) fn id(&self) -> TransferId {
        let mut id = self.flight.id.lock().unwrap_or_else(PoisonError::into_inner);
        *id.get_or_insert_with(|| self.options.id.unwrap_or_else(TransferId::random))
    }

    /// Tries until the chunk is acknowledged, or until trying again is of no use or not wanted.
    pub(crate) async fn run(&self, supply: &mut Supply) -> Result<Acknowledgement, TransferError> {
        let mut retry = Retry::new(self.options.retries);
        let mut renewed = false;
        loop {
            let before = self.verified();
            let error = match self.attempt(supply).await {
                Ok(Exchanged::Acknowledged(ack)) => {
                    self.flight.verified.store(ack.size, Ordering::Relaxed);
                    self.flight.sent.store(ack.size, Ordering::Relaxed);
                    self.report(Phase::Finishing);
                    return Ok(ack);
                }
                Ok(Exchanged::OtherContent) if !renewed => {
                    tracing::debug!(peer = %self.addr, "what the receiver kept is of another content");
                    renewed = true;
                    supply.renew(&self.shared.executor).await;
                    self.forget_id();
                    continue;
                }
                Ok(Exchanged::OtherContent) => {
                    TransferError::Protocol("the receiver has what was never sent to it")
                }
                Err(error) => error,
            };
            let pause = retry.pause(&error, self.verified() > before);
            // A peer that has never been there is told at once.
            let Some(pause) = pause.filter(|_| self.was_connected() && supply.is_repeatable()) else {
                return Err(error);
            };
            tracing::info!(peer = %self.addr, "the transfer is tried again: {error}");
            self.report(Phase::Waiting);
            sleep(pause).await;
            self.forget_id();
        }
    }

    /// An id under which something was begun is not used again, unless the caller wants it.
    fn forget_id(&self) {
        *self.flight.id.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn attempt(&self, supply: &mut Supply) -> Result<Exchanged, TransferError> {
        self.report(Phase::Connecting);
        self.flight.done.store(false, Ordering::Relaxed);
        let connection = connect(&self.shared, self.addr, self.options.node).await?;
        self.flight.connected.store(true, Ordering::Relaxed);
        let whole = OnceLock::new();
        let ack = match self.exchange(&connection, supply, &whole).await {
            Err(error) if self.flight.done.load(Ordering::Relaxed) && may_have_arrived(&error) => {
                let peer = (self.addr, self.options.node);
                what_became_of_it(&self.shared, peer, self.id(), self.options.idle_timeout, error).await?
            }
            Ok(Exchanged::OtherContent) => return Ok(Exchanged::OtherContent),
            Ok(Exchanged::Acknowledged(ack)) => ack,
            Err(error) => return Err(error),
        };
        // The acknowledgement of another content than was sent would be worse than none.
        match whole.get() {
            Some(&own) if own == (ack.size, ack.digest) && self.options.accepts(ack.level) => {
                Ok(Exchanged::Acknowledged(ack))
            }
            Some(&own) if own == (ack.size, ack.digest) => Err(TransferError::Protocol(TOO_LITTLE)),
            Some((_, own)) => {
                let message =
                    format!("the sender's SHA-256 is {own}, the receiver acknowledged {}", ack.digest);
                Err(TransferError::DigestMismatch(message))
            }
            None => Err(TransferError::Protocol("acknowledged before everything was sent")),
        }
    }

    async fn exchange(
        &self,
        connection: &Connection,
        supply: &mut Supply,
        whole: &OnceLock<Whole>,
    ) -> Result<Exchanged, TransferError> {
        let idle = self.options.idle_timeout;
        let (mut send, recv) = connection.open(StreamKind::Transfer).await?;
        let mut recv = Inlet::new(recv);
        let talk = async {
            let key = supply.key_at(connection.peer().node_id);
            let opening = [&[wire::VERSION][..], &wire::offer(&self.offer(supply, key))].concat();
            let sent = send.write_all(&opening).await;
            let Acceptance { have, decompresses, .. } = match read_acceptance(&mut recv, self.addr).await {
                Ok(acceptance) => acceptance,
                // What was said before the stream broke tells more than the break.
                Err(TransferError::Lost(lost)) => {
                    return Err(TransferError::Lost(sent.err().unwrap_or(lost)));
                }
                Err(error) => return Err(error),
            };
            self.flight.activity.tick();
            if have.bytes > self.size.unwrap_or(0) || have.bytes > 0 && key.is_none() {
                return Err(TransferError::Protocol("the receiver has more than there is"));
            }
            let Some(reading) = supply.begin(&self.shared.executor, have).await? else {
                send.reset(u32::from(FailureCode::Cancelled.to_u16()));
                return Ok(Exchanged::OtherContent);
            };
            self.flight.resumed.store(have.bytes, Ordering::Relaxed);
            self.flight.sent.store(have.bytes, Ordering::Relaxed);
            self.flight.verified.store(have.bytes, Ordering::Relaxed);
            let compress = self.options.compress.filter(|_| decompresses);
            let (requests, to_answer) = mpsc::channel(REQUESTS);
            let verdict = self.read_verdict(&mut recv, requests);
            tokio::pin!(verdict);
            let pumped = tokio::select! {
                biased;
                verdict = &mut verdict => verdict,
                Err(error) = self.pump(&mut send, (reading, compress), supply, to_answer, whole) => match error {
                    // It no longer reads because it has something to say.
                    TransferError::Lost(StreamError::Stopped(_)) => verdict.await,
                    error => {
                        send.reset(u32::from(FailureCode::Cancelled.to_u16()));
                        Err(error)
                    }
                },
            };
            if pumped.is_ok() {
                // An error means that the receiver has gone, as it may now.
                let _ = send.finish();
            }
            pumped.map(Exchanged::Acknowledged)
        };
        tokio::select! {
            biased;
            result = talk => result,
            () = self.flight.activity.stalled(idle) => Err(TransferError::Stalled { idle }),
        }
    }

    fn offer(&self, supply: &Supply, resume: Option<ResumeKey>) -> OfferBody {
        OfferBody {
            id: self.id(),
            block_size: wire::MAX_BLOCK,
            size: self.size,
            purpose: self.options.purpose.clone(),
            name: self.options.name.clone(),
            meta: self.options.meta.clone(),
            relay: None,
            resume,
            ack: self.options.ack,
            compressed: self.options.compress.is_some(),
            stored: supply.stored(),
        }
    }

    /// Listens until the receiver has said its last word.
    async fn read_verdict(
        &self,
        recv: &mut Inlet,
        requests: mpsc::Sender<Span>,
    ) -> Result<Acknowledgement, TransferError> {
        let mut repairs = 0;
        loop {
            let header = recv.header().await?;
            let body = recv.body(header).await?;
            self.flight.activity.tick();
            match header.tag {
                Tag::Progress => {
                    let verified = wire::decode_progress(&body)?.min(self.size.unwrap_or(u64::MAX));
                    self.flight.verified.fetch_max(verified, Ordering::Relaxed);
                    self.flight.told.notify_one();
                    self.report(self.phase());
                }
                Tag::Again if repairs == MAX_REPAIRS => {
                    return Err(TransferError::Protocol("too many blocks were asked for again"));
                }
                Tag::Again => {
                    repairs += 1;
                    // An error means that nobody sends any more, which the other side of the race tells.
                    let _ = requests.send(wire::decode_again(&body)?).await;
                }
                Tag::Ack => return Ok(wire::decode_ack(&body)?),
                Tag::Fail => {
                    return Err(TransferError::from_peer(self.addr, wire::decode_refusal(&body)?, true));
                }
                _ => return Err(TransferError::Protocol("unexpected message from the receiver")),
            }
        }
    }

    /// Writes everything and says so, and answers requests for blocks until it is dropped.
    async fn pump(
        &self,
        send: &mut SendStream,
        (reading, compress): (Reading, Option<i32>),
        supply: &Supply,
        mut requests: mpsc::Receiver<Span>,
        whole: &OnceLock<Whole>,
    ) -> Result<Infallible, TransferError> {
        let executor = &self.shared.executor;
        let (blocks, mut rx) = mpsc::channel(QUEUE);
        let mut reading = AbortOnDrop(executor.spawn(reading.run(executor.clone(), blocks)));
        let _compressing = compress.map(|level| {
            let (smaller, compressed) = mpsc::channel(QUEUE);
            let blocks = std::mem::replace(&mut rx, compressed);
            AbortOnDrop(executor.spawn(compress_all(executor.clone(), level, blocks, smaller)))
        });
        let mut pace = Pace::new(self.options.rate_limit);
        loop {
            tokio::select! {
                biased;
                Some(span) = requests.recv() => self.repair(send, supply, span, &mut pace).await?,
                block = rx.recv(), if self.ahead() < MAX_AHEAD => match block {
                    Some(block) => self.send_block(send, block, &mut pace).await?,
                    None => break,
                },
                () = self.flight.told.notified(), if self.ahead() >= MAX_AHEAD => {}
            }
        }
        let (size, digest) = (&mut reading.0).await.map_err(|_| TransferError::ShuttingDown)??;
        whole.get_or_init(|| (size, digest));
        self.flight.done.store(true, Ordering::Relaxed);
        send.write_all(&wire::done(size, digest)).await?;
        loop {
            match requests.recv().await {
                Some(span) => self.repair(send, supply, span, &mut pace).await?,
                None => std::future::pending().await,
            }
        }
    }

    /// Content bytes that were sent and, as far as the receiver has told, not checked yet.
    fn ahead(&self) -> u64 {
        self.flight.sent.load(Ordering::Relaxed).saturating_sub(self.verified())
    }

    async fn send_block(
        &self,
        send: &mut SendStream,
        block: Block,
        pace: &mut Pace,
    ) -> Result<(), TransferError> {
        let (offset, len, prefix) = (block.offset, block.content.len() as u64, block.prefix);
        let (start, parts) = block.message();
        send.write_all(&start).await?;
        // Content in pieces, of which there may be many, or none, is told of at its end.
        let is_one = parts.len() == 1;
        for part in parts {
            let all = part.len() as u64;
            self.write(send, part, pace, |sent| {
                if is_one {
                    self.flight.sent.store(offset + len * sent / all, Ordering::Relaxed);
                    self.report(Phase::Sending);
                }
            })
            .await?;
        }
        send.write_all(&prefix.0).await?;
        if !is_one {
            self.flight.sent.store(offset + len, Ordering::Relaxed);
            self.flight.activity.tick();
            self.report(Phase::Sending);
        }
        Ok(())
    }

    async fn repair(
        &self,
        send: &mut SendStream,
        supply: &Supply,
        span: Span,
        pace: &mut Pace,
    ) -> Result<(), TransferError> {
        tracing::warn!(peer = %self.addr, offset = span.offset, "a damaged block is sent again");
        let content = supply.again(&self.shared.executor, span).await?;
        send.write_all(&wire::repair_start(span.offset, content.len())).await?;
        self.write(send, content, pace, |_| {}).await
    }

    async fn write(
        &self,
        send: &mut SendStream,
        content: Bytes,
        pace: &mut Pace,
        sent: impl Fn(u64),
    ) -> Result<(), TransferError> {
        let mut written = 0;
        let writing = pace.write(send, content, |step| {
            written += step;
            self.flight.travelled.fetch_add(step, Ordering::Relaxed);
            self.flight.activity.tick();
            sent(written);
        });
        Ok(writing.await?)
    }

    pub(crate) fn unknown_if_done(&self, error: TransferError) -> TransferError {
        if self.flight.done.load(Ordering::Relaxed) {
            TransferError::OutcomeUnknown { peer: self.addr, error: Arc::new(error) }
        } else {
            error
        }
    }

    fn phase(&self) -> Phase {
        if self.flight.done.load(Ordering::Relaxed) { Phase::Finishing } else { Phase::Sending }
    }

    fn report(&self, phase: Phase) {
        if let Some(progress) = &self.options.progress {
            let sent = self.flight.sent.load(Ordering::Relaxed);
            progress(Progress {
                peer: self.addr,
                phase,
                sent,
                verified: self.verified(),
                resumed: self.resumed(),
                total: self.size,
                bytes_per_second: self.flight.meter.rate(sent),
            });
        }
    }
}
