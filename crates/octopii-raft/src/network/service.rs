//! The answers to other members' requests.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use octopii_rpc::{Code, Context, Router, Status};
use openraft::errors::{Fatal, RaftError};
use openraft::raft::{AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest};
use openraft::{Snapshot, raft};

use crate::core::guarded;
use crate::group::Group;
use crate::log::store::LogStore;
use crate::network::gate::{Gate, refused};
use crate::network::lane::Lanes;
use crate::network::message::{self, Addressed, Append, AppendReply, Hello, Proposed, Reply};
use crate::request::leader::{Attempt, Leadership};
use crate::snapshot::inbox::Inbox;
use crate::snapshot::store::SnapshotData;
use crate::wire;

/// What the handlers share.
pub(crate) struct Service {
    pub(crate) gate: Gate,
    pub(crate) leadership: Leadership,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) lanes: Lanes,
    pub(crate) log: LogStore,
}

type Answer<T> = Result<T, Status>;

impl Service {
    /// Every method of the group. The handlers hold the service, and so the consensus core, alive until the server stops.
    pub(crate) fn router(self: &Arc<Self>) -> Router {
        let mut router = Router::new();
        macro_rules! answer {
            ($register:ident, $method:expr, $handler:ident) => {{
                let service = Arc::clone(self);
                router.$register($method, move |context, request| {
                    let service = Arc::clone(&service);
                    async move { service.$handler(context, request).await }
                });
            }};
        }
        answer!(register_raw, message::APPEND, append);
        answer!(register_raw, message::PROPOSE, propose);
        answer!(register, message::VOTE, vote);
        answer!(register, message::PRE_VOTE, pre_vote);
        answer!(register, message::TRANSFER, transfer_leader);
        answer!(register, message::INSTALL, install_snapshot);
        answer!(register, message::READ_INDEX, read_index);
        answer!(register, message::CHANGE, change);
        answer!(register, message::HELLO, hello);
        router
    }

    async fn append(&self, context: Context, request: Bytes) -> Answer<Bytes> {
        let Append { address, lane, request } = Append::decode(request).map_err(malformed)?;
        self.gate.check(&context, address)?;
        let vote = wire::Vote::from(request.vote);
        self.gate.check_vote(&context, &vote)?;
        if !vote.committed {
            return Err(refused(Code::PermissionDenied, "only an elected leader sends entries".to_owned()));
        }
        let turn = match lane {
            None => None,
            Some(lane) => {
                let turn = self.lanes.turn(context.peer.node_id, lane).await;
                Some(turn.map_err(|_| {
                    Status::new(Code::Aborted, "a later sequence of entries has begun".to_owned())
                })?)
            }
        };
        let mut appended = pin!(guarded(self.gate.raft.append_entries(request)));
        // The first poll hands the entries to the core, which keeps their order from there; the answer comes when they are
        // durable, and the next request must not wait for that.
        let first = poll_fn(|cx| Poll::Ready(appended.as_mut().poll(cx))).await;
        drop(turn);
        let answer = match first {
            Poll::Ready(answer) => answer,
            Poll::Pending => appended.await,
        };
        let reply = match answer.map_err(stopped)? {
            AppendEntriesResponse::Success => AppendReply::Success,
            AppendEntriesResponse::PartialSuccess(id) => AppendReply::Partial(id.map(Into::into)),
            AppendEntriesResponse::Conflict => AppendReply::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(vote.into()),
        };
        Ok(wire::encode(&reply).into())
    }

    async fn vote(
        &self,
        context: Context,
        request: Addressed<message::VoteRequest>,
    ) -> Answer<message::VoteReply> {
        let request = self.checked_vote(&context, request)?;
        vote_reply(guarded(self.gate.raft.vote(request)).await)
    }

    async fn pre_vote(
        &self,
        context: Context,
        request: Addressed<message::VoteRequest>,
    ) -> Answer<message::VoteReply> {
        let request = self.checked_vote(&context, request)?;
        vote_reply(guarded(self.gate.raft.pre_vote(request)).await)
    }

    fn checked_vote(
        &self,
        context: &Context,
        request: Addressed<message::VoteRequest>,
    ) -> Answer<raft::VoteRequest<Group>> {
        self.gate.check(context, request.address)?;
        self.gate.check_vote(context, &request.body.vote)?;
        Ok(raft::VoteRequest {
            vote: request.body.vote.into(),
            last_log_id: request.body.last.map(Into::into),
            leadership_transfer: request.body.leadership_transfer,
        })
    }

