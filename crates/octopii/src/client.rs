//! A client of a cluster: no member, keeps nothing, asks any node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use octopii_raft::{KvCommand, KvQuery, KvResponse};
use octopii_rpc::{Bincode, Client as RpcClient, Code, Codec, Status, StreamKind};
use octopii_transport::{Address, BindError, Endpoint, EndpointOptions, Identity, JoinToken, NodeId};

use crate::OctopiiRuntime;
use crate::issuing::{
    CREATE_TOKEN, IssuedList, LIST_ISSUED, LIST_TOKENS, REVOKE_TOKEN, TokenRequest, TokenSummary,
};
use crate::revocation::{LIST_REVOKED, REVOKE, RevokeRequest, RevokedSummary};
use crate::rotation::ROTATE;
use crate::service::{MEMBER, MembershipChange, NodeStatus, PROPOSE, QUERY, STATUS, member_at};

/// A client of a cluster, with an identity that the cluster's authority vouches for. Asks the nodes it was given in turn
/// until one answers; a change goes on to the next node only as long as it was surely not made. Only members answer for the
/// cluster: whoever else has a certificate and sits at one of the addresses is passed by. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    rpc: RpcClient,
    nodes: Vec<Address>,
    timeout: Duration,
}

impl Client {
    /// A client of the cluster whose nodes listen at these addresses. Each operation takes at most `timeout`.
    pub fn new(
        runtime: &OctopiiRuntime,
        identity: &Identity,
        nodes: impl IntoIterator<Item = impl Into<Address>>,
        timeout: Duration,
    ) -> Result<Self, BindError> {
        let nodes: Vec<Address> = nodes.into_iter().map(Into::into).collect();
        let endpoint = Endpoint::bind(
            runtime.executor(),
            identity,
            EndpointOptions { bind: bind_for(&nodes), ..EndpointOptions::default() },
        )?;
        let rpc = RpcClient::new(&endpoint, StreamKind::Rpc);
        Ok(Self { endpoint, rpc, nodes, timeout })
    }

