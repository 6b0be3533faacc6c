//! How to send.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::NodeId;

use crate::compression::LEVELS;
use crate::progress::ProgressFn;
use crate::wire;
use crate::{AckLevel, TransferError, TransferId};

/// How to send.
#[derive(Clone)]
pub struct SendOptions {
    /// Which of the receiver's policies decides; 1 to 64 bytes.
    pub purpose: String,
    /// The name that the receiver may give it; at most 1,024 bytes. Default: the file's own name, none for memory.
    pub name: Option<String>,
    /// Told to the receiver's policy; at most 64 KiB.
    pub meta: Bytes,
    /// Only this node is sent to: whoever else answers at the address gets nothing, and is not believed. For one peer. Default: whoever
    /// has a certificate of the cluster.
    pub node: Option<NodeId>,
    /// Called from Octopii's threads as the transfer advances, at most once per 256 KiB; must return quickly.
    pub progress: Option<ProgressFn>,
    /// For the whole transfer, from connecting to the acknowledgement. Default: no limit but the idle one.
    pub timeout: Option<Duration>,
    /// The transfer is given up when nothing moves for this long. Default 30 s.
    pub idle_timeout: Duration,
    /// What the receiver's acknowledgement must say, at least. It may say more, never less: a receiver that takes the chunk into
    /// memory refuses to be asked for [`AckLevel::Durable`]. Default: durable where the chunk becomes a file, verified where it
    /// is taken into memory.
    pub ack: Option<AckLevel>,
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
    /// Content bytes per second as they travel (without pages of zeroes; compressed, if they are), at the most. Default: as fast as it goes.
    pub rate_limit: Option<NonZeroU64>,
    /// The level of zstd, from 1 (fastest) to 19, to compress with, each block of 1 MiB by itself; what does not shrink travels as it
    /// is, and so does everything if the receiver wishes. Digests and sizes are always those of the content. Worth it where the
    /// network is slower than the processor: level 3 compresses 100 MB/s and more. A chunk for several peers goes to each of them
    /// directly then, and each takes up to 10 MiB more here, 30 MiB at the highest levels. Default: no compression.
    pub compress: Option<i32>,
}

impl SendOptions {
    /// Options for a purpose, with the defaults for everything else.
    pub fn new(purpose: impl Into<String>) -> Self {
        Self {
            purpose: purpose.into(),
            name: None,
            meta: Bytes::new(),
            node: None,
            progress: None,
            timeout: None,
            idle_timeout: Duration::from_secs(30),
            ack: None,
            id: None,
            resume: true,
            retries: 0,
            rate_limit: None,
            compress: None,
        }
    }

    /// Whether an acknowledgement of this level is what was asked for.
    pub(crate) fn accepts(&self, level: AckLevel) -> bool {
        level >= self.ack.unwrap_or(AckLevel::Verified)
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
        if self.compress.is_some_and(|level| !LEVELS.contains(&level)) {
            return Err(TransferError::InvalidOptions("the level of compression is 1 to 19"));
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
            .field("ack", &self.ack)
            .field("id", &self.id)
            .field("resume", &self.resume)
            .field("retries", &self.retries)
            .field("rate_limit", &self.rate_limit)
            .field("compress", &self.compress)
            .finish_non_exhaustive()
    }
}
