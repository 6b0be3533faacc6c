//! What a node knows of its group.

use octopii_transport::{Address, NodeId};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;

use crate::group::Raft;

/// What part a node plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// It leads.
    Leader,
    /// It votes and follows a leader, or waits for one.
    Follower,
    /// It stands for election.
    Candidate,
    /// It receives the log but does not vote, or belongs to no cluster yet.
    Learner,
    /// It has stopped.
    Stopped,
}

/// What a node knows of its group, and how far it is. Log positions count from 0; `None` means nothing yet.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// This node.
    pub node_id: NodeId,
    /// Its part.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// The leader it follows, if it knows one.
    pub leader: Option<NodeId>,
    /// The last entry in its log.
    pub last_log: Option<u64>,
    /// The last entry known to be committed.
    pub committed: Option<u64>,
    /// The last entry applied to its state machine.
    pub applied: Option<u64>,
    /// The last entry that its newest snapshot contains.
    pub snapshot: Option<u64>,
    /// The last entry that was purged from its log.
    pub purged: Option<u64>,
    /// All members, by id.
    pub members: Vec<MemberStatus>,
}

/// One member of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberStatus {
    /// Its id.
    pub id: NodeId,
    /// Its address, as it was written when it was added.
    pub addr: Address,
    /// Whether it votes; otherwise it is a learner.
    pub voter: bool,
}

/// How far a member is, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerProgress {
    /// The member; the leader itself is among them.
    pub id: NodeId,
    /// Whether it votes.
    pub voter: bool,
    /// The last entry known to be durable there.
    pub matched: Option<u64>,
    /// Entries that it does not have yet.
    pub lag: u64,
}

pub(crate) fn status(raft: &Raft) -> Status {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = &metrics.membership_config;
    let voters: Vec<NodeId> = membership.voter_ids().collect();
    Status {
        node_id: metrics.id,
        role: match metrics.state {
            _ if metrics.running_state.is_err() => Role::Stopped,
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Shutdown => Role::Stopped,
            _ => Role::Learner,
        },
        term: metrics.current_term,
        leader: metrics.current_leader,
        last_log: metrics.last_log_index,
        committed: metrics.cluster_committed.map(|id| id.index),
        applied: metrics.last_applied.map(|id| id.index),
        snapshot: metrics.snapshot.map(|id| id.index),
        purged: metrics.purged.map(|id| id.index),
        members: membership
            .nodes()
            .map(|(id, member)| MemberStatus {
                id: *id,
                addr: member.addr.clone(),
                voter: voters.contains(id),
            })
            .collect(),
    }
}

pub(crate) fn peer_progress(raft: &Raft) -> Vec<PeerProgress> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let Some(replication) = &metrics.replication else { return Vec::new() };
    let voters: Vec<NodeId> = metrics.membership_config.voter_ids().collect();
    let end = metrics.last_log_index.map_or(0, |last| last + 1);
    replication
        .iter()
        .map(|(id, matched)| {
            let matched = matched.map(|id| id.index);
            let lag = end.saturating_sub(matched.map_or(0, |matched| matched + 1));
            PeerProgress { id: *id, voter: voters.contains(id), matched, lag }
        })
        .collect()
}
