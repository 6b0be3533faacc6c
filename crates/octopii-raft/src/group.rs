//! The types that the consensus library is instantiated with, and short names for them.

use std::fmt;

use bytes::Bytes;
use openraft::type_config::alias;

use crate::machine::Machine;
use crate::member::Member;
use crate::session::ProposalId;
use crate::state_machine::Rejected;

openraft::declare_raft_types!(
    pub(crate) Group:
        D = Command,
        R = Outcome,
        Node = Member,
);

pub(crate) type Raft = openraft::Raft<Group, Machine>;
pub(crate) type LogId = alias::LogIdOf<Group>;
pub(crate) type Vote = alias::VoteOf<Group>;
pub(crate) type Entry = alias::EntryOf<Group>;
pub(crate) type LeaderId = alias::LeaderIdOf<Group>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<Group>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Group>;

/// A command in the log: the application's bytes, and what tells a retry from a new command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) id: ProposalId,
    pub(crate) payload: Bytes,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.id, self.payload.len())
    }
}

/// What applying an entry gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The entry held no command.
    Nothing,
    Reply(Bytes),
    Rejected(Rejected),
    /// A late copy of a command whose proposer already has its answer; it was not applied again.
    Settled,
}
