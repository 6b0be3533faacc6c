//! Footers: where the entries of a sealed segment lie, so that they can be found without a scan.

use super::{PAGE, pages, u32_at, u64_at};
use crate::index::{FooterSlots, Run, Slot, Slots};

const MAGIC: &[u8; 8] = b"OCTOPIDX";
/// Bytes of the summary before its runs.
pub(crate) const HEADER_LEN: usize = 40;
const RUN_LEN: usize = 40;
const RELOCATED: u32 = 1;
/// Bytes of a slot.
const SLOT_LEN: usize = 8;
/// Slots in one page; a checksum and 4 zeroes follow.
const SLOTS: usize = PAGE as usize / SLOT_LEN - 1;
const SLOTS_END: usize = SLOTS * SLOT_LEN;

/// The first part of a footer: which entries of which topics are in the segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) sequence: u64,
    pub(crate) first_frame: u64,
    pub(crate) frames: u64,
    /// Topic and run; the slots of all runs follow one another in the footer's pages.
    pub(crate) runs: Vec<(u32, Run)>,
}

impl Summary {
    /// Bytes of the summary that says of itself, in its first bytes, that it has so many.
    pub(crate) fn stated_len(header: &[u8; HEADER_LEN]) -> Option<usize> {
        let len = u32_at(header, 12) as usize;
        (&header[..8] == MAGIC && len >= HEADER_LEN && (len - HEADER_LEN).is_multiple_of(RUN_LEN))
            .then_some(len)
    }

    /// Encodes the summary, to be followed by pages of slots from the next page boundary on.
    pub(crate) fn encode(&self, salt: u64) -> Vec<u8> {
        let len = HEADER_LEN + self.runs.len() * RUN_LEN;
        let mut out = Vec::with_capacity(pages(len as u64) as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(len as u32).to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.first_frame.to_le_bytes());
        out.extend_from_slice(&self.frames.to_le_bytes());
        let mut number = 0;
        for (topic, run) in &self.runs {
            out.extend_from_slice(&topic.to_le_bytes());
            out.extend_from_slice(&(if run.relocated { RELOCATED } else { 0 }).to_le_bytes());
            for field in [run.first, run.end - run.first, run.bytes(), number] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            number += run.end - run.first;
        }
        let crc = checksum(&out[12..], salt);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(pages(len as u64) as usize, 0);
        out
    }

    /// Decodes the summary at byte `at` of a file of `file_len` bytes. `None`: it is not one, or not of this segment.
    pub(crate) fn decode(bytes: &[u8], salt: u64, at: u64, file_len: u64) -> Option<Self> {
        let len = Self::stated_len(bytes.first_chunk()?)?;
        let bytes = bytes.get(..len)?;
        let checksum = u32_at(bytes, 8);
        if self::checksum(&bytes[12..], salt) != checksum {
            return None;
        }
        let sequence = u64_at(bytes, 16);
        let pages_at = at.checked_add(pages(len as u64))?;
        let slots = file_len.checked_sub(pages_at)? / PAGE * SLOTS as u64;
        let mut runs = Vec::with_capacity((len - HEADER_LEN) / RUN_LEN);
        for run in bytes[HEADER_LEN..].chunks_exact(RUN_LEN) {
            let [first, count, bytes, number] = [8, 16, 24, 32].map(|at| u64_at(run, at));
            let end = first.checked_add(count)?;
            if count == 0 || number.checked_add(count)? > slots {
                return None;
            }
            let stretch = FooterSlots { pages: pages_at, number, count, bytes, summary: checksum };
            let slots = Slots::Footer(stretch);
            let relocated = u32_at(run, 4) & RELOCATED != 0;
            runs.push((u32_at(run, 0), Run { segment: sequence, relocated, base: first, first, end, slots }));
        }
        Some(Self { sequence, first_frame: u64_at(bytes, 24), frames: u64_at(bytes, 32), runs })
    }
}

/// The checksum in an encoded summary. It goes into the checksums of the slots: a footer may be written a second time, for
/// other runs, and a crash may leave half of each.
pub(crate) fn summary_checksum(summary: &[u8]) -> u32 {
    u32_at(summary, 8)
}

/// Encodes slots as pages, the first of which is for byte `at` of the segment, behind the summary with this checksum.
pub(crate) fn encode_slots(slots: &[Slot], at: u64, salt: u64, summary: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(slots.len().div_ceil(SLOTS) * PAGE as usize);
    for (i, slots) in slots.chunks(SLOTS).enumerate() {
        let start = out.len();
        for slot in slots {
            out.extend_from_slice(&slot.offset.to_le_bytes());
            out.extend_from_slice(&slot.len.to_le_bytes());
        }
        out.resize(start + SLOTS_END, 0);
        let crc = slots_checksum(&out[start..], at + i as u64 * PAGE, salt, summary);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(start + PAGE as usize, 0);
    }
    out
}

/// The bytes of the segment to read for a stretch of slots.
pub(crate) fn slots_range(slots: &FooterSlots) -> std::ops::Range<u64> {
    let page = |number: u64| slots.pages + number / SLOTS as u64 * PAGE;
    page(slots.number)..page(slots.number + slots.count - 1) + PAGE
}

