//! Segment files: their names and their first page.

use super::{PAGE, u32_at, u64_at};

const MAGIC: &[u8; 8] = b"OCTOPWAL";
/// Instead of a header: the file holds an old segment's bytes, of which nothing counts.
const UNUSED: &[u8; 8] = b"OCTOPNEW";
/// A flag of the header.
const REUSED: u32 = 1;
/// The version this build writes, and the newest it reads.
pub(crate) const VERSION: u32 = 1;
const SPARE: &str = ".spare";
/// Far beyond what a log can reach, and far from overflow.
const MAX_SEQUENCE: u64 = u64::MAX >> 1;
/// Bytes of the header that carry something.
const HEADER_LEN: usize = 52;
/// Where in the page the header stands a second time: in another sector, for everything else in the segment can be checked
/// only with the salt.
const COPY: usize = 2048;

/// The first page of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Position of the segment in the log, from 1; also its file name.
    pub(crate) sequence: u64,
    /// Folded into every checksum of the segment.
    pub(crate) salt: u64,
    /// Number of the segment's first frame.
    pub(crate) first_frame: u64,
    /// Where the frames of segment `sequence - 1` end. All of them were synced before this header was written.
    pub(crate) predecessor_end: u64,
    /// Whether the file was another segment before, so that old bytes and not zeroes follow the last frame.
    pub(crate) reused: bool,
}

/// What the first page of a segment file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadHeader {
    Valid(SegmentHeader),
    /// Correct magic and checksum, but of a later version.
    Unsupported(u32),
    /// The file of a former segment, made ready for the next.
    Unused,
    Invalid,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE as usize];
        page[0..8].copy_from_slice(MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[12..16].copy_from_slice(&u32::from(self.reused).to_le_bytes());
        page[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        page[24..32].copy_from_slice(&self.salt.to_le_bytes());
        page[32..40].copy_from_slice(&self.first_frame.to_le_bytes());
        page[40..48].copy_from_slice(&self.predecessor_end.to_le_bytes());
        let crc = crc32c::crc32c(&page[..48]);
        page[48..52].copy_from_slice(&crc.to_le_bytes());
        page.copy_within(..HEADER_LEN, COPY);
        page
    }

    /// Reads the header from the first page of a file, or as much of it as there is.
    pub(crate) fn decode(page: &[u8]) -> ReadHeader {
        let one = |at: usize| page.get(at..at + HEADER_LEN).map_or(ReadHeader::Invalid, Self::decode_one);
        match one(0) {
            ReadHeader::Invalid => one(COPY),
            header => header,
        }
    }

    fn decode_one(bytes: &[u8]) -> ReadHeader {
        if bytes.starts_with(UNUSED) && bytes[8..].iter().all(|b| *b == 0) {
            return ReadHeader::Unused;
        }
        if &bytes[0..8] != MAGIC || crc32c::crc32c(&bytes[..48]) != u32_at(bytes, 48) {
            return ReadHeader::Invalid;
        }
        match u32_at(bytes, 8) {
            VERSION => ReadHeader::Valid(Self {
                sequence: u64_at(bytes, 16),
                salt: u64_at(bytes, 24),
                first_frame: u64_at(bytes, 32),
                predecessor_end: u64_at(bytes, 40),
                reused: u32_at(bytes, 12) & REUSED != 0,
            }),
            other => ReadHeader::Unsupported(other),
        }
    }
}

/// The first page of a file that is to become a segment, but is none yet.
pub(crate) fn unused_page() -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    page[0..8].copy_from_slice(UNUSED);
    page.copy_within(..HEADER_LEN, COPY);
    page
}

/// `0000000000000001.wal`: the sequence in hexadecimal, so that names sort in order.
pub(crate) fn file_name(sequence: u64) -> String {
    format!("{sequence:016x}.wal")
}

/// `0000000000000001.spare`: the file of a segment that is not needed any more, kept for one to come.
pub(crate) fn spare_name(sequence: u64) -> String {
    format!("{sequence:016x}{SPARE}")
}

/// Whether a file name is a spare's.
pub(crate) fn is_spare(name: &std::ffi::OsStr) -> bool {
    parse(name, SPARE).is_some()
}

/// The sequence a file name stands for, if it is a segment's.
pub(crate) fn parse_file_name(name: &std::ffi::OsStr) -> Option<u64> {
    parse(name, ".wal")
}

fn parse(name: &std::ffi::OsStr, suffix: &str) -> Option<u64> {
    let hex = name.to_str()?.strip_suffix(suffix)?;
    let lower = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (hex.len() == 16 && lower)
        .then(|| u64::from_str_radix(hex, 16).ok())
        .flatten()
        .filter(|s| (1..=MAX_SEQUENCE).contains(s))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader = SegmentHeader {
        sequence: 2,
        salt: 0x1122_3344_5566_7788,
        first_frame: 10,
        predecessor_end: 8192,
        reused: false,
    };

    #[test]
    fn any_flipped_bit_invalidates_a_header_and_its_copy_stands_in() {
        let page = HEADER.encode();
        assert_eq!(SegmentHeader::decode(&page), ReadHeader::Valid(HEADER));
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = page.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped[..COPY]), ReadHeader::Invalid, "bit {bit}");
            assert_eq!(SegmentHeader::decode(&flipped), ReadHeader::Valid(HEADER), "bit {bit}");
            flipped[COPY + bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped), ReadHeader::Invalid, "bit {bit}, twice");
        }
        assert_eq!(SegmentHeader::decode(&page[..51]), ReadHeader::Invalid);
        assert_eq!(SegmentHeader::decode(&[]), ReadHeader::Invalid);
    }

    #[test]
    fn a_file_made_ready_is_no_segment_and_no_damage() {
        let page = unused_page();
        assert_eq!(SegmentHeader::decode(&page), ReadHeader::Unused);
        for bit in 0..HEADER_LEN * 8 {
            let mut flipped = page.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped[..COPY]), ReadHeader::Invalid, "bit {bit}");
            assert_eq!(SegmentHeader::decode(&flipped), ReadHeader::Unused, "bit {bit}");
        }
        let reused = SegmentHeader { reused: true, ..HEADER };
        assert_eq!(SegmentHeader::decode(&reused.encode()), ReadHeader::Valid(reused));
        assert_eq!(reused.encode()[12..16], [1, 0, 0, 0]);
        assert!(is_spare(spare_name(9).as_ref()) && !is_spare(file_name(9).as_ref()));
        assert_eq!(parse_file_name(spare_name(9).as_ref()), None);
    }

    #[test]
    fn the_bytes_of_version_1_stay_what_they_are() {
        let page = HEADER.encode();
        assert_eq!(page.len() as u64, PAGE);
        assert_eq!(&page[..16], b"OCTOPWAL\x01\0\0\0\0\0\0\0");
        assert_eq!(page[16..32], [2, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(page[32..48], [10, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page[48..52], [0xdd, 0x2f, 0x22, 0xf0]);
        assert!(page[52..2048].iter().chain(&page[2100..]).all(|b| *b == 0));
        assert_eq!(page[2048..2100], page[..52]);
    }

    #[test]
    fn only_names_that_we_write_are_segments() {
        assert_eq!(file_name(0x1f), "000000000000001f.wal");
        assert_eq!(parse_file_name("000000000000001f.wal".as_ref()), Some(0x1f));
        for name in [
            "000000000000001F.wal",
            "1f.wal",
            "0000000000000000.wal",
            "ffffffffffffffff.wal",
            "lock",
            "000000000000001f.wal~",
        ] {
            assert_eq!(parse_file_name(name.as_ref()), None, "{name}");
        }
    }
}
