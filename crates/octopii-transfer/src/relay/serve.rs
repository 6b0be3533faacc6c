//! Serving a stream that fetches what is on the shelf.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{SendStream, StreamError};
use tokio::time::timeout;

use crate::pages::Pages;
use crate::relay::shelf::{End, Held};
use crate::shared::Shared;
use crate::wire::relay::RelayKey;
use crate::{FailureCode, Refusal, TransferError, wire};

/// Blocks read in one step on a blocking thread.
const STEP: usize = 4;

/// Sends everything from `offset` on, as it comes in. Refuses what is not there.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    send: &mut SendStream,
    key: RelayKey,
    offset: u64,
) -> Result<(), TransferError> {
    let held = shared.shelf.find(key).filter(|held| offset.is_multiple_of(u64::from(held.block_size)));
    let found =
        held.ok_or((FailureCode::Rejected, "this node does not have that content")).and_then(|held| {
            let lent =
                shared.lending.try_acquire().map_err(|_| (FailureCode::Busy, "too many fetch from here"))?;
            Ok((held, lent))
        });
    let (held, _lent) = match found {
        Ok(found) => found,
        Err((code, why)) => {
            let refusal = wire::refuse(&Refusal::new(code, why));
            within(shared.options.offer_timeout, send.write_all(&refusal)).await?;
            return Ok(send.finish()?);
        }
    };
    let served = copy(shared, &held, send, offset).await;
    match served {
        Ok(End::Whole) => Ok(send.finish()?),
        Ok(_) => {
            send.reset(u32::from(FailureCode::Cancelled.to_u16()));
            Ok(())
        }
        Err(error) => {
            send.reset(u32::from(FailureCode::Io.to_u16()));
            Err(error)
        }
    }
}

/// A peer that takes nothing is not waited for.
async fn within(
    idle: Duration,
    writing: impl Future<Output = Result<(), StreamError>>,
) -> Result<(), TransferError> {
    match timeout(idle, writing).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(TransferError::Stalled { idle }),
    }
}

async fn copy(
    shared: &Arc<Shared>,
    held: &Arc<Held>,
    send: &mut SendStream,
    mut offset: u64,
) -> Result<End, TransferError> {
    let mut state = held.watch();
    let block = u64::from(held.block_size);
    loop {
        let more = state.wait_for(|s| s.verified > offset || s.end != End::Open);
        let now = tokio::select! {
            biased;
            // `held` has the other end: there is no error but one.
            now = more => now.map(|now| *now).map_err(|_| TransferError::ShuttingDown)?,
            // Who has left needs no place.
            left = send.stopped() => {
                return Err(left.map_or_else(|e| e, |code| StreamError::Stopped(code.unwrap_or(0))).into());
            }
        };
        if now.verified <= offset {
            return Ok(now.end);
        }
        let file = Arc::clone(&held.file);
        let until = now.verified.min(offset + block * STEP as u64);
        let read = shared.executor.blocking(move || {
            let mut blocks = Vec::with_capacity(STEP);
            let mut at = offset;
            while at < until {
                let mut bytes = vec![0; (until - at).min(block) as usize];
                file.read_exact_at(&mut bytes, at)
                    .map_err(|e| TransferError::store("reading back", "a chunk being received", e))?;
                let bytes = Bytes::from(bytes);
                blocks.push(match Pages::of(&bytes) {
                    None => (wire::content_start(at, bytes.len()), vec![bytes.clone()]),
                    Some(pages) => (wire::sparse_content_start(at, &pages), pages.slices(&bytes)),
                });
                at += bytes.len() as u64;
            }
            Ok::<_, TransferError>(blocks)
        });
        let idle = shared.options.idle_timeout;
        for (start, parts) in read.await? {
            within(idle, send.write_all(&start)).await?;
            for part in parts {
                within(idle, send.write_chunk(part)).await?;
            }
        }
        offset = until;
    }
}
