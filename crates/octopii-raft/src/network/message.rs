//! What members of a group say to each other.
//!
//! Every request names its receiver and the data directories of both sides, see [`Address`]. Requests that carry an
//! application's bytes are laid out by hand, so that those bytes are never copied field by field; all others are bincode.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use octopii_transport::NodeId;
use openraft::raft::AppendEntriesRequest;
use serde::{Deserialize, Serialize};

use crate::group::{Command, Group, Outcome};
use crate::log::entry;
use crate::state_machine::Rejected;
use crate::wire;

/// Entries of the leader's log. See [`Append`].
pub(crate) const APPEND: &str = "raft.append";
/// A request for a vote: [`VoteRequest`] → [`VoteReply`].
pub(crate) const VOTE: &str = "raft.vote";
/// Whether a vote would be granted: [`VoteRequest`] → [`VoteReply`].
pub(crate) const PRE_VOTE: &str = "raft.pre_vote";
/// The leader asks a member to take over: [`TransferRequest`] → [`TransferReply`].
pub(crate) const TRANSFER: &str = "raft.transfer_leader";
/// Install a snapshot that was sent before: [`InstallRequest`] → [`wire::Vote`].
pub(crate) const INSTALL: &str = "raft.install_snapshot";
/// A command for the leader. See [`encode_propose`].
pub(crate) const PROPOSE: &str = "raft.propose";
/// Up to where a reader must have applied: `()` → [`Reply`].
pub(crate) const READ_INDEX: &str = "raft.read_index";
/// A membership change for the leader: [`Change`] → [`Reply`].
pub(crate) const CHANGE: &str = "raft.change";
/// Who are you? [`HelloRequest`] → [`Hello`].
pub(crate) const HELLO: &str = "raft.hello";

/// To whom a request goes and from which data directory it comes. Who sent it is told by the connection's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub(crate) to: NodeId,
    /// The incarnation that the sender knows the receiver by.
    pub(crate) to_incarnation: u64,
    pub(crate) from_incarnation: u64,
}

