//! The bytes of the transfer protocol, as `docs/formats/transfer.md` describes them.
//!
//! Pure encoding and decoding: nothing here reads a stream, and no decoder allocates more than its input is long.
//!
//! A transfer stream begins with one version byte. Then messages follow in both directions, each a tag byte, a `u32`
//! little-endian body length and the body. Every tag has its own limit on the length, checked before the body is read.

pub(crate) mod relay;

use std::fmt;

use bytes::Bytes;

use self::relay::RelayKey;
use crate::framing::{HEADER_LEN, MAX_MESSAGE, Malformed, Reader, body_len, message, put_refusal};
use crate::{Digest, Refusal, TransferId};

/// First byte of every transfer stream.
pub(crate) const VERSION: u8 = 1;
/// Content bytes in a block, at most; also the block size this version offers.
pub(crate) const MAX_BLOCK: u32 = 1 << 20;
/// Smallest block size that may be offered.
pub(crate) const MIN_BLOCK: u32 = 4 << 10;
/// The offset before the content of a data message.
pub(crate) const DATA_PREFIX: usize = 8;
/// Offset and length before the content of a compressed block.
pub(crate) const COMPRESSED_PREFIX: usize = DATA_PREFIX + 4;
/// The digest after the content of a data message.
pub(crate) const DATA_SUFFIX: usize = 32;

/// Content can be resumed at multiples of this: every legal block size divides it.
pub(crate) const CHECKPOINT: u64 = 4 << 20;

pub(crate) const MAX_PURPOSE: usize = 64;
pub(crate) const MAX_NAME_FIELD: usize = 1024;
pub(crate) const MAX_META: usize = 64 << 10;

const OFFER_FIXED: usize = 1 + 16 + 4 + 8 + 1 + 2 + 4;
const MAX_OFFER: usize =
    OFFER_FIXED + MAX_PURPOSE + MAX_NAME_FIELD + MAX_META + relay::KEY_LEN + ResumeKey::LEN;

const FLAG_SIZE: u8 = 1;
const FLAG_NAME: u8 = 2;
const FLAG_RELAY: u8 = 4;
const FLAG_RESUME: u8 = 8;
const FLAG_COMPRESSED: u8 = 16;
/// Where the level of the acknowledgement that is asked for begins; two bits, 0 for none.
const ACK_SHIFT: u32 = 5;
const FLAG_ACK: u8 = 3 << ACK_SHIFT;
/// Of an acceptance: others may fetch what this receiver gets.
const FLAG_SHARES: u8 = 1;
/// Of an acceptance: blocks may come compressed.
const FLAG_DECOMPRESSES: u8 = 2;

/// The kinds of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    Offer = 1,
    Accept = 2,
    Refuse = 3,
    Data = 4,
    Done = 5,
    Progress = 6,
    Ack = 7,
    Fail = 8,
    Query = 9,
    Status = 10,
    Vouch = 11,
    Supplier = 12,
    Need = 13,
    Fetch = 14,
    Content = 15,
    Again = 16,
    Repair = 17,
    Compressed = 18,
}

/// What precedes every body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tag: Tag,
    /// Body length in bytes, within the tag's limit.
    pub(crate) len: usize,
}

/// The sender's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfferBody {
    pub(crate) id: TransferId,
    pub(crate) block_size: u32,
    pub(crate) size: Option<u64>,
    pub(crate) purpose: String,
    pub(crate) name: Option<String>,
    pub(crate) meta: Bytes,
    /// Content may come from other receivers, and go to them, by this key.
    pub(crate) relay: Option<RelayKey>,
    /// Names the content across transfers, if it can be resumed.
    pub(crate) resume: Option<ResumeKey>,
    /// What the acknowledgement must say, at least; if nothing, what the destination can give.
    pub(crate) ack: Option<AckLevel>,
    /// Blocks would come compressed.
    pub(crate) compressed: bool,
}

/// Names a content of one source across transfers: made at random by the sender and told to nobody but the receivers, so that
/// only who knows it can go on with what was received under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ResumeKey(pub(crate) [u8; Self::LEN]);

impl ResumeKey {
    pub(crate) const LEN: usize = 16;
}

impl fmt::Debug for ResumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeKey(_)")
    }
}

/// What a receiver says when it takes an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acceptance {
    /// Others may fetch the content from it.
    pub(crate) shares: bool,
    /// Blocks may come compressed.
    pub(crate) decompresses: bool,
    pub(crate) have: Have,
}

/// What the receiver has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Have {
    /// Content bytes from the beginning.
    pub(crate) bytes: u64,
    /// Their digest.
    pub(crate) prefix: Digest,
}

impl Have {
    /// Nothing.
    pub(crate) fn nothing() -> Self {
        Self { bytes: 0, prefix: Digest::of(b"") }
    }
}

