//! Content on its way, and what is wanted once more of it.

use super::{HEADER_LEN, MAX_BLOCK, Malformed, Reader, Tag, message};

/// The offset before the content of a data message.
pub(crate) const DATA_PREFIX: usize = 8;
/// Offset and length before the content of a compressed block.
pub(crate) const COMPRESSED_PREFIX: usize = DATA_PREFIX + 4;
/// The digest after the content of a data message.
pub(crate) const DATA_SUFFIX: usize = 32;

/// A part of the content that the receiver wants once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) len: u32,
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

pub(crate) fn decode_again(body: &[u8]) -> Result<Span, Malformed> {
    let mut r = Reader(body);
    let out = Span { offset: u64::from_le_bytes(r.array()?), len: u32::from_le_bytes(r.array()?) };
    r.end()?;
    if out.len == 0 || out.len > MAX_BLOCK || out.offset.checked_add(out.len.into()).is_none() {
        return Err(Malformed("a block asked for again is out of range"));
    }
    Ok(out)
}
