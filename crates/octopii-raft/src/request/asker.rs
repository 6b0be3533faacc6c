//! Requests that any node takes and the leader answers.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_rpc::{Code, Status};
use octopii_transport::NodeId;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::group::{Command, Outcome};
use crate::member::Member;
use crate::network::link::Network;
use crate::network::message::{self, Change, Proposed, Reply};
use crate::request::leader::{Attempt, Leadership};
use crate::session::OpenProposal;

/// Something to be answered by the leader, wherever it is.
pub(crate) enum Request {
    Propose { open: OpenProposal, payload: Bytes },
    ReadIndex,
    Change(Change),
}

/// The leader's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Outcome(Outcome),
    ReadIndex(u64),
    Changed,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GaveUp {
    /// No node ever took the request.
    NoLeader {
        waited: Duration,
    },
    /// A leader took it, and never answered.
    NoQuorum {
        waited: Duration,
        last: String,
    },
    Refused(String),
    Stopped(String),
}

/// The pauses between attempts: a new leader is worth asking at once, an unwilling one is not.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Finds the leader and asks it, again and again until the deadline.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) leadership: Leadership,
    pub(crate) network: Network,
    /// Bounds the proposals on their way to another node.
    pub(crate) forwarded: Arc<Semaphore>,
}

impl Asker {
    pub(crate) async fn ask(&self, request: &Request, deadline: Instant) -> Result<Answer, GaveUp> {
        let start = Instant::now();
        let mut leaders = Leaders { metrics: self.leadership.gate.raft.server_metrics() };
        let mut pause = FIRST_PAUSE;
        let mut last: Option<String> = None;
        loop {
            let Some((leader, member)) = leaders.current() else {
                match timeout_at(deadline, leaders.changed(None)).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(stopped)) => return Err(GaveUp::Stopped(stopped)),
                    Err(_) => return Err(gave_up(start, last)),
                }
            };
            let mut attempting = pin!(self.attempt(leader, &member, request, deadline));
            let attempt = tokio::select! {
                biased;
                attempt = &mut attempting => attempt,
                // A leader that is replaced will not answer any more, or not in time. What it was asked may have been done
                // all the same: proposals carry an id, so that asking again does not do it twice.
                changed = leaders.changed(Some(leader)) => match changed {
                    Ok(()) => {
                        last = Some(format!("node {leader} is no longer the leader"));
                        continue;
                    }
                    // The attempt, if it was made here, is about to learn why.
                    Err(stopped) if leader == self.network.node_id => {
                        let learned = timeout_at(deadline, attempting).await;
                        learned.unwrap_or(Attempt::Stopped(stopped))
                    }
                    Err(stopped) => Attempt::Stopped(stopped),
                },
                () = tokio::time::sleep_until(deadline) => {
                    return Err(gave_up(start, Some(format!("node {leader}, the leader, did not answer"))));
                }
            };
            match attempt {
                Attempt::Done(answer) => return Ok(answer),
                Attempt::Refused(reason) => return Err(GaveUp::Refused(reason)),
                Attempt::Stopped(reason) if leader == self.network.node_id => {
                    return Err(GaveUp::Stopped(reason));
                }
                Attempt::Failed(reason) | Attempt::Stopped(reason) => {
                    last = Some(format!("node {leader}: {reason}"));
                }
                Attempt::NotLeader => {}
            }
            let until = deadline.min(Instant::now() + pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            if let Ok(Err(stopped)) = timeout_at(until, leaders.changed(Some(leader))).await {
                return Err(GaveUp::Stopped(stopped));
            }
            if Instant::now() >= deadline {
                return Err(gave_up(start, last));
            }
        }
    }

    async fn attempt(
        &self,
        leader: NodeId,
        member: &Member,
        request: &Request,
        deadline: Instant,
    ) -> Attempt<Answer> {
        if leader == self.network.node_id {
            return match request {
                Request::Propose { open, payload } => {
                    let command = Command { id: open.id(), payload: payload.clone() };
                    self.leadership.propose(command).await.map(Answer::Outcome)
                }
                Request::ReadIndex => self.leadership.read_index().await.map(Answer::ReadIndex),
                Request::Change(change) => {
                    Box::pin(self.leadership.change(change.clone(), deadline)).await.map(|()| Answer::Changed)
                }
            };
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let reply = match request {
            Request::Propose { open, payload } => {
                let command = Command { id: open.id(), payload: payload.clone() };
                return self.propose_to(leader, member, &command, left).await;
            }
            Request::ReadIndex => self.network.call(leader, member, message::READ_INDEX, (), left).await,
            Request::Change(change) => {
                self.network.call(leader, member, message::CHANGE, change.clone(), left).await
            }
        };
        match reply {
            Ok(Reply::ReadIndex(index)) => Attempt::Done(Answer::ReadIndex(index)),
            Ok(Reply::Changed) => Attempt::Done(Answer::Changed),
            Ok(Reply::NotLeader) => Attempt::NotLeader,
            Ok(Reply::Refused(reason)) => Attempt::Refused(reason),
            Ok(Reply::Failed(reason)) => Attempt::Failed(reason),
            Err(status) => unanswered(&status),
        }
    }

    async fn propose_to(
        &self,
        leader: NodeId,
        member: &Member,
        command: &Command,
        left: Duration,
    ) -> Attempt<Answer> {
        let Ok(_permit) = self.forwarded.acquire().await else {
            return Attempt::Stopped("it was shut down".to_owned());
        };
        let body = message::encode_propose(self.network.address(leader, member), command);
        let reply = match self.network.call_raw(leader, member, message::PROPOSE, body, left).await {
            Ok(reply) => reply,
            Err(status) => return unanswered(&status),
        };
        match Proposed::decode(reply) {
            Ok(Proposed::Applied(outcome)) => Attempt::Done(Answer::Outcome(outcome)),
            Ok(Proposed::NotLeader) => Attempt::NotLeader,
            Ok(Proposed::Failed(reason)) => Attempt::Failed(reason),
            Err(error) => Attempt::Failed(error.to_string()),
        }
    }
}

