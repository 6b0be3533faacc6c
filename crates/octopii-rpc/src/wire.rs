//! The bytes of a call: see `docs/formats/rpc.md`.

mod extras;
mod lane;
mod request;
mod response;

pub(crate) use extras::{put_entry, put_lane_extras, put_response_extras, read_response_extras};
pub(crate) use lane::{
    ForCaller, LANE_PIECE, LANE_REQUEST, LANE_RESPONSE, OPEN_LANE, OnLane, decode_lane_response, opens_lane,
    put_cancel, put_lane_failure, put_lane_response,
};
pub(crate) use request::{Head, REQUEST_OVERHEAD, Request};
pub(crate) use response::{RESPONSE_OVERHEAD, Response, failure_frame, response_head};

const VERSION: u8 = 1;
/// Tags of what the serving side says; the others are failures. The one response, or the end of a stream of them.
const OK: u8 = 0;
/// One response of a stream.
const ITEM: u8 = 255;
/// On a lane: the beginning of a response, of which more follows.
const PART: u8 = 254;
/// What comes back beside responses: extras, as a request has them.
const EXTRAS: u8 = 253;

/// The code of a stream that is reset because what it asked for was surely not done: the transport's own for streams that
/// nobody takes.
pub(crate) const REFUSED: u32 = 1;
/// Bodies up to this long are copied behind their head; longer ones are handed over as they are.
pub(crate) const INLINE: usize = 4 << 10;
