//! What a caller says.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::extras::{ENTRY, METADATA, TRACE, malformed, put_entry, read_entry, take, take_extra};
use super::{INLINE, VERSION};
use crate::{Code, Encoding, Metadata, Shape, Status, TraceContext};

/// Version, shape, encoding, length of the name, deadline, length of the extras.
pub(super) const FIXED: usize = 1 + 1 + 1 + 1 + 4 + 2;
/// Extras that a request may have at the most: a trace, all metadata, and some that later releases add.
const MAX_EXTRAS: usize = 16 << 10;
/// What a request may be longer than its body.
pub(crate) const REQUEST_OVERHEAD: usize = FIXED + 255 + MAX_EXTRAS;

/// What a request says beside its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head<S, M> {
    pub(crate) method: S,
    pub(crate) shape: Shape,
    pub(crate) encoding: Encoding,
    pub(crate) deadline: Duration,
    pub(crate) trace: Option<TraceContext>,
    pub(crate) metadata: M,
}

pub(crate) struct Request {
    pub(crate) head: Head<String, Metadata>,
    pub(crate) body: Bytes,
}

impl Head<&str, &Metadata> {
    /// The frame's length and the frame up to its body, which has `body` bytes.
    pub(crate) fn encode(&self, body: usize) -> Result<BytesMut, Status> {
        let extras = self.extras();
        let len = FIXED + self.method.len() + extras;
        let frame = self.frame_len(len + body)?;
        let mut out = BytesMut::with_capacity(4 + len + if body <= INLINE { body } else { 0 });
        out.put_u32_le(frame);
        self.put(extras, &mut out);
        Ok(out)
    }

    /// Bytes of the extras. The bounds on metadata keep them far below 64 KiB.
    pub(super) fn extras(&self) -> usize {
        let trace = if self.trace.is_some() { 3 + TraceContext::LEN } else { 0 };
        trace + self.metadata.iter().map(|(name, value)| ENTRY + name.len() + value.len()).sum::<usize>()
    }

    pub(super) fn frame_len(&self, len: usize) -> Result<u32, Status> {
        let too_long = |what| Status::new(Code::InvalidArgument, what);
        if self.method.len() > usize::from(u8::MAX) {
            return Err(too_long("a method's name has at most 255 bytes"));
        }
        u32::try_from(len).map_err(|_| too_long("a request has at most 4 GiB; send it as a chunk"))
    }

    pub(super) fn put(&self, extras: usize, out: &mut BytesMut) {
        out.put_u8(VERSION);
        out.put_u8(self.shape.to_byte());
        out.put_u8(self.encoding.to_byte());
        out.put_u8(self.method.len() as u8);
        out.put_slice(self.method.as_bytes());
        // Rounded up: a caller with less than a millisecond left has not yet run out of time.
        out.put_u32_le(u32::try_from(self.deadline.as_micros().div_ceil(1000)).unwrap_or(u32::MAX));
        out.put_u16_le(extras as u16);
        if let Some(trace) = self.trace {
            out.put_u8(TRACE);
            out.put_u16_le(TraceContext::LEN as u16);
            out.put_slice(&trace.to_bytes());
        }
        for (name, value) in self.metadata.iter() {
            put_entry(name, value, out);
        }
    }
}

impl Request {
    pub(crate) fn decode(mut frame: Bytes) -> Result<Self, Status> {
        let version = frame.try_get_u8().map_err(malformed)?;
        if version != VERSION {
            return Err(Status::new(
                Code::Unimplemented,
                format!("request version {version} is not known here"),
            ));
        }
        let unknown = |what| Status::new(Code::Unimplemented, format!("{what} is not known here"));
        let shape = frame.try_get_u8().map_err(malformed)?;
        let shape = Shape::from_byte(shape).ok_or_else(|| unknown(format!("call shape {shape}")))?;
        let encoding = frame.try_get_u8().map_err(malformed)?;
        let encoding =
            Encoding::from_byte(encoding).ok_or_else(|| unknown(format!("encoding {encoding}")))?;
        let name = usize::from(frame.try_get_u8().map_err(malformed)?);
        // Copied where it lies: a part of the frame by itself would cost an allocation more.
        let method =
            std::str::from_utf8(frame.get(..name).ok_or_else(|| malformed(()))?).map_err(malformed)?;
        let method = method.to_owned();
        frame.advance(name);
        let deadline = Duration::from_millis(frame.try_get_u32_le().map_err(malformed)?.into());
        let extras = usize::from(frame.try_get_u16_le().map_err(malformed)?);
        let mut extras = take(&mut frame, extras)?;
        let mut head = Head { method, shape, encoding, deadline, trace: None, metadata: Metadata::new() };
        while !extras.is_empty() {
            head.decode_extra(&mut extras)?;
        }
        Ok(Self { head, body: frame })
    }
}

