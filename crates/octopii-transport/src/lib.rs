//! The network layer of Octopii: one QUIC endpoint, mutual TLS from the first packet, streams that carry their kind.
//!
//! - [`Endpoint`] binds one UDP port, accepts and dials connections, and keeps one live connection per peer address.
//! - [`Identity`] and [`ClusterAuthority`] are who a node is: both sides of every connection verify a certificate of the
//!   cluster's own authority, and a peer's node id comes from its certificate, never from its address. There is no
//!   mode without verification.
//! - [`join()`] turns a [`JoinToken`] into an identity; a node with an [`Admission`] lets joiners in, by a door of their own.
//! - [`StreamKind`] begins every stream, so messages, RPC, transfers and Raft share a connection and each reaches its
//!   own [`Acceptor`].
//! - [`Executor`] is where every task runs.
//!
//! What is *not* here: any request format, any retry policy above a dial, any file. quinn and rustls are named in this
//! crate only and none of their types appear in its API.
//!
//! Everything a peer can make us hold is bounded: see [`Limits`].

mod accept;
mod activity;
mod address;
mod connection;
mod credentials;
mod endpoint;
mod error;
mod executor;
mod identity;
mod join;
mod members;
mod names;
mod options;
mod places;
mod pool;
mod profile;
mod revocation;
mod socket;
mod stats;
mod stream;
mod tls;

pub use accept::{Acceptor, Incoming};
pub use address::{Address, NotAnAddress};
pub use connection::{Connection, ConnectionStats};
pub use endpoint::Endpoint;
pub use error::{
    AcceptorTaken, BindError, ConnectError, IdentityError, JoinError, RevokeError, StreamError, TokenError,
};
pub use executor::Executor;
pub use identity::{
    CertificateHash, Certified, ClusterAuthority, ClusterId, Identity, NameRules, NodeId, NodeKey,
    PeerIdentity, PeerRole,
};
pub use join::{Admission, Applicant, JoinRefusal, JoinToken, TokenVerifier, join};
pub use names::Resolve;
pub use options::{EndpointOptions, Limits};
pub use profile::{Congestion, Profile};
pub use revocation::{KeepRevocations, Revocation, Revoked};
pub use socket::DatagramSocket;
pub use stats::{Health, PeerStats};
pub use stream::{RecvStream, SendStream, StreamKind};
