//! Footers of sealed segments: written once a segment's end is settled, read when an entry is looked for.
//!
//! A footer says nothing that the frames do not say, so it is not synced by itself: a segment whose footer a power cut has
//! taken, or half of it, is scanned, and gets another.

use std::io;
use std::sync::Arc;

use octopii_vfs::FileHandle;

use crate::error::{Damage, Error, Failure, is_full};
use crate::format::footer::{self, SLOTS_PER_PIECE, Summary};
use crate::format::pages;
use crate::format::segment::{SegmentHeader, file_name};
use crate::index::{FooterSlots, Run, Slot, Slots};
use crate::replay::replay;
use crate::scan::SegmentFile;
use crate::shared::Shared;
use crate::state::State;

/// A segment that wants a footer.
struct Unsealed {
    file: FileHandle,
    header: SegmentHeader,
    /// Where the footer goes.
    at: u64,
    summary: Summary,
}

impl Shared {
    /// Gives each segment that has a successor its footer, and forgets the places of its entries. The caller holds the
    /// writer, or nobody else has the log yet.
    pub(crate) fn seal(&self) -> Result<(), Failure> {
        let unsealed: Vec<Unsealed> = unsealed(&self.state());
        for segment in unsealed {
            match write(&segment) {
                Ok((pages, summary)) => self.sealed(&segment, pages, summary),
                // It can wait for the next time; until then the places stay in memory.
                Err(e) if is_full(&e) => {}
                Err(e) => return Err(Failure::Fatal("write the footer of a segment", e)),
            }
        }
        Ok(())
    }

    /// Finds the entries of a sealed segment by a scan, because its footer turned out not to be whole: it was never synced.
    /// The next seal writes it again.
    pub(crate) fn list_entries(&self, sequence: u64) -> Result<(), Error> {
        let found = {
            let state = self.state();
            let mut segments = state.segments.range(sequence..);
            // It may have been purged meanwhile: then there is nothing to find, least of all in the next one.
            let own = segments.next().filter(|(found, _)| **found == sequence);
            own.zip(segments.next()).map(|((_, segment), (_, next))| {
                (FileHandle::clone(&segment.file), segment.header, next.header.predecessor_end)
            })
        };
        let Some((file, header, end)) = found else { return Ok(()) };
        let path = self.dir.join(file_name(sequence));
        let mut scanned = SegmentFile::from_handle(file, path.clone(), sequence)
            .and_then(|file| replay(&file, &header, Some(end)))
            .map_err(Error::from_reading)?;
        let mut state = self.state();
        for (id, topic) in &mut state.topics {
            let local = scanned.topics.remove(id).map(|t| t.written.entries).unwrap_or_default();
            let mut is_whole = true;
            topic.written.entries.move_slots(sequence, |run| {
                let found = local.find(run.first, run.end - run.first).map(|found| found.slots);
                // The scan may find a part of them only.
                let found = found.filter(|slots| slots.len() == run.end - run.first);
                is_whole &= found.is_some();
                found
            });
            if !is_whole {
                return Err(Error::Damaged(Arc::new(Damage {
                    segment: path,
                    offset: end,
                    detail: "the footer names entries that the segment does not hold".to_owned(),
                    topics: vec![(topic.name.to_string(), topic.first()..topic.next())],
                })));
            }
        }
        // Not before all of its entries are known: a footer is made from what is in memory.
        if let Some(segment) = state.segments.get_mut(&sequence) {
            segment.has_footer = false;
        }
        Ok(())
    }

    fn sealed(&self, segment: &Unsealed, pages: u64, summary: u32) {
        let mut state = self.state();
        let mut number = 0;
        // In the same order as in the summary, since nothing was written meanwhile.
        for topic in state.topics.values_mut() {
            topic.written.entries.move_slots(segment.header.sequence, |run| {
                let count = run.end - run.first;
                let slots = FooterSlots { pages, number, count, bytes: run.bytes(), summary };
                number += count;
                Some(Slots::Footer(slots))
            });
        }
        if let Some(segment) = state.segments.get_mut(&segment.header.sequence) {
            segment.has_footer = true;
        }
    }
}

/// Segments without a footer whose successor has been begun, which settles where they end.
fn unsealed(state: &State) -> Vec<Unsealed> {
    let segments = state.segments.values();
    let pairs = segments.clone().zip(segments.skip(1)).filter(|(segment, _)| !segment.has_footer);
    let unsealed = pairs.map(|(segment, next)| {
        let header = segment.header;
        let runs = state.topics.iter().flat_map(|(id, topic)| {
            let runs = topic.written.entries.runs().filter(|run| run.segment == header.sequence);
            runs.map(|run| (*id, run.clone()))
        });
        let summary = Summary {
            sequence: header.sequence,
            first_frame: header.first_frame,
            frames: next.header.first_frame - header.first_frame,
            runs: runs.collect(),
        };
        Unsealed { file: FileHandle::clone(&segment.file), header, at: next.header.predecessor_end, summary }
    });
    unsealed.collect()
}

/// Writes the footer. Returns where its slots begin, and the summary's checksum.
fn write(segment: &Unsealed) -> io::Result<(u64, u32)> {
    let salt = segment.header.salt;
    let summary = segment.summary.encode(salt);
    let checksum = footer::summary_checksum(&summary);
    let first = segment.at + pages(summary.len() as u64);
    segment.file.write_all_at(&summary, segment.at)?;
    let mut slots = segment.summary.runs.iter().flat_map(|(_, run)| live_slots(run));
    let mut at = first;
    loop {
        let piece: Vec<Slot> = slots.by_ref().take(SLOTS_PER_PIECE).copied().collect();
        if piece.is_empty() {
            return Ok((first, checksum));
        }
        let bytes = footer::encode_slots(&piece, at, salt, checksum);
        segment.file.write_all_at(&bytes, at)?;
        at += bytes.len() as u64;
    }
}

fn live_slots(run: &Run) -> &[Slot] {
    match &run.slots {
        Slots::Memory(slots) => &slots[(run.first - run.base) as usize..],
        Slots::Footer(_) => &[],
    }
}

/// Reads a stretch of slots. `None`: they do not match their checksum.
pub(crate) fn read_slots(
    file: &FileHandle,
    stretch: &FooterSlots,
    salt: u64,
) -> io::Result<Option<Vec<Slot>>> {
    let range = footer::slots_range(stretch);
    let mut bytes = vec![0; (range.end - range.start) as usize];
    match file.read_exact_at(&mut bytes, range.start) {
        Ok(()) => Ok(footer::decode_slots(&bytes, stretch, salt)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}
