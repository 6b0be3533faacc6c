//! What every node answers over RPC: the replicated state machine and the cluster, for clients that are no members.

use std::net::SocketAddr;

use bytes::Bytes;
use octopii_raft::{Consensus, MembershipError, ProposeError, QueryError, Role};
use octopii_rpc::{Code, Context, Router, Status};
use octopii_transport::{Address, Connection, Endpoint, NodeId, PeerRole};
use serde::{Deserialize, Serialize};

/// Answers with what it was sent: a ping, or a measure of the round trip.
pub const ECHO: &str = "octopii.echo";
pub(crate) const PROPOSE: &str = "octopii.propose";
pub(crate) const QUERY: &str = "octopii.query";
pub(crate) const STATUS: &str = "octopii.status";
pub(crate) const MEMBER: &str = "octopii.member";

/// What a node tells of itself and its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node that answered.
    pub node_id: NodeId,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its release.
    pub version: String,
    /// Its part in consensus: `leader`, `follower`, `candidate`, `learner`, `stopped`; `none` without consensus.
    pub role: String,
    /// Its term.
    pub term: u64,
    /// The leader it follows.
    pub leader: Option<NodeId>,
    /// The last entry in its log.
    pub last_log: Option<u64>,
    /// The last entry known to be committed.
    pub committed: Option<u64>,
    /// The last entry applied to its state machine.
    pub applied: Option<u64>,
    /// The last entry in its newest snapshot.
    pub snapshot: Option<u64>,
    /// The last entry purged from its log.
    pub purged: Option<u64>,
    /// The members it knows of.
    pub members: Vec<Member>,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its address, as it was written when it was added: a host name stays one.
    pub addr: Address,
    /// Whether it votes; otherwise it is a learner.
    pub voter: bool,
    /// The last entry known to be durable there; told by the leader only.
    pub matched: Option<u64>,
}

/// A change of the membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MembershipChange {
    /// Adds an empty node as a learner.
    Add {
        /// Its id.
        id: NodeId,
        /// Its address, which may be a host name and a port.
        addr: Address,
    },
    /// Makes a learner a voter.
    Promote {
        /// Its id.
        id: NodeId,
    },
    /// Removes a member.
    Remove {
        /// Its id.
        id: NodeId,
    },
    /// Hands leadership to a voter.
    TransferLeader {
        /// Its id.
        to: NodeId,
    },
}

pub(crate) fn register(router: &mut Router, endpoint: &Endpoint, consensus: Option<&Consensus>) {
    let (node_id, addr) = (endpoint.node_id(), endpoint.local_addr());
    let for_status = consensus.cloned();
    router.register(STATUS, move |_: Context, (): ()| {
        let status = status(node_id, addr, for_status.as_ref());
        async move { Ok(status) }
    });
    router.register_raw(ECHO, |_: Context, body: Bytes| async move { Ok(body) });
    router
        .describe(STATUS, "() -> NodeStatus", "What this node knows of itself and its cluster.", true)
        .describe_response::<NodeStatus>(STATUS)
        .describe(ECHO, "(bytes) -> bytes", "Answers with what it was sent.", true);
    let Some(consensus) = consensus.cloned() else { return };
    let proposing = consensus.clone();
    router.register_raw(PROPOSE, move |_: Context, command: Bytes| {
        let consensus = proposing.clone();
        async move { consensus.propose(command).await.map_err(propose_status) }
    });
    let asking = consensus.clone();
    router.register_raw(QUERY, move |_: Context, query: Bytes| {
        let consensus = asking.clone();
        async move { consensus.query(&query).await.map_err(query_status) }
    });
    router.register(MEMBER, move |context: Context, change: MembershipChange| {
        let consensus = consensus.clone();
        async move {
            administering(&context)?;
            match change {
                MembershipChange::Add { id, addr } => consensus.add_learner(id, addr).await,
                MembershipChange::Promote { id } => consensus.promote_learner(id).await,
                MembershipChange::Remove { id } => consensus.remove(id).await,
                MembershipChange::TransferLeader { to } => consensus.transfer_leader(to).await,
            }
            .map_err(membership_status)
        }
    });
    router.describe_response::<()>(MEMBER);
}

