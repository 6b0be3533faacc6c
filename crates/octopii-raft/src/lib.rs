//! Replicated state machines for Octopii: Raft consensus with a durable log, durable votes and durable snapshots, over
//! Octopii's own transport.
//!
//! [`Consensus`] is one node's part in a group. [`Consensus::propose`] changes the replicated [`StateMachine`],
//! [`Consensus::query`] reads it linearizably; both work on every node. [`KvStore`] is a machine that is ready to use.
//!
//! What is promised:
//! - a reply to a proposal means that the command is durable on a majority of the voters and was applied exactly once;
//! - a query sees every command acknowledged before it began, and changes nothing;
//! - a command that the machine rejects is an error for its proposer and for nobody else;
//! - nothing waits for ever: every request has a deadline;
//! - a node that lost its data is recognized and refused: it can neither vote twice nor lose acknowledged entries.
//!
//! The consensus algorithm is the `openraft` crate's; none of its types appears in this API, nor in what is stored or sent.

mod bootstrap;
mod config;
mod consensus;
mod core;
mod error;
mod group;
mod kv;
mod log;
mod machine;
mod member;
mod network;
mod request;
mod session;
mod snapshot;
mod state_machine;
mod status;
mod wire;

pub use config::RaftConfig;
pub use consensus::{Consensus, ConsensusOptions};
pub use error::{
    BootstrapError, MembershipError, Missing, ProposeError, QueryError, SnapshotError, StartError,
};
pub use kv::{KvCommand, KvDecodeError, KvQuery, KvResponse, KvStore};
pub use state_machine::{Rejected, SnapshotSource, StateMachine};
pub use status::{MemberStatus, PeerProgress, Role, Status};