/// A request and its address.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Addressed<T> {
    pub(crate) address: Address,
    pub(crate) body: T,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct VoteRequest {
    pub(crate) vote: wire::Vote,
    pub(crate) last: Option<wire::LogId>,
    pub(crate) leadership_transfer: bool,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct VoteReply {
    pub(crate) vote: wire::Vote,
    pub(crate) granted: bool,
    pub(crate) last: Option<wire::LogId>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct TransferRequest {
    pub(crate) from: wire::Vote,
    pub(crate) to: NodeId,
    pub(crate) last: Option<wire::LogId>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum TransferReply {
    Accepted,
    VoteChanged { expected: wire::Vote, actual: wire::Vote },
    LogNotFlushed { expected: Option<wire::LogId>, actual: Option<wire::LogId> },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InstallRequest {
    pub(crate) vote: wire::Vote,
    pub(crate) meta: wire::SnapshotMeta,
    /// SHA-256 of the file that was sent.
    pub(crate) digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct HelloRequest {
    pub(crate) from_incarnation: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    /// Whether this node never voted nor stored anything.
    pub(crate) blank: bool,
    /// Whether this node knows of a cluster.
    pub(crate) formed: bool,
    /// Whether this node's membership knows the asker by the incarnation it asked with; `None` if it does not know it at all.
    pub(crate) known: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Change {
    AddLearner { id: NodeId, addr: octopii_transport::Address },
    Promote { id: NodeId },
    Remove { id: NodeId },
    TransferLeader { to: NodeId },
}

/// What the node asked as leader has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    ReadIndex(u64),
    Changed,
    /// It is not the leader: ask another.
    NotLeader,
    /// It will not do that.
    Refused(String),
    /// It tried and failed; another attempt may succeed.
    Failed(String),
}

/// The answer to an append request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AppendReply {
    Success,
    Partial(Option<wire::LogId>),
    Conflict,
    HigherVote(wire::Vote),
}

/// The place of an append request in an ordered sequence from one leader, see `lane`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lane {
    /// The leader's term and its count of lanes in that term: a later lane is greater.
    pub(crate) id: (u64, u64),
    pub(crate) sequence: u64,
}

/// Entries of the leader's log: length of the head (4 bytes), the head in bincode, then each entry after its length (4 bytes).
pub(crate) struct Append {
    pub(crate) address: Address,
    pub(crate) lane: Option<Lane>,
    pub(crate) request: AppendEntriesRequest<Group>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AppendHead {
    address: Address,
    lane: Option<Lane>,
    vote: wire::Vote,
    prev: Option<wire::LogId>,
    commit: Option<wire::LogId>,
}

impl Append {
    pub(crate) fn encode(&self) -> Bytes {
        let head = wire::encode(&AppendHead {
            address: self.address,
            lane: self.lane,
            vote: self.request.vote.into(),
            prev: self.request.prev_log_id.map(Into::into),
            commit: self.request.leader_commit.map(Into::into),
        });
        let entries: Vec<Bytes> = self.request.entries.iter().map(entry::encode).collect();
        let size = 4 + head.len() + entries.iter().map(|e| 4 + e.len()).sum::<usize>();
        let mut out = BytesMut::with_capacity(size);
        for part in std::iter::once(head.as_slice()).chain(entries.iter().map(|e| &e[..])) {
            out.put_u32_le(part.len() as u32);
            out.put_slice(part);
        }
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> io::Result<Self> {
        let head: AppendHead = wire::decode(&take_part(&mut bytes)?)?;
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            entries.push(entry::decode(take_part(&mut bytes)?)?);
        }
        let request = AppendEntriesRequest {
            vote: head.vote.into(),
            prev_log_id: head.prev.map(Into::into),
            entries,
            leader_commit: head.commit.map(Into::into),
        };
        Ok(Self { address: head.address, lane: head.lane, request })
    }
}

fn take_part(bytes: &mut Bytes) -> io::Result<Bytes> {
    if bytes.len() >= 4 {
        let len = bytes.get_u32_le() as usize;
        if len <= bytes.len() {
            return Ok(bytes.split_to(len));
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// A command for the leader: the address (3 × 8 bytes), then the command as in the log.
pub(crate) fn encode_propose(address: Address, command: &Command) -> Bytes {
    let command = entry::encode_command(command);
    let mut out = BytesMut::with_capacity(24 + command.len());
    out.put_u64_le(address.to);
    out.put_u64_le(address.to_incarnation);
    out.put_u64_le(address.from_incarnation);
    out.put_slice(&command);
    out.freeze()
}

pub(crate) fn decode_propose(mut bytes: Bytes) -> io::Result<(Address, Command)> {
    if bytes.len() < 24 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let address = Address {
        to: bytes.get_u64_le(),
        to_incarnation: bytes.get_u64_le(),
        from_incarnation: bytes.get_u64_le(),
    };
    Ok((address, entry::get_command(bytes)?))
}

/// What became of a proposal at the node asked as leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proposed {
    Applied(Outcome),
    NotLeader,
    Failed(String),
}

impl Proposed {
    /// One byte for the kind, then the reply or the reason.
    pub(crate) fn encode(&self) -> Bytes {
        let (kind, rest): (u8, &[u8]) = match self {
            Self::Applied(Outcome::Nothing) => (0, &[]),
            Self::Applied(Outcome::Reply(reply)) => (1, reply),
            Self::Applied(Outcome::Rejected(rejected)) => (2, rejected.reason().as_bytes()),
            Self::Applied(Outcome::Settled) => (3, &[]),
            Self::NotLeader => (4, &[]),
            Self::Failed(reason) => (5, reason.as_bytes()),
        };
        let mut out = BytesMut::with_capacity(1 + rest.len());
        out.put_u8(kind);
        out.put_slice(rest);
        out.freeze()
    }

    pub(crate) fn decode(mut bytes: Bytes) -> io::Result<Self> {
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let kind = bytes.get_u8();
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(match kind {
            0 => Self::Applied(Outcome::Nothing),
            1 => Self::Applied(Outcome::Reply(bytes)),
            2 => Self::Applied(Outcome::Rejected(Rejected::new(text(&bytes)))),
            3 => Self::Applied(Outcome::Settled),
            4 => Self::NotLeader,
            5 => Self::Failed(text(&bytes)),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "unknown kind of answer to a proposal",
                ));
            }
        })
    }
}
