//! Small files, many in a message.

use bytes::Bytes;

use super::{RECORDS, SMALL, Tag, message, put_not_done};
use crate::Digest;
use crate::framing::{HEADER_LEN, Malformed, Reader};
use crate::tree::outcome::NotDone;

/// The longest pack.
pub(crate) const MAX_PACK: usize = 2 + RECORDS * (8 + 1 + 32 + 4) + 2 * SMALL as usize;
/// The length that a compressed pack has when it is whole again comes first.
pub(super) const WHOLE_LEN: usize = 4;

/// A file in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) entry: u64,
    /// The content and its digest, or why there is none.
    pub(crate) content: Result<(Digest, Bytes), NotDone>,
}

/// Appends a record to the body of a pack.
pub(crate) fn put_packed(out: &mut Vec<u8>, entry: u64, content: Result<(Digest, &[u8]), &NotDone>) {
    out.extend_from_slice(&entry.to_le_bytes());
    match content {
        Ok((digest, bytes)) => {
            out.push(0);
            out.extend_from_slice(&digest.0);
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        }
        Err(why) => {
            out.push(1);
            put_not_done(out, why);
        }
    }
}

/// The start of a pack's message: header and count, filled in by [`finish_pack`].
pub(crate) fn begin_pack() -> Vec<u8> {
    vec![Tag::Pack as u8, 0, 0, 0, 0, 0, 0]
}

/// A whole pack of `count` records from what [`begin_pack`] began.
pub(crate) fn finish_pack(mut pack: Vec<u8>, count: usize) -> Bytes {
    let len = (pack.len() - HEADER_LEN) as u32;
    pack[1..HEADER_LEN].copy_from_slice(&len.to_le_bytes());
    pack[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&(count as u16).to_le_bytes());
    pack.into()
}

/// A pack, of which `frame` is the body compressed.
pub(crate) fn compressed_pack(pack: &[u8], frame: &[u8]) -> Bytes {
    message(Tag::Compressed, |out| {
        out.extend_from_slice(&((pack.len() - HEADER_LEN) as u32).to_le_bytes());
        out.extend_from_slice(frame);
    })
}

/// The contents are parts of `body`: nothing is copied.
pub(crate) fn decode_pack(body: &Bytes) -> Result<Vec<Packed>, Malformed> {
    let mut r = Reader(body);
    let count = r.records()?;
    let mut packed = Vec::with_capacity(count.min(body.len() / 12));
    for _ in 0..count {
        let entry = r.u64()?;
        let content = match r.u8()? {
            0 => {
                let digest = Digest(r.array()?);
                let len = r.u32()? as usize;
                if len as u64 > SMALL {
                    return Err(Malformed("a packed file is too large"));
                }
                Ok((digest, body.slice_ref(r.take(len)?)))
            }
            1 => Err(r.not_done()?),
            _ => return Err(Malformed("unknown kind of record in a pack")),
        };
        packed.push(Packed { entry, content });
    }
    r.end()?;
    Ok(packed)
}

/// The length of the pack, which is within a pack's limits, and the frame that it is in.
pub(crate) fn decode_compressed(body: &Bytes) -> Result<(usize, Bytes), Malformed> {
    let mut r = Reader(body);
    let len = r.u32()? as usize;
    if !(2..=MAX_PACK).contains(&len) {
        return Err(Malformed("a compressed pack is too short or too long"));
    }
    if r.0.len() >= len {
        return Err(Malformed("a pack that compression does not make smaller comes as it is"));
    }
    Ok((len, body.slice_ref(r.0)))
}
