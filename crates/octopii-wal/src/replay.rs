//! One segment, frame by frame: from its bytes to what the topics are at its end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Damage, OpenError};
use crate::format::PAGE;
use crate::format::frame::{self, FrameHeader, FrameKind};
use crate::format::record::{self, RecordHeader, RecordKind};
use crate::format::segment::SegmentHeader;
use crate::index::{Index, Location, Slot};
use crate::options::MAX_INDEX;
use crate::scan::{Found, Scanner, SegmentFile, next_frame};
use crate::state::{Operation, TopicState};

/// What a scan of a segment gives.
#[derive(Debug)]
pub(crate) struct Replayed {
    /// Where its frames end.
    pub(crate) end: u64,
    pub(crate) frames: u64,
    /// Where the first frame begins of which nothing in the segment proves that it was synced.
    pub(crate) unproven: u64,
    /// All topics as they are at the end; of their entries, the places of those that are in this segment.
    pub(crate) topics: BTreeMap<u32, TopicState>,
}

/// Reads and verifies all frames of `file`. They are known to end at `limit`, unless the segment is the last: then they end
/// where there is no frame any more.
pub(crate) fn replay(
    file: &SegmentFile,
    header: &SegmentHeader,
    limit: Option<u64>,
) -> Result<Replayed, OpenError> {
    let mut replay = Replay { file, topics: BTreeMap::new(), names: BTreeSet::new() };
    let mut scanner = Scanner::new(file, header.salt);
    let mut offset = PAGE;
    let mut frames = 0;
    // Frames that no later one vouches for.
    let mut unproven = VecDeque::new();
    while limit.is_none_or(|limit| offset < limit) {
        let number = header.first_frame.wrapping_add(frames);
        let bad = match scanner.frame_at(offset)? {
            Found::Frame(frame) if frame.number == number => {
                let expected = if frames == 0 { FrameKind::Checkpoint } else { FrameKind::Batches };
                let body = scanner.body(offset, &frame)?;
                if frame.kind != expected || replay.frame(offset, &frame, body).is_none() {
                    let detail = "the frame contradicts those before it";
                    return Err(damaged(file, offset, detail, Vec::new()));
                }
                unproven.push_back((frame.number, offset));
                while unproven.front().is_some_and(|(number, _)| *number < frame.synced) {
                    unproven.pop_front();
                }
                offset = next_frame(offset, &frame);
                frames += 1;
                continue;
            }
            Found::Frame(_) => "the frame is not the one that belongs here",
            Found::BadBody => "the frame's body does not match its checksum",
            Found::Nothing => "there is no frame",
        };
        // Frames up to a successor's header, and up to the mark in a later frame, were acknowledged.
        let vouched = scanner.find_header(offset + PAGE, |h| h.synced > number && h.number > number)?;
        if limit.is_none() && vouched.is_none() {
            break;
        }
        // A wrong limit may lie far behind the end of the file.
        let lost = replay.lost(&mut scanner, offset, limit.map_or(file.len, |limit| limit.min(file.len)))?;
        return Err(damaged(file, offset, bad, lost));
    }
    if limit.is_some_and(|limit| offset != limit) {
        let detail = "frames reach beyond the end that its successor states";
        return Err(damaged(file, offset, detail, Vec::new()));
    }
    let unproven = unproven.front().map_or(offset, |(_, at)| *at);
    Ok(Replayed { end: offset, frames, unproven, topics: replay.topics })
}

struct Replay<'a> {
    file: &'a SegmentFile,
    topics: BTreeMap<u32, TopicState>,
    names: BTreeSet<Arc<str>>,
}

