//! Reading entries back.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::FileHandle;

use crate::error::{Damage, Error};
use crate::format::record::{self, HEADER_LEN, RecordHeader, RecordKind};
use crate::format::segment::file_name;
use crate::index::{Slot, Slots};
use crate::options::MAX_ENTRY;
use crate::seal::read_slots;
use crate::shared::Shared;
use crate::state::{Segment, Source};

/// Neighbouring entries are fetched together up to this many bytes.
const TOGETHER: usize = 256 << 10;
/// Where entries are to be found is looked up for this many at a time, so that writers are not kept waiting.
const LOOK_UP: u64 = 4096;

/// Entries found on disk.
struct Stretch {
    sequence: u64,
    /// `None`: the segment is missing.
    segment: Option<(FileHandle, u64)>,
    slots: Slots,
}

/// A read of a range under way.
struct Reading<'a> {
    shared: &'a Shared,
    topic: u32,
    /// The next index to read.
    next: u64,
    /// Bytes that may be added; beyond it only the first entry of all.
    budget: usize,
    out: Vec<(u64, Bytes)>,
}

/// What was read is not what should be there, or could not be read.
enum Mismatch {
    Io(io::Error),
    /// The list of the segment's entries: it can be had by a scan as well.
    Footer,
    Entry {
        offset: u64,
        detail: &'static str,
    },
}

impl Mismatch {
    fn entry(offset: usize, detail: &'static str) -> Self {
        Self::Entry { offset: offset as u64, detail }
    }
}

pub(crate) fn range(
    shared: &Shared,
    topic: u32,
    range: Range<u64>,
    max_bytes: usize,
) -> Result<Vec<(u64, Bytes)>, Error> {
    let first = shared.state().topic(topic).first();
    let mut reading =
        Reading { shared, topic, next: range.start.max(first), budget: max_bytes, out: Vec::new() };
    while reading.next < range.end && reading.step(range.end)?.is_continue() {}
    Ok(reading.out)
}

