//! The content of the files that a receiver asks for: small ones in packs, large ones as chunks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_vfs::DirHandle;
use tokio::time::sleep;

use super::unsettled::Job;
use crate::shared::Shared;
use crate::source::Beneath;
use crate::supply::Outgoing;
use crate::tree::outcome::{EntryFailure, NotDone};
use crate::tree::walk::{changed, read_small};
use crate::tree::wire;
use crate::{FailureCode, SendOptions, TransferError};

/// A large file for which the receiver has no place is offered again, this often at most.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// Reads small files into one message. Blocks.
pub(super) fn pack(root: &DirHandle, jobs: &[Job]) -> Bytes {
    let mut pack = wire::begin_pack();
    let mut content = Vec::new();
    for Job { entry, path, size, modified, digest } in jobs {
        content.clear();
        let read = read_small(root, path, *size, *modified, &mut content);
        match read {
            Ok(own) if digest.is_none_or(|told| told == own) => {
                wire::put_packed(&mut pack, *entry, Ok((own, &content)));
            }
            Ok(_) => wire::put_packed(&mut pack, *entry, Err(&changed())),
            Err(why) => wire::put_packed(&mut pack, *entry, Err(&why)),
        }
    }
    wire::finish_pack(pack, jobs.len())
}

/// Sends a large file as a chunk of its own: one that was cut off goes on where it was. Gives back how many bytes did not have to
/// be sent for that.
pub(super) async fn send_large(
    shared: Arc<Shared>,
    addr: SocketAddr,
    file: Beneath,
    options: SendOptions,
) -> Result<u64, NotDone> {
    let mut tries = 0;
    let sent = loop {
        let sending =
            crate::send::send(Arc::clone(&shared), addr, Outgoing::Beneath(file.clone()), options.clone());
        match Box::pin(sending).await {
            Err(TransferError::Refused { refusal, .. })
                if refusal.code == FailureCode::Busy && tries < BUSY_TRIES =>
            {
                tries += 1;
                sleep(BUSY_PAUSE).await;
            }
            other => break other,
        }
    };
    match sent {
        Ok(receipt) => Ok(receipt.resumed),
        Err(TransferError::SourceChanged(_)) => Err(changed()),
        Err(TransferError::Refused { refusal, .. } | TransferError::PeerFailed { refusal, .. }) => {
            Err(NotDone::new(EntryFailure::Io, refusal.to_string()))
        }
        Err(TransferError::StorageFull(why)) => Err(NotDone::new(EntryFailure::StorageFull, why)),
        Err(TransferError::Source(_)) => {
            Err(NotDone::new(EntryFailure::Unreadable, "cannot be read any more"))
        }
        Err(error) => Err(NotDone::new(EntryFailure::Io, error.to_string())),
    }
}
