//! How a call fails, and whether to try again.

use std::time::Duration;

use bytes::Bytes;

use crate::CodecError;

/// The outcome of a failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Status {
    /// What kind of failure, for programs.
    pub code: Code,
    /// What happened and what to do next, for people. At most 4 KiB travel.
    pub message: String,
    /// Anything the handler wants to add, in a format of its own. At most 64 KiB travel.
    pub details: Bytes,
    /// Whether, where and when to try again. Default [`Advice::AsCodeSays`].
    pub advice: Advice,
}

/// What a failed call's status advises about trying again.
///
/// It says where and when, not whether it is safe: a call that may have been carried out
/// ([`Code::is_outcome_unknown`]) may only be repeated by who knows that twice does no harm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Advice {
    /// Nothing beyond [`Code::is_retryable`].
    #[default]
    AsCodeSays,
    /// Do not try again: it would fail again.
    Never,
    /// Try the same peer again after this long.
    After(Duration),
    /// Try another peer: this one is going away or does not serve this.
    Elsewhere,
}

/// Kinds of failure; names and numbers are those of gRPC, where users know them from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Code {
    /// The caller gave up.
    Cancelled = 1,
    /// The connection was lost after the request was sent: it may have been carried out, or not.
    Unknown = 2,
    /// The request is wrong whatever the state of the system.
    InvalidArgument = 3,
    /// Time ran out: the request may have been carried out, or not.
    DeadlineExceeded = 4,
    /// What was asked for is not there.
    NotFound = 5,
    /// What should be made exists.
    AlreadyExists = 6,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// A bound is reached: try again later, more slowly.
    ResourceExhausted = 8,
    /// The system is not in the state that the request needs.
    FailedPrecondition = 9,
    /// A conflict with another request: try the whole operation again.
    Aborted = 10,
    /// No such method.
    Unimplemented = 12,
    /// The handler failed or panicked.
    Internal = 13,
    /// The peer cannot be reached or does not serve now, and the request was not carried out: try again.
    Unavailable = 14,
    /// Data was lost or damaged.
    DataLoss = 15,
}

impl Code {
    const ALL: [Self; 14] = [
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
    ];

    /// Whether the request was certainly not carried out and may succeed if sent again as it is.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Unavailable | Self::ResourceExhausted)
    }

    /// Whether the request may have been carried out although the call failed.
    pub fn is_outcome_unknown(self) -> bool {
        matches!(self, Self::Unknown | Self::DeadlineExceeded | Self::Cancelled | Self::Internal)
    }

    pub(crate) fn from_byte(byte: u8) -> Self {
        // A code of a later release is still a failure.
        Self::ALL.into_iter().find(|c| *c as u8 == byte).unwrap_or(Self::Unknown)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "cancelled",
            Self::Unknown => "outcome unknown",
            Self::InvalidArgument => "invalid argument",
            Self::DeadlineExceeded => "deadline exceeded",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Aborted => "aborted",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal error",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
        })
    }
}

impl Status {
    /// A status without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Bytes::new(), advice: Advice::AsCodeSays }
    }

    /// The same status with details.
    #[must_use]
    pub fn with_details(mut self, details: Bytes) -> Self {
        self.details = details;
        self
    }
}

impl Status {
    /// The same status with advice about trying again.
    #[must_use]
    pub fn with_advice(mut self, advice: Advice) -> Self {
        self.advice = advice;
        self
    }

    /// Whether the same request may be sent to the same peer again: it was surely not carried out, and nothing says that
    /// it would fail again or should go elsewhere.
    pub fn is_retryable_here(&self) -> bool {
        match self.advice {
            Advice::AsCodeSays | Advice::After(_) => self.code.is_retryable(),
            Advice::Never | Advice::Elsewhere => false,
        }
    }
}

impl From<CodecError> for Status {
    fn from(e: CodecError) -> Self {
        Self::new(Code::InvalidArgument, e.to_string())
    }
}

/// What a middleware fails with: a [`Status`] in the box stays what it is, anything else is [`Code::Internal`].
impl From<Box<dyn std::error::Error + Send + Sync>> for Status {
    fn from(e: Box<dyn std::error::Error + Send + Sync>) -> Self {
        match e.downcast::<Self>() {
            Ok(status) => *status,
            Err(other) => Self::new(Code::Internal, other.to_string()),
        }
    }
}
