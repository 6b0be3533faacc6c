//! How a transfer goes and ends, in the words of both sides.

use std::fmt;

use super::{Malformed, Reader, Tag, message};
use crate::framing::put_refusal;
use crate::{Digest, Refusal, TransferId};

/// How far a receiver went before it acknowledged. Each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AckLevel {
    /// Every byte arrived, was checked block by block, and is stored; a file still under a hidden name. Giving it its name and
    /// handing it to the receiving application come after the acknowledgement: that this failed, only
    /// [`Transfer::status`](crate::Transfer::status) tells.
    Received,
    /// The digest of the whole is right, a file has its final name, and the receiving application has been told. It survives a
    /// crash of the receiver's process if it is a file. Nothing was synced: for some seconds a power cut at the receiver may
    /// take the file away, or leave wrong content under its name.
    Verified,
    /// And it is on stable storage under its final name: it survives a power cut at the receiver. Files only.
    Durable,
}

impl AckLevel {
    /// The number on the wire.
    pub(super) fn to_u8(self) -> u8 {
        match self {
            Self::Received => 1,
            Self::Verified => 2,
            Self::Durable => 3,
        }
    }

    pub(super) fn from_u8(level: u8) -> Option<Self> {
        match level {
            1 => Some(Self::Received),
            2 => Some(Self::Verified),
            3 => Some(Self::Durable),
            _ => None,
        }
    }
}

impl fmt::Display for AckLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Received => "received",
            Self::Verified => "verified",
            Self::Durable => "durable",
        })
    }
}

/// A receiver's acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledgement {
    /// How safe the chunk is there.
    pub level: AckLevel,
    /// Bytes received.
    pub size: u64,
    /// SHA-256 of them, computed by the receiver.
    pub digest: Digest,
}

/// What a receiver knows of a transfer that this node sent or sends to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferStatus {
    /// Never heard of it, or forgotten: the latest 1,024 are remembered; over a restart, those that are durable.
    Unknown,
    /// Under way.
    Receiving {
        /// Bytes that arrived and were verified.
        verified: u64,
    },
    /// Arrived and acknowledged.
    Finished(Acknowledgement),
    /// Given up; nothing of it is left.
    Failed(Refusal),
}

pub(crate) fn done(size: u64, digest: Digest) -> Vec<u8> {
    message(Tag::Done as u8, |out| {
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(&digest.0);
    })
}

pub(crate) fn progress(verified: u64) -> Vec<u8> {
    message(Tag::Progress as u8, |out| out.extend_from_slice(&verified.to_le_bytes()))
}

pub(crate) fn ack(ack: &Acknowledgement) -> Vec<u8> {
    message(Tag::Ack as u8, |out| put_ack(out, ack))
}

pub(crate) fn refuse(refusal: &Refusal) -> Vec<u8> {
    message(Tag::Refuse as u8, |out| put_refusal(out, refusal))
}

pub(crate) fn fail(refusal: &Refusal) -> Vec<u8> {
    message(Tag::Fail as u8, |out| put_refusal(out, refusal))
}

pub(crate) fn query(id: TransferId) -> Vec<u8> {
    message(Tag::Query as u8, |out| out.extend_from_slice(&id.0.to_le_bytes()))
}

pub(crate) fn status(status: &TransferStatus) -> Vec<u8> {
    message(Tag::Status as u8, |out| match status {
        TransferStatus::Unknown => out.push(0),
        TransferStatus::Receiving { verified } => {
            out.push(1);
            out.extend_from_slice(&verified.to_le_bytes());
        }
        TransferStatus::Finished(ack) => {
            out.push(2);
            put_ack(out, ack);
        }
        TransferStatus::Failed(refusal) => {
            out.push(3);
            put_refusal(out, refusal);
        }
    })
}

fn put_ack(out: &mut Vec<u8>, ack: &Acknowledgement) {
    out.push(ack.level.to_u8());
    out.extend_from_slice(&ack.size.to_le_bytes());
    out.extend_from_slice(&ack.digest.0);
}

pub(crate) fn decode_done(body: &[u8]) -> Result<(u64, Digest), Malformed> {
    let mut r = Reader(body);
    let out = (u64::from_le_bytes(r.array()?), Digest(r.array()?));
    r.end()?;
    Ok(out)
}

pub(crate) fn decode_progress(body: &[u8]) -> Result<u64, Malformed> {
    let mut r = Reader(body);
    let out = u64::from_le_bytes(r.array()?);
    r.end()?;
    Ok(out)
}

pub(crate) fn decode_ack(body: &[u8]) -> Result<Acknowledgement, Malformed> {
    let mut r = Reader(body);
    let out = r.ack()?;
    r.end()?;
    Ok(out)
}

pub(crate) fn decode_refusal(body: &[u8]) -> Result<Refusal, Malformed> {
    let mut r = Reader(body);
    let out = r.refusal()?;
    r.end()?;
    Ok(out)
}

pub(crate) fn decode_query(body: &[u8]) -> Result<TransferId, Malformed> {
    let mut r = Reader(body);
    let out = TransferId(u128::from_le_bytes(r.array()?));
    r.end()?;
    Ok(out)
}

pub(crate) fn decode_status(body: &[u8]) -> Result<TransferStatus, Malformed> {
    let mut r = Reader(body);
    let out = match r.u8()? {
        0 => TransferStatus::Unknown,
        1 => TransferStatus::Receiving { verified: u64::from_le_bytes(r.array()?) },
        2 => TransferStatus::Finished(r.ack()?),
        3 => TransferStatus::Failed(r.refusal()?),
        _ => return Err(Malformed("unknown status")),
    };
    r.end()?;
    Ok(out)
}

impl Reader<'_> {
    fn ack(&mut self) -> Result<Acknowledgement, Malformed> {
        let level = AckLevel::from_u8(self.u8()?).ok_or(Malformed("unknown acknowledgement level"))?;
        Ok(Acknowledgement { level, size: u64::from_le_bytes(self.array()?), digest: Digest(self.array()?) })
    }
}
