//! Content on its way, and what is wanted once more of it.

use super::{HEADER_LEN, MAX_BLOCK, Malformed, Reader, Tag, message};
use crate::pages::Pages;

/// The offset before the content of a data message.
pub(crate) const DATA_PREFIX: usize = 8;
/// The length of a block whose message tells it.
pub(crate) const LENGTH: usize = 4;
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
pub(crate) fn data_start(offset: u64, content_len: usize) -> Vec<u8> {
    start(Tag::Data, content_len + DATA_SUFFIX, &[&offset.to_le_bytes()])
}

/// Header and prefix of a compressed block of `len` bytes; `compressed_len` bytes that make it up and the prefix digest must follow.
pub(crate) fn compressed_start(offset: u64, len: usize, compressed_len: usize) -> Vec<u8> {
    let fields = [&offset.to_le_bytes()[..], &(len as u32).to_le_bytes()];
    start(Tag::Compressed, compressed_len + DATA_SUFFIX, &fields)
}

/// Header and prefix of a block with pages of zeroes; the content of the other pages and the prefix digest must follow.
pub(crate) fn sparse_start(offset: u64, pages: &Pages) -> Vec<u8> {
    let fields = [&offset.to_le_bytes()[..], &(pages.len() as u32).to_le_bytes(), pages.map()];
    start(Tag::Sparse, pages.content_len() + DATA_SUFFIX, &fields)
}

/// Header and prefix of a repair; `content_len` bytes of content must follow.
pub(crate) fn repair_start(offset: u64, content_len: usize) -> Vec<u8> {
    start(Tag::Repair, content_len, &[&offset.to_le_bytes()])
}

/// Header and prefix of a block for another receiver; `content_len` bytes of content must follow.
pub(crate) fn content_start(offset: u64, content_len: usize) -> Vec<u8> {
    start(Tag::Content, content_len, &[&offset.to_le_bytes()])
}

/// The same of one with pages of zeroes; the content of the other pages must follow.
pub(crate) fn sparse_content_start(offset: u64, pages: &Pages) -> Vec<u8> {
    let fields = [&offset.to_le_bytes()[..], &(pages.len() as u32).to_le_bytes(), pages.map()];
    start(Tag::SparseContent, pages.content_len(), &fields)
}

/// A message's first fields, which `more` bytes of it follow.
fn start(tag: Tag, more: usize, fields: &[&[u8]]) -> Vec<u8> {
    let mut out = message(tag as u8, |out| fields.iter().for_each(|field| out.extend_from_slice(field)));
    let len = (out.len() - HEADER_LEN + more) as u32;
    out[1..HEADER_LEN].copy_from_slice(&len.to_le_bytes());
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
