//! Consensus's requests to other members, over Octopii's RPC and transfers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, Stream, StreamExt};
use octopii_rpc::{Client, Code, Status};
use octopii_transfer::{ChunkSource, SendOptions, Transfer};
use octopii_transport::{Endpoint, NodeId};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2, Snapshot};
use tokio::time::{Instant, timeout_at};

use crate::config::RaftConfig;
use crate::group::{Group, LeaderId, LogId, Vote};
use crate::member::Member;
use crate::network::message::{self, Address, Addressed, Append, AppendReply, Lane};
use crate::snapshot::store::SnapshotData;
use crate::wire;

/// Under which purpose snapshots are transferred.
pub(crate) const SNAPSHOT_PURPOSE: &str = "raft-snapshot";

/// Append requests on their way to one member at once.
const PIPELINE: usize = 16;

/// How this node reaches the other members.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) node_id: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) endpoint: Endpoint,
    pub(crate) client: Client,
    pub(crate) transfer: Transfer,
    pub(crate) config: Arc<RaftConfig>,
    /// Lanes opened so far, see [`Lane`].
    pub(crate) lanes: Arc<AtomicU64>,
}

impl RaftNetworkFactory<Group> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> Link {
        Link { network: self.clone(), target, member: member.clone(), pipelined: true }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, member: &Member) -> Link {
        Link { network: self.clone(), target, member: member.clone(), pipelined: false }
    }
}

/// The way to one member. Connections are pooled and re-established below, by the endpoint.
pub(crate) struct Link {
    network: Network,
    target: NodeId,
    member: Member,
    /// Whether append requests keep an order among themselves. Heartbeats must not wait for entries.
    pipelined: bool,
}

impl Link {
    fn address(&self) -> Address {
        self.network.address(self.target, &self.member)
    }

    async fn append(
        &self,
        request: AppendEntriesRequest<Group>,
        lane: Option<Lane>,
    ) -> Result<AppendEntriesResponse<Group>, RPCError<Group>> {
        let deadline = self.network.config.append_timeout;
        let body = Append { address: self.address(), lane, request }.encode();
        let reply = self.network.call_raw(self.target, &self.member, message::APPEND, body, deadline).await;
        let reply = reply.map_err(|status| self.failed(RPCTypes::AppendEntries, &status, deadline))?;
        let reply: AppendReply =
            wire::decode(&reply).map_err(|e| RPCError::Network(NetworkError::new(&e)))?;
        Ok(match reply {
            AppendReply::Success => AppendEntriesResponse::Success,
            AppendReply::Partial(id) => AppendEntriesResponse::PartialSuccess(id.map(Into::into)),
            AppendReply::Conflict => AppendEntriesResponse::Conflict,
            AppendReply::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
        })
    }

    async fn request_vote(
        &self,
        method: &'static str,
        request: VoteRequest<Group>,
        deadline: Duration,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        let body = message::VoteRequest {
            vote: request.vote.into(),
            last: request.last_log_id.map(Into::into),
            leadership_transfer: request.leadership_transfer,
        };
        let reply: message::VoteReply = self
            .network
            .call(self.target, &self.member, method, body, deadline)
            .await
            .map_err(|status| self.failed(RPCTypes::Vote, &status, deadline))?;
        Ok(VoteResponse {
            vote: reply.vote.into(),
            vote_granted: reply.granted,
            last_log_id: reply.last.map(Into::into),
        })
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot<LeaderId, NodeId, Member, SnapshotData>,
    ) -> Result<SnapshotResponse<Group>, RPCError<Group>> {
        let timeout = self.network.config.snapshot_timeout;
        // Nobody else must have the state, whoever has the address a moment later.
        let node = Some(self.target);
        let options = SendOptions { timeout: Some(timeout), node, ..SendOptions::new(SNAPSHOT_PURPOSE) };
        let chunk = ChunkSource::File(snapshot.snapshot.path);
        let connection = self
            .network
            .endpoint
            .connect_to(self.target, &self.member.addr)
            .await
            .map_err(|e| RPCError::Unreachable(Unreachable::new(&e)))?;
        let receipt = self
            .network
            .transfer
            .send(connection.remote_addr(), &chunk, options)
            .await
            .map_err(|e| RPCError::Unreachable(Unreachable::new(&e)))?;
        let body = message::InstallRequest {
            vote: vote.into(),
            meta: (&snapshot.meta).into(),
            digest: receipt.digest.0,
        };
        let vote: wire::Vote = self
            .network
            .call(self.target, &self.member, message::INSTALL, body, timeout)
            .await
            .map_err(|status| self.failed(RPCTypes::InstallSnapshot, &status, timeout))?;
        Ok(SnapshotResponse { vote: vote.into() })
    }

