//! The bytes of a call: see `docs/formats/rpc.md`.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Advice, Code, Encoding, Metadata, MetadataError, Shape, Status, TraceContext};

const VERSION: u8 = 1;
const OK: u8 = 0;
const ITEM: u8 = 255;
/// On a lane: the beginning of a response, of which more follows.
const PART: u8 = 254;
/// What comes back beside responses: extras, as a request has them.
const EXTRAS: u8 = 253;
/// The shape that is no call's: the stream is a lane, on which many follow each other.
const LANE: u8 = 4;
const LANE_CALL: u8 = 0;
const LANE_CANCEL: u8 = 1;
/// Tag and number of a frame on a lane towards the serving side.
const LANE_HEAD: usize = 1 + 4;
const MAX_MESSAGE: usize = 4 << 10;
const MAX_DETAILS: usize = 64 << 10;
/// Version, shape, encoding, length of the name, deadline, length of the extras.
const FIXED: usize = 1 + 1 + 1 + 1 + 4 + 2;
const TRACE: u8 = 1;
const METADATA: u8 = 2;
/// What an entry of the metadata takes beside its name and value: tag, length, length of the name.
const ENTRY: usize = 1 + 2 + 1;
/// Extras that a request may have at the most: a trace, all metadata, and some that later releases add.
const MAX_EXTRAS: usize = 16 << 10;

