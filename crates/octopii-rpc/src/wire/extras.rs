//! What travels beside a request or a response.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::EXTRAS;
use crate::{Code, MetadataError, Status};

pub(super) const TRACE: u8 = 1;
pub(super) const METADATA: u8 = 2;
/// What an entry of the metadata takes beside its name and value: tag, length, length of the name.
pub(super) const ENTRY: usize = 1 + 2 + 1;

/// Appends an entry of metadata as an extra. The bounds on metadata keep its length far below 64 KiB.
pub(crate) fn put_entry(name: &str, value: &[u8], out: &mut BytesMut) {
    out.put_u8(METADATA);
    out.put_u16_le((1 + name.len() + value.len()) as u16);
    out.put_u8(name.len() as u8);
    out.put_slice(name.as_bytes());
    out.put_slice(value);
}

/// Takes the next extra: its tag and value.
pub(super) fn take_extra(extras: &mut Bytes) -> Result<(u8, Bytes), Status> {
    let tag = extras.try_get_u8().map_err(malformed)?;
    let len = usize::from(extras.try_get_u16_le().map_err(malformed)?);
    Ok((tag, take(extras, len)?))
}

/// Reads an entry of metadata and hands it over.
pub(super) fn read_entry(
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

pub(super) fn malformed<E>(_: E) -> Status {
    Status::new(Code::InvalidArgument, "malformed request")
}

pub(super) fn take(bytes: &mut Bytes, len: usize) -> Result<Bytes, Status> {
    if bytes.len() < len { Err(malformed(())) } else { Ok(bytes.split_to(len)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metadata;
    use crate::wire::Response;

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
}
