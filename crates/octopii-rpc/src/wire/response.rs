//! What the serving side says.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{EXTRAS, ITEM, OK};
use crate::{Advice, Code, Status};

const MAX_MESSAGE: usize = 4 << 10;
const MAX_DETAILS: usize = 64 << 10;
/// What a response may be longer than its body.
pub(crate) const RESPONSE_OVERHEAD: usize = 1 + 1 + 4 + 2 + MAX_MESSAGE + MAX_DETAILS;

/// What the serving side says in one frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// One of several.
    Item(Bytes),
    /// The response, or the end of a stream of them.
    Done(Bytes),
    /// What comes beside the next of the others.
    Extras(Bytes),
    Failed(Status),
}

/// The length and the bytes of a frame up to its body.
pub(crate) fn response_head(last: bool, body: usize) -> Result<[u8; 5], Status> {
    let len = u32::try_from(body + 1)
        .map_err(|_| Status::new(Code::Internal, "a response has at most 4 GiB; send it as a chunk"))?;
    let [a, b, c, d] = len.to_le_bytes();
    Ok([a, b, c, d, if last { OK } else { ITEM }])
}

/// A whole frame, with its length.
pub(crate) fn failure_frame(status: &Status) -> Bytes {
    let message = &status.message.as_bytes()[..status.message.floor_char_boundary(MAX_MESSAGE)];
    let details = &status.details[..status.details.len().min(MAX_DETAILS)];
    let (advice, after) = match status.advice {
        Advice::AsCodeSays => (0, Duration::ZERO),
        Advice::Never => (1, Duration::ZERO),
        Advice::After(time) => (2, time),
        Advice::Elsewhere => (3, Duration::ZERO),
    };
    let len = 8 + message.len() + details.len();
    let mut out = BytesMut::with_capacity(4 + len);
    out.put_u32_le(len as u32);
    out.put_u8(status.code as u8);
    out.put_u8(advice);
    out.put_u32_le(u32::try_from(after.as_millis()).unwrap_or(u32::MAX));
    out.put_u16_le(message.len() as u16);
    out.put_slice(message);
    out.put_slice(details);
    out.freeze()
}

impl Response {
    /// Decodes a frame without its length. Damage is a failure whose outcome is unknown.
    pub(crate) fn decode(mut frame: Bytes) -> Self {
        let malformed = || Self::Failed(Status::new(Code::Unknown, "malformed response"));
        let Ok(code) = frame.try_get_u8() else { return malformed() };
        match code {
            OK => Self::Done(frame),
            ITEM => Self::Item(frame),
            EXTRAS => Self::Extras(frame),
            code => Self::decode_failure(code, frame).map_or_else(malformed, Self::Failed),
        }
    }

    fn decode_failure(code: u8, mut frame: Bytes) -> Option<Status> {
        let advice = frame.try_get_u8().ok()?;
        let after = Duration::from_millis(frame.try_get_u32_le().ok()?.into());
        let len = usize::from(frame.try_get_u16_le().ok()?);
        if frame.len() < len {
            return None;
        }
        let message = String::from_utf8_lossy(&frame.split_to(len)).into_owned();
        let advice = match advice {
            1 => Advice::Never,
            2 => Advice::After(after),
            3 => Advice::Elsewhere,
            // Advice of a later release: what the code says still holds.
            _ => Advice::AsCodeSays,
        };
        Some(Status { code: Code::from_byte(code), message, details: frame, advice })
    }

    /// The one response of a call that has one.
    pub(crate) fn single(self) -> Result<Bytes, Status> {
        match self {
            Self::Done(body) => Ok(body),
            Self::Failed(status) => Err(status),
            Self::Item(_) | Self::Extras(_) => {
                Err(Status::new(Code::Unknown, "a stream of responses where one was asked for"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_responses() {
        assert_eq!(response_head(true, 4).unwrap(), [5, 0, 0, 0, 0]);
        assert_eq!(response_head(false, 4).unwrap(), [5, 0, 0, 0, 255]);
        assert_eq!(Response::decode(Bytes::from_static(b"\0fine")), Response::Done("fine".into()));
        assert_eq!(Response::decode(Bytes::from_static(b"\xfffine")), Response::Item("fine".into()));
        let brief = Status::new(Code::NotFound, "no")
            .with_details(Bytes::from_static(b"why"))
            .with_advice(Advice::After(Duration::from_millis(300)));
        let bytes = failure_frame(&brief);
        assert_eq!(bytes, b"\x0d\0\0\0\x05\x02\x2c\x01\0\0\x02\0nowhy"[..]);
        assert_eq!(Response::decode(bytes.slice(4..)), Response::Failed(brief));
    }

    #[test]
    fn long_messages_are_cut_and_garbage_is_an_unknown_outcome() {
        let status = Status::new(Code::NotFound, "é".repeat(5000))
            .with_details(Bytes::from(vec![1; 100_000]))
            .with_advice(Advice::Elsewhere);
        let bytes = failure_frame(&status).slice(4..);
        assert!(bytes.len() <= RESPONSE_OVERHEAD);
        let back = Response::decode(bytes).single().unwrap_err();
        assert_eq!(
            (back.code, back.message.len(), back.details.len(), back.advice),
            (Code::NotFound, MAX_MESSAGE, MAX_DETAILS, Advice::Elsewhere)
        );
        for hostile in [&[][..], &[5], &[5, 0, 0, 0, 0, 0, 255, 255, 1], &[255]] {
            let response = Response::decode(Bytes::copy_from_slice(hostile)).single();
            assert_eq!(response.unwrap_err().code, Code::Unknown, "{hostile:?}");
        }
    }
}