    /// Sets a key; gives its previous value.
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        self.change(&KvCommand::Put { key: key.to_vec(), value: value.to_vec() }).await
    }

    /// Removes a key; gives its previous value.
    pub async fn delete(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        self.change(&KvCommand::Delete { key: key.to_vec() }).await
    }

    /// Reads a key, linearizably.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        match KvResponse::decode(&self.query(KvQuery::Get { key: key.to_vec() }.encode()).await?) {
            Ok(KvResponse::Value(value)) => Ok(value),
            _ => Err(not_key_value()),
        }
    }

    /// Proposes a command to the replicated state machine.
    ///
    /// [`Code::Unavailable`] means surely not applied; [`Code::Unknown`] and [`Code::DeadlineExceeded`] that it may have
    /// been, or may still be.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, Status> {
        self.ask(PROPOSE, command, Repeat::WhenSurelyNotMade).await
    }

    /// Asks the replicated state machine, linearizably.
    pub async fn query(&self, query: Bytes) -> Result<Bytes, Status> {
        self.ask(QUERY, query, Repeat::Always).await
    }

    /// As [`query`](Self::query), of this node alone: it answers from its own state, up to date.
    pub async fn query_at(&self, node: impl Into<Address>, query: Bytes) -> Result<Bytes, Status> {
        self.ask_one(&node.into(), QUERY, query).await
    }

    /// What one member knows of itself and its cluster.
    pub async fn status_of(&self, node: impl Into<Address>) -> Result<NodeStatus, Status> {
        let body = self.ask_one(&node.into(), STATUS, Bincode::encode(&())?.into()).await?;
        Bincode::decode(&body).map_err(|e| Status::new(Code::DataLoss, e.to_string()))
    }

    /// Changes the membership.
    pub async fn change_membership(&self, change: &MembershipChange) -> Result<(), Status> {
        let body = Bincode::encode(change)?.into();
        let body = self.ask(MEMBER, body, Repeat::WhenSurelyNotMade).await?;
        Bincode::decode(&body).map_err(|e| Status::new(Code::DataLoss, e.to_string()))
    }

    /// Makes a join token, at the first node that issues certificates. For operators.
    pub async fn create_token(&self, request: &TokenRequest) -> Result<JoinToken, Status> {
        let text: String = self.administer(CREATE_TOKEN, request, Repeat::WhenSurelyNotMade).await?;
        text.parse().map_err(|e: octopii_transport::TokenError| Status::new(Code::DataLoss, e.to_string()))
    }

    /// The tokens of the first node that issues certificates.
    pub async fn tokens(&self) -> Result<Vec<TokenSummary>, Status> {
        self.administer(LIST_TOKENS, &(), Repeat::Always).await
    }

    /// Withdraws a token by its short name; whether there was one. For operators.
    pub async fn revoke_token(&self, id: &str) -> Result<bool, Status> {
        self.administer(REVOKE_TOKEN, &id, Repeat::Harmless).await
    }

    /// Revokes a node or a certificate: in force and durable at the node that answers when this returns, and everywhere within
    /// moments. For operators; members may pass on what is signed already.
    ///
    /// [`Code::Unavailable`] means surely not revoked by this call; [`Code::Unknown`] and [`Code::DeadlineExceeded`] that it may
    /// have been: calling again does no harm.
    pub async fn revoke(&self, request: &RevokeRequest) -> Result<(), Status> {
        self.administer(REVOKE, request, Repeat::Harmless).await
    }

    /// What is revoked, as the first node that answers knows it.
    pub async fn revoked(&self) -> Result<Vec<RevokedSummary>, Status> {
        self.administer(LIST_REVOKED, &(), Repeat::Always).await
    }

    /// What the first node that issues certificates has issued: all of it, or what one node has.
    pub async fn issued(&self, node: Option<NodeId>) -> Result<IssuedList, Status> {
        self.administer(LIST_ISSUED, &node, Repeat::Always).await
    }

    /// Has one node replace its key and certificate, asking `issuer` for it (itself, if `None`). Gives what that node, which need
    /// not be a member, says is the new certificate's hash.
    pub async fn rotate_identity_of(
        &self,
        node: impl Into<Address>,
        issuer: Option<Address>,
    ) -> Result<String, Status> {
        self.rpc.call(node, ROTATE, &issuer, self.timeout).await
    }

    /// The RPC client, for methods of the application's own.
    pub fn rpc(&self) -> &RpcClient {
        &self.rpc
    }

    /// The nodes this client asks, in order.
    pub fn nodes(&self) -> &[Address] {
        &self.nodes
    }

    /// Tells the nodes that this client is gone. Idempotent.
    pub async fn close(&self) {
        self.endpoint.close(Duration::from_millis(200)).await;
    }

    async fn administer<Req, Resp>(&self, method: &str, request: &Req, repeat: Repeat) -> Result<Resp, Status>
    where
        Req: serde::Serialize,
        Resp: serde::de::DeserializeOwned,
    {
        let body = self.ask(method, Bincode::encode(request)?.into(), repeat).await?;
        Bincode::decode(&body).map_err(|e| Status::new(Code::DataLoss, e.to_string()))
    }

    async fn change(&self, command: &KvCommand) -> Result<Option<Vec<u8>>, Status> {
        match KvResponse::decode(&self.propose(command.encode()).await?) {
            Ok(KvResponse::Previous(value)) => Ok(value),
            _ => Err(not_key_value()),
        }
    }

    /// Asks this node alone.
    async fn ask_one(&self, node: &Address, method: &str, body: Bytes) -> Result<Bytes, Status> {
        let executor = self.endpoint.executor();
        let end = executor.deadline(self.timeout);
        let connecting = executor.timeout(self.timeout, member_at(&self.endpoint, node));
        let connection = connecting.await.unwrap_or_else(|| Err(no_answer(node)))?;
        self.rpc.call_on(&connection, method, body, end.saturating_duration_since(executor.now())).await
    }

    /// Asks one node after the other.
    async fn ask(&self, method: &str, body: Bytes, repeat: Repeat) -> Result<Bytes, Status> {
        let executor = self.endpoint.executor();
        let end = executor.deadline(self.timeout);
        let mut last = Status::new(Code::InvalidArgument, "no node was given to ask");
        let mut open = None;
        for (i, node) in self.nodes.iter().enumerate() {
            let left = end.saturating_duration_since(executor.now());
            // The first nodes must leave time for the others, unless they are known to have taken the request.
            let turns = u32::try_from(self.nodes.len() - i).unwrap_or(u32::MAX);
            let connected = executor.timeout(left / turns, member_at(&self.endpoint, node)).await;
            let connection = match connected {
                Some(Ok(connection)) => connection,
                Some(Err(status)) => {
                    last = status;
                    continue;
                }
                None => {
                    last = no_answer(node);
                    continue;
                }
            };
            let left = end.saturating_duration_since(executor.now());
            let limit = if repeat == Repeat::WhenSurelyNotMade { left } else { left / turns };
            match self.rpc.call_on(&connection, method, body.clone(), limit).await {
                Err(status) if status.code == Code::Unavailable => last = status,
                Err(status) if status.code.is_outcome_unknown() => match repeat {
                    Repeat::Always => last = Status::new(Code::Unavailable, status.message),
                    // Whatever the others refuse, this node may have done it.
                    Repeat::Harmless => open = open.or(Some(status)),
                    Repeat::WhenSurelyNotMade => return Err(status),
                },
                Err(status) => return Err(open.unwrap_or(status)),
                Ok(answer) => return Ok(answer),
            }
        }
        Err(open.unwrap_or(last))
    }
}

/// When a request that one node did not answer may go to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// It changes nothing: no answer is as good as a refusal.
    Always,
    /// A change that may be made twice, but of which it is told if it may have been made.
    Harmless,
    WhenSurelyNotMade,
}

/// An address to bind for who only dials these: any free port, on loopback if all of them are there.
pub fn bind_for<A: Clone + Into<Address>>(addresses: &[A]) -> SocketAddr {
    let addresses: Vec<Address> = addresses.iter().cloned().map(Into::into).collect();
    let every = |is: fn(SocketAddr) -> bool| addresses.iter().all(|a| a.ip().is_some_and(is));
    let ip: IpAddr = if every(|a| a.is_ipv4() && a.ip().is_loopback()) {
        Ipv4Addr::LOCALHOST.into()
    } else if every(|a| a.is_ipv6() && a.ip().is_loopback()) {
        Ipv6Addr::LOCALHOST.into()
    } else if every(|a| a.is_ipv4()) || !has_ipv6() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        // Reaches both families; which of them a name has is known when it is dialled.
        Ipv6Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(ip, 0)
}

/// Whether this machine knows IPv6 at all.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

fn no_answer(node: &Address) -> Status {
    Status::new(Code::Unavailable, format!("no answer from {node}: is a node running there?"))
}

fn not_key_value() -> Status {
    Status::new(
        Code::FailedPrecondition,
        "this cluster replicates a machine of its own, not the key-value machine",
    )
}
