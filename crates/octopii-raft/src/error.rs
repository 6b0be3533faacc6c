//! What can go wrong, per operation.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use octopii_transport::{Address, NodeId};

use crate::state_machine::Rejected;

/// A snapshot file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file is not what was written.
    #[error(
        "the snapshot {} is damaged: {what}; remove this node from the cluster and add it again, empty, under a new id",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file was written by another version of Octopii.
    #[error("the snapshot {} has format version {found}, this program reads {known}: use the newer program", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version this program knows.
        known: u32,
    },
    /// The file or its directory cannot be read or written.
    #[error("snapshot {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Why a node's consensus did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error("invalid raft configuration: {0}")]
    Config(String),
    /// The newest snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The log cannot be read, or does not fit the snapshot.
    #[error("the raft log cannot be used: {0}")]
    Log(#[from] io::Error),
    /// Another [`Consensus`](crate::Consensus) already serves this endpoint.
    #[error("this endpoint already serves a consensus group")]
    Taken,
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
    /// The consensus core refused the state found on disk.
    #[error("consensus cannot start from the state on disk: {0}")]
    State(String),
}

/// Why a proposal has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// The state machine refused the command, on every member alike. Nothing changed; retrying gives the same answer until
    /// the state changes.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The command is too long. Nothing changed.
    #[error("the command is {size} bytes long; the limit is {limit}")]
    TooLarge {
        /// Bytes given.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// No leader was known for as long as the proposal waited. It was not proposed; retry when a majority is up.
    #[error("no leader for {waited:?}: are a majority of the voters running and reachable?")]
    NoLeader {
        /// How long the proposal waited.
        waited: Duration,
    },
    /// No majority confirmed the proposal in time. It may still be applied, at most once; retry only what may happen twice,
    /// or look first.
    #[error("no quorum confirmed the command within {waited:?}; it may still be applied ({last})")]
    NoQuorum {
        /// How long the proposal waited.
        waited: Duration,
        /// What went wrong last.
        last: String,
    },
    /// This node's consensus has stopped. The command may have been proposed before.
    #[error("consensus on this node has stopped: {0}")]
    Stopped(String),
}

/// Why a query has no answer. A query never changes anything, so it can always be retried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// The state machine refused the query.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// No leader was known for as long as the query waited.
    #[error("no leader for {waited:?}: are a majority of the voters running and reachable?")]
    NoLeader {
        /// How long the query waited.
        waited: Duration,
    },
    /// No majority confirmed in time that the answer would be up to date.
    #[error("no quorum confirmed an up-to-date read within {waited:?} ({last})")]
    NoQuorum {
        /// How long the query waited.
        waited: Duration,
        /// What went wrong last.
        last: String,
    },
    /// This node's consensus has stopped.
    #[error("consensus on this node has stopped: {0}")]
    Stopped(String),
}

/// An initial member that did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its id.
    pub id: NodeId,
    /// Where it was looked for.
    pub addr: Address,
    /// What came of the last attempt, such as a host name that cannot be found.
    pub reason: String,
}

fn listed(missing: &[Missing]) -> impl fmt::Display {
    let told = missing.iter().map(|Missing { id, addr, reason }| format!("node {id} at {addr} ({reason})"));
    told.collect::<Vec<_>>().join(", ")
}

/// Why a cluster was not formed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// This node is not among the members given.
    #[error(
        "node {node} is not among the initial members: give every initial node the same map, with itself in it"
    )]
    NotAMember {
        /// This node.
        node: NodeId,
    },
    /// Some initial members did not answer in time.
    #[error("no answer within {waited:?} from {}: start them, or check their addresses", listed(missing))]
    Unreachable {
        /// How long this node waited.
        waited: Duration,
        /// The members that did not answer.
        missing: Vec<Missing>,
    },
    /// Another node answers at a member's address.
    #[error("node {found} answers at {addr}, where node {expected} should be")]
    WrongNode {
        /// The address.
        addr: Address,
        /// The node id given for it.
        expected: NodeId,
        /// The node id in the certificate found there.
        found: NodeId,
    },
    /// The cluster exists already and knows this node id with another data directory.
    #[error(
        "the cluster exists and knows node {node} with another data directory, which held votes and acknowledged data: \
         start this node under a new id, add it as a learner, promote it, then remove node {node}"
    )]
    Wiped {
        /// This node.
        node: NodeId,
    },
    /// The cluster exists already, without this node.
    #[error("the cluster exists already and node {node} is not part of it: add it as a learner")]
    NotInCluster {
        /// This node.
        node: NodeId,
    },
    /// The members answered, but the cluster did not form in time.
    #[error("all initial members answered, but no cluster formed within {waited:?}")]
    NotFormed {
        /// How long this node waited.
        waited: Duration,
    },
    /// This node's consensus has stopped.
    #[error("consensus on this node has stopped: {0}")]
    Stopped(String),
}

/// Why the membership was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// No leader was known for as long as the change waited. Nothing changed.
    #[error("no leader for {waited:?}: are a majority of the voters running and reachable?")]
    NoLeader {
        /// How long the change waited.
        waited: Duration,
    },
    /// No majority confirmed the change in time. It may still happen; ask for the status before you retry.
    #[error("no quorum confirmed the change within {waited:?}; it may still happen ({last})")]
    NoQuorum {
        /// How long the change waited.
        waited: Duration,
        /// What went wrong last.
        last: String,
    },
    /// The change is not possible now, for the reason given. Nothing changed.
    #[error("{0}")]
    Refused(String),
    /// This node's consensus has stopped.
    #[error("consensus on this node has stopped: {0}")]
    Stopped(String),
}
