//! What only a leader can do, tried on this node.

use std::collections::BTreeSet;
use std::time::Duration;

use octopii_rpc::Client;
use octopii_transport::{Address, ConnectError, Endpoint, NodeId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, LinearizableReadError, RaftError};
use openraft::{ChangeMembers, ReadPolicy};
use tokio::time::{Instant, timeout_at};

use crate::config::RaftConfig;
use crate::core::guarded;
use crate::group::{Command, Group, Outcome};
use crate::member::Member;
use crate::network::gate::Gate;
use crate::network::message::{self, Change, Hello, HelloRequest};
use crate::wire;

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attempt<T> {
    Done(T),
    /// The node asked is not the leader.
    NotLeader,
    /// It will never work this way.
    Refused(String),
    /// It may work next time.
    Failed(String),
    /// The node asked has stopped.
    Stopped(String),
}

/// This node as leader, if it is one.
#[derive(Clone)]
pub(crate) struct Leadership {
    pub(crate) gate: Gate,
    pub(crate) endpoint: Endpoint,
    pub(crate) client: Client,
    pub(crate) config: std::sync::Arc<RaftConfig>,
}

impl Leadership {
    /// Commits and applies a command. Waits for a quorum without limit: the caller sets one.
    pub(crate) async fn propose(&self, command: Command) -> Attempt<Outcome> {
        match guarded(self.gate.raft.client_write(command)).await {
            Ok(response) => Attempt::Done(response.data),
            Err(error) => failed(error),
        }
    }