/// A part of the content that the receiver wants once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

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
    fn to_u8(self) -> u8 {
        match self {
            Self::Received => 1,
            Self::Verified => 2,
            Self::Durable => 3,
        }
    }

    fn from_u8(level: u8) -> Option<Self> {
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

impl Header {
    pub(crate) fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let (tag, limit) = match bytes[0] {
            1 => (Tag::Offer, OFFER_FIXED..=MAX_OFFER),
            2 => (Tag::Accept, 9..=41),
            3 => (Tag::Refuse, 4..=4 + MAX_MESSAGE),
            4 => (Tag::Data, DATA_PREFIX + 1 + DATA_SUFFIX..=DATA_PREFIX + MAX_BLOCK as usize + DATA_SUFFIX),
            5 => (Tag::Done, 40..=40),
            6 => (Tag::Progress, 8..=8),
            7 => (Tag::Ack, 41..=41),
            8 => (Tag::Fail, 4..=4 + MAX_MESSAGE),
            9 => (Tag::Query, 16..=16),
            10 => (Tag::Status, 1..=1 + 4 + MAX_MESSAGE),
            11 => (Tag::Vouch, 44..=44),
            12 => (Tag::Supplier, 1..=27),
            13 => (Tag::Need, 10..=10),
            14 => (Tag::Fetch, 24..=24),
            15 => (Tag::Content, DATA_PREFIX + 1..=DATA_PREFIX + MAX_BLOCK as usize),
            16 => (Tag::Again, 12..=12),
            17 => (Tag::Repair, DATA_PREFIX + 1..=DATA_PREFIX + MAX_BLOCK as usize),
            18 => (
                Tag::Compressed,
                COMPRESSED_PREFIX + 1 + DATA_SUFFIX
                    ..=COMPRESSED_PREFIX + MAX_BLOCK as usize - 1 + DATA_SUFFIX,
            ),
            _ => return Err(Malformed("unknown message tag")),
        };
        Ok(Self { tag, len: body_len(bytes, limit)? })
    }
}

/// The caller has checked purpose, name and meta against their limits.
pub(crate) fn offer(offer: &OfferBody) -> Vec<u8> {
    message(Tag::Offer as u8, |out| {
        let mut flags = 0;
        flags |= if offer.size.is_some() { FLAG_SIZE } else { 0 };
        flags |= if offer.name.is_some() { FLAG_NAME } else { 0 };
        flags |= if offer.relay.is_some() { FLAG_RELAY } else { 0 };
        flags |= if offer.resume.is_some() { FLAG_RESUME } else { 0 };
        flags |= if offer.compressed { FLAG_COMPRESSED } else { 0 };
        flags |= offer.ack.map_or(0, AckLevel::to_u8) << ACK_SHIFT;
        let name = offer.name.as_deref().unwrap_or_default();
        out.push(flags);
        out.extend_from_slice(&offer.id.0.to_le_bytes());
        out.extend_from_slice(&offer.block_size.to_le_bytes());
        out.extend_from_slice(&offer.size.unwrap_or(0).to_le_bytes());
        out.push(offer.purpose.len() as u8);
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(&(offer.meta.len() as u32).to_le_bytes());
        out.extend_from_slice(offer.purpose.as_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&offer.meta);
        out.extend(offer.relay.iter().flat_map(|key| key.0.to_le_bytes()));
        out.extend(offer.resume.iter().flat_map(|key| key.0));
    })
}

pub(crate) fn accept(acceptance: &Acceptance) -> Vec<u8> {
    message(Tag::Accept as u8, |out| {
        let mut flags = if acceptance.shares { FLAG_SHARES } else { 0 };
        flags |= if acceptance.decompresses { FLAG_DECOMPRESSES } else { 0 };
        out.push(flags);
        out.extend_from_slice(&acceptance.have.bytes.to_le_bytes());
        if acceptance.have.bytes > 0 {
            out.extend_from_slice(&acceptance.have.prefix.0);
        }
    })
}

pub(crate) fn again(span: Span) -> Vec<u8> {
    message(Tag::Again as u8, |out| {
        out.extend_from_slice(&span.offset.to_le_bytes());
        out.extend_from_slice(&span.len.to_le_bytes());
    })
}

/// Header and prefix of a data message; `content_len` bytes of content and the prefix digest must follow.
pub(crate) fn data_start(offset: u64, content_len: usize) -> [u8; HEADER_LEN + DATA_PREFIX] {
    content_start(Tag::Data, offset, DATA_PREFIX + content_len + DATA_SUFFIX)
}

