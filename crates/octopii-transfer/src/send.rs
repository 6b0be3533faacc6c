//! The sending side of one transfer.
//!
//! A task reads and hashes the source on blocking threads, a bounded queue ahead of the network; this one writes blocks to
//! the stream and listens at the same time for what the receiver says.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{ConnectError, Connection, Executor, SendStream, StreamError, StreamKind};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::activity::Activity;
use crate::link::Inlet;
use crate::progress::{Progress, ProgressFn};
use crate::service::{AbortOnDrop, Shared};
use crate::source::{Block, OpenSource};
use crate::wire::{self, Acknowledgement, OfferBody, Tag, TransferStatus};
use crate::{AckLevel, ChunkSource, Digest, FailureCode, Refusal, TransferError, TransferId};

/// Blocks read ahead of the network. As many again are being read, a few at a time, so that a hand-over between threads is
/// paid for by several blocks.
const QUEUE: usize = 4;

/// What is written at once: small enough that a slow link shows signs of life.
const WRITE_STEP: usize = 256 << 10;

/// A lost acknowledgement is asked for this often.
const STATUS_PERIOD: Duration = Duration::from_millis(200);

/// How to send.
#[derive(Clone)]
pub struct SendOptions {
    /// Which of the receiver's policies decides; 1 to 64 bytes.
    pub purpose: String,
    /// The name that the receiver may give it; at most 1,024 bytes. Default: the file's own name, none for memory.
    pub name: Option<String>,
    /// Told to the receiver's policy; at most 64 KiB.
    pub meta: Bytes,
    /// Called from Octopii's threads as the transfer advances, at most once per 256 KiB; must return quickly.
    pub progress: Option<ProgressFn>,
    /// For the whole transfer, from connecting to the acknowledgement. Default: no limit but the idle one.
    pub timeout: Option<Duration>,
    /// The transfer is given up when nothing moves for this long. Default 30 s.
    pub idle_timeout: Duration,
    /// The id to use, for asking its status later. Default: a random one. An id can succeed only once per receiver.
    pub id: Option<TransferId>,
}

impl SendOptions {
    /// Options for a purpose, with the defaults for everything else.
    pub fn new(purpose: impl Into<String>) -> Self {
        Self {
            purpose: purpose.into(),
            name: None,
            meta: Bytes::new(),
            progress: None,
            timeout: None,
            idle_timeout: Duration::from_secs(30),
            id: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), TransferError> {
        if self.purpose.is_empty() || self.purpose.len() > wire::MAX_PURPOSE {
            return Err(TransferError::InvalidOptions("the purpose must be 1 to 64 bytes long"));
        }
        if self.name.as_ref().is_some_and(|name| name.len() > wire::MAX_NAME_FIELD) {
            return Err(TransferError::InvalidOptions("the name must not be longer than 1,024 bytes"));
        }
        if self.meta.len() > wire::MAX_META {
            return Err(TransferError::InvalidOptions(
                "meta must not be longer than 64 KiB: send it as a chunk",
            ));
        }
        if self.idle_timeout.is_zero() {
            return Err(TransferError::InvalidOptions("the idle timeout must not be zero"));
        }
        Ok(())
    }
}

impl fmt::Debug for SendOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendOptions")
            .field("purpose", &self.purpose)
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Proof that a chunk arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The transfer's id.
    pub id: TransferId,
    /// SHA-256 of the chunk, computed here and, independently, by the receiver.
    pub digest: Digest,
    /// Bytes in the chunk.
    pub bytes: u64,
    /// How safe it is at the receiver.
    pub level: AckLevel,
    /// From the call to the acknowledgement.
    pub duration: Duration,
}

/// What is known about a transfer while it runs.
#[derive(Debug, Default)]
struct Flight {
    activity: Activity,
    sent: AtomicU64,
    verified: AtomicU64,
    /// Whether the receiver could be reached at all.
    connected: AtomicBool,
    /// From here on the receiver may have everything.
    done: AtomicBool,
}

/// One transfer's fixed facts.
struct Sending {
    shared: Arc<Shared>,
    addr: SocketAddr,
    id: TransferId,
    options: SendOptions,
    size: u64,
    flight: Flight,
}

/// Sends `source` to `addr` and waits for the acknowledgement. Runs on the service's executor.
pub(crate) async fn send(
    shared: Arc<Shared>,
    addr: SocketAddr,
    source: ChunkSource,
    mut options: SendOptions,
) -> Result<Receipt, TransferError> {
    let started = Instant::now();
    options.name = options.name.take().or_else(|| source.file_name().map(str::to_owned));
    options.check()?;
    let vfs = Arc::clone(&shared.resources.vfs);
    let source = shared.executor.blocking(move || OpenSource::open(&source, &vfs)).await?;
    let id = options.id.unwrap_or_else(TransferId::random);
    let sending = Sending { shared, addr, id, options, size: source.size(), flight: Flight::default() };
    let ack = match sending.options.timeout {
        None => sending.run(source).await?,
        Some(after) => match timeout(after.saturating_sub(started.elapsed()), sending.run(source)).await {
            Ok(result) => result?,
            Err(_) if !sending.flight.connected.load(Ordering::Relaxed) => {
                return Err(ConnectError::Unreachable(addr).into());
            }
            Err(_) => {
                let bytes = sending.flight.verified.load(Ordering::Relaxed);
                return Err(sending.unknown_if_done(TransferError::Timeout { after, bytes }));
            }
        },
    };
    sending.report(ack.size, ack.size);
    Ok(Receipt { id, digest: ack.digest, bytes: ack.size, level: ack.level, duration: started.elapsed() })
}

