//! Octopii's own encodings of what consensus stores and sends. The consensus library's types are converted here and
//! nowhere else, so that its releases cannot change a byte on disk or on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use octopii_rpc::{Bincode, Codec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::group;
use crate::member::Member;

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    Bincode::encode(value).expect("wire types always encode")
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    Bincode::decode(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// A leader: the term it won and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leader {
    pub(crate) term: u64,
    pub(crate) node: u64,
}

/// The position of an entry and the leader that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogId {
    pub(crate) leader: Leader,
    pub(crate) index: u64,
}

/// A vote: for whom, and whether a quorum has granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vote {
    pub(crate) leader: Leader,
    pub(crate) committed: bool,
}

/// A membership: one set of voters, two while it changes, and every node's address and incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub(crate) voters: Vec<BTreeSet<u64>>,
    pub(crate) nodes: BTreeMap<u64, Member>,
}

/// What a snapshot contains: everything up to `last`, and the membership as of then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotMeta {
    pub(crate) last: Option<LogId>,
    pub(crate) membership_at: Option<LogId>,
    pub(crate) membership: Membership,
}

impl From<group::LeaderId> for Leader {
    fn from(id: group::LeaderId) -> Self {
        Self { term: id.term, node: id.node_id }
    }
}

impl From<Leader> for group::LeaderId {
    fn from(id: Leader) -> Self {
        Self { term: id.term, node_id: id.node }
    }
}

impl From<group::LogId> for LogId {
    fn from(id: group::LogId) -> Self {
        Self { leader: id.leader_id.into(), index: id.index }
    }
}

impl From<LogId> for group::LogId {
    fn from(id: LogId) -> Self {
        Self { leader_id: id.leader.into(), index: id.index }
    }
}

impl From<group::Vote> for Vote {
    fn from(vote: group::Vote) -> Self {
        Self { leader: vote.leader_id.into(), committed: vote.committed }
    }
}

impl From<Vote> for group::Vote {
    fn from(vote: Vote) -> Self {
        Self { leader_id: vote.leader.into(), committed: vote.committed }
    }
}

impl From<&group::Membership> for Membership {
    fn from(membership: &group::Membership) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
        }
    }
}

impl TryFrom<Membership> for group::Membership {
    type Error = io::Error;

    fn try_from(membership: Membership) -> io::Result<Self> {
        if membership.voters.is_empty() && membership.nodes.is_empty() {
            return Ok(Self::default());
        }
        Self::new(membership.voters, membership.nodes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }
}

impl From<&group::SnapshotMeta> for SnapshotMeta {
    fn from(meta: &group::SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(Into::into),
            membership_at: (*meta.last_membership.log_id()).map(Into::into),
            membership: meta.last_membership.membership().into(),
        }
    }
}

impl TryFrom<SnapshotMeta> for group::SnapshotMeta {
    type Error = io::Error;

    fn try_from(meta: SnapshotMeta) -> io::Result<Self> {
        Ok(Self {
            last_log_id: meta.last.map(Into::into),
            last_membership: group::StoredMembership::new(
                meta.membership_at.map(Into::into),
                meta.membership.try_into()?,
            ),
        })
    }
}