impl<T> Attempt<T> {
    fn map<U>(self, f: impl FnOnce(T) -> U) -> Attempt<U> {
        match self {
            Self::Done(value) => Attempt::Done(f(value)),
            Self::NotLeader => Attempt::NotLeader,
            Self::Refused(reason) => Attempt::Refused(reason),
            Self::Failed(reason) => Attempt::Failed(reason),
            Self::Stopped(reason) => Attempt::Stopped(reason),
        }
    }
}

fn unanswered<T>(status: &Status) -> Attempt<T> {
    match status.code {
        Code::PermissionDenied | Code::InvalidArgument | Code::Unimplemented => {
            Attempt::Refused(status.to_string())
        }
        _ => Attempt::Failed(status.to_string()),
    }
}

fn gave_up(start: Instant, last: Option<String>) -> GaveUp {
    let waited = start.elapsed();
    match last {
        None => GaveUp::NoLeader { waited },
        Some(last) => GaveUp::NoQuorum { waited, last },
    }
}

/// Who leads, as this node sees it.
struct Leaders<M> {
    metrics: M,
}

type Metrics = openraft::type_config::alias::WatchReceiverOf<
    crate::group::Group,
    openraft::metrics::RaftServerMetrics<crate::group::Group>,
>;

impl Leaders<Metrics> {
    fn current(&self) -> Option<(NodeId, Member)> {
        let metrics = self.metrics.borrow_watched();
        let leader = metrics.current_leader?;
        Some((leader, metrics.membership_config.get_node(&leader)?.clone()))
    }

    /// Returns when the leader is another one than `than`.
    async fn changed(&mut self, than: Option<NodeId>) -> Result<(), String> {
        loop {
            self.metrics.changed().await.map_err(|_| "it was shut down".to_owned())?;
            if self.current().map(|(id, _)| id) != than {
                return Ok(());
            }
        }
    }
}