/// Header and prefix of a compressed block of `len` bytes; `compressed_len` bytes that make it up and the prefix digest must follow.
pub(crate) fn compressed_start(
    offset: u64,
    len: u32,
    compressed_len: usize,
) -> [u8; HEADER_LEN + COMPRESSED_PREFIX] {
    let mut out = [0; HEADER_LEN + COMPRESSED_PREFIX];
    let start = content_start(Tag::Compressed, offset, COMPRESSED_PREFIX + compressed_len + DATA_SUFFIX);
    out[..HEADER_LEN + DATA_PREFIX].copy_from_slice(&start);
    out[HEADER_LEN + DATA_PREFIX..].copy_from_slice(&len.to_le_bytes());
    out
}

/// Header and prefix of a repair; `content_len` bytes of content must follow.
pub(crate) fn repair_start(offset: u64, content_len: usize) -> [u8; HEADER_LEN + DATA_PREFIX] {
    content_start(Tag::Repair, offset, DATA_PREFIX + content_len)
}

fn content_start(tag: Tag, offset: u64, len: usize) -> [u8; HEADER_LEN + DATA_PREFIX] {
    let mut out = [0; HEADER_LEN + DATA_PREFIX];
    out[0] = tag as u8;
    out[1..HEADER_LEN].copy_from_slice(&(len as u32).to_le_bytes());
    out[HEADER_LEN..].copy_from_slice(&offset.to_le_bytes());
    out
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

pub(crate) fn decode_offer(body: &[u8]) -> Result<OfferBody, Malformed> {
    let mut r = Reader(body);
    let flags = r.u8()?;
    if flags & !(FLAG_SIZE | FLAG_NAME | FLAG_RELAY | FLAG_RESUME | FLAG_COMPRESSED | FLAG_ACK) != 0 {
        return Err(Malformed("reserved flags are set in the offer"));
    }
    if flags & (FLAG_RELAY | FLAG_COMPRESSED) == FLAG_RELAY | FLAG_COMPRESSED {
        return Err(Malformed("what is handed on is not compressed"));
    }
    let id = TransferId(u128::from_le_bytes(r.array()?));
    let block_size = u32::from_le_bytes(r.array()?);
    if !(MIN_BLOCK..=MAX_BLOCK).contains(&block_size) || !block_size.is_power_of_two() {
        return Err(Malformed("block size out of range, or no power of two"));
    }
    let size = u64::from_le_bytes(r.array()?);
    let purpose_len = r.u8()? as usize;
    let name_len = u16::from_le_bytes(r.array()?) as usize;
    let meta_len = u32::from_le_bytes(r.array()?) as usize;
    if purpose_len > MAX_PURPOSE || name_len > MAX_NAME_FIELD || meta_len > MAX_META {
        return Err(Malformed("a field of the offer is too long"));
    }
    let purpose = r.text(purpose_len)?;
    let name = r.text(name_len)?;
    let meta = Bytes::copy_from_slice(r.take(meta_len)?);
    let relay = match flags & FLAG_RELAY {
        0 => None,
        _ => Some(RelayKey(u128::from_le_bytes(r.array()?))),
    };
    let resume = match flags & FLAG_RESUME {
        0 => None,
        _ => Some(ResumeKey(r.array()?)),
    };
    r.end()?;
    Ok(OfferBody {
        id,
        block_size,
        size: (flags & FLAG_SIZE != 0).then_some(size),
        purpose,
        name: (flags & FLAG_NAME != 0).then_some(name),
        meta,
        relay,
        resume,
        ack: AckLevel::from_u8((flags & FLAG_ACK) >> ACK_SHIFT),
        compressed: flags & FLAG_COMPRESSED != 0,
    })
}

pub(crate) fn decode_accept(body: &[u8]) -> Result<Acceptance, Malformed> {
    let mut r = Reader(body);
    let flags = r.u8()?;
    if flags & !(FLAG_SHARES | FLAG_DECOMPRESSES) != 0 {
        return Err(Malformed("reserved flags are set in the acceptance"));
    }
    let have = match u64::from_le_bytes(r.array()?) {
        0 => Have::nothing(),
        bytes => Have { bytes, prefix: Digest(r.array()?) },
    };
    r.end()?;
    if !have.bytes.is_multiple_of(CHECKPOINT) {
        return Err(Malformed("resuming begins at a multiple of 4 MiB"));
    }
    Ok(Acceptance { shares: flags & FLAG_SHARES != 0, decompresses: flags & FLAG_DECOMPRESSES != 0, have })
}

pub(crate) fn decode_again(body: &[u8]) -> Result<Span, Malformed> {
    let mut r = Reader(body);
    let out = Span { offset: u64::from_le_bytes(r.array()?), len: u32::from_le_bytes(r.array()?) };
    r.end()?;
    if out.len == 0 || out.len > MAX_BLOCK || out.offset.checked_add(out.len.into()).is_none() {
        return Err(Malformed("a block asked for again is out of range"));
    }
    Ok(out)
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

#[cfg(test)]
mod tests;