/// Who belongs to the cluster is not for its mere clients to say.
pub(crate) fn administering(context: &Context) -> Result<(), Status> {
    if context.peer.role.may_administer() {
        return Ok(());
    }
    let told = "this identity is a client's: looking after the cluster takes an operator's (`octopii cluster issue --role operator`)";
    Err(Status::new(Code::PermissionDenied, told))
}

/// Whatever the authority's key signs at somebody's wish is for operators alone: a member that others have got hold of could
/// otherwise have all the others revoked, or make itself an operator.
pub(crate) fn operating(context: &Context) -> Result<(), Status> {
    if context.peer.role == PeerRole::Operator {
        return Ok(());
    }
    let told = format!(
        "this identity is a {}'s: what the authority signs takes an operator's (`octopii cluster issue --role operator`), or the \
         authority's own file",
        context.peer.role
    );
    Err(Status::new(Code::PermissionDenied, told))
}

/// A connection to the member at `addr`. Every holder of a certificate can answer there, a client's included, but not in the name
/// of the cluster. What is told otherwise is `Unavailable`: surely nothing was done.
pub(crate) async fn member_at(endpoint: &Endpoint, addr: impl Into<Address>) -> Result<Connection, Status> {
    let addr = addr.into();
    let unavailable = |reason: String| Status::new(Code::Unavailable, reason);
    let connection = endpoint.connect(&addr).await.map_err(|e| unavailable(e.to_string()))?;
    let peer = connection.peer();
    if peer.role != PeerRole::Member {
        return Err(unavailable(format!(
            "at {addr} answers {} {} instead of a member of the cluster: correct the address, and ask who runs it",
            peer.role, peer.node_id
        )));
    }
    Ok(connection)
}

fn status(node_id: NodeId, addr: SocketAddr, consensus: Option<&Consensus>) -> NodeStatus {
    let mut told = NodeStatus {
        node_id,
        addr,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        role: "none".to_owned(),
        term: 0,
        leader: None,
        last_log: None,
        committed: None,
        applied: None,
        snapshot: None,
        purged: None,
        members: Vec::new(),
    };
    let Some(consensus) = consensus else { return told };
    let status = consensus.status();
    let progress = consensus.peer_progress();
    let matched = |id| progress.iter().find(|p| p.id == id).and_then(|p| p.matched);
    told.role = match status.role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        _ => "stopped",
    }
    .to_owned();
    told.term = status.term;
    told.leader = status.leader;
    told.last_log = status.last_log;
    told.committed = status.committed;
    told.applied = status.applied;
    told.snapshot = status.snapshot;
    told.purged = status.purged;
    told.members = status
        .members
        .iter()
        .map(|m| Member { id: m.id, addr: m.addr.clone(), voter: m.voter, matched: matched(m.id) })
        .collect();
    told
}

// The codes tell a client whether the command may have been applied: only `Unavailable` and the refusals say no.

fn propose_status(e: ProposeError) -> Status {
    let code = match &e {
        ProposeError::Rejected(_) => Code::FailedPrecondition,
        ProposeError::TooLarge { .. } => Code::InvalidArgument,
        ProposeError::NoLeader { .. } => Code::Unavailable,
        ProposeError::NoQuorum { .. } => Code::DeadlineExceeded,
        _ => Code::Unknown,
    };
    Status::new(code, e.to_string())
}

fn query_status(e: QueryError) -> Status {
    let code = match &e {
        QueryError::Rejected(_) => Code::FailedPrecondition,
        _ => Code::Unavailable,
    };
    Status::new(code, e.to_string())
}

fn membership_status(e: MembershipError) -> Status {
    let code = match &e {
        MembershipError::Refused(_) => Code::FailedPrecondition,
        MembershipError::NoLeader { .. } => Code::Unavailable,
        MembershipError::NoQuorum { .. } => Code::DeadlineExceeded,
        _ => Code::Unknown,
    };
    Status::new(code, e.to_string())
}
