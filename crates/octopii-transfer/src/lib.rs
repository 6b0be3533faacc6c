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
//!   asked to), and its directory synced: only then is it acknowledged. Under its final name a file is complete or absent. (A
//!   sender may ask for [less than that](AckLevel), and a receiver refuse to give less.)
//! - A file that is cut off, by a lost connection or a killed process on either side, is gone on with where it was last synced;
//!   what was received before is checked on the disk meanwhile, and one damaged block costs that block. Nobody coming back, it
//!   expires. A transfer that failed for another reason, or was cancelled, leaves nothing behind.
//! - A file with holes arrives with holes: they are neither read, nor sent, nor stored.
//! - Memory is bounded on both sides, whatever the size of the chunk and whatever a peer claims.
//! - Every wait ends: by the transfer's own time limit, or when nothing moves any more.
//!
//! Whole directories travel as trees ([`Transfer::send_tree`], [`Transfer::receive_trees`]): the same promises for every file in
//! them, at the cost of a few syncs for thousands.
//!
//! What is *not* here: choosing who may send what beyond the policy's word. The bytes are described in `docs/formats/transfer.md`
//! and `docs/formats/tree.md`.

mod accept;
mod activity;
mod asking;
mod budget;
mod buffers;
mod checker;
mod checkpoints;
mod claims;
mod compression;
mod digest;
mod distribute;
mod error;
mod failure;
mod framing;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod id;
mod inbox;
mod journal;
mod link;
mod name;
mod options;
mod outcomes;
mod pace;
mod pages;
mod policy;
mod progress;
mod reading;
mod receive;
mod registry;
mod relay;
mod respond;
mod retry;
mod send;
mod sending;
mod service;
mod shared;
mod sink;
mod source;
mod store;
mod storing;
mod supply;
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
pub use options::SendOptions;
pub use policy::{Destination, Location, Offer, ReceivePolicy, ReceivedChunk};
pub use progress::{Phase, Progress, ProgressFn, ProgressStream};
pub use send::Receipt;
pub use service::Transfer;
pub use shared::TransferOptions;
pub use source::ChunkSource;
#[cfg(feature = "fuzzing")]
pub use tree::decode_tree_message;
pub use tree::{
    EntryFailure, EntryFn, EntryOutcome, ExistingTree, Links, NotDone, ReceivedTree, TreeDestination,
    TreeInbox, TreeLimits, TreeOffer, TreeOptions, TreePolicy, TreeProgress, TreeProgressFn, TreeReport,
    UndoneEntry, shown_path,
};
pub use wire::{AckLevel, Acknowledgement, TransferStatus};