    /// The log position up to which a reader must have applied to see every write acknowledged before now.
    pub(crate) async fn read_index(&self) -> Attempt<u64> {
        match guarded(self.gate.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await {
            Ok(linearizer) => Attempt::Done(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Attempt::NotLeader,
            Err(RaftError::APIError(error)) => Attempt::Failed(error.to_string()),
            Err(RaftError::Fatal(error)) => Attempt::Stopped(error.to_string()),
        }
    }

    /// Changes the membership. Doing again what is done already succeeds.
    pub(crate) async fn change(&self, change: Change, deadline: Instant) -> Attempt<()> {
        if !self.gate.raft.is_leader() {
            return Attempt::NotLeader;
        }
        match change {
            Change::AddLearner { id, addr } => self.add_learner(id, addr, deadline).await,
            Change::Promote { id } => self.promote(id, deadline).await,
            Change::Remove { id } => self.remove(id).await,
            Change::TransferLeader { to } => self.transfer(to).await,
        }
    }

    async fn add_learner(&self, id: NodeId, addr: Address, deadline: Instant) -> Attempt<()> {
        // A host name has to be found first.
        let hello_timeout = if addr.host().is_some() { 3 * HELLO_TIMEOUT } else { HELLO_TIMEOUT };
        let wait = deadline.saturating_duration_since(Instant::now()).min(hello_timeout);
        let hello = match self.hello(id, &addr, wait).await {
            Ok(hello) => hello,
            Err(NoHello::Another(found)) => {
                return Attempt::Refused(format!("node {found} answers at {addr}, not node {id}"));
            }
            Err(NoHello::Silent(why)) => {
                return Attempt::Refused(format!("node {id} does not answer at {addr}: {why}"));
            }
        };
        let member = Member { addr, incarnation: hello.incarnation };
        match self.gate.member(id) {
            Some(known) if known == member => return Attempt::Done(()),
            Some(known) if known.incarnation != member.incarnation => {
                return Attempt::Refused(format!(
                    "node {id} is a member already, with another data directory: start the new node under a new id, add that, \
                     promote it, then remove node {id}"
                ));
            }
            Some(known) => {
                return Attempt::Refused(format!("node {id} is a member already, at {}", known.addr));
            }
            None => {}
        }
        match guarded(self.gate.raft.add_learner(id, member, false)).await {
            Ok(_) => Attempt::Done(()),
            Err(error) => failed(error),
        }
    }

    /// Who is there? Node `id` is looked for, which need not be a member yet.
    pub(crate) async fn hello(
        &self,
        id: NodeId,
        addr: &Address,
        deadline: Duration,
    ) -> Result<Hello, NoHello> {
        let end = Instant::now() + deadline;
        let silent = |told: String| NoHello::Silent(told);
        let connection = match timeout_at(end, self.endpoint.connect_to(id, addr)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(ConnectError::WrongNode { found, .. })) => return Err(NoHello::Another(found)),
            Ok(Err(e)) => return Err(silent(e.to_string())),
            Err(_) => return Err(silent(format!("no connection within {deadline:?}"))),
        };
        let request = wire::encode(&HelloRequest { from_incarnation: self.gate.incarnation });
        let left = end.saturating_duration_since(Instant::now());
        let answer = self.client.call_on(&connection, message::HELLO, request.into(), left).await;
        let hello: Hello = answer
            .map_err(|status| status.to_string())
            .and_then(|answer| wire::decode(&answer).map_err(|e| e.to_string()))
            .map_err(silent)?;
        if hello.node == id { Ok(hello) } else { Err(NoHello::Another(hello.node)) }
    }

    async fn promote(&self, id: NodeId, deadline: Instant) -> Attempt<()> {
        let membership = self.gate.membership();
        if membership.voter_ids().any(|voter| voter == id) {
            return Attempt::Done(());
        }
        if membership.get_node(&id).is_none() {
            return Attempt::Refused(format!("node {id} is not a learner: add it first"));
        }
        // A voter that lags would hold up every commit it is needed for.
        let allowed = self.config.lag_threshold.min(PROMOTE_LAG);
        let mut metrics = self.gate.raft.metrics();
        // Leave time to commit the change itself.
        let give_up = deadline - deadline.saturating_duration_since(Instant::now()) / 4;
        loop {
            let lag = {
                let metrics = metrics.borrow_and_update();
                let Some(replication) = &metrics.replication else { return Attempt::NotLeader };
                let matched = replication.get(&id).copied().flatten().map_or(0, |matched| matched.index + 1);
                metrics.last_log_index.map_or(0, |last| last + 1).saturating_sub(matched)
            };
            if lag <= allowed {
                break;
            }
            match timeout_at(give_up, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Attempt::Stopped("it was shut down".to_owned()),
                Err(_) => {
                    return Attempt::Refused(format!(
                        "learner {id} still lags by {lag} entries (at most {allowed} to be promoted): try again later"
                    ));
                }
            }
        }
        self.change_membership(ChangeMembers::AddVoterIds(BTreeSet::from([id])), true).await
    }

    async fn remove(&self, id: NodeId) -> Attempt<()> {
        let membership = self.gate.membership();
        if membership.get_node(&id).is_none() {
            return Attempt::Done(());
        }
        let ids = BTreeSet::from([id]);
        let voter = membership.voter_ids().any(|voter| voter == id);
        if !voter {
            return self.change_membership(ChangeMembers::RemoveNodes(ids), true).await;
        }
        if membership.voter_ids().count() == 1 {
            return Attempt::Refused(format!("node {id} is the only voter: promote another first"));
        }
        self.change_membership(ChangeMembers::RemoveVoters(ids), false).await
    }

    async fn change_membership(&self, change: ChangeMembers<u64, Member>, retain: bool) -> Attempt<()> {
        match guarded(self.gate.raft.change_membership(change, retain)).await {
            Ok(_) => Attempt::Done(()),
            Err(error) => failed(error),
        }
    }

    async fn transfer(&self, to: NodeId) -> Attempt<()> {
        if !self.gate.membership().voter_ids().any(|voter| voter == to) {
            return Attempt::Refused(format!("node {to} is not a voter"));
        }
        if to == self.gate.node_id {
            return Attempt::Done(());
        }
        if let Err(error) = guarded(self.gate.raft.trigger().transfer_leader(to)).await {
            return Attempt::Stopped(error.to_string());
        }
        Attempt::Done(())
    }
}

/// Why a node has not said who it is.
#[derive(Debug)]
pub(crate) enum NoHello {
    /// Another one is there.
    Another(NodeId),
    /// Nobody has answered.
    Silent(String),
}

/// How long a node may take to say who it is.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// A learner may be promoted when it lags by no more entries than this.
const PROMOTE_LAG: u64 = 1000;

fn failed<T>(error: RaftError<Group, ClientWriteError<Group>>) -> Attempt<T> {
    match error {
        RaftError::Fatal(error) => Attempt::Stopped(error.to_string()),
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => Attempt::NotLeader,
        RaftError::APIError(error @ ClientWriteError::LogEntryDiscarded(_)) => {
            Attempt::Failed(error.to_string())
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(
            error @ (ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)),
        )) => Attempt::Failed(error.to_string()),
        RaftError::APIError(error) => Attempt::Refused(error.to_string()),
    }
}
