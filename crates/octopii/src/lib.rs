//! Ship files, answer RPC, keep a log and agree: a toolkit for distributed services over one QUIC port.
//!
//! A node runs everything on threads of its own, verifies every peer's certificate, acknowledges nothing before it is
//! durable, and keeps every queue, wait and buffer bounded.
//!
//! ```
//! use std::time::Duration;
//! use octopii::{ChunkSource, Config, OctopiiNode, OctopiiRuntime};
//!
//! let runtime = OctopiiRuntime::new(4); // 4 worker threads
//! # let home = tempfile::tempdir().unwrap();
//! # let config = |name: &str| Config {
//! #     identity: octopii::IdentitySource::LocalAuthority(home.path().join("authority")),
//! #     ..Config::new(home.path().join(name))
//! # };
//! # let source = home.path().join("bigfile.dat");
//! # std::fs::write(&source, vec![7; 3_000_000]).unwrap();
//! # let wanted = source.clone();
//! runtime.block_on(async {
//!     // Two nodes on loopback, each in its own directory: `Config::new("/var/lib/a")` and so on.
//!     let a = OctopiiNode::start(config("a"), &runtime).await?;
//!     let b = OctopiiNode::start(config("b"), &runtime).await?;
//!
//!     // Ship a file: verified with SHA-256 and durable at the receiver when this returns.
//!     let chunk = ChunkSource::File(source);
//!     let results = a.transfer_chunk_to_peers(chunk, vec![b.local_addr()], Duration::from_secs(60)).await;
//!     assert!(results[0].success && results[0].checksum_verified);
//!
//!     // Send a message; returns when the other application has taken it.
//!     let peer = a.connect(b.local_addr()).await?;
//!     let (sent, received) = tokio::join!(peer.send("hello"), b.recv());
//!     sent?;
//!     assert_eq!(received.1, "hello");
//!
//!     a.shutdown().await;
//!     b.shutdown().await;
//! #   assert_eq!(std::fs::read(b.inbox_dir().join("bigfile.dat"))?, std::fs::read(wanted)?);
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Beside these: [`Router`] and [`Peer::call`] for RPC, [`OctopiiNode::propose`] and [`OctopiiNode::query`] for a
//! replicated [`StateMachine`] (a key-value store unless you bring your own), [`WriteAheadLog`] for a durable log, and
//! [`Client`] for programs that are no members. `examples/` shows each.

mod client;
mod config;
mod data_dir;
mod inbox;
mod issuing;
mod joining;
mod node;
mod peer;
mod revocation;
mod rotation;
mod runtime;
mod service;

pub use client::{Client, bind_for};
pub use config::{Config, ConfigError, ExternalIdentity, IdentitySource, parse_duration};
pub use data_dir::{DataDirError, local_authority, read_authority, read_identity, state_dir};
pub use inbox::INBOX;
pub use issuing::{IssuedBy, IssuedList, IssuedSummary, TokenRequest, TokenState, TokenSummary};
pub use joining::JoinClusterError;
pub use node::{NodeBuilder, OctopiiNode, StartError};
pub use octopii_raft::{
    BootstrapError, KvCommand, KvQuery, KvResponse, KvStore, MembershipError, Missing, PeerProgress,
    ProposeError, QueryError, RaftConfig, Rejected, Role, SnapshotSource, StateMachine,
    Status as ConsensusStatus,
};
pub use octopii_rpc::{
    Advice, Bincode, CallOptions, Client as RpcClient, ClientOptions, Code, Codec, CodecError, Context,
    Encoding, FieldInfo, Json, METHODS, MessengerOptions, Metadata, MetadataError, MethodInfo, Requests,
    ResponseMetadata, ResponseStream, Responses, RetryPolicy, Router, Sender, ServerOptions, Status,
    TraceContext, TypeInfo, Upload, VariantContent, VariantInfo, service,
};
pub use octopii_transfer::{
    AckLevel, ChunkSource, Destination, Digest, Distribution, EntryFailure, EntryFn, EntryOutcome,
    ExistingTree, FailureCode, InboxPolicy, Links, Location, NotDone, Offer, Phase, Progress, ProgressFn,
    ProgressStream, Receipt, ReceivePolicy, ReceivedChunk, ReceivedTree, Refusal, SendOptions, SourceError,
    Topology, Transfer, TransferError, TransferId, TransferOptions, TransferResult, TreeDestination,
    TreeInbox, TreeLimits, TreeOffer, TreeOptions, TreePolicy, TreeProgress, TreeProgressFn, TreeReport,
    UndoneEntry, shown_path,
};
pub use octopii_transport::{
    Address, BindError, CertificateHash, ClusterAuthority, ClusterId, ConnectError, DatagramSocket, Executor,
    Health, Identity, IdentityError, JoinError, JoinRefusal, JoinToken, Limits, NameRules, NodeId,
    NotAnAddress, PeerIdentity, PeerRole, PeerStats, Profile, Resolve, Revocation, RevokeError, Revoked,
    TokenError,
};
pub use octopii_vfs::{RealVfs, Vfs, create_file_durable};
pub use octopii_wal::{Durability, Topic, WriteAheadLog};
pub use peer::Peer;
pub use revocation::{RevokeRequest, RevokedSummary};
pub use rotation::RotateError;
pub use runtime::{OctopiiRuntime, RuntimeOptions};
pub use service::{ECHO, Member, MembershipChange, NodeStatus};

/// The write-ahead log by itself.
pub mod wal {
    pub use octopii_wal::{
        Appending, Batch, Committer, Cursor, Damage, Dumped, DumpedChange, DumpedRecord, Durability, Error,
        Inspection, Laggard, OpenError, Options, Ready, SegmentInfo, Stats, Tail, Ticket, Topic, TopicInfo,
        Verification, WriteAheadLog, dump, inspect, verify,
    };
}
