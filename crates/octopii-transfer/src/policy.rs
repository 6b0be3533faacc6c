//! Who decides where an incoming chunk goes.

use std::net::SocketAddr;
use std::path::PathBuf;

use bytes::Bytes;
use octopii_transport::PeerIdentity;

use crate::{AckLevel, Digest, Refusal, TransferError, TransferId};

/// What a sender proposes.
///
/// Everything but `peer` and `remote_addr` is the sender's word: a name may be hostile, a size may be a lie (a lie is
/// found out and fails the transfer).
#[derive(Debug, Clone)]
pub struct Offer {
    /// The sender's name for this transfer.
    pub id: TransferId,
    /// Which policy decides; at most 64 bytes.
    pub purpose: String,
    /// A name for the chunk; at most 1,024 bytes, anything in them. See [`check_file_name`](crate::check_file_name).
    pub name: Option<String>,
    /// Size in bytes, holes included, if the sender knows it.
    pub size: Option<u64>,
    /// Whatever the sending application wants to tell the receiving one; at most 64 KiB.
    pub meta: Bytes,
    /// Who sends, from its verified certificate.
    pub peer: PeerIdentity,
    /// From where.
    pub remote_addr: SocketAddr,
}

/// Where an accepted chunk goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Into a file. It appears under its name complete and verified, or not at all, and durable unless its sender asked for less
    /// (see [`ReceivePolicy::least_ack`]).
    File {
        /// The directory; created if missing.
        dir: PathBuf,
        /// One plain component ([`check_file_name`](crate::check_file_name)); anything else is refused.
        name: String,
        /// Whether an existing file of that name is replaced, atomically. If not, it is never touched: the new file is
        /// called `name (1).ext`, `name (2).ext`, … instead. [`ReceivedChunk::location`] has the name it got. What takes
        /// another's place is always made durable, whatever its sender asked for.
        replace: bool,
    },
    /// Into memory. Larger chunks are refused, or given up as soon as they exceed the limit.
    Memory {
        /// Most bytes to hold for this chunk.
        limit: u64,
    },
}

/// Where a received chunk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// On disk.
    File(PathBuf),
    /// In memory.
    Memory(Bytes),
}

/// A chunk that arrived completely, with the right digest.
#[derive(Debug, Clone)]
pub struct ReceivedChunk {
    /// What the sender said.
    pub offer: Offer,
    /// Where it is.
    pub location: Location,
    /// SHA-256 of the content, computed here.
    pub digest: Digest,
    /// How safe it is: durable or, in memory or if its sender asked for less, verified.
    pub level: AckLevel,
    /// Bytes.
    pub size: u64,
}

/// Decides where the chunks of one purpose go, and hears of those that arrived.
///
/// All methods are called on blocking threads, possibly several at once, each transfer's in the order `accept`, then
/// `received` or `failed`.
pub trait ReceivePolicy: Send + Sync + 'static {
    /// Takes the offer or refuses it. A refusal's message is shown to the sender.
    fn accept(&self, offer: &Offer) -> Result<Destination, Refusal>;

    /// The chunk is there, at [`ReceivedChunk::level`]. Called before the sender gets its acknowledgement, so what is done here has
    /// happened when the sender's call returns, unless the sender asked for [`AckLevel::Received`] only. A crash in between leaves
    /// a file of which the sender knows nothing. A panic is logged, and the chunk acknowledged: it is there.
    fn received(&self, received: ReceivedChunk);

    /// An accepted chunk did not arrive; nothing of it is left, or a hidden file from which its sender may go on.
    fn failed(&self, offer: &Offer, error: &TransferError) {
        let (_, _) = (offer, error);
    }

    /// What every chunk is acknowledged as, at least: a sender that asks for less gets this. Chunks into memory are never durable,
    /// whatever is said here. Default: as little as the sender asks for, and [durable](AckLevel::Durable) if it asks for nothing.
    fn least_ack(&self) -> AckLevel {
        AckLevel::Received
    }

    /// Directories in which temporary files of a crashed process may lie; they are removed when the policy is
    /// installed. Directories not named here are cleaned when they are first received into.
    fn directories(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// A function that decides, for those who need to hear nothing more.
impl<F> ReceivePolicy for F
where
    F: Fn(&Offer) -> Result<Destination, Refusal> + Send + Sync + 'static,
{
    fn accept(&self, offer: &Offer) -> Result<Destination, Refusal> {
        self(offer)
    }

    fn received(&self, _: ReceivedChunk) {}
}
