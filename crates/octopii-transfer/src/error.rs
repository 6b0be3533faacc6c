//! Why a transfer failed.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use octopii_transport::{AcceptorTaken, ConnectError, StreamError};

use crate::{FailureCode, Refusal};

/// Why [`Transfer::start`](crate::Transfer::start) failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The endpoint has a transfer service already.
    #[error("this endpoint already has a transfer service: clone that one instead of starting another")]
    AlreadyStarted(#[from] AcceptorTaken),
}

/// What is wrong with a source.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There is no such file.
    #[error("there is no file {}: check the path", .0.display())]
    NotFound(PathBuf),
    /// A directory cannot be sent as one chunk.
    #[error("{} is a directory: send the files in it, or an archive of it", .0.display())]
    Directory(PathBuf),
    /// Only a directory can be sent as a tree.
    #[error("{} is not a directory: send it as a file", .0.display())]
    NotADirectory(PathBuf),
    /// The directory is not there any more, or another one has its name: what would be told of it is not so.
    #[error("{} was removed or replaced while it was being sent: send it again", .0.display())]
    Replaced(PathBuf),
    /// A device, a pipe or a socket has no length and no end.
    #[error("{} is not a regular file: copy its content to a file first", .0.display())]
    NotAFile(PathBuf),
    /// The operating system does not let us read it.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: Arc<io::Error>,
    },
}

