//! What one side tells the other when a transfer cannot go on.

use std::fmt;

/// Why a peer refused or gave up a transfer, as it travels between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureCode {
    /// Nothing at the receiver takes chunks of this purpose.
    UnknownPurpose,
    /// The receiver's policy does not want this chunk.
    Rejected,
    /// The offered name is not a plain file name.
    BadName,
    /// The chunk exceeds a limit of the receiver.
    TooLarge,
    /// The receiver's disk is full, or would be.
    StorageFull,
    /// The receiver handles as many transfers as it is allowed to.
    Busy,
    /// What was sent is not the protocol.
    Protocol,
    /// The receiver knows this transfer id already.
    DuplicateId,
    /// The receiver does not speak this version of the protocol.
    UnsupportedVersion,
    /// The bytes that arrived are not the bytes that were hashed.
    DigestMismatch,
    /// More or fewer bytes arrived than were announced.
    SizeMismatch,
    /// Reading or writing failed at the side that reports it.
    Io,
    /// Nothing moved for the idle time.
    Stalled,
    /// The sender gave the transfer up.
    Cancelled,
    /// The node is going away.
    ShuttingDown,
    /// The chunk goes where the acknowledgement that the sender wants cannot be given.
    AckLevel,
    /// A code this version does not know.
    Other(u16),
}

impl FailureCode {
    const KNOWN: [FailureCode; 16] = [
        Self::UnknownPurpose,
        Self::Rejected,
        Self::BadName,
        Self::TooLarge,
        Self::StorageFull,
        Self::Busy,
        Self::Protocol,
        Self::DuplicateId,
        Self::UnsupportedVersion,
        Self::DigestMismatch,
        Self::SizeMismatch,
        Self::Io,
        Self::Stalled,
        Self::Cancelled,
        Self::ShuttingDown,
        Self::AckLevel,
    ];

    /// The number on the wire (see `docs/formats/transfer.md`).
    pub fn to_u16(self) -> u16 {
        match self {
            Self::UnknownPurpose => 1,
            Self::Rejected => 2,
            Self::BadName => 3,
            Self::TooLarge => 4,
            Self::StorageFull => 5,
            Self::Busy => 6,
            Self::Protocol => 7,
            Self::DuplicateId => 8,
            Self::UnsupportedVersion => 9,
            Self::DigestMismatch => 10,
            Self::SizeMismatch => 11,
            Self::Io => 12,
            Self::Stalled => 13,
            Self::Cancelled => 14,
            Self::ShuttingDown => 15,
            Self::AckLevel => 16,
            Self::Other(code) => code,
        }
    }

    /// The meaning of a number from the wire.
    pub fn from_u16(code: u16) -> Self {
        match code {
            0 => Self::Other(0),
            n => Self::KNOWN.get(n as usize - 1).copied().unwrap_or(Self::Other(n)),
        }
    }
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::UnknownPurpose => "nothing there takes chunks of this purpose",
            Self::Rejected => "rejected by policy",
            Self::BadName => "bad name",
            Self::TooLarge => "too large",
            Self::StorageFull => "disk full",
            Self::Busy => "busy",
            Self::Protocol => "protocol violation",
            Self::DuplicateId => "transfer id already used",
            Self::UnsupportedVersion => "unsupported protocol version",
            Self::DigestMismatch => "digest mismatch",
            Self::SizeMismatch => "size mismatch",
            Self::Io => "input/output error",
            Self::Stalled => "stalled",
            Self::Cancelled => "cancelled",
            Self::ShuttingDown => "shutting down",
            Self::AckLevel => "acknowledgement level out of reach",
            Self::Other(code) => return write!(f, "failure code {code}"),
        };
        f.write_str(text)
    }
}

/// A code and a sentence for the person at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of reason, for programs.
    pub code: FailureCode,
    /// What happened and what to do about it, for people. At most 1,024 bytes of it travel; control characters do not.
    pub message: String,
}

impl Refusal {
    /// A refusal with a code of the caller's choice.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The usual refusal of a policy: [`FailureCode::Rejected`].
    pub fn rejected(message: impl Into<String>) -> Self {
        Self::new(FailureCode::Rejected, message)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for (i, code) in FailureCode::KNOWN.into_iter().enumerate() {
            assert_eq!(code.to_u16() as usize, i + 1, "{code:?} must stay at its place");
            assert_eq!(FailureCode::from_u16(code.to_u16()), code);
        }
        for n in [0, 17, 999, u16::MAX] {
            assert_eq!(FailureCode::from_u16(n), FailureCode::Other(n));
        }
    }
}