    async fn transfer_leader(
        &self,
        context: Context,
        request: Addressed<message::TransferRequest>,
    ) -> Answer<message::TransferReply> {
        self.gate.check(&context, request.address)?;
        let body = request.body;
        self.gate.check_vote(&context, &body.from)?;
        let request = TransferLeaderRequest::new(body.from.into(), body.to, body.last.map(Into::into));
        Ok(match guarded(self.gate.raft.handle_transfer_leader(request)).await.map_err(fatal)? {
            Ok(()) => message::TransferReply::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                message::TransferReply::VoteChanged { expected: expected.into(), actual: actual.into() }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                message::TransferReply::LogNotFlushed {
                    expected: expected.map(Into::into),
                    actual: actual.map(Into::into),
                }
            }
        })
    }

    async fn install_snapshot(
        &self,
        context: Context,
        request: Addressed<message::InstallRequest>,
    ) -> Answer<wire::Vote> {
        self.gate.check(&context, request.address)?;
        let message::InstallRequest { vote, meta, digest } = request.body;
        self.gate.check_vote(&context, &vote)?;
        let Some(path) = self.inbox.take(context.peer.node_id, &digest) else {
            return Err(Status::new(
                Code::NotFound,
                "the snapshot has not arrived; send it first".to_owned(),
            ));
        };
        let snapshot =
            Snapshot { meta: meta.try_into().map_err(malformed)?, snapshot: SnapshotData { path } };
        // Answered when the snapshot is durable under its final name and the machine has its state.
        let installed =
            guarded(self.gate.raft.install_full_snapshot(vote.into(), snapshot)).await.map_err(fatal)?;
        Ok(installed.vote.into())
    }

    async fn propose(&self, context: Context, request: Bytes) -> Answer<Bytes> {
        let (address, command) = message::decode_propose(request).map_err(malformed)?;
        self.gate.check(&context, address)?;
        let proposed = match self.leadership.propose(command).await {
            Attempt::Done(outcome) => Proposed::Applied(outcome),
            Attempt::NotLeader => Proposed::NotLeader,
            Attempt::Refused(reason) | Attempt::Failed(reason) => Proposed::Failed(reason),
            Attempt::Stopped(reason) => return Err(Status::new(Code::Unavailable, reason)),
        };
        Ok(proposed.encode())
    }

    async fn read_index(&self, context: Context, request: Addressed<()>) -> Answer<Reply> {
        self.gate.check(&context, request.address)?;
        reply(self.leadership.read_index().await, Reply::ReadIndex)
    }

    async fn change(&self, context: Context, request: Addressed<message::Change>) -> Answer<Reply> {
        self.gate.check(&context, request.address)?;
        reply(self.leadership.change(request.body, context.deadline).await, |()| Reply::Changed)
    }

    async fn hello(&self, context: Context, request: message::HelloRequest) -> Answer<Hello> {
        Ok(Hello {
            node: self.gate.node_id,
            incarnation: self.gate.incarnation,
            blank: self.log.is_blank(),
            formed: self.gate.membership().nodes().next().is_some(),
            known: self.gate.member(context.peer.node_id).map(|m| m.incarnation == request.from_incarnation),
        })
    }
}

fn reply<T>(attempt: Attempt<T>, done: impl FnOnce(T) -> Reply) -> Answer<Reply> {
    Ok(match attempt {
        Attempt::Done(value) => done(value),
        Attempt::NotLeader => Reply::NotLeader,
        Attempt::Refused(reason) => Reply::Refused(reason),
        Attempt::Failed(reason) => Reply::Failed(reason),
        Attempt::Stopped(reason) => return Err(Status::new(Code::Unavailable, reason)),
    })
}

fn vote_reply(answer: Result<raft::VoteResponse<Group>, RaftError<Group>>) -> Answer<message::VoteReply> {
    let answer = answer.map_err(stopped)?;
    Ok(message::VoteReply {
        vote: answer.vote.into(),
        granted: answer.vote_granted,
        last: answer.last_log_id.map(Into::into),
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it is a map_err argument")]
fn malformed(error: std::io::Error) -> Status {
    Status::new(Code::InvalidArgument, format!("malformed consensus message: {error}"))
}

fn stopped(error: RaftError<Group>) -> Status {
    match error {
        RaftError::Fatal(error) => fatal(error),
        RaftError::APIError(never) => match never {},
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is a map_err argument")]
fn fatal(error: Fatal<Group>) -> Status {
    Status::new(Code::Unavailable, format!("consensus on this node has stopped: {error}"))
}
