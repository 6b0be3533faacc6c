//! Errors, one type per operation.

use std::io;
use std::net::SocketAddr;

use crate::{Address, NodeId, PeerRole, StreamKind};

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address is taken by another socket.
    #[error(
        "{0} is already in use: stop the process that holds it, or bind another port (port 0 picks a free one)"
    )]
    AddressInUse(SocketAddr),
    /// The socket could not be opened or bound.
    #[error("cannot bind {addr}: {source}")]
    Socket {
        /// The address asked for.
        addr: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The revocations that were kept are damaged.
    #[error("the revocations kept for this node are damaged: restore them, or remove them and revoke again")]
    Revocations,
    /// The identity does not make a valid TLS configuration.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Why an identity or a cluster authority could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A PEM file does not hold what it should.
    #[error("{what} is not valid PEM of the expected kind: restore the file or issue a new identity")]
    Pem {
        /// Which part.
        what: &'static str,
    },
    /// A certificate does not name a node of a cluster as Octopii's certificates do.
    #[error("the certificate names no Octopii node: it must come from the cluster's own authority")]
    NotANode,
    /// Not the hash of a certificate.
    #[error("a certificate's hash has 64 hexadecimal digits, in lower case")]
    NotAHash,
    /// Not a role.
    #[error("a role is \"member\", \"operator\" or \"client\"")]
    UnknownRole,
    /// A pattern for names that cannot be used.
    #[error("the name pattern {pattern:?} cannot be used: {reason}, such as node-{{id}}.prod.example.com")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// An identity is to take the place of another node's.
    #[error("this identity is node {found}'s, or of another cluster: node {expected} keeps its id for life")]
    AnotherNode {
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// The new identity has another role.
    #[error(
        "this certificate is {found}'s, and the node is {expected}: a role changes with a new identity only"
    )]
    AnotherRole {
        /// The role on the certificate.
        found: PeerRole,
        /// The node's.
        expected: PeerRole,
    },
    /// A certificate, or an authority that came with it, that no authority of this node's has signed.
    #[error(
        "the certificate, or an authority beside it, is not vouched for by an authority that this node trusts: someone else \
         than the issuing node may have answered, or a step of a change of authorities was left out"
    )]
    NotVouchedFor,
    /// A certificate was asked for without a proof that the one who asks has the key.
    #[error("the request does not prove that the node that makes it has the key to be certified")]
    NotProven,
    /// An identity was given where an authority is needed.
    #[error("this is a node's identity, not an authority: give the file that `octopii cluster init` wrote")]
    NotAnAuthority,
    /// Key generation or signing failed.
    #[error("cannot make a certificate: {0}")]
    Signing(String),
    /// Key and certificate do not fit, or the TLS library refuses them.
    #[error("the identity is unusable: {0}")]
    Unusable(String),
}

/// Why a revocation is not in force, or not for good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RevokeError {
    /// No authority that this endpoint trusts has signed it.
    #[error("the revocation is not signed by this cluster's authority")]
    NotSigned,
    /// The authority's key cannot sign.
    #[error("the revocation cannot be signed: {0}")]
    Signing(IdentityError),
    /// There is no room for another one.
    #[error(
        "the list of revocations is full: change the cluster's authority (`octopii cluster succeed`), which ends all old \
         certificates and frees the places of those that were revoked singly"
    )]
    Full,
    /// It is in force, but a restart would forget it.
    #[error(
        "the revocation is in force, but could not be kept, so a restart would forget it: {0}; mend that and revoke again"
    )]
    NotKept(String),
    /// The endpoint's runtime is gone.
    #[error("this endpoint has been closed")]
    EndpointClosed,
}

/// Why a join token could not be made or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It does not begin as tokens do.
    #[error("this is not a join token: `octopii token create` prints one, beginning with octopii-join-")]
    NotAToken,
    /// Its checksum does not hold.
    #[error("the join token is damaged: a part of it may have been lost in copying")]
    Damaged,
    /// Whole, but not understood.
    #[error("the join token is of another release: make it with the same Octopii release")]
    Version,
    /// No address, or too many.
    #[error("a join token names one to {} addresses", crate::JoinToken::MAX_ADDRESSES)]
    Addresses,
    /// An address that cannot be dialled.
    #[error("{0:?} is not an address such as 10.0.0.1:4701 or node1.example.com:4701")]
    Address(String),
}