impl Sending {
    async fn run(&self, source: OpenSource) -> Result<Acknowledgement, TransferError> {
        let connection = self.shared.endpoint.connect(self.addr).await?;
        self.flight.connected.store(true, Ordering::Relaxed);
        let digest = Arc::new(std::sync::OnceLock::new());
        let ack = match self.exchange(&connection, source, &digest).await {
            Err(error) if self.flight.done.load(Ordering::Relaxed) && may_have_arrived(&error) => {
                self.ask_what_became_of_it(error).await?
            }
            other => other?,
        };
        // The acknowledgement of another content than was sent would be worse than none.
        match digest.get() {
            Some(&own) if own == ack.digest && ack.size == self.size => Ok(ack),
            Some(own) => {
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
        source: OpenSource,
        digest: &std::sync::OnceLock<Digest>,
    ) -> Result<Acknowledgement, TransferError> {
        let idle = self.options.idle_timeout;
        let (mut send, recv) = connection.open(StreamKind::Transfer).await?;
        let mut recv = Inlet::new(recv);
        let talk = async {
            let opening = [&[wire::VERSION][..], &wire::offer(&self.offer())].concat();
            let sent = send.write_all(&opening).await;
            match read_acceptance(&mut recv, self.addr).await {
                Ok((0, _)) => self.flight.activity.tick(),
                Ok(_) => {
                    return Err(TransferError::Protocol("the receiver wants to resume what was never begun"));
                }
                Err(TransferError::Lost(lost)) => {
                    return Err(TransferError::Lost(sent.err().unwrap_or(lost)));
                }
                Err(error) => return Err(error),
            }
            let verdict = self.read_verdict(&mut recv);
            tokio::pin!(verdict);
            let pumped = tokio::select! {
                biased;
                verdict = &mut verdict => return verdict,
                pumped = self.pump(&mut send, source, digest) => pumped,
            };
            match pumped {
                Ok(()) => verdict.await,
                // It no longer reads because it has something to say.
                Err(TransferError::Lost(StreamError::Stopped(_))) => verdict.await,
                Err(error) => {
                    send.reset(u32::from(FailureCode::Cancelled.to_u16()));
                    Err(error)
                }
            }
        };
        tokio::select! {
            biased;
            result = talk => result,
            () = self.flight.activity.stalled(idle) => Err(TransferError::Stalled { idle }),
        }
    }

    fn offer(&self) -> OfferBody {
        OfferBody {
            id: self.id,
            block_size: wire::MAX_BLOCK,
            size: Some(self.size),
            purpose: self.options.purpose.clone(),
            name: self.options.name.clone(),
            meta: self.options.meta.clone(),
            relay: None,
        }
    }

    /// Listens until the receiver has said its last word.
    async fn read_verdict(&self, recv: &mut Inlet) -> Result<Acknowledgement, TransferError> {
        loop {
            let header = recv.header().await?;
            let body = recv.body(header).await?;
            self.flight.activity.tick();
            match header.tag {
                Tag::Progress => {
                    let verified = wire::decode_progress(&body)?;
                    self.flight.verified.fetch_max(verified.min(self.size), Ordering::Relaxed);
                    self.report(self.flight.sent.load(Ordering::Relaxed), verified);
                }
                Tag::Ack => return Ok(wire::decode_ack(&body)?),
                Tag::Fail => {
                    return Err(TransferError::from_peer(self.addr, wire::decode_refusal(&body)?, true));
                }
                _ => return Err(TransferError::Protocol("unexpected message from the receiver")),
            }
        }
    }

    /// Writes everything and says so.
    async fn pump(
        &self,
        send: &mut SendStream,
        source: OpenSource,
        digest: &std::sync::OnceLock<Digest>,
    ) -> Result<(), TransferError> {
        let (blocks, mut rx) = mpsc::channel(QUEUE);
        let reading = read_blocks(self.shared.executor.clone(), source, blocks);
        let mut reading = AbortOnDrop(self.shared.executor.spawn(reading));
        while let Some(Block { offset, mut content, prefix }) = rx.recv().await {
            send.write_all(&wire::data_start(offset, content.len())).await?;
            let mut sent = offset;
            while !content.is_empty() {
                let step = content.split_to(content.len().min(WRITE_STEP));
                sent += step.len() as u64;
                send.write_chunk(step).await?;
                self.flight.activity.tick();
                self.flight.sent.store(sent, Ordering::Relaxed);
                self.report(sent, self.flight.verified.load(Ordering::Relaxed));
            }
            send.write_all(&prefix.0).await?;
        }
        let whole = (&mut reading.0).await.map_err(|_| TransferError::ShuttingDown)??;
        let whole = *digest.get_or_init(|| whole);
        self.flight.done.store(true, Ordering::Relaxed);
        send.write_all(&wire::done(self.size, whole)).await?;
        Ok(send.finish()?)
    }

    /// Everything was sent, but no answer came: the receiver remembers.
    async fn ask_what_became_of_it(&self, lost: TransferError) -> Result<Acknowledgement, TransferError> {
        let idle = self.options.idle_timeout;
        let asking = async {
            loop {
                match status(&self.shared, self.addr, self.id, idle).await {
                    Ok(TransferStatus::Finished(ack)) => return Ok(ack),
                    Ok(TransferStatus::Failed(refusal)) => {
                        return Err(TransferError::from_peer(self.addr, refusal, true));
                    }
                    // It has restarted since.
                    Ok(TransferStatus::Unknown) => return Err(self.unknown_if_done(lost.clone())),
                    Ok(TransferStatus::Receiving { .. }) | Err(_) => sleep(STATUS_PERIOD).await,
                }
            }
        };
        timeout(idle, asking).await.unwrap_or_else(|_| Err(self.unknown_if_done(lost.clone())))
    }

    fn unknown_if_done(&self, error: TransferError) -> TransferError {
        if self.flight.done.load(Ordering::Relaxed) {
            TransferError::OutcomeUnknown { peer: self.addr, error: Arc::new(error) }
        } else {
            error
        }
    }

    fn report(&self, sent: u64, verified: u64) {
        if let Some(progress) = &self.options.progress {
            progress(Progress { peer: self.addr, sent, verified, total: Some(self.size) });
        }
    }
}

/// Reads the answer to an offer: how many bytes the receiver has already, and whether others may fetch from it.
pub(crate) async fn read_acceptance(
    recv: &mut Inlet,
    peer: SocketAddr,
) -> Result<(u64, bool), TransferError> {
    let header = match recv.header().await {
        // The transport turns away streams of a kind that nobody accepts.
        Err(TransferError::Lost(StreamError::Reset(1))) => {
            let refusal = Refusal::new(FailureCode::UnknownPurpose, "no transfers are received there");
            return Err(TransferError::Refused { peer, refusal });
        }
        other => other?,
    };
    let body = recv.body(header).await?;
    match header.tag {
        Tag::Accept => Ok(wire::decode_accept(&body)?),
        Tag::Refuse => Err(TransferError::from_peer(peer, wire::decode_refusal(&body)?, false)),
        Tag::Fail => Err(TransferError::from_peer(peer, wire::decode_refusal(&body)?, true)),
        _ => Err(TransferError::Protocol("an offer is accepted or refused, nothing else")),
    }
}

/// Whether the receiver may have stored the chunk although the sender saw this.
fn may_have_arrived(error: &TransferError) -> bool {
    matches!(error, TransferError::Lost(_) | TransferError::Stalled { .. })
}

/// Reads and hashes until the end, as far ahead as the queue allows. Returns the digest of the whole.
async fn read_blocks(
    executor: Executor,
    mut source: OpenSource,
    blocks: mpsc::Sender<Block>,
) -> Result<Digest, TransferError> {
    loop {
        // All the room there is now, at least one block.
        let first = blocks.reserve().await.map_err(|_| TransferError::Cancelled)?;
        let others = blocks.try_reserve_many(blocks.capacity().min(QUEUE / 2));
        let permits: Vec<_> = std::iter::once(first).chain(others.into_iter().flatten()).collect();
        let wanted = permits.len();
        let read = executor
            .blocking(move || source.next_blocks(wire::MAX_BLOCK, wanted).map(|blocks| (source, blocks)));
        let (rest, read) = read.await?;
        source = rest;
        let ended = read.len() < wanted;
        permits.into_iter().zip(read).for_each(|(permit, block)| permit.send(block));
        if ended {
            return Ok(source.digest());
        }
    }
}

/// Asks the node at `addr` about a transfer.
pub(crate) async fn status(
    shared: &Shared,
    addr: SocketAddr,
    id: TransferId,
    limit: Duration,
) -> Result<TransferStatus, TransferError> {
    let asking = async {
        let connection = shared.endpoint.connect(addr).await?;
        let (mut send, recv) = connection.open(StreamKind::Transfer).await?;
        let mut recv = Inlet::new(recv);
        let question = [&[wire::VERSION][..], &wire::query(id)].concat();
        send.write_all(&question).await?;
        send.finish()?;
        let header = recv.header().await?;
        let body = recv.body(header).await?;
        match header.tag {
            Tag::Status => Ok(wire::decode_status(&body)?),
            Tag::Refuse => Err(TransferError::from_peer(addr, wire::decode_refusal(&body)?, false)),
            _ => Err(TransferError::Protocol("a question about a transfer is answered with its status")),
        }
    };
    timeout(limit, asking).await.unwrap_or(Err(TransferError::Stalled { idle: limit }))
}
