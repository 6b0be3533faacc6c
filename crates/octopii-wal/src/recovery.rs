//! From the segments on disk to the state in memory. Reads only; the caller makes the outcome durable.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::{FileKind, Vfs};

use crate::error::{Damage, OpenError};
use crate::format::frame::{self, FrameHeader, FrameKind};
use crate::format::record::{self, RecordHeader, RecordKind};
use crate::format::{PAGE, segment};
use crate::index::Location;
use crate::options::MAX_INDEX;
use crate::scan::{Found, Scanner, SegmentFile, next_frame};
use crate::state::{Operation, TopicState};
use crate::writer::Position;

/// What follows the last whole frame of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing but zeroes, or the end of the file.
    Clean,
    /// The remains of a write that a crash interrupted, from this byte of the last segment on. It was never acknowledged as
    /// synced, and is ignored.
    Torn {
        /// Where it begins.
        offset: u64,
    },
}

/// One segment after the scan.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) file: SegmentFile,
    pub(crate) salt: u64,
    /// Where its frames end.
    pub(crate) end: u64,
    pub(crate) frames: u64,
}

/// What the segments of a directory add up to.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) topics: BTreeMap<u32, TopicState>,
    /// In order, without gaps, each with at least one frame.
    pub(crate) segments: Vec<Scanned>,
    /// Segment files that hold nothing anybody needs: begun and never used, or purged and not quite removed.
    pub(crate) useless: Vec<SegmentFile>,
    pub(crate) position: Position,
    pub(crate) tail: Tail,
}

/// Opens every segment file of `dir`, in order.
pub(crate) fn list(
    vfs: &dyn Vfs,
    dir: &Path,
    open: impl Fn(std::path::PathBuf, u64) -> Result<Option<SegmentFile>, OpenError>,
) -> Result<Vec<SegmentFile>, OpenError> {
    let entries = vfs.read_dir(dir).map_err(|reason| OpenError::Io {
        operation: "list",
        path: dir.to_owned(),
        reason,
    })?;
    let mut files = Vec::new();
    for entry in entries {
        let sequence = segment::parse_file_name(&entry.name);
        if let Some(sequence) = sequence.filter(|_| entry.metadata.kind == FileKind::File) {
            files.extend(open(dir.join(&entry.name), sequence)?);
        }
    }
    Ok(files)
}

/// Replays `files`, which are in order of their sequence.
pub(crate) fn recover(mut files: Vec<SegmentFile>) -> Result<Recovered, OpenError> {
    let mut useless = Vec::new();
    // A header is synced before the first frame is written, so a file without a valid one never held any.
    if let Some(last) = files.pop_if(|last| last.header.is_none()) {
        if !Scanner::new(&last, 0).is_zero_from(PAGE)? {
            return Err(damaged(&last, 0, "the segment's header is not valid", Vec::new()));
        }
        useless.push(last);
    }
    // Purged segments are removed oldest first, but a crash may bring some of them back. If one is missing for another
    // reason, entries will turn out to be missing too.
    let gap = files.windows(2).rposition(|pair| pair[0].sequence + 1 != pair[1].sequence);
    if let Some(gap) = gap {
        useless.extend(files.drain(..=gap));
    }

    let mut replay = Replay::default();
    let mut segments: Vec<Scanned> = Vec::new();
    let mut tail = Tail::Clean;
    let count = files.len();
    let ends: Vec<Option<u64>> =
        files.iter().skip(1).map(|f| f.header.map(|h| h.predecessor_end)).chain([None]).collect();
    for (i, (file, stated_end)) in files.into_iter().zip(ends).enumerate() {
        let Some(header) = file.header.filter(|h| h.sequence == file.sequence) else {
            return Err(damaged(&file, 0, "the segment's header is not valid", Vec::new()));
        };
        if *replay.next_frame.get_or_insert(header.first_frame) != header.first_frame {
            return Err(damaged(&file, 0, "the segment does not continue the one before it", Vec::new()));
        }
        let is_last = i + 1 == count;
        let limit = match stated_end {
            Some(end) if !is_last => Some(end),
            _ => None,
        };
        let (end, frames) = replay.segment(&file, header.salt, limit)?;
        if is_last && !Scanner::new(&file, header.salt).is_zero_from(end)? {
            tail = Tail::Torn { offset: end };
        }
        if frames == 0 && is_last {
            useless.push(file);
        } else {
            segments.push(Scanned { file, salt: header.salt, end, frames });
        }
    }
    replay.check_complete(&segments)?;
    let position = Position {
        next_segment: segments.last().map_or(1, |s| s.file.sequence + 1),
        predecessor_end: segments.last().map_or(0, |s| s.end),
        next_frame: replay.next_frame.unwrap_or(1),
    };
    let mut topics = replay.topics;
    topics.values_mut().for_each(TopicState::fall_back);
    Ok(Recovered { topics, segments, useless, position, tail })
}

