//! Frames on a lane.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::request::FIXED;
use super::{INLINE, OK, PART, REQUEST_OVERHEAD, RESPONSE_OVERHEAD, Response, VERSION, failure_frame};
use crate::wire::Head;
use crate::{Metadata, Status};

/// The shape that is no call's: the stream is a lane, on which many follow each other.
const LANE: u8 = 4;
const LANE_CALL: u8 = 0;
const LANE_CANCEL: u8 = 1;
/// Tag and number of a frame on a lane towards the serving side.
const LANE_HEAD: usize = 1 + 4;

impl Head<&str, &Metadata> {
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
