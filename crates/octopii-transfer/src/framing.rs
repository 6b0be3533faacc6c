//! How messages are framed, in the protocols of chunks and of trees alike: a tag byte, a `u32` little-endian body length, the
//! body. Every tag has its own limits on the length, checked before the body is read.

use std::ops::RangeInclusive;

use crate::{FailureCode, Refusal};

/// Tag and body length.
pub(crate) const HEADER_LEN: usize = 5;
/// Bytes of a refusal's message, at most.
pub(crate) const MAX_MESSAGE: usize = 1024;

/// Bytes that are not the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The length that a header tells, if its tag allows it.
pub(crate) fn body_len(header: [u8; HEADER_LEN], limit: RangeInclusive<usize>) -> Result<usize, Malformed> {
    let [_, len @ ..] = header;
    let len = u32::from_le_bytes(len) as usize;
    if limit.contains(&len) { Ok(len) } else { Err(Malformed("message length out of range")) }
}

pub(crate) fn message(tag: u8, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![tag, 0, 0, 0, 0];
    body(&mut out);
    let len = (out.len() - HEADER_LEN) as u32;
    out[1..HEADER_LEN].copy_from_slice(&len.to_le_bytes());
    out
}

pub(crate) fn put_refusal(out: &mut Vec<u8>, refusal: &Refusal) {
    let text = cut(&refusal.message, MAX_MESSAGE);
    out.extend_from_slice(&refusal.code.to_u16().to_le_bytes());
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// As much of `text` as `limit` bytes hold.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// A cursor that never reads past its end.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed("message too short"))?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Malformed("message too short"))?;
        self.0 = tail;
        Ok(*head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn text(&mut self, n: usize) -> Result<String, Malformed> {
        String::from_utf8(self.take(n)?.to_vec()).map_err(|_| Malformed("text is not UTF-8"))
    }

    pub(crate) fn refusal(&mut self) -> Result<Refusal, Malformed> {
        let code = FailureCode::from_u16(self.u16()?);
        let len = self.u16()? as usize;
        // It ends up on somebody's terminal.
        let message = self.text(len)?.replace(char::is_control, " ");
        Ok(Refusal { code, message })
    }

    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("message too long for its content")) }
    }
}