/// Why a transfer failed. Nothing remains under its name at the receiver of a transfer that failed, unless the error says that the
/// outcome is unknown.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The source cannot be sent. Nothing was sent.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source changed while it was being sent: what the receiver got was thrown away.
    #[error("{} changed while it was being sent: send it again when nothing writes to it", .0.display())]
    SourceChanged(PathBuf),
    /// The stream to send could not be read to its end. The receiver keeps nothing of it.
    #[error("the stream to send could not be read: {0}")]
    Stream(Arc<io::Error>),
    /// The options contradict the protocol's limits. Nothing was sent.
    #[error("{0}")]
    InvalidOptions(&'static str),
    /// There is no connection to the peer.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The receiver does not take this chunk. Nothing was sent.
    #[error("{peer} refused the transfer: {refusal}")]
    Refused {
        /// Who refused.
        peer: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// The receiver took the chunk and then gave it up.
    #[error("{peer} gave the transfer up: {refusal}")]
    PeerFailed {
        /// Who gave up.
        peer: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// The receiver's disk is full, or would be.
    #[error("no room for the chunk at the receiver: {0}")]
    StorageFull(String),
    /// The bytes that arrived are not those that were hashed at the source. The receiver keeps none of them.
    #[error("digest mismatch: {0}; send it again, and suspect memory or disk if it happens twice")]
    DigestMismatch(String),
    /// The time for the whole transfer is over.
    #[error("the transfer did not finish within {after:?} ({bytes} bytes were verified): allow more time")]
    Timeout {
        /// The time it was given.
        after: Duration,
        /// Bytes verified by the receiver until then.
        bytes: u64,
    },
    /// Nothing moved for the idle time.
    #[error("nothing moved for {idle:?}: the peer or the path to it is stuck; send it again")]
    Stalled {
        /// The idle time that passed.
        idle: Duration,
    },
    /// The connection was lost in the middle of the transfer. Send it again.
    #[error("the transfer was cut off: {0}; send it again")]
    Lost(#[source] StreamError),
    /// Everything was sent, or may come from other receivers, then the connection was lost, and the receiver cannot be asked what
    /// became of it. It holds either the whole chunk or nothing of it. Ask again with [`Transfer::status`](crate::Transfer::status).
    #[error(
        "everything was sent, but whether {peer} has stored it is unknown: {error}; ask its status later"
    )]
    OutcomeUnknown {
        /// Who holds it, or not.
        peer: SocketAddr,
        /// Why it cannot be asked.
        error: Arc<TransferError>,
    },
    /// The other side does not keep to the protocol.
    #[error("protocol violation by the peer: {0}; run the same Octopii release on both sides")]
    Protocol(&'static str),
    /// The sender gave the transfer up.
    #[error("the sender cancelled the transfer")]
    Cancelled,
    /// Enough others have the chunk: this peer's transfer goes on in the background.
    #[error("the quorum was decided before this peer had everything: it goes on in the background")]
    Unfinished,
    /// The sender has begun to send the same content again; what had arrived is the new transfer's.
    #[error("the sender has begun this transfer again")]
    Superseded,
    /// This node is going away.
    #[error("this node is shutting down")]
    ShuttingDown,
    /// Storing the chunk failed at this receiver. Senders see it as `PeerFailed`.
    #[error("{doing} {} failed: {error}", path.display())]
    Store {
        /// What was being done.
        doing: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the operating system said.
        error: Arc<io::Error>,
    },
    /// This receiver refuses or gives up, for the reason given.
    #[error("{0}")]
    Unacceptable(Refusal),
}

impl TransferError {
    /// Whether the same transfer may succeed later without anyone changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(e) => !matches!(
                e,
                ConnectError::NotTrusted { .. }
                    | ConnectError::WireVersion(_)
                    | ConnectError::InvalidAddress { .. }
            ),
            Self::Refused { refusal, .. } | Self::PeerFailed { refusal, .. } => matches!(
                refusal.code,
                FailureCode::Busy
                    | FailureCode::DigestMismatch
                    | FailureCode::Stalled
                    | FailureCode::ShuttingDown
                    | FailureCode::Cancelled
            ),
            Self::SourceChanged(_)
            | Self::DigestMismatch(_)
            | Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Lost(_)
            | Self::OutcomeUnknown { .. }
            | Self::StorageFull(_) => true,
            _ => false,
        }
    }

    /// What a sender makes of a refusal (`accepted` = false) or of a failure message.
    pub(crate) fn from_peer(peer: SocketAddr, refusal: Refusal, accepted: bool) -> Self {
        match refusal.code {
            FailureCode::StorageFull => Self::StorageFull(refusal.message),
            FailureCode::DigestMismatch => Self::DigestMismatch(refusal.message),
            _ if accepted => Self::PeerFailed { peer, refusal },
            _ => Self::Refused { peer, refusal },
        }
    }

    /// What a receiver tells its sender of this error. Paths of this machine stay here.
    pub(crate) fn to_peer(&self) -> Refusal {
        match self {
            Self::Unacceptable(refusal) => refusal.clone(),
            Self::StorageFull(message) => Refusal::new(FailureCode::StorageFull, message.clone()),
            Self::DigestMismatch(message) => Refusal::new(FailureCode::DigestMismatch, message.clone()),
            Self::Store { doing, error, .. } => {
                Refusal::new(FailureCode::Io, format!("{doing} failed at the receiver: {}", error.kind()))
            }
            Self::Stalled { idle } => {
                Refusal::new(FailureCode::Stalled, format!("nothing arrived for {idle:?}; send it again"))
            }
            Self::Protocol(what) => Refusal::new(FailureCode::Protocol, *what),
            Self::ShuttingDown => Refusal::new(FailureCode::ShuttingDown, "the receiver is shutting down"),
            // Nobody is there to hear it but one who asks later what became of the transfer.
            Self::Lost(lost) => {
                Refusal::new(FailureCode::Stalled, format!("the connection was lost ({lost}); send it again"))
            }
            other => Refusal::new(FailureCode::Cancelled, other.to_string()),
        }
    }

    /// A failed call on a receiver's disk.
    pub(crate) fn store(doing: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Self::StorageFull(format!(
                "{doing} failed: {}; free some space and send it again",
                error.kind()
            )),
            _ => Self::Store { doing, path: path.into(), error: Arc::new(error) },
        }
    }
}
