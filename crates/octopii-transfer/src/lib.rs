//! Verified, durable chunk transfer over Octopii's transport.
//!
//! A *chunk* is a file of any size, or bytes in memory. [`Transfer`] sends it to one peer ([`Transfer::send`]) or to many
//! at once ([`Transfer::send_to_all`]), and receives chunks as its [`ReceivePolicy`]s decide ([`Transfer::receive`],
//! [`InboxPolicy`]).
//!
//! What is promised:
//! - SHA-256 is computed once on each side while the bytes flow, in one pass over the source; every block of 1 MiB is
//!   checked as it arrives, and the acknowledgement carries the receiver's own digest of the whole.
//! - A received file is written under a hidden name, verified, synced, renamed without overwriting anything (unless
//!   asked to), and its directory synced: only then is it acknowledged. Under its final name a file is complete or absent.
//! - A failed or cancelled transfer leaves nothing behind; what a crash leaves is removed by the next start.
//! - Memory is bounded on both sides, whatever the size of the chunk and whatever a peer claims.
//! - Every wait ends: by the transfer's own time limit, or when nothing moves any more.
//!
//! Whole directories travel as trees ([`Transfer::send_tree`], [`Transfer::receive_trees`]): the same promises for every file in
//! them, at the cost of a few syncs for thousands.
//!
//! What is *not* here: choosing who may send what beyond the policy's word, compression, and resuming a
//! transfer that was cut off. The bytes are described in `docs/formats/transfer.md` and
//! `docs/formats/tree.md`.

mod activity;
mod budget;
mod buffers;
mod digest;
mod distribute;
mod error;
mod failure;
mod id;
mod inbox;
mod link;
mod name;
mod policy;
mod progress;
mod receive;
mod registry;
mod relay;
mod send;
mod service;
mod sink;
mod source;
mod store;
mod temporary;
mod tree;
mod wire;

pub use digest::Digest;
pub use distribute::{Distribution, Topology, TransferResult};
pub use error::{SourceError, StartError, TransferError};
pub use failure::{FailureCode, Refusal};
pub use id::TransferId;
pub use inbox::InboxPolicy;
pub use name::check_file_name;
pub use policy::{Destination, Location, Offer, ReceivePolicy, ReceivedChunk};
pub use progress::{Progress, ProgressFn};
pub use send::{Receipt, SendOptions};
pub use service::{Transfer, TransferOptions};
pub use source::ChunkSource;
pub use tree::{
    EntryFailure, EntryFn, EntryOutcome, ExistingTree, Links, NotDone, ReceivedTree, TreeDestination,
    TreeInbox, TreeLimits, TreeOffer, TreeOptions, TreePolicy, TreeProgress, TreeProgressFn, TreeReport,
    UndoneEntry, shown_path,
};
pub use wire::{AckLevel, Acknowledgement, TransferStatus};