    fn failed(&self, action: RPCTypes, status: &Status, timeout: Duration) -> RPCError<Group> {
        match status.code {
            Code::DeadlineExceeded => {
                RPCError::Timeout(Timeout { action, id: self.network.node_id, target: self.target, timeout })
            }
            // Worth a pause before the next attempt: nobody there, or somebody who will not talk to us.
            Code::Unavailable | Code::PermissionDenied | Code::FailedPrecondition => {
                tracing::debug!(target = self.target, addr = %self.member.addr, %action, %status, "member does not answer");
                RPCError::Unreachable(Unreachable::new(status))
            }
            _ => RPCError::Network(NetworkError::new(status)),
        }
    }
}

impl Network {
    pub(crate) fn address(&self, to: NodeId, member: &Member) -> Address {
        Address { to, to_incarnation: member.incarnation, from_incarnation: self.incarnation }
    }

    /// One typed request to a member.
    pub(crate) async fn call<Request, Reply>(
        &self,
        to: NodeId,
        member: &Member,
        method: &'static str,
        body: Request,
        deadline: Duration,
    ) -> Result<Reply, Status>
    where
        Request: serde::Serialize + Sync,
        Reply: serde::de::DeserializeOwned,
    {
        let request = wire::encode(&Addressed { address: self.address(to, member), body });
        let reply = self.call_raw(to, member, method, request.into(), deadline).await?;
        wire::decode(&reply).map_err(|e| {
            Status::new(Code::DataLoss, format!("node {to} gave a malformed answer to {method}: {e}"))
        })
    }

    /// One request to a member, at the address that the membership has for it. Nobody else is asked that may answer there, such as
    /// whoever has the address now that a name led to a moment ago.
    pub(crate) async fn call_raw(
        &self,
        to: NodeId,
        member: &Member,
        method: &'static str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, Status> {
        let end = Instant::now() + deadline;
        let connecting = timeout_at(end, self.endpoint.connect_to(to, &member.addr)).await;
        let connection = match connecting {
            Ok(Ok(connection)) => connection,
            Ok(Err(e)) => return Err(Status::new(Code::Unavailable, e.to_string())),
            Err(_) => {
                let told = format!("no connection to node {to} at {} within {deadline:?}", member.addr);
                return Err(Status::new(Code::Unavailable, told));
            }
        };
        let left = end.saturating_duration_since(Instant::now());
        self.client.call_on(&connection, method, body, left).await
    }
}

impl RaftNetworkV2<Group> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Group>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Group>, RPCError<Group>> {
        self.append(request, None).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Group>, RPCError<Group>>>, RPCError<Group>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Group>> + OptionalSend + Unpin + 'static,
    {
        let link = &*self;
        let stream = self.network.lanes.fetch_add(1, Ordering::Relaxed);
        let mut sequence = 0;
        let answers = input
            .map(move |request| {
                let lane =
                    link.pipelined.then_some(Lane { id: (request.vote.leader_id.term, stream), sequence });
                sequence += 1;
                let previous = request.prev_log_id;
                let last = request.entries.last().map(|entry| entry.log_id).or(previous);
                async move { link.append(request, lane).await.map(|answer| (answer, previous, last)) }
            })
            .buffered(if self.pipelined { PIPELINE } else { 1 });
        let results = stream::unfold(Some(Box::pin(answers)), |answers| async move {
            let mut answers = answers?;
            Some(match answers.next().await? {
                Err(e) => (Err(e), None),
                Ok((answer, previous, last)) => {
                    let whole = match &answer {
                        AppendEntriesResponse::Success => true,
                        AppendEntriesResponse::PartialSuccess(accepted) => *accepted == last,
                        AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => false,
                    };
                    // What follows an incomplete answer does not fit the member's log: the leader starts over.
                    (stream_result(answer, previous, last), whole.then_some(answers))
                }
            })
        });
        async move { Ok(results.boxed()) }.boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        self.request_vote(message::VOTE, request, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        self.request_vote(message::PRE_VOTE, request, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<LeaderId, NodeId, Member, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Group>, StreamingError<Group>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => Ok(sent?),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Group>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Group>, RPCError<Group>> {
        let body = message::TransferRequest {
            from: (*request.from_leader()).into(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(Into::into),
        };
        let deadline = option.hard_ttl();
        let reply: message::TransferReply = self
            .network
            .call(self.target, &self.member, message::TRANSFER, body, deadline)
            .await
            .map_err(|status| self.failed(RPCTypes::TransferLeader, &status, deadline))?;
        Ok(match reply {
            message::TransferReply::Accepted => Ok(()),
            message::TransferReply::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            message::TransferReply::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed {
                    expected: expected.map(Into::into),
                    actual: actual.map(Into::into),
                })
            }
        })
    }
}

/// A conflict without an entry before it is nonsense from the other side, not a reason to stop this one.
fn stream_result(
    answer: AppendEntriesResponse<Group>,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> Result<StreamAppendResult<Group>, RPCError<Group>> {
    if answer.is_conflict() && previous.is_none() {
        let nonsense = "the member says that the beginning of the log does not fit its log";
        return Err(RPCError::Network(NetworkError::from_string(nonsense)));
    }
    Ok(answer.into_stream_result(previous, last))
}
