//! What an application replicates: the state machine contract.

use std::fmt;
use std::io;
use std::io::{Read, Write};

use bytes::Bytes;

/// A state machine in memory, replicated by [`Consensus`](crate::Consensus).
///
/// Every member applies the same commands in the same order, so [`apply`](StateMachine::apply) must be a function of the
/// state and the command alone: no clock, no randomness, no iteration over hash maps, no file or network access.
///
/// The machine itself keeps nothing on disk. Its state is durable through the replicated log and through snapshots: after
/// a restart it is rebuilt by [`restore`](StateMachine::restore) from the newest snapshot and by applying what the log
/// holds after it.
///
/// A panic in any of these methods but [`query`](StateMachine::query) stops the node's consensus: its state can no longer be
/// known to be the others'.
pub trait StateMachine: Send + 'static {
    /// Applies a committed command and returns its reply.
    ///
    /// A refused command must leave the state as it was. The refusal is an ordinary error for the client who proposed the
    /// command, on every member alike, and nothing more.
    fn apply(&mut self, command: &[u8]) -> Result<Bytes, Rejected>;

    /// Answers a question without changing anything. Called between two `apply`s, so it should be short.
    fn query(&self, query: &[u8]) -> Result<Bytes, Rejected>;

    /// Takes hold of the state as it is now, to be serialized later on another thread while commands go on being applied.
    ///
    /// Must be cheap (persistent data structures, copy on write): writes wait for it.
    fn capture(&self) -> Box<dyn SnapshotSource>;

    /// Replaces the whole state by one that [`SnapshotSource::write_to`] wrote, perhaps on another member.
    ///
    /// The bytes have been verified against the snapshot's checksum already. An error leaves the state undefined and stops
    /// the node.
    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()>;
}

/// A state captured by [`StateMachine::capture`], ready to be written.
pub trait SnapshotSource: Send {
    /// Writes the state. Writes are buffered; errors of `out` must be passed on.
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()>;
}

/// Why a state machine refused a command or a query.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state machine refused: {reason}")]
pub struct Rejected {
    reason: String,
}

impl Rejected {
    /// A refusal with a reason for the client, of at most 4 KiB: what is longer is cut.
    pub fn new(reason: impl fmt::Display) -> Self {
        let mut reason = reason.to_string();
        if reason.len() > REASON_LIMIT {
            let mut end = REASON_LIMIT;
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            reason.truncate(end);
        }
        Self { reason }
    }

    /// The reason alone.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// Reasons are kept with their session and travel in snapshots, so they are bounded.
const REASON_LIMIT: usize = 4096;
