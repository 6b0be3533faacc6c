//! Sending the content of the files that a receiver asks for: small ones in packs, large ones as chunks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_vfs::{DirHandle, Timestamp};
use tokio::time::sleep;

use super::outcome::{EntryFailure, NotDone};
use super::walk::{changed, read_small};
use super::wire;
use crate::compression::Compressor;
use crate::framing::HEADER_LEN;
use crate::shared::Shared;
use crate::source::Beneath;
use crate::supply::Outgoing;
use crate::{Digest, FailureCode, SendOptions, TransferError};

/// A large file for which the receiver has no place is offered again, this often at most.
const BUSY_TRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// What a file in a pack costs beside its content, in bytes.
pub(crate) const RECORD_COST: u64 = 64;

/// A file the receiver asked for.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) entry: u64,
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    pub(crate) modified: Timestamp,
    pub(crate) digest: Option<Digest>,
}

/// What was sent of a large file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// Bytes that the peer had before.
    pub(crate) resumed: u64,
    /// Bytes as they travelled from here.
    pub(crate) travelled: u64,
}

/// Makes packs. Every call blocks.
pub(crate) struct Packer {
    root: DirHandle,
    compressor: Option<Compressor>,
}

impl Packer {
    /// Packs are compressed at a level, if one is given and there is memory for it.
    pub(crate) fn new(root: DirHandle, compress: Option<i32>) -> Self {
        Self { root, compressor: compress.and_then(Compressor::new) }
    }

    /// Reads small files into one message. Gives back as well how many content bytes travel in it.
    pub(crate) fn pack(&mut self, jobs: &[Job]) -> (Bytes, u64) {
        let mut pack = wire::begin_pack();
        let (mut content, mut bytes) = (Vec::new(), 0);
        for Job { entry, path, size, modified, digest } in jobs {
            content.clear();
            let read = read_small(&self.root, path, *size, *modified, &mut content);
            match read {
                Ok(own) if digest.is_none_or(|told| told == own) => {
                    bytes += content.len() as u64;
                    wire::put_packed(&mut pack, *entry, Ok((own, &content)));
                }
                Ok(_) => wire::put_packed(&mut pack, *entry, Err(&changed())),
                Err(why) => wire::put_packed(&mut pack, *entry, Err(&why)),
            }
        }
        let pack = wire::finish_pack(pack, jobs.len());
        let frame = self.compressor.as_mut().and_then(|small| small.compress(&pack[HEADER_LEN..]));
        match frame {
            Some(frame) => (wire::compressed_pack(&pack, &frame), frame.len() as u64),
            None => (pack, bytes),
        }
    }
}

/// Sends a large file as a chunk of its own: one that was cut off goes on where it was.
pub(crate) async fn send_large(
    shared: Arc<Shared>,
    addr: SocketAddr,
    file: Beneath,
    options: SendOptions,
) -> Result<Sent, NotDone> {
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
        Ok(receipt) => Ok(Sent { resumed: receipt.resumed, travelled: receipt.travelled }),
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