/// Why a node did not get its certificate.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// Nobody answers. The token has not been spent.
    #[error("no answer from {0}: does the issuing node run there, and does a firewall let UDP through?")]
    Unreachable(String),
    /// The node there issues no certificates, or has no room at this moment.
    #[error(
        "{0} lets nobody join: it must run with the authority's key (--authority), or is overloaded; try again"
    )]
    Closed(String),
    /// Whoever answers is not a member under the authority that the token pins. Nothing was disclosed.
    #[error(
        "{0} is not a node of the token's cluster: someone else answers there, or the token is of another cluster"
    )]
    NotTrusted(String),
    /// Turned away.
    #[error(transparent)]
    Refused(crate::JoinRefusal),
    /// The connection was lost on the way. The token may have been spent, and is then still good for the same key.
    #[error(
        "the connection to {address} was lost ({reason}): join again in the same way, with the same token"
    )]
    Lost {
        /// Who was asked.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The certificate is not what the token promised, or not from the authority that it pins. The token may have been spent.
    #[error(
        "what was issued is not what the token promises, in the name of the authority that it pins: a member that is not the \
         issuing node may answer at its address; tell who looks after the cluster"
    )]
    Misissued,
    /// The key cannot be used.
    #[error(transparent)]
    Identity(IdentityError),
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
}

/// Why there is no connection to a peer. All of them may be tried again later, except where the message says otherwise.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No answer in time.
    #[error("no answer from {0}: is a node running there, and does a firewall let UDP through?")]
    Unreachable(SocketAddr),
    /// The peer, or this node, rejected the other's certificate. Trying again will not help.
    #[error("{addr} is not a member of this cluster (or does not accept this node's certificate): {reason}")]
    NotTrusted {
        /// The address dialled.
        addr: SocketAddr,
        /// What TLS said.
        reason: String,
    },
    /// The peer speaks another wire version. Trying again will not help.
    #[error("{0} speaks another wire version: run the same Octopii release on both sides")]
    WireVersion(SocketAddr),
    /// The name has no address.
    #[error("{host} cannot be found: {reason}")]
    UnknownHost {
        /// The name and port.
        host: String,
        /// Why not.
        reason: String,
    },
    /// The address cannot be dialled at all (port 0, an unsupported address family).
    #[error("{addr} cannot be dialled: {reason}")]
    InvalidAddress {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// The peer, or this node, ended the connection while it was being made.
    #[error("{addr} ended the connection: {reason}")]
    Refused {
        /// The address dialled.
        addr: SocketAddr,
        /// What it said.
        reason: String,
    },
    /// Someone else than expected answers there.
    #[error("{addr} is node {found}, not node {expected}: correct the address or the id")]
    WrongNode {
        /// The address dialled.
        addr: Address,
        /// The id asked for.
        expected: NodeId,
        /// The id on the peer's certificate.
        found: NodeId,
    },
    /// This node dials as many others as it may at once. Nothing was sent.
    #[error("cannot dial {addr}: {limit} dials are under way here; try again when some of them have ended")]
    TooManyDials {
        /// The address asked for.
        addr: SocketAddr,
        /// Dials that may be under way.
        limit: usize,
    },
    /// This endpoint has been closed.
    #[error("this endpoint has been closed")]
    EndpointClosed,
}

/// Why a stream failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The connection is gone; open a new one and try again.
    #[error("the connection was lost: {0}")]
    ConnectionLost(String),
    /// The peer gave the stream up with this code.
    #[error("the peer reset the stream (code {0})")]
    Reset(u32),
    /// The peer no longer reads, with this code.
    #[error("the peer stopped reading the stream (code {0})")]
    Stopped(u32),
    /// A frame is longer than this side takes.
    #[error("a frame of {len} bytes exceeds the limit of {limit}")]
    FrameTooLarge {
        /// Announced length in bytes.
        len: u64,
        /// The limit in bytes.
        limit: usize,
    },
    /// The stream ended in the middle of something.
    #[error("the stream ended in the middle of a frame")]
    UnexpectedEnd,
    /// The stream was already finished or reset on this side.
    #[error("the stream is already finished on this side")]
    Finished,
}

/// The acceptor of a stream kind can be taken once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the acceptor for {0:?} streams has already been taken")]
pub struct AcceptorTaken(pub StreamKind);
