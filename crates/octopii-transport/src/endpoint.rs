//! The endpoint: one UDP port, every connection through it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::{AckFrequencyConfig, MtuDiscoveryConfig, TransportConfig};
use quinn_proto::HashedConnectionIdGenerator;

use crate::accept::{Dispatch, accept_connections};
use crate::credentials::Credentials;
use crate::identity::public_key_of;
use crate::join::Door;
use crate::members::Members;
use crate::names::{self, Names};
use crate::pool::Pool;
use crate::revocation::{self, Authorities, RevocationList};
use crate::socket::{self, Adapted, canonical};
use crate::{
    Acceptor, AcceptorTaken, Address, BindError, ClusterAuthority, ClusterId, Congestion, ConnectError,
    Connection, EndpointOptions, Executor, Identity, IdentityError, KeepRevocations, Limits, NodeId,
    PeerStats, Revocation, RevokeError, StreamKind, stats, tls,
};

/// A bound UDP port with an identity: accepts peers, dials peers, keeps connections.
///
/// Cloning gives another handle to the same endpoint. When the last handle is dropped the endpoint closes without
/// waiting; [`Endpoint::close`] lets peers know first. The port is free again once the handles, connections and streams
/// are dropped.
#[derive(Debug, Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
    // Counts handles: background tasks hold `shared`, only users hold this.
    _open: Arc<CloseOnDrop>,
}

/// What the endpoint's own tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) executor: Executor,
    pub(crate) quic: quinn::Endpoint,
    pub(crate) node_id: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) limits: Limits,
    pub(crate) connect_timeout: Duration,
    pub(crate) door: Option<Door>,
    /// Tells this life of the node from the next; never 0.
    pub(crate) instance: u64,
    pub(crate) close_unused: Option<Duration>,
    pub(crate) members: Members,
    pub(crate) keep_revocations: Option<Arc<dyn KeepRevocations>>,
    /// The generation of the revocations that are kept, if any has been.
    pub(crate) kept: tokio::sync::Mutex<Option<u64>>,
    credentials: Mutex<Arc<Credentials>>,
    options: EndpointOptions,
    mtu: u16,
    pub(crate) dispatch: Dispatch,
    pub(crate) pool: Pool,
    pub(crate) names: Arc<Names>,
}

/// What becomes of revocations when authorities change.
const ENDED: &str =
    "that only an authority has signed which is trusted no longer: they are not in force any more";

#[derive(Debug)]
struct CloseOnDrop(quinn::Endpoint);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        close(&self.0);
    }
}

fn close(quic: &quinn::Endpoint) {
    quic.close(0u32.into(), b"the node stopped");
}

