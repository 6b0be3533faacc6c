//! What an endpoint can be told, and its limits.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::{Admission, Congestion, DatagramSocket, KeepRevocations, Profile, Resolve};

/// Options of [`Endpoint::bind`](crate::Endpoint::bind).
#[derive(Clone)]
pub struct EndpointOptions {
    /// The UDP address to bind. Default `127.0.0.1:0`: loopback, any free port.
    pub bind: SocketAddr,
    /// A socket to use instead of binding one; `bind` is then ignored. For simulated networks.
    pub socket: Option<Arc<dyn DatagramSocket>>,
    /// Finds the addresses of host names. Default: the system's way (`/etc/hosts`, DNS).
    pub resolver: Option<Arc<dyn Resolve>>,
    /// The kind of network, see [`Profile::options`]. Default: [`Profile::Loopback`] on a loopback address, else
    /// [`Profile::Lan`].
    pub profile: Option<Profile>,
    /// The largest UDP payload that is looked for, from 1,200 to 65,000 bytes; larger ones need a network whose frames take them
    /// (8,952 for jumbo frames of 9,000), and both sides. What gets through is found out, so too large a value does no harm. Default: the
    /// profile's, 1,452 or on loopback 6,500.
    pub mtu: Option<u16>,
    /// How fast data is sent when packets are lost. Default [`Congestion::Cubic`].
    pub congestion: Congestion,
    /// Seeds connection ids and other protocol randomness, for reproducible simulations. Default: the system's.
    pub rng_seed: Option<[u8; 32]>,
    /// Lets this endpoint disown the connections of its former lives: the same for each of them, and known to nobody else. Default:
    /// derived from the identity's key, which serves as long as the identity is not replaced.
    pub reset_secret: Option<[u8; 32]>,
    /// Decides who gets a certificate for a join token. Default: none, and joiners are refused. For the node that holds the
    /// authority's key.
    pub admission: Option<Arc<dyn Admission>>,
    /// The revocations that were kept before: what [`KeepRevocations::keep`] was last given. Default: none.
    pub revocations: Vec<u8>,
    /// Keeps revocations that the endpoint learns of. Default: nobody, and a restart forgets them until a peer tells again.
    pub keep_revocations: Option<Arc<dyn KeepRevocations>>,
    /// Bounds on what peers may make this endpoint hold.
    pub limits: Limits,
    /// How long to wait for an answer to a dial. Default 5 s.
    pub connect_timeout: Duration,
    /// A silent connection is pinged this often. Default 2 s.
    pub keep_alive: Duration,
    /// A connection that stays silent for this long is lost. Default 10 s; both sides' lower value counts.
    pub idle_timeout: Duration,
    /// A connection on which no stream has been open for this long is closed, and made again when it is needed. Default: none,
    /// connections stay, which costs a ping now and then.
    pub close_unused: Option<Duration>,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            socket: None,
            resolver: None,
            profile: None,
            mtu: None,
            congestion: Congestion::default(),
            rng_seed: None,
            reset_secret: None,
            admission: None,
            revocations: Vec::new(),
            keep_revocations: None,
            limits: Limits::default(),
            connect_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            close_unused: None,
        }
    }
}

// Secrets stay out of logs.
impl fmt::Debug for EndpointOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointOptions")
            .field("bind", &self.bind)
            .field("profile", &self.profile())
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl EndpointOptions {
    pub(crate) fn profile(&self) -> Profile {
        let on_loopback = self.socket.is_none() && self.bind.ip().is_loopback();
        self.profile.unwrap_or(if on_loopback { Profile::Loopback } else { Profile::Lan })
    }

    pub(crate) fn largest_payload(&self) -> u16 {
        self.mtu.unwrap_or(self.profile().mtu()).clamp(1_200, 65_000)
    }
}

/// Bounds on what peers may make an endpoint hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Handshakes of unverified peers under way at once. From a quarter of it on, an address must be proven by a retry
    /// packet first; from half of it on, an address (of IPv6, a network of 64 bits) that has a quarter gets no more; beyond it,
    /// attempts are refused. Default 256.
    pub handshakes: usize,
    /// A handshake must finish within this. Default 5 s.
    pub handshake_timeout: Duration,
    /// Bytes buffered for one connection attempt before its handshake begins. Default 16 KiB.
    pub incoming_buffer: u64,
    /// Bytes buffered for all such attempts together. Default 4 MiB.
    pub incoming_buffer_total: u64,
    /// Joiners (see [`Admission`]) served at once; each has [`handshake_timeout`](Self::handshake_timeout) for everything and
    /// 1 KiB of unread data, and must prove its address first. From half of it on, one address has at most a quarter, as for
    /// handshakes. They take no place of the members' handshakes. Default 16.
    pub joins: usize,
    /// Verified connections at once. Default 4,096.
    pub connections: usize,
    /// Verified connections at once with the same node id. Default 64: many programs may share one client's identity. What one
    /// peer can make this endpoint hold is this many times what one connection can.
    pub connections_per_peer: usize,
    /// Streams a peer may have open on one connection. Default 1,024.
    pub streams_per_connection: u32,
    /// A new stream must tell its kind within this, and be taken by its acceptor within this. Default 5 s.
    pub stream_header_timeout: Duration,
    /// Streams waiting for their acceptor, per kind. Default 1,024.
    pub accept_queue: usize,
    /// Unread bytes one stream may hold here, and so what a stream may have under way to here, at the most. Default 768 KiB, which fill
    /// 6 Gbit/s at a round trip of 1 ms: more of it makes what shares the connection with a large transfer wait longer.
    pub stream_window: u32,
    /// Unread bytes one connection may hold here. Default 64 MiB: eighty stalled bulk streams cannot stall the rest.
    pub connection_window: u32,
    /// Unacknowledged bytes one connection may hold on the sending side. Default 8 MiB.
    pub send_window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 256,
            handshake_timeout: Duration::from_secs(5),
            incoming_buffer: 16 << 10,
            incoming_buffer_total: 4 << 20,
            joins: 16,
            connections: 4096,
            connections_per_peer: 64,
            streams_per_connection: 1024,
            stream_header_timeout: Duration::from_secs(5),
            accept_queue: 1024,
            stream_window: 768 << 10,
            connection_window: 64 << 20,
            send_window: 8 << 20,
        }
    }
}