/// Decodes a stretch of slots from the bytes of [`slots_range`]. `None`: a checksum does not match.
pub(crate) fn decode_slots(bytes: &[u8], stretch: &FooterSlots, salt: u64) -> Option<Vec<Slot>> {
    let at = slots_range(stretch).start;
    let skip = (stretch.number % SLOTS as u64) as usize;
    let mut out = Vec::with_capacity(stretch.count as usize);
    for (i, page) in bytes.chunks_exact(PAGE as usize).enumerate() {
        let page_at = at + i as u64 * PAGE;
        let checksum = slots_checksum(&page[..SLOTS_END], page_at, salt, stretch.summary);
        if checksum != u32_at(page, SLOTS_END) {
            return None;
        }
        let left = stretch.count as usize - out.len();
        let slots = page[..SLOTS_END].chunks_exact(SLOT_LEN);
        let slots = slots.skip(if i == 0 { skip } else { 0 }).take(left);
        out.extend(slots.map(|slot| Slot { offset: u32_at(slot, 0), len: u32_at(slot, 4) }));
    }
    (out.len() as u64 == stretch.count).then_some(out)
}

/// Slots that fill whole pages, for writing a long list piece by piece.
pub(crate) const SLOTS_PER_PIECE: usize = 256 * SLOTS;

fn checksum(bytes: &[u8], salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(bytes), &salt.to_le_bytes())
}

fn slots_checksum(slots: &[u8], at: u64, salt: u64, summary: u32) -> u32 {
    let crc = crc32c::crc32c_append(checksum(slots, salt), &at.to_le_bytes());
    crc32c::crc32c_append(crc, &summary.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(n: u32) -> Vec<Slot> {
        (0..n).map(|i| Slot { offset: i * 10, len: i }).collect()
    }

    fn run(first: u64, slots: Vec<Slot>, relocated: bool) -> Run {
        let end = first + slots.len() as u64;
        Run { segment: 7, relocated, base: first, first, end, slots: Slots::Memory(slots) }
    }

    fn summary() -> Summary {
        let runs = vec![(3, run(100, slots(2), true)), (9, run(5, slots(1200), false))];
        Summary { sequence: 7, first_frame: 40, frames: 8, runs }
    }

    #[test]
    fn a_summary_and_its_slots_come_back() {
        let bytes = summary().encode(1);
        assert_eq!(bytes.len(), 4096);
        let read = Summary::decode(&bytes, 1, 8192, 8192 + 4 * 4096).unwrap();
        assert_eq!((read.sequence, read.first_frame, read.frames, read.runs.len()), (7, 40, 8, 2));
        let (topic, run) = &read.runs[1];
        assert_eq!((*topic, run.first, run.end, run.relocated), (9, 5, 1205, false));
        assert_eq!(run.bytes(), summary().runs[1].1.bytes());
        let Slots::Footer(stretch) = run.slots else { panic!("decoded slots are in the footer") };
        assert_eq!((stretch.pages, stretch.number, stretch.count), (8192 + 4096, 2, 1200));

        let all = [slots(2), slots(1200)].concat();
        let pages = encode_slots(&all, stretch.pages, 1, summary_checksum(&bytes));
        assert_eq!(pages.len(), 3 * 4096);
        for (from, count) in [(0, 1200), (0, 1), (508, 2), (509, 1), (1199, 1), (600, 100)] {
            let part = FooterSlots { number: stretch.number + from, count, ..stretch };
            let range = slots_range(&part);
            let bytes = &pages[(range.start - stretch.pages) as usize..(range.end - stretch.pages) as usize];
            let expected = &all[(part.number as usize)..(part.number + count) as usize];
            assert_eq!(decode_slots(bytes, &part, 1).as_deref(), Some(expected), "{from} {count}");
            assert_eq!(decode_slots(bytes, &part, 2), None, "another salt");
            let elsewhere = FooterSlots { pages: stretch.pages + 4096, ..part };
            assert_eq!(decode_slots(bytes, &elsewhere, 1), None, "another place");
            let of_another = FooterSlots { summary: stretch.summary + 1, ..part };
            assert_eq!(decode_slots(bytes, &of_another, 1), None, "another summary");
        }
    }

    #[test]
    fn any_flipped_bit_invalidates_a_footer() {
        let bytes = summary().encode(1);
        for bit in 0..(HEADER_LEN + 2 * RUN_LEN) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Summary::decode(&flipped, 1, 8192, 1 << 20), None, "bit {bit}");
        }
        let page = encode_slots(&slots(3), 0, 1, 5);
        let stretch = FooterSlots { pages: 0, number: 0, count: 3, bytes: 0, summary: 5 };
        for bit in 0..(SLOTS_END + 4) * 8 {
            let mut flipped = page.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_slots(&flipped, &stretch, 1), None, "bit {bit}");
        }
    }

    #[test]
    fn a_summary_that_promises_more_slots_than_the_file_has_is_none() {
        let bytes = summary().encode(1);
        assert_eq!(Summary::decode(&bytes, 1, 8192, 8192 + 3 * 4096), None);
        assert_eq!(Summary::decode(&bytes, 1, u64::MAX - 10, u64::MAX), None);
        assert_eq!(Summary::decode(&bytes[..60], 1, 8192, 1 << 20), None);
        assert_eq!(Summary::decode(&[], 1, 8192, 1 << 20), None);
    }

    #[test]
    fn the_bytes_of_version_1_stay_what_they_are() {
        let one =
            Summary { sequence: 7, first_frame: 40, frames: 8, runs: vec![(3, run(100, slots(2), true))] };
        let bytes = one.encode(1);
        assert_eq!(bytes[..8], *b"OCTOPIDX");
        assert_eq!(
            bytes[12..40],
            [80, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(bytes[40..64], [3, 0, 0, 0, 1, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[64..80], [49, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            bytes[8..12],
            crc32c::crc32c(&[&bytes[12..80], &[1, 0, 0, 0, 0, 0, 0, 0]].concat()).to_le_bytes()
        );
    }
}