impl Replay<'_> {
    /// Applies a frame's records. `None`: they make no sense.
    fn frame(&mut self, at: u64, header: &FrameHeader, body: &[u8]) -> Option<()> {
        for item in record::split(body) {
            let (record, offset, payload) = item?;
            let offset = u32::try_from(at + frame::HEADER_LEN as u64 + offset as u64).ok()?;
            let place = Location { segment: self.file.sequence, slot: Slot { offset, len: record.len } };
            self.record(place, &record, payload, header.kind)?;
        }
        Some(())
    }

    fn record(&mut self, at: Location, header: &RecordHeader, payload: &[u8], kind: FrameKind) -> Option<()> {
        if header.kind == RecordKind::Define {
            let name: Arc<str> = std::str::from_utf8(payload).ok()?.into();
            let topic = TopicState::new(Arc::clone(&name));
            if !self.names.insert(name) || self.topics.insert(header.topic, topic).is_some() {
                return None;
            }
        }
        let topic = self.topics.get_mut(&header.topic)?;
        match header.kind {
            RecordKind::Append if header.index != topic.written.entries.next() => return None,
            RecordKind::Relocate => return topic.written.entries.relocate(header.index, at).then_some(()),
            RecordKind::Purge if header.index > MAX_INDEX => return None,
            RecordKind::Cursor if !topic.written.accepts_cursor(header.index, payload) => return None,
            RecordKind::Metadata if header.index > payload.len() as u64 => return None,
            RecordKind::Bounds => {
                let next = u64::from_le_bytes(payload.try_into().ok()?);
                if kind != FrameKind::Checkpoint || next < header.index || next > 2 * MAX_INDEX {
                    return None;
                }
                topic.written.entries = Index::with_bounds(header.index, next);
                return Some(());
            }
            _ => {}
        }
        // Entries stay on disk; of everything else the state keeps a copy.
        let payload = match header.kind {
            RecordKind::Metadata | RecordKind::Cursor => Bytes::copy_from_slice(payload),
            _ => Bytes::new(),
        };
        let operation = Operation {
            kind: header.kind,
            topic: header.topic,
            index: header.index,
            payload,
            payload_crc: 0,
        };
        topic.written.apply(&operation, at);
        Some(())
    }

    /// Which entries the frames after a bad one show to have been in it.
    fn lost(
        &self,
        scanner: &mut Scanner<'_>,
        from: u64,
        end: u64,
    ) -> Result<Vec<(String, Range<u64>)>, OpenError> {
        let mut seen: BTreeMap<u32, u64> = BTreeMap::new();
        let mut offset = from + PAGE;
        while offset < end {
            let Found::Frame(header) = scanner.frame_at(offset)? else {
                offset += PAGE;
                continue;
            };
            for (record, ..) in record::split(scanner.body(offset, &header)?).flatten() {
                if record.kind == RecordKind::Append {
                    seen.entry(record.topic).or_insert(record.index);
                }
            }
            offset = next_frame(offset, &header);
        }
        let lost = seen.into_iter().filter_map(|(id, index)| {
            let topic = self.topics.get(&id)?;
            let next = topic.written.entries.next();
            (next < index).then(|| (topic.name.to_string(), next..index))
        });
        Ok(lost.collect())
    }
}

pub(crate) fn damage(
    file: &SegmentFile,
    offset: u64,
    detail: &str,
    topics: Vec<(String, Range<u64>)>,
) -> Damage {
    Damage { segment: file.path.clone(), offset, detail: detail.to_owned(), topics }
}

pub(crate) fn damaged(
    file: &SegmentFile,
    offset: u64,
    detail: &str,
    topics: Vec<(String, Range<u64>)>,
) -> OpenError {
    OpenError::Damaged(damage(file, offset, detail, topics))
}

#[cfg(test)]
mod tests {
    use octopii_vfs::{OpenMode, RealVfs, Vfs};

    use super::*;

    /// Found by fuzzing: looking for lost entries went on to the end that the successor's header states, page by page.
    #[test]
    fn a_stated_end_far_behind_the_file_is_damage_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let header =
            SegmentHeader { sequence: 1, salt: 9, first_frame: 1, predecessor_end: 0, reused: false };
        let file = RealVfs.open(&path, OpenMode::CreateNew).unwrap();
        file.write_all_at(&header.encode(), 0).unwrap();
        file.set_len(3 * PAGE).unwrap();
        let file = SegmentFile::from_handle(file, path, 1).unwrap();
        let error = replay(&file, &header, Some(u64::MAX / PAGE * PAGE)).unwrap_err();
        assert!(matches!(error, OpenError::Damaged(damage) if damage.offset == PAGE));
    }
}