impl Reading<'_> {
    /// Reads some more entries before `end`. Breaks when there are none, or the next does not fit.
    fn step(&mut self, end: u64) -> Result<ControlFlow<()>, Error> {
        let stretch = {
            let state = self.shared.state();
            match state.topic(self.topic).find(self.next, LOOK_UP.min(end - self.next)) {
                None => return Ok(ControlFlow::Break(())),
                Some(Source::Memory(entries)) => {
                    drop(state);
                    return Ok(entries.into_iter().try_for_each(|entry| self.add(entry)));
                }
                Some(Source::Disk(found)) => {
                    let segment = state.segments.get(&found.segment);
                    let segment = segment.map(|s: &Segment| (FileHandle::clone(&s.file), s.header.salt));
                    Stretch { sequence: found.segment, segment, slots: found.slots }
                }
            }
        };
        // While it is held its segment's file is not used again, so what is read is what was found above, even if it is
        // purged or moved meanwhile.
        match self.fetch(&stretch) {
            Ok(flow) => Ok(flow),
            Err(Mismatch::Footer) => {
                self.shared.list_entries(stretch.sequence)?;
                Ok(ControlFlow::Continue(()))
            }
            Err(Mismatch::Entry { offset, detail }) => Err(self.damaged(stretch.sequence, offset, detail)),
            Err(Mismatch::Io(e)) => Err(Error::Io { operation: "read entries", reason: Arc::new(e) }),
        }
    }

    /// Adds an entry if it fits.
    fn add(&mut self, entry: Bytes) -> ControlFlow<()> {
        if entry.len() > self.budget && !self.out.is_empty() {
            return ControlFlow::Break(());
        }
        self.budget = self.budget.saturating_sub(entry.len());
        self.out.push((self.next, entry));
        self.next += 1;
        ControlFlow::Continue(())
    }

    fn fetch(&mut self, stretch: &Stretch) -> Result<ControlFlow<()>, Mismatch> {
        let Some((file, salt)) = &stretch.segment else {
            return Err(Mismatch::entry(0, "its segment is missing"));
        };
        let from_footer;
        let mut slots = match &stretch.slots {
            Slots::Memory(slots) => slots.as_slice(),
            Slots::Footer(place) => {
                let Some(slots) = read_slots(file, place, *salt).map_err(Mismatch::Io)? else {
                    return Err(Mismatch::Footer);
                };
                from_footer = slots;
                from_footer.as_slice()
            }
        };
        if let Some(slot) = slots.iter().find(|slot| slot.len as usize > MAX_ENTRY) {
            return Err(Mismatch::entry(slot.offset as usize, "it is too large to be one"));
        }
        while !slots.is_empty() {
            let (count, end) = neighbours(slots, self.budget);
            let start = slots[0].offset as usize;
            // A footer may lie about an entry's length. Nothing is taken on its word that the file could not hold.
            if end - start > TOGETHER && end as u64 > file.len().map_err(Mismatch::Io)? {
                return Err(Mismatch::entry(start, "its segment ends before it"));
            }
            let mut bytes = vec![0; end - start];
            if let Err(e) = file.read_exact_at(&mut bytes, start as u64) {
                if e.kind() != io::ErrorKind::UnexpectedEof {
                    return Err(Mismatch::Io(e));
                }
                return Err(Mismatch::entry(start, "its segment ends before it"));
            }
            let bytes = Bytes::from(bytes);
            // Entries that are most of what was read share it. A few among others' must not keep all of that in memory.
            let wanted: usize = slots[..count].iter().map(|slot| slot.len as usize).sum();
            let is_shared = wanted >= bytes.len() / 2;
            for slot in &slots[..count] {
                let at = slot.offset as usize - start;
                let record = &bytes[at..at + HEADER_LEN + slot.len as usize];
                if !self.is_next(record, *salt) {
                    return Err(Mismatch::entry(slot.offset as usize, "it does not match its checksum"));
                }
                let entry = at + HEADER_LEN..at + record.len();
                let entry =
                    if is_shared { bytes.slice(entry) } else { Bytes::copy_from_slice(&bytes[entry]) };
                if self.add(entry).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            slots = &slots[count..];
        }
        Ok(ControlFlow::Continue(()))
    }

    fn is_next(&self, record: &[u8], salt: u64) -> bool {
        let is_ours = RecordHeader::decode(record).is_some_and(|header| {
            matches!(header.kind, RecordKind::Append | RecordKind::Relocate)
                && (header.topic, header.index) == (self.topic, self.next)
                && header.len as usize == record.len() - HEADER_LEN
        });
        is_ours && record::is_intact(record, salt)
    }

    fn damaged(&self, sequence: u64, offset: u64, detail: &str) -> Error {
        let name = self.shared.state().topic(self.topic).name.to_string();
        Error::Damaged(Arc::new(Damage {
            segment: self.shared.dir.join(file_name(sequence)),
            offset,
            detail: format!("cannot read an entry: {detail}"),
            topics: vec![(name, self.next..self.next + 1)],
        }))
    }
}

/// How many of the first of `slots` to fetch at once, and where they end: those that lie right behind one another and fit
/// into `budget`, one in any case.
fn neighbours(slots: &[Slot], budget: usize) -> (usize, usize) {
    let end_of = |slot: &Slot| slot.offset as usize + HEADER_LEN + slot.len as usize;
    let start = slots[0].offset as usize;
    let mut end = end_of(&slots[0]);
    let mut count = 1;
    let mut entries = slots[0].len as usize;
    for slot in &slots[1..] {
        entries += slot.len as usize;
        // Between neighbours lie other topics' records and the padding of pages.
        let is_near = slot.offset as usize >= end && end_of(slot) - start <= TOGETHER;
        if !is_near || entries > budget {
            break;
        }
        end = end_of(slot);
        count += 1;
    }
    (count, end)
}