impl Endpoint {
    /// Binds the port and begins to accept. Works from any thread; every task runs on `executor`.
    pub fn bind(
        executor: &Executor,
        identity: &Identity,
        options: EndpointOptions,
    ) -> Result<Self, BindError> {
        let (mtu, bind_addr) = (options.largest_payload(), options.bind);
        let socket = match &options.socket {
            Some(simulated) => Arc::new(Adapted(Arc::clone(simulated))),
            None => socket::bind(options.bind, mtu, options.profile().socket_buffer(), executor)?,
        };
        let (credentials, server) = Credentials::new(identity, &options, mtu)?;
        let mut revoked = RevocationList::new(Authorities::of(identity));
        let kept = revoked.unknown(&options.revocations).map_err(|_| BindError::Revocations)?;
        let (kept, unsigned) = revoked.authorities().verify(kept, usize::MAX);
        if unsigned > 0 {
            tracing::warn!("{unsigned} revocations were kept {ENDED}");
        }
        revoked.add(kept);
        let as_kept = (unsigned == 0).then_some(revoked.generation());
        let secret =
            options.reset_secret.map_or_else(|| identity.key_bytes().to_vec(), |secret| secret.to_vec());
        let mut config = quinn::EndpointConfig::new(tls::reset_key(&secret));
        let cid_key = tls::connection_id_key(&secret);
        config
            .max_udp_payload_size(mtu)
            .expect("both sizes are legal")
            .rng_seed(options.rng_seed)
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(cid_key)));

        let entered = executor.handle().enter();
        let quic = quinn::Endpoint::new_with_abstract_socket(
            config,
            Some(server),
            socket,
            Arc::new(executor.clone()),
        )
        .map_err(|source| BindError::Socket { addr: bind_addr, source })?;
        drop(entered);

        let shared = Arc::new(Shared {
            executor: executor.clone(),
            quic: quic.clone(),
            node_id: identity.node_id(),
            cluster: identity.cluster(),
            dispatch: Dispatch::new(options.limits.accept_queue),
            door: options.admission.clone().map(|admission| Door::new(admission, &options.limits)),
            instance: rand::random_range(1..=u64::MAX),
            close_unused: options.close_unused,
            members: Members::new(revoked, options.limits.connections_per_peer),
            keep_revocations: options.keep_revocations.clone(),
            kept: tokio::sync::Mutex::new(as_kept),
            limits: options.limits.clone(),
            connect_timeout: options.connect_timeout,
            credentials: Mutex::new(Arc::new(credentials)),
            names: Names::new(options.resolver.clone()),
            options,
            mtu,
            pool: Pool::default(),
        });
        executor.spawn(accept_connections(Arc::clone(&shared)));
        Ok(Self { shared, _open: Arc::new(CloseOnDrop(quic)) })
    }

    /// A live, verified connection to whoever listens at `addr`: an existing one, or a new dial, however many callers
    /// ask at once. After a failure the next dial waits for a short, jittered backoff. Cancel-safe.
    ///
    /// A host name gives an existing connection to where it was found last, or its addresses as they are now: looked up for each
    /// new connection, both families in turn, the next one tried when the one before has not answered for 250 ms. A name that
    /// cannot be found is looked up again after the same backoff, and for at most
    /// [`connect_timeout`](EndpointOptions::connect_timeout).
    pub async fn connect(&self, address: impl Into<Address>) -> Result<Connection, ConnectError> {
        let address = address.into();
        let Some(addr) = address.ip().map(canonical) else { return self.connect_host(address, None).await };
        if let Some(connection) = self.shared.pool.live(addr) {
            return Ok(connection);
        }
        let shared = Arc::clone(&self.shared);
        let connect = async move { Pool::connect(&shared, addr).await };
        self.shared.executor.run(connect).await.unwrap_or(Err(ConnectError::EndpointClosed))
    }

    /// The connection that [`connect`](Self::connect) would give, without asking whether it is still open: for who would notice that
    /// otherwise, and calls so often that asking costs.
    pub fn connected(&self, address: &Address) -> Option<Connection> {
        let addr = match address.host() {
            Some(host) => self.shared.names.last(host)?,
            None => canonical(address.ip()?),
        };
        self.shared.pool.used(addr)
    }

    async fn connect_host(&self, address: Address, node: Option<NodeId>) -> Result<Connection, ConnectError> {
        if let Some(connection) = address.host().and_then(|host| names::live(&self.shared, host, node)) {
            return Ok(connection);
        }
        let shared = Arc::clone(&self.shared);
        let connect = async move { names::connect(&shared, address.host().unwrap_or_default(), node).await };
        self.shared.executor.run(connect).await.unwrap_or(Err(ConnectError::EndpointClosed))
    }

    /// As [`connect`](Self::connect), and makes sure that it is this node that answers: of a host name's addresses, the one at
    /// which it does.
    pub async fn connect_to(
        &self,
        node: NodeId,
        address: impl Into<Address>,
    ) -> Result<Connection, ConnectError> {
        let address = address.into();
        if address.host().is_some() {
            return self.connect_host(address, Some(node)).await;
        }
        let connection = self.connect(&address).await?;
        let found = connection.peer().node_id;
        if found == node {
            Ok(connection)
        } else {
            Err(ConnectError::WrongNode { addr: address, expected: node, found })
        }
    }

    /// Takes the acceptor of a stream kind: once per kind. Streams of a kind that nobody accepts are refused.
    pub fn acceptor(&self, kind: StreamKind) -> Result<Acceptor, AcceptorTaken> {
        self.shared.dispatch.take(kind)
    }

    /// The bound address, with the port that was picked if 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.quic.local_addr().expect("a bound socket has an address")
    }

    /// This node's id, from its certificate.
    pub fn node_id(&self) -> NodeId {
        self.shared.node_id
    }

    /// This node's cluster, from its certificate.
    pub fn cluster(&self) -> ClusterId {
        self.shared.cluster
    }

    /// Replaces certificate, key and trusted authorities. Connections made from now on use the new ones; live ones go on
    /// undisturbed. The new identity must be the same node's of the same cluster. Revocations that only an authority has signed
    /// which is trusted no longer end with it.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), IdentityError> {
        let shared = &self.shared;
        if (identity.node_id(), identity.cluster()) != (shared.node_id, shared.cluster) {
            return Err(IdentityError::AnotherNode { found: identity.node_id(), expected: shared.node_id });
        }
        let (credentials, server) = Credentials::new(identity, &shared.options, shared.mtu)?;
        // One replacement after the other: both halves stay of the same identity.
        let mut current = shared.credentials.lock().expect("no panic while held");
        *current = Arc::new(credentials);
        shared.quic.set_server_config(Some(server));
        let ended = shared.members.trust(Authorities::of(identity));
        if ended > 0 {
            tracing::warn!("{ended} revocations were in force {ENDED}");
            let shared = Arc::clone(shared);
            // A failure has been logged, and does no harm: they would be passed over.
            shared.executor.clone().spawn(async move { revocation::keep(&shared).await });
        }
        Ok(())
    }

    /// The identity that new connections use.
    pub fn identity(&self) -> Identity {
        self.shared.credentials().identity.clone()
    }

    /// Puts a revocation in force: what it covers loses its connections here at once, is refused from now on, and every peer is
    /// told, which does the same. When this returns it is in force and kept (where the endpoint has a keeper), whoever has told it
    /// first; after an error call it again. Dropping the future does not take it back.
    pub async fn revoke(&self, revocation: &Revocation) -> Result<(), RevokeError> {
        self.put_in_force(vec![revocation.clone()]).await
    }

    /// Has this authority say itself, at `now` (seconds since 1970), what other authorities alone have said of nodes: their word
    /// ends with them, and a node's id is never good again. Revocations of single certificates may end with the authority that
    /// has issued these. In force and kept when this returns. Does nothing if this endpoint does not trust the authority.
    pub async fn sign_again(&self, authority: &ClusterAuthority, now: u64) -> Result<(), RevokeError> {
        let own = public_key_of(&authority.roots()[0]).map_err(RevokeError::Signing)?;
        let members = &self.shared.members;
        if !members.authorities().trust(&own) {
            return Ok(());
        }
        let again = members.unsaid(&own).into_iter().map(|what| authority.revoke(what, now));
        let again = again.collect::<Result<Vec<_>, _>>().map_err(RevokeError::Signing)?;
        if again.is_empty() { Ok(()) } else { self.put_in_force(again).await }
    }

    async fn put_in_force(&self, revocations: Vec<Revocation>) -> Result<(), RevokeError> {
        let shared = Arc::clone(&self.shared);
        let revoking = async move {
            let (signed, unsigned) = shared.members.authorities().verify(revocations, 0);
            if unsigned > 0 {
                return Err(RevokeError::NotSigned);
            }
            revocation::apply(&shared, signed, None).await
        };
        // A task of its own: half a revocation would be none after a restart.
        match self.shared.executor.spawn(revoking).await {
            Ok(outcome) => outcome,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(RevokeError::EndpointClosed),
        }
    }

    /// Every revocation in force here.
    pub fn revocations(&self) -> Vec<Revocation> {
        self.shared.members.revoked()
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Where this endpoint's tasks run.
    pub fn executor(&self) -> &Executor {
        &self.shared.executor
    }

    /// Connections open now, in both directions.
    pub fn open_connections(&self) -> usize {
        self.shared.quic.open_connections()
    }

    /// Every open connection, and how it does.
    pub fn connections(&self) -> Vec<PeerStats> {
        let now = self.shared.executor.now();
        let live = self.shared.members.live();
        live.iter()
            .map(|connection| stats::describe(connection, now, self.shared.options.keep_alive))
            .collect()
    }

    /// Closes every connection without waiting, as dropping the last handle does, though there may be others: in handlers, for
    /// instance, which live as long as the connections on which they are called. Idempotent.
    pub fn close_now(&self) {
        close(&self.shared.quic);
    }

    /// Closes every connection, and waits at most `deadline` until peers have been told. Idempotent.
    pub async fn close(&self, deadline: Duration) {
        self.close_now();
        let quic = self.shared.quic.clone();
        let wait = async move {
            // Running out of time only means that a peer learns of it by its own idle timeout.
            let _ = tokio::time::timeout(deadline, quic.wait_idle()).await;
        };
        // `None`: the runtime is gone, and the endpoint with it.
        self.shared.executor.run(wait).await.unwrap_or(());
    }
}

