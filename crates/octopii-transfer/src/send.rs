//! How to send, and what comes of it.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{ConnectError, StreamError, StreamKind};
use tokio::time::{Instant, timeout};

use crate::link::Inlet;
use crate::progress::ProgressFn;
use crate::sending::Sending;
use crate::shared::Shared;
use crate::supply::{Outgoing, Supply};
use crate::wire::{self, Acceptance, Tag, TransferStatus};
use crate::{AckLevel, Digest, FailureCode, Refusal, TransferError, TransferId};

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
    /// The id to use, for asking its status later. Default: a random one for each attempt. An id can succeed only once per
    /// receiver.
    pub id: Option<TransferId>,
    /// Whether the receiver may keep what has arrived of a file when the transfer is cut off, so that a later one, also of
    /// another process (see [`TransferOptions::state_dir`](crate::TransferOptions::state_dir)), goes on from there. Costs
    /// nothing for files below 4 MiB, which begin anew. Default: yes.
    pub resume: bool,
    /// How often in a row a transfer that was cut off is tried again without anything new having arrived, after a jittered
    /// pause that grows from 0.1 s to 5 s. Content from memory is gone on with, too. Default: 0.
    pub retries: u32,
    /// Content bytes per second, at the most. Default: as fast as it goes.
    pub rate_limit: Option<NonZeroU64>,
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
            resume: true,
            retries: 0,
            rate_limit: None,
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
            .field("resume", &self.resume)
            .field("retries", &self.retries)
            .field("rate_limit", &self.rate_limit)
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
    /// How many of them the receiver had from an earlier attempt when the last one began.
    pub resumed: u64,
    /// How safe it is at the receiver.
    pub level: AckLevel,
    /// From the call to the acknowledgement.
    pub duration: Duration,
}

/// Sends to `addr` and waits for the acknowledgement. Runs on the service's executor.
pub(crate) async fn send(
    shared: Arc<Shared>,
    addr: SocketAddr,
    outgoing: Outgoing,
    mut options: SendOptions,
) -> Result<Receipt, TransferError> {
    let started = Instant::now();
    options.name = options.name.take().or_else(|| outgoing.file_name().map(str::to_owned));
    options.check()?;
    let mut supply = Supply::open(&shared, outgoing, &options).await?;
    let sending = Sending::new(shared, addr, options, supply.size());
    let ack = match sending.options().timeout {
        None => sending.run(&mut supply).await?,
        Some(after) => {
            let left = after.saturating_sub(started.elapsed());
            match timeout(left, sending.run(&mut supply)).await {
                Ok(result) => result?,
                Err(_) if !sending.was_connected() => return Err(ConnectError::Unreachable(addr).into()),
                Err(_) => {
                    let bytes = sending.verified();
                    return Err(sending.unknown_if_done(TransferError::Timeout { after, bytes }));
                }
            }
        }
    };
    Ok(Receipt {
        id: sending.id(),
        digest: ack.digest,
        bytes: ack.size,
        resumed: sending.resumed(),
        level: ack.level,
        duration: started.elapsed(),
    })
}

/// Reads the answer to an offer.
pub(crate) async fn read_acceptance(recv: &mut Inlet, peer: SocketAddr) -> Result<Acceptance, TransferError> {
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
