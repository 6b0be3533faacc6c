//! Frames: the unit that is written, checked and recovered as a whole.

use super::{u32_at, u64_at};

/// Bytes of a frame's header; the body follows.
pub(crate) const HEADER_LEN: usize = 32;

/// What a frame's body holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    /// The first frame of every segment: all topics as they were when the segment began.
    Checkpoint = 1,
    /// Records of one or more batches, each complete.
    Batches = 2,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    /// Bytes of the body.
    pub(crate) body_len: u32,
    /// Checksum of the headers of the body's records, one after the other. Each of these vouches for its payload, so the
    /// payloads need not be hashed a second time.
    pub(crate) records_crc: u32,
    /// Position of the frame in the log; each frame's is one more than its predecessor's.
    pub(crate) number: u64,
    /// Every frame with a smaller number than this was on stable storage before this one was written.
    pub(crate) synced: u64,
}

impl FrameHeader {
    /// Encodes the header for byte `offset` of a segment with `salt`.
    pub(crate) fn encode(&self, salt: u64, offset: u64) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[4] = self.kind as u8;
        out[8..12].copy_from_slice(&self.body_len.to_le_bytes());
        out[12..16].copy_from_slice(&self.records_crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.synced.to_le_bytes());
        let crc = checksum(&out, salt, offset);
        out[0..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at byte `offset` of a segment with `salt`, or `None` if there is no valid one.
    pub(crate) fn decode(bytes: &[u8], salt: u64, offset: u64) -> Option<Self> {
        let bytes = bytes.get(..HEADER_LEN)?;
        if checksum(bytes, salt, offset) != u32_at(bytes, 0) {
            return None;
        }
        let kind = match bytes[4] {
            1 => FrameKind::Checkpoint,
            2 => FrameKind::Batches,
            _ => return None,
        };
        Some(Self {
            kind,
            body_len: u32_at(bytes, 8),
            records_crc: u32_at(bytes, 12),
            number: u64_at(bytes, 16),
            synced: u64_at(bytes, 24),
        })
    }
}

fn checksum(header: &[u8], salt: u64, offset: u64) -> u32 {
    let crc = crc32c::crc32c(&header[4..]);
    let crc = crc32c::crc32c_append(crc, &salt.to_le_bytes());
    crc32c::crc32c_append(crc, &offset.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FrameHeader =
        FrameHeader { kind: FrameKind::Batches, body_len: 7, records_crc: 0xdead_beef, number: 5, synced: 4 };

    #[test]
    fn a_header_is_valid_only_in_its_place_in_its_segment() {
        let bytes = HEADER.encode(99, 4096);
        assert_eq!(FrameHeader::decode(&bytes, 99, 4096), Some(HEADER));
        assert_eq!(FrameHeader::decode(&bytes, 98, 4096), None);
        assert_eq!(FrameHeader::decode(&bytes, 99, 8192), None);
        assert_eq!(FrameHeader::decode(&bytes[..31], 99, 4096), None);
    }

    #[test]
    fn any_flipped_bit_invalidates_a_header() {
        let bytes = HEADER.encode(99, 4096);
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&flipped, 99, 4096), None, "bit {bit}");
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_what_they_are() {
        let mut expected = vec![0x50, 0x5a, 0xf6, 0xca, 2, 0, 0, 0, 7, 0, 0, 0, 0xef, 0xbe, 0xad, 0xde];
        expected.extend([5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(HEADER.encode(99, 4096)[..], expected);
    }
}