#[derive(Debug, Default)]
struct Replay {
    topics: BTreeMap<u32, TopicState>,
    next_frame: Option<u64>,
    /// Whether a checkpoint has been adopted.
    begun: bool,
}

impl Replay {
    /// Replays one segment; `limit` is where its frames are known to end, unless it is the last. Returns where they do
    /// end, and how many there are.
    fn segment(
        &mut self,
        file: &SegmentFile,
        salt: u64,
        limit: Option<u64>,
    ) -> Result<(u64, u64), OpenError> {
        let mut scanner = Scanner::new(file, salt);
        let mut offset = PAGE;
        let mut frames = 0;
        while limit.is_none_or(|limit| offset < limit) {
            let number = self.next_frame.unwrap_or(0);
            let bad = match scanner.frame_at(offset)? {
                Found::Frame(header) if header.number == number => {
                    let expected = if frames == 0 { FrameKind::Checkpoint } else { FrameKind::Batches };
                    let body = scanner.body(offset, &header)?;
                    if header.kind != expected || self.frame(file.sequence, offset, &header, body).is_none() {
                        return Err(damaged(
                            file,
                            offset,
                            "the frame contradicts those before it",
                            Vec::new(),
                        ));
                    }
                    offset = next_frame(offset, &header);
                    self.next_frame = Some(number.wrapping_add(1));
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
            let lost = self.lost(&mut scanner, offset, file.len)?;
            return Err(damaged(file, offset, bad, lost));
        }
        if limit.is_some_and(|limit| offset != limit) {
            return Err(damaged(
                file,
                offset,
                "frames reach beyond the end that its successor states",
                Vec::new(),
            ));
        }
        Ok((offset, frames))
    }

    /// Applies a frame's records. `None`: they make no sense.
    fn frame(&mut self, segment: u64, at: u64, header: &FrameHeader, body: &[u8]) -> Option<()> {
        // A checkpoint restates what is known, except to a replay that begins with it.
        let adopt = header.kind == FrameKind::Batches || !self.begun;
        self.begun = true;
        for item in record::split(body) {
            let (record, offset, payload) = item?;
            if adopt {
                let offset = u32::try_from(at + frame::HEADER_LEN as u64 + offset as u64).ok()?;
                self.record(Location { segment, offset, len: record.len }, &record, payload, header.kind)?;
            }
        }
        Some(())
    }

    fn record(&mut self, at: Location, header: &RecordHeader, payload: &[u8], kind: FrameKind) -> Option<()> {
        if header.kind == RecordKind::Define {
            let name: Arc<str> = std::str::from_utf8(payload).ok()?.into();
            let topic = TopicState::new(name);
            if self.topics.insert(header.topic, topic).is_some() {
                return None;
            }
        }
        let topic = self.topics.get_mut(&header.topic)?;
        match header.kind {
            RecordKind::Append if header.index != topic.written.entries.next() => return None,
            RecordKind::Purge if header.index > MAX_INDEX => return None,
            RecordKind::Cursor if !topic.written.accepts_cursor(header.index, payload) => return None,
            RecordKind::Metadata if header.index > payload.len() as u64 => return None,
            RecordKind::Bounds => {
                let next = u64::from_le_bytes(payload.try_into().ok()?);
                if kind != FrameKind::Checkpoint || next < header.index || next > 2 * MAX_INDEX {
                    return None;
                }
                topic.written.entries.set_bounds(header.index, next);
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

    fn check_complete(&self, segments: &[Scanned]) -> Result<(), OpenError> {
        let holes: Vec<_> = self
            .topics
            .values()
            .filter_map(|t| Some((t.name.to_string(), t.written.entries.hole()?)))
            .collect();
        match segments.first() {
            Some(first) if !holes.is_empty() => {
                Err(damaged(&first.file, 0, "segments before this one are missing", holes))
            }
            _ => Ok(()),
        }
    }
}

fn damaged(file: &SegmentFile, offset: u64, detail: &str, topics: Vec<(String, Range<u64>)>) -> OpenError {
    OpenError::Damaged(Damage { segment: file.path.clone(), offset, detail: detail.to_owned(), topics })
}
