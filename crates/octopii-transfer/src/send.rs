//! One chunk to one peer, and what comes of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use octopii_transport::ConnectError;
use tokio::time::{Instant, timeout};

use crate::options::SendOptions;
use crate::sending::Sending;
use crate::shared::Shared;
use crate::supply::{Outgoing, Supply};
use crate::{AckLevel, Digest, TransferError, TransferId};

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
    /// Content bytes as they travelled: without pages of zeroes, compressed if they were, over all attempts, and with what was sent again.
    pub travelled: u64,
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
        travelled: sending.travelled(),
        level: ack.level,
        duration: started.elapsed(),
    })
}
