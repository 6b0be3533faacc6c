//! The bytes of the transfer protocol, as `docs/formats/transfer.md` describes them.
//!
//! Pure encoding and decoding: nothing here reads a stream, and no decoder allocates more than its input is long.
//!
//! A transfer stream begins with one version byte. Then messages follow in both directions, each a tag byte, a `u32`
//! little-endian body length and the body. Every tag has its own limit on the length, checked before the body is read.

mod blocks;
mod ending;
mod opening;
pub(crate) mod relay;

use crate::framing::{HEADER_LEN, MAX_MESSAGE, Malformed, Reader, body_len, message};
use crate::pages::MAX_MAP;

pub(crate) use self::blocks::{
    DATA_PREFIX, DATA_SUFFIX, LENGTH, Span, again, compressed_start, content_start, data_start, decode_again,
    repair_start, sparse_content_start, sparse_start,
};
pub use self::ending::{AckLevel, Acknowledgement, TransferStatus};
pub(crate) use self::ending::{
    ack, decode_ack, decode_done, decode_progress, decode_query, decode_refusal, decode_status, done, fail,
    progress, query, refuse, status,
};
pub(crate) use self::opening::{
    Acceptance, Have, MAX_META, MAX_NAME_FIELD, MAX_PURPOSE, OfferBody, ResumeKey, accept, decode_accept,
    decode_offer, offer,
};
use self::opening::{MAX_OFFER, OFFER_FIXED};

/// First byte of every transfer stream.
pub(crate) const VERSION: u8 = 1;
/// Content bytes in a block, at most; also the block size this version offers.
pub(crate) const MAX_BLOCK: u32 = 1 << 20;
/// Smallest block size that may be offered.
pub(crate) const MIN_BLOCK: u32 = 4 << 10;
/// Content can be resumed at multiples of this: every legal block size divides it.
pub(crate) const CHECKPOINT: u64 = 4 << 20;
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
    Sparse = 19,
    SparseContent = 20,
}

/// What precedes every body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tag: Tag,
    /// Body length in bytes, within the tag's limit.
    pub(crate) len: usize,
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
                DATA_PREFIX + LENGTH + 1 + DATA_SUFFIX
                    ..=DATA_PREFIX + LENGTH + MAX_BLOCK as usize - 1 + DATA_SUFFIX,
            ),
            19 => {
                let fields = DATA_PREFIX + LENGTH + DATA_SUFFIX;
                (Tag::Sparse, fields + 1..=fields + MAX_MAP + MAX_BLOCK as usize - 1)
            }
            20 => {
                let fields = DATA_PREFIX + LENGTH;
                (Tag::SparseContent, fields + 1..=fields + MAX_MAP + MAX_BLOCK as usize - 1)
            }
            _ => return Err(Malformed("unknown message tag")),
        };
        Ok(Self { tag, len: body_len(bytes, limit)? })
    }
}

#[cfg(test)]
mod tests;