/// The code of a stream that is reset because what it asked for was surely not done: the transport's own for streams that
/// nobody takes.
pub(crate) const REFUSED: u32 = 1;
/// What a response may be longer than its body.
pub(crate) const RESPONSE_OVERHEAD: usize = 1 + 1 + 4 + 2 + MAX_MESSAGE + MAX_DETAILS;
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

    /// Appends a call on a lane.
    pub(crate) fn put_on_lane(&self, id: u32, body: &[u8], out: &mut BytesMut) -> Result<(), Status> {
        let extras = self.extras();
        let frame = self.frame_len(LANE_HEAD + FIXED + self.method.len() + extras + body.len())?;
        out.reserve(4 + frame as usize);
        out.put_u32_le(frame);
        out.put_u8(LANE_CALL);
        out.put_u32_le(id);
        self.put(extras, out);
        out.put_slice(body);
        Ok(())
    }

    /// Bytes of the extras. The bounds on metadata keep them far below 64 KiB.
    fn extras(&self) -> usize {
        let trace = if self.trace.is_some() { 3 + TraceContext::LEN } else { 0 };
        trace + self.metadata.iter().map(|(name, value)| ENTRY + name.len() + value.len()).sum::<usize>()
    }

    fn frame_len(&self, len: usize) -> Result<u32, Status> {
        let too_long = |what| Status::new(Code::InvalidArgument, what);
        if self.method.len() > usize::from(u8::MAX) {
            return Err(too_long("a method's name has at most 255 bytes"));
        }
        u32::try_from(len).map_err(|_| too_long("a request has at most 4 GiB; send it as a chunk"))
    }

    fn put(&self, extras: usize, out: &mut BytesMut) {
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

/// Appends an entry of metadata as an extra. The bounds on metadata keep its length far below 64 KiB.
pub(crate) fn put_entry(name: &str, value: &[u8], out: &mut BytesMut) {
    out.put_u8(METADATA);
    out.put_u16_le((1 + name.len() + value.len()) as u16);
    out.put_u8(name.len() as u8);
    out.put_slice(name.as_bytes());
    out.put_slice(value);
}

/// Takes the next extra: its tag and value.
fn take_extra(extras: &mut Bytes) -> Result<(u8, Bytes), Status> {
    let tag = extras.try_get_u8().map_err(malformed)?;
    let len = usize::from(extras.try_get_u16_le().map_err(malformed)?);
    Ok((tag, take(extras, len)?))
}

/// Reads an entry of metadata and hands it over.
fn read_entry(
    mut value: Bytes,
    insert: impl FnOnce(&str, Bytes) -> Result<(), MetadataError>,
) -> Result<(), Status> {
    let name = usize::from(value.try_get_u8().map_err(malformed)?);
    let name = take(&mut value, name)?;
    let name = std::str::from_utf8(&name).map_err(malformed)?;
    insert(name, value).map_err(|e| Status::new(Code::InvalidArgument, e.to_string()))
}

/// Hands the metadata of a response over; false if it is malformed or more than there may be.
pub(crate) fn read_response_extras(
    mut extras: Bytes,
    mut insert: impl FnMut(&str, Bytes) -> Result<(), MetadataError>,
) -> bool {
    while !extras.is_empty() {
        let read = take_extra(&mut extras).and_then(|(tag, value)| match tag {
            METADATA => read_entry(value, &mut insert),
            // A later release's.
            _ => Ok(()),
        });
        if read.is_err() {
            return false;
        }
    }
    true
}

/// Appends a whole frame, with its length, of what comes back beside a response.
pub(crate) fn put_response_extras(extras: &[u8], out: &mut BytesMut) {
    out.put_u32_le((1 + extras.len()) as u32);
    out.put_u8(EXTRAS);
    out.put_slice(extras);
}

/// The same on a lane.
pub(crate) fn put_lane_extras(id: u32, extras: &[u8], out: &mut BytesMut) {
    out.put_u32_le((4 + 1 + extras.len()) as u32);
    out.put_u32_le(id);
    out.put_u8(EXTRAS);
    out.put_slice(extras);
}

/// The frame that makes a stream a lane.
pub(crate) const OPEN_LANE: [u8; 6] = [2, 0, 0, 0, VERSION, LANE];

/// Whether a first frame makes its stream a lane.
pub(crate) fn opens_lane(frame: &[u8]) -> bool {
    frame == &OPEN_LANE[4..]
}

/// Longest frame on a lane towards the serving side.
pub(crate) const LANE_REQUEST: usize = LANE_HEAD + REQUEST_OVERHEAD + INLINE;
/// Longest piece of a response on a lane: a long one lets others pass between its pieces.
pub(crate) const LANE_PIECE: usize = 16 << 10;
/// Longest frame on a lane from the serving side.
pub(crate) const LANE_RESPONSE: usize = 4 + LANE_PIECE + RESPONSE_OVERHEAD;

/// A frame on a lane towards the serving side.
pub(crate) enum OnLane {
    Call(u32, Bytes),
    Cancel(u32),
}

impl OnLane {
    /// `None`: not such a frame, after which nothing on the lane can be trusted.
    pub(crate) fn decode(mut frame: Bytes) -> Option<Self> {
        let tag = frame.try_get_u8().ok()?;
        let id = frame.try_get_u32_le().ok()?;
        match tag {
            LANE_CALL => Some(Self::Call(id, frame)),
            LANE_CANCEL if frame.is_empty() => Some(Self::Cancel(id)),
            _ => None,
        }
    }
}

/// Appends the cancellation of a call on a lane.
pub(crate) fn put_cancel(id: u32, out: &mut BytesMut) {
    out.put_u32_le(LANE_HEAD as u32);
    out.put_u8(LANE_CANCEL);
    out.put_u32_le(id);
}

/// Appends what precedes `len` bytes of a response on a lane: the last of it, or a part.
pub(crate) fn put_lane_response(id: u32, last: bool, len: usize, out: &mut BytesMut) {
    out.put_u32_le((4 + 1 + len) as u32);
    out.put_u32_le(id);
    out.put_u8(if last { OK } else { PART });
}

/// Appends a failure on a lane.
pub(crate) fn put_lane_failure(id: u32, status: &Status, out: &mut BytesMut) {
    let frame = failure_frame(status);
    out.put_u32_le((4 + frame.len() - 4) as u32);
    out.put_u32_le(id);
    out.put_slice(&frame[4..]);
}

/// What comes on a lane for a caller.
pub(crate) enum ForCaller {
    Part(Bytes),
    Last(Response),
}

/// Decodes a frame on a lane from the serving side. `None`: not such a frame.
pub(crate) fn decode_lane_response(mut frame: Bytes) -> Option<(u32, ForCaller)> {
    let id = frame.try_get_u32_le().ok()?;
    if frame.first() == Some(&PART) {
        return Some((id, ForCaller::Part(frame.slice(1..))));
    }
    Some((id, ForCaller::Last(Response::decode(frame))))
}

/// Bodies up to this long are copied behind their head; longer ones are handed over as they are.
pub(crate) const INLINE: usize = 4 << 10;

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
        let method = String::from_utf8(take(&mut frame, name)?.into()).map_err(malformed)?;
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

fn malformed<E>(_: E) -> Status {
    Status::new(Code::InvalidArgument, "malformed request")
}

fn take(bytes: &mut Bytes, len: usize) -> Result<Bytes, Status> {
    if bytes.len() < len { Err(malformed(())) } else { Ok(bytes.split_to(len)) }
}

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
    fn golden_metadata_of_responses() {
        let mut extras = BytesMut::new();
        put_entry("served-by", b"node 7", &mut extras);
        let mut frame = BytesMut::new();
        put_response_extras(&extras, &mut frame);
        let entry = b"\x02\x10\0\x09served-bynode 7";
        assert_eq!(frame, [&[20, 0, 0, 0, 253][..], entry].concat());
        let mut on_lane = BytesMut::new();
        put_lane_extras(7, &extras, &mut on_lane);
        assert_eq!(on_lane, [&[24, 0, 0, 0, 7, 0, 0, 0, 253][..], entry].concat());
        let read = |bytes: &[u8]| {
            let mut metadata = Metadata::new();
            let whole = read_response_extras(Bytes::copy_from_slice(bytes), |n, v| metadata.insert(n, v));
            whole.then_some(metadata)
        };
        let Response::Extras(back) = Response::decode(frame.freeze().slice(4..)) else { panic!("others") };
        assert_eq!(read(&back).unwrap().get_str("served-by"), Some("node 7"));
        // Something of a later release, and then ours.
        let later = [&[9, 1, 0, 5][..], entry].concat();
        assert_eq!(read(&later).unwrap().iter().count(), 1);
        for cut in 1..entry.len() {
            assert_eq!(read(&entry[..cut]), None, "{cut}");
        }
        assert_eq!(read(&entry.repeat(65)), None, "more than there may be");
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