impl Shared {
    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.lock().expect("no panic while held"))
    }
}

/// What a new connection may send before its first acknowledgement, in datagrams of the largest size (RFC 9002, section 7.2).
const INITIAL_WINDOW_DATAGRAMS: u64 = 10;

pub(crate) fn transport_config(options: &EndpointOptions, mtu: u16) -> TransportConfig {
    let limits = &options.limits;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    let mut acks = AckFrequencyConfig::default();
    // Fewer acknowledgements for bulk data; the delay of a lone one stays bounded by the peer's own timer.
    acks.ack_eliciting_threshold(10u32.into());
    // A discovery probe of the largest size must not fill the window by itself: until it is acknowledged nothing else would
    // be sent, not even that the connection is closed.
    let first = INITIAL_WINDOW_DATAGRAMS * u64::from(mtu);
    let congestion: Arc<dyn ControllerFactory + Send + Sync> = match options.congestion {
        Congestion::Cubic => Arc::new(std::mem::take(CubicConfig::default().initial_window(first))),
        Congestion::NewReno => Arc::new(std::mem::take(NewRenoConfig::default().initial_window(first))),
        Congestion::Bbr => Arc::new(std::mem::take(BbrConfig::default().initial_window(first))),
    };
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(limits.streams_per_connection.into())
        // The one on which the other side says welcome or hello.
        .max_concurrent_uni_streams(1u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(limits.stream_window.into())
        .receive_window(limits.connection_window.into())
        .send_window(limits.send_window)
        .send_fairness(false)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(congestion)
        .initial_rtt(options.profile().initial_rtt())
        .keep_alive_interval(Some(options.keep_alive))
        .max_idle_timeout(Some(
            options.idle_timeout.try_into().unwrap_or(quinn::IdleTimeout::from(quinn::VarInt::MAX)),
        ));
    config
}
