//! Packs that came in a chunk of their own: which of them to open, and what is in it.

use bytes::Bytes;

use super::{RECORDS, Tag, message};
use crate::framing::{Malformed, Reader};

const FLAG_LAST: u8 = 1;

/// Chunk, offset, flags and count.
pub(super) const UNPACK_FIXED: usize = 8 + 8 + 1 + 2;

/// In the place of an entry: the file is another receiver's.
const NONE: u64 = u64::MAX;

/// One pack of a chunk of packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unpack {
    pub(crate) chunk: u64,
    /// Where the pack's message begins in it.
    pub(crate) offset: u64,
    /// Nothing more of the chunk is needed.
    pub(crate) last: bool,
    /// The entry that each of the pack's files is, if it is wanted here.
    pub(crate) entries: Vec<Option<u64>>,
}

pub(crate) fn unpack(unpack: &Unpack) -> Bytes {
    message(Tag::Unpack, |out| {
        out.extend_from_slice(&unpack.chunk.to_le_bytes());
        out.extend_from_slice(&unpack.offset.to_le_bytes());
        out.push(if unpack.last { FLAG_LAST } else { 0 });
        out.extend_from_slice(&(unpack.entries.len() as u16).to_le_bytes());
        unpack.entries.iter().for_each(|entry| out.extend_from_slice(&entry.unwrap_or(NONE).to_le_bytes()));
    })
}

pub(crate) fn decode_unpack(body: &[u8]) -> Result<Unpack, Malformed> {
    let mut r = Reader(body);
    let (chunk, offset, flags, count) = (r.u64()?, r.u64()?, r.u8()?, r.u16()? as usize);
    if flags & !FLAG_LAST != 0 || count > RECORDS {
        return Err(Malformed("what is to be unpacked is not told as it should be"));
    }
    let entry = |r: &mut Reader<'_>| r.u64().map(|entry| Some(entry).filter(|entry| *entry != NONE));
    let entries = (0..count).map(|_| entry(&mut r)).collect::<Result<_, _>>()?;
    r.end()?;
    Ok(Unpack { chunk, offset, last: flags & FLAG_LAST != 0, entries })
}