impl Head<String, Metadata> {
    fn decode_extra(&mut self, extras: &mut Bytes) -> Result<(), Status> {
        let (tag, value) = take_extra(extras)?;
        match tag {
            TRACE => {
                let trace = TraceContext::from_bytes(&value);
                self.trace = Some(trace.ok_or_else(|| malformed("trace context"))?);
            }
            METADATA => read_entry(value, |name, value| self.metadata.insert(name, value))?,
            // A later release's: what it adds here must not matter to who does not know it.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &Metadata = &Metadata::new();

    fn head(method: &str) -> Head<&str, &Metadata> {
        Head {
            method,
            shape: Shape::Unary,
            encoding: Encoding::Native,
            deadline: Duration::from_micros(1500),
            trace: None,
            metadata: NONE,
        }
    }

    fn frame(head: &Head<&str, &Metadata>, body: &[u8]) -> Bytes {
        let mut out = head.encode(body.len()).unwrap();
        out.put_slice(body);
        assert_eq!(out.get_u32_le() as usize, out.len());
        out.freeze()
    }

    /// The bytes of docs/formats/rpc.md: nodes of different releases must understand each other.
    #[test]
    fn golden_requests() {
        let plain = frame(&head("kv.get"), b"body");
        assert_eq!(plain, [&[1, 0, 0, 6][..], b"kv.get", &[2, 0, 0, 0, 0, 0], b"body"].concat());
        let mut metadata = Metadata::new();
        metadata.insert("tenant", "acme").unwrap();
        let trace = TraceContext::from_bytes(&[7; 25]);
        let rich = Head {
            shape: Shape::Bidirectional,
            encoding: Encoding::Json,
            metadata: &metadata,
            trace,
            ..head("chat")
        };
        let bytes = frame(&rich, b"");
        let expected = [
            &[1, 3, 1, 4][..],
            b"chat",
            &[2, 0, 0, 0, 42, 0],
            &[1, 25, 0],
            &[7; 25],
            &[2, 11, 0, 6],
            b"tenantacme",
        ]
        .concat();
        assert_eq!(bytes, expected);
        let back = Request::decode(bytes).unwrap();
        assert_eq!(back.head.metadata.get_str("tenant"), Some("acme"));
        assert_eq!((back.head.trace, back.head.shape), (trace, Shape::Bidirectional));
        assert_eq!(back.head.deadline, Duration::from_millis(2));
        for cut in 0..expected.len() {
            assert!(Request::decode(Bytes::copy_from_slice(&expected[..cut])).is_err(), "{cut}");
        }
    }

    #[test]
    fn requests_of_another_release_and_garbage_are_refused() {
        assert!(head(&"x".repeat(256)).encode(0).is_err());
        let request = |bytes: &[u8]| Request::decode(Bytes::copy_from_slice(bytes)).map(|r| r.head);
        let fails = |bytes: &[u8]| request(bytes).unwrap_err().code;
        assert_eq!(fails(&[9, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Code::Unimplemented);
        assert_eq!(fails(&[1, 4, 0, 0, 0, 0, 0, 0, 0, 0]), Code::Unimplemented);
        assert_eq!(fails(&[1, 0, 9, 0, 0, 0, 0, 0, 0, 0]), Code::Unimplemented);
        assert_eq!(fails(&[1, 0, 0, 1, 0xff, 0, 0, 0, 0, 0, 0]), Code::InvalidArgument);
        // An extra of a later release is passed over, one that says more than there is is not.
        assert!(request(&[1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 200, 1, 0, 5]).is_ok());
        assert_eq!(fails(&[1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 200, 2, 0, 5]), Code::InvalidArgument);
        // More metadata than there may be.
        let entry = [2, 3, 0, 1, b'x', b'y'];
        let many = entry.repeat(65);
        let mut endless = vec![1, 0, 0, 0, 0, 0, 0, 0];
        endless.extend((many.len() as u16).to_le_bytes());
        endless.extend(many);
        assert_eq!(fails(&endless), Code::InvalidArgument);
    }
}
