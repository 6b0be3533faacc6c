//! How a transfer begins: what is offered, and what is taken.

use std::fmt;

use bytes::Bytes;

use super::relay::{self, RelayKey};
use super::{AckLevel, CHECKPOINT, MAX_BLOCK, MIN_BLOCK, Malformed, Reader, Tag, message};
use crate::{Digest, TransferId};

pub(crate) const MAX_PURPOSE: usize = 64;
pub(crate) const MAX_NAME_FIELD: usize = 1024;
pub(crate) const MAX_META: usize = 64 << 10;

pub(super) const OFFER_FIXED: usize = 1 + 16 + 4 + 8 + 1 + 2 + 4;
pub(super) const MAX_OFFER: usize =
    OFFER_FIXED + MAX_PURPOSE + MAX_NAME_FIELD + MAX_META + relay::KEY_LEN + ResumeKey::LEN + STORED_LEN;

const FLAG_SIZE: u8 = 1;
const FLAG_NAME: u8 = 2;
const FLAG_RELAY: u8 = 4;
const FLAG_RESUME: u8 = 8;
const FLAG_COMPRESSED: u8 = 16;
/// Where the level of the acknowledgement that is asked for begins; two bits, 0 for none.
const ACK_SHIFT: u32 = 5;
const FLAG_ACK: u8 = 3 << ACK_SHIFT;
const FLAG_HOLES: u8 = 128;
/// Of the length of what is no hole.
const STORED_LEN: usize = 8;
/// Of an acceptance: others may fetch what this receiver gets.
const FLAG_SHARES: u8 = 1;
/// Of an acceptance: blocks may come compressed.
const FLAG_DECOMPRESSES: u8 = 2;

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
    /// If the source has holes: about how many bytes of it are none.
    pub(crate) stored: Option<u64>,
}

/// Names a content of one source, at one receiver, across transfers: derived from a secret of the sender's and told to nobody but
/// that receiver, so that only who knows it can go on with what was received under it.
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

/// The caller has checked purpose, name and meta against their limits.
pub(crate) fn offer(offer: &OfferBody) -> Vec<u8> {
    message(Tag::Offer as u8, |out| {
        let mut flags = 0;
        flags |= if offer.size.is_some() { FLAG_SIZE } else { 0 };
        flags |= if offer.name.is_some() { FLAG_NAME } else { 0 };
        flags |= if offer.relay.is_some() { FLAG_RELAY } else { 0 };
        flags |= if offer.resume.is_some() { FLAG_RESUME } else { 0 };
        flags |= if offer.compressed { FLAG_COMPRESSED } else { 0 };
        flags |= if offer.stored.is_some() { FLAG_HOLES } else { 0 };
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
        out.extend(offer.stored.iter().flat_map(|stored| stored.to_le_bytes()));
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

pub(crate) fn decode_offer(body: &[u8]) -> Result<OfferBody, Malformed> {
    let mut r = Reader(body);
    let flags = r.u8()?;
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
    let stored = match flags & FLAG_HOLES {
        0 => None,
        _ => Some(u64::from_le_bytes(r.array()?)),
    };
    if stored.is_some_and(|stored| flags & FLAG_SIZE == 0 || stored > size) {
        return Err(Malformed("what has holes has a size, and no more content than that"));
    }
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
        stored,
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
