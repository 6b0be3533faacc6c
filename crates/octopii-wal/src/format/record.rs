//! Records: what a frame's body is made of.

use super::{u32_at, u64_at};

/// Bytes of a record's header; the payload follows.
pub(crate) const HEADER_LEN: usize = 24;

/// What a record does to its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// The entry at `index`; the payload is the entry.
    Append = 1,
    /// Entries from `index` on are dropped. No payload.
    Truncate = 2,
    /// Entries before `index` are dropped. No payload.
    Purge = 3,
    /// `index` is the key's length; the payload is key and value.
    Metadata = 4,
    /// A topic comes into being; the payload is its name.
    Define = 5,
    /// Only in checkpoints: entries begin at `index`, and the payload, 8 bytes, is the index of the next one.
    Bounds = 6,
    /// Entries before `index` are done for the cursor whose name is the payload; [`CURSOR_REMOVED`]: it is no more.
    Cursor = 7,
    /// The entry at `index`, which an older segment holds, so that this one need not be kept for its sake.
    Relocate = 8,
}

/// The index of a [`RecordKind::Cursor`] that removes the cursor.
pub(crate) const CURSOR_REMOVED: u64 = u64::MAX;

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    pub(crate) topic: u32,
    pub(crate) index: u64,
    /// Bytes of the payload.
    pub(crate) len: u32,
}

impl RecordHeader {
    /// Encodes the header, given the CRC32C of the payload and the segment's salt.
    pub(crate) fn encode(&self, payload_crc: u32, salt: u64) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = self.kind as u8;
        out[4..8].copy_from_slice(&self.topic.to_le_bytes());
        out[8..16].copy_from_slice(&self.index.to_le_bytes());
        out[16..20].copy_from_slice(&self.len.to_le_bytes());
        let crc = checksum(payload_crc, &out, salt);
        out[20..24].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header at the start of `bytes`, its checksum not yet looked at.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_LEN)?;
        let kind = match bytes[0] {
            1 => RecordKind::Append,
            2 => RecordKind::Truncate,
            3 => RecordKind::Purge,
            4 => RecordKind::Metadata,
            5 => RecordKind::Define,
            6 => RecordKind::Bounds,
            7 => RecordKind::Cursor,
            8 => RecordKind::Relocate,
            _ => return None,
        };
        Some(Self { kind, topic: u32_at(bytes, 4), index: u64_at(bytes, 8), len: u32_at(bytes, 16) })
    }
}

/// Whether `record`, header and payload, matches its checksum.
pub(crate) fn is_intact(record: &[u8], salt: u64) -> bool {
    record.len() >= HEADER_LEN
        && checksum(crc32c::crc32c(&record[HEADER_LEN..]), record, salt) == u32_at(record, 20)
}

// The payload comes first, so that writers can hash it before they know the entry's index and segment.
fn checksum(payload_crc: u32, header: &[u8], salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(payload_crc, &header[..20]), &salt.to_le_bytes())
}

/// Whether `body` is made of whole records that match their checksums, and their headers match `records_crc`.
pub(crate) fn is_body_intact(body: &[u8], records_crc: u32, salt: u64) -> bool {
    let mut crc = 0;
    let intact = split(body).all(|item| {
        item.is_some_and(|(header, at, _)| {
            let record = &body[at..at + HEADER_LEN + header.len as usize];
            crc = crc32c::crc32c_append(crc, &record[..HEADER_LEN]);
            is_intact(record, salt)
        })
    });
    intact && crc == records_crc
}

/// Splits a frame's body into records: header, offset of the record in the body, payload.
pub(crate) fn split(body: &[u8]) -> Split<'_> {
    Split { body, at: 0 }
}

/// Iterator over the records of a body. `None` in an item means that the body is malformed.
pub(crate) struct Split<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Split<'a> {
    type Item = Option<(RecordHeader, usize, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.body[self.at..];
        if rest.is_empty() {
            return None;
        }
        let at = self.at;
        let parsed = RecordHeader::decode(rest).and_then(|header| {
            let end = HEADER_LEN.checked_add(header.len as usize)?;
            Some((header, at, rest.get(HEADER_LEN..end)?))
        });
        self.at = match parsed {
            Some((_, _, payload)) => at + HEADER_LEN + payload.len(),
            None => self.body.len(),
        };
        Some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: RecordHeader = RecordHeader { kind: RecordKind::Append, topic: 3, index: 9, len: 5 };

    fn record(salt: u64) -> Vec<u8> {
        let mut record = HEADER.encode(crc32c::crc32c(b"entry"), salt).to_vec();
        record.extend(b"entry");
        record
    }

    #[test]
    fn a_record_is_intact_only_in_its_segment_and_whole() {
        assert!(is_intact(&record(1), 1));
        assert!(!is_intact(&record(1), 2));
        assert!(!is_intact(&record(1)[..28], 1));
        assert!(!is_intact(&[], 1));
        for bit in 0..record(1).len() * 8 {
            let mut flipped = record(1);
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_intact(&flipped, 1), "bit {bit}");
        }
    }

    #[test]
    fn a_body_splits_into_its_records_or_says_where_it_cannot() {
        let mut body = [record(1), record(1)].concat();
        let offsets: Vec<_> =
            split(&body).map(|item| item.map(|(h, at, payload)| (h, at, payload.len()))).collect();
        assert_eq!(offsets, [Some((HEADER, 0, 5)), Some((HEADER, 29, 5))]);
        body.pop();
        assert_eq!(split(&body).map(|item| item.is_some()).collect::<Vec<_>>(), [true, false]);
        body[0] = 77;
        assert_eq!(split(&body).map(|item| item.is_some()).collect::<Vec<_>>(), [false]);
    }

    #[test]
    fn any_flipped_bit_invalidates_a_body_and_so_does_a_missing_record() {
        let body = [record(1), record(1)].concat();
        let crc = crc32c::crc32c(&[&body[..24], &body[29..53]].concat());
        assert!(is_body_intact(&body, crc, 1));
        assert!(!is_body_intact(&body, crc, 2));
        assert!(!is_body_intact(&body[..29], crc, 1));
        assert!(is_body_intact(&[], 0, 1));
        for bit in 0..body.len() * 8 {
            let mut flipped = body.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_body_intact(&flipped, crc, 1), "bit {bit}");
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_what_they_are() {
        let mut expected = vec![1, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0];
        expected.extend([0x8, 0xab, 0x8e, 0xcf]);
        assert_eq!(record(1)[..24], expected);
    }
}
