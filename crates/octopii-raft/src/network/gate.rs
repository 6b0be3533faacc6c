//! Who is listened to.

use octopii_rpc::{Code, Context, Status};
use octopii_transport::NodeId;
use openraft::async_runtime::watch::WatchReceiver;

use crate::group::{Raft, StoredMembership};
use crate::member::Member;
use crate::network::message::Address;
use crate::wire;

/// This node's identity, and what its membership says of the others.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) raft: Raft,
}

impl Gate {
    /// The membership as this node knows it.
    pub(crate) fn membership(&self) -> std::sync::Arc<StoredMembership> {
        self.raft.server_metrics().borrow_watched().membership_config.clone()
    }

    pub(crate) fn member(&self, id: NodeId) -> Option<Member> {
        self.membership().get_node(&id).cloned()
    }

    /// Refuses a request that was meant for another node or another data directory, or that comes from a node whose data
    /// directory is not the one in the membership.
    pub(crate) fn check(&self, context: &Context, address: Address) -> Result<(), Status> {
        if address.to != self.node_id || address.to_incarnation != self.incarnation {
            return Err(refused(
                Code::FailedPrecondition,
                format!(
                    "this is node {} with another data directory than the one meant (node {}): it lost its data and must \
                     rejoin under a new id",
                    self.node_id, address.to
                ),
            ));
        }
        self.check_sender(context.peer.node_id, address.from_incarnation)
    }

    pub(crate) fn check_sender(&self, from: NodeId, incarnation: u64) -> Result<(), Status> {
        match self.member(from) {
            Some(member) if member.incarnation != incarnation => Err(refused(
                Code::PermissionDenied,
                format!(
                    "node {from} is known with another data directory: it lost its data and must rejoin under a new id"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a vote or entries in the name of another node than the certificate's.
    pub(crate) fn check_vote(&self, context: &Context, vote: &wire::Vote) -> Result<(), Status> {
        let from = context.peer.node_id;
        if vote.leader.node != from {
            return Err(refused(
                Code::PermissionDenied,
                format!("node {from} cannot speak for node {}", vote.leader.node),
            ));
        }
        Ok(())
    }
}

pub(crate) fn refused(code: Code, message: String) -> Status {
    tracing::warn!(%message, "refused a consensus request");
    Status::new(code, message)
}
