//! The bytes of a call.
//!
//! A call is one stream. The request is one frame: version (1), length of the method's name (1), name, deadline in
//! milliseconds (4, little endian), body. The response is one frame: 0 followed by the body, or a [`Code`] followed by
//! the message's length (2), the message, and the details. A message is one frame, its acknowledgement one frame as a
//! response without a body.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Code, Status};

const VERSION: u8 = 1;
const OK: u8 = 0;
const MAX_MESSAGE: usize = 4 << 10;
const MAX_DETAILS: usize = 64 << 10;

/// The code of a stream that is reset because what it asked for was surely not done: the transport's own for streams that
/// nobody takes.
pub(crate) const REFUSED: u32 = 1;
/// What a response may be longer than its body.
pub(crate) const RESPONSE_OVERHEAD: usize = 3 + MAX_MESSAGE + MAX_DETAILS;
/// What a request may be longer than its body.
pub(crate) const REQUEST_OVERHEAD: usize = 6 + 255;

pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) deadline: Duration,
    pub(crate) body: Bytes,
}

impl Request {
    /// The frame's bytes, preceded by the frame's length. The method's name has at most 255 bytes.
    pub(crate) fn encode(method: &str, deadline: Duration, body: &[u8]) -> Result<Bytes, Status> {
        let name = u8::try_from(method.len())
            .map_err(|_| Status::new(Code::InvalidArgument, "a method's name has at most 255 bytes"))?;
        let len = 6 + method.len() + body.len();
        let frame = u32::try_from(len).map_err(|_| {
            Status::new(Code::InvalidArgument, "a request has at most 4 GiB; send it as a chunk")
        })?;
        let mut out = BytesMut::with_capacity(4 + len);
        out.put_u32_le(frame);
        out.put_u8(VERSION);
        out.put_u8(name);
        out.put_slice(method.as_bytes());
        // Rounded up: a caller with less than a millisecond left has not yet run out of time.
        out.put_u32_le(u32::try_from(deadline.as_micros().div_ceil(1000)).unwrap_or(u32::MAX));
        out.put_slice(body);
        Ok(out.freeze())
    }

    pub(crate) fn decode(mut frame: Bytes) -> Result<Self, Status> {
        let malformed = || Status::new(Code::InvalidArgument, "malformed request");
        if frame.len() < 6 {
            return Err(malformed());
        }
        let version = frame.get_u8();
        if version != VERSION {
            return Err(Status::new(
                Code::Unimplemented,
                format!("request version {version} is not known here"),
            ));
        }
        let name = usize::from(frame.get_u8());
        if frame.len() < name + 4 {
            return Err(malformed());
        }
        let method = String::from_utf8(frame.split_to(name).to_vec()).map_err(|_| malformed())?;
        let deadline = Duration::from_millis(frame.get_u32_le().into());
        Ok(Self { method, deadline, body: frame })
    }
}

pub(crate) fn encode_response(result: Result<&[u8], &Status>) -> Vec<u8> {
    match result {
        Ok(body) => {
            let mut out = Vec::with_capacity(1 + body.len());
            out.put_u8(OK);
            out.put_slice(body);
            out
        }
        Err(status) => {
            let message = &status.message.as_bytes()[..status.message.floor_char_boundary(MAX_MESSAGE)];
            let details = &status.details[..status.details.len().min(MAX_DETAILS)];
            let mut out = Vec::with_capacity(3 + message.len() + details.len());
            out.put_u8(status.code as u8);
            out.put_u16_le(message.len() as u16);
            out.put_slice(message);
            out.put_slice(details);
            out
        }
    }
}

pub(crate) fn decode_response(mut frame: Bytes) -> Result<Bytes, Status> {
    let malformed = || Status::new(Code::Unknown, "malformed response");
    if frame.is_empty() {
        return Err(malformed());
    }
    let code = frame.get_u8();
    if code == OK {
        return Ok(frame);
    }
    if frame.len() < 2 {
        return Err(malformed());
    }
    let len = usize::from(frame.get_u16_le());
    if frame.len() < len {
        return Err(malformed());
    }
    let message = String::from_utf8_lossy(&frame.split_to(len)).into_owned();
    Err(Status { code: Code::from_byte(code), message, details: frame })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire_and_garbage_is_refused() {
        let whole = Request::encode("kv.get", Duration::from_micros(1500), b"body").unwrap().slice(4..);
        let back = Request::decode(whole.clone()).unwrap();
        assert_eq!(
            (back.method.as_str(), back.deadline, &back.body[..]),
            ("kv.get", Duration::from_millis(2), &b"body"[..])
        );
        assert_eq!(whole, [&[1, 6][..], b"kv.get", &[2, 0, 0, 0], b"body"].concat());
        for cut in 0..12 {
            assert!(Request::decode(whole.slice(..cut)).is_err(), "{cut}");
        }
        assert!(Request::encode(&"x".repeat(256), Duration::ZERO, b"").is_err());
        assert!(Request::decode(Bytes::from_static(&[9, 0, 0, 0, 0, 0])).is_err());
    }

    #[test]
    fn responses_survive_the_wire_and_long_messages_are_cut() {
        let ok = encode_response(Ok(b"fine"));
        assert_eq!(ok, b"\0fine");
        assert_eq!(decode_response(ok.into()).unwrap(), &b"fine"[..]);
        let brief = Status::new(Code::NotFound, "no").with_details(Bytes::from_static(b"why"));
        assert_eq!(encode_response(Err(&brief)), b"\x05\x02\0nowhy");
        let status =
            Status::new(Code::NotFound, "é".repeat(5000)).with_details(Bytes::from(vec![1; 100_000]));
        let back = decode_response(encode_response(Err(&status)).into()).unwrap_err();
        assert_eq!(
            (back.code, back.message.len(), back.details.len()),
            (Code::NotFound, MAX_MESSAGE, MAX_DETAILS)
        );
        for hostile in [&[][..], &[5], &[5, 255, 255, 1], &[200, 0, 0]] {
            assert!(decode_response(Bytes::copy_from_slice(hostile)).is_err());
        }
    }
}
