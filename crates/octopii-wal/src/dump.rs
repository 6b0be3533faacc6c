//! Everything that can still be read from a log, damaged or not.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::Vfs;

use crate::error::{Damage, OpenError};
use crate::format::PAGE;
use crate::format::frame::HEADER_LEN as FRAME_HEADER_LEN;
use crate::format::record::{self, CURSOR_REMOVED, HEADER_LEN, RecordHeader, RecordKind};
use crate::inspect::open_all;
use crate::replay::damage;
use crate::scan::{Found, Scanner, SegmentFile, next_frame};

/// What [`dump`] comes across.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dumped {
    /// A record whose checksum is right.
    Record(DumpedRecord),
    /// Something that is not what it should be. What follows is found again where the next frame or record is whole.
    Damaged(Damage),
}

/// A record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DumpedRecord {
    /// Sequence of its segment.
    pub segment: u64,
    /// Byte of the segment at which it begins.
    pub offset: u64,
    /// The topic's name; empty if the record that gives it is damaged.
    pub topic: Arc<str>,
    /// What it does.
    pub change: DumpedChange,
}

/// What a record does to its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DumpedChange {
    /// An entry is added, or written again (`relocated`) since its segment was to be freed.
    Entry {
        /// Its index.
        index: u64,
        /// Whether it had been added before.
        relocated: bool,
        /// The entry.
        entry: Bytes,
    },
    /// Entries from here on are dropped.
    Truncate(u64),
    /// Entries before this one are dropped.
    Purge(u64),
    /// A metadata value.
    Metadata {
        /// Its key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// A cursor moves, or is removed (`None`).
    Cursor {
        /// Its name.
        name: Bytes,
        /// Its position.
        position: Option<u64>,
    },
    /// The topic gets its name.
    Define,
    /// At the head of a segment: the topic's bounds.
    Bounds {
        /// Index of its first entry.
        first: u64,
        /// Index its next entry will get.
        next: u64,
    },
}

/// Hands all records of the log in `dir` to `visit`, in order, until it breaks. Damage does not end the search, so this is
/// the way to salvage entries from a log that cannot be opened: whatever has a valid checksum is found, also entries that were
/// truncated or purged, and the remains of a write that was never acknowledged. Changes nothing and takes no lock.
///
/// # Errors
/// When files cannot be read, or were written by a later version.
pub fn dump(
    dir: impl AsRef<Path>,
    vfs: &Arc<dyn Vfs>,
    mut visit: impl FnMut(Dumped) -> ControlFlow<()>,
) -> Result<(), OpenError> {
    let files = open_all(dir.as_ref(), vfs)?;
    let mut names = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        let end = files.get(i + 1).and_then(|next| next.header).map(|next| next.predecessor_end);
        let mut dump = Dump { file, names: &mut names, visit: &mut visit };
        if dump.segment(end)?.is_break() {
            break;
        }
    }
    Ok(())
}

struct Dump<'a, V> {
    file: &'a SegmentFile,
    names: &'a mut BTreeMap<u32, Arc<str>>,
    visit: &'a mut V,
}

impl<V: FnMut(Dumped) -> ControlFlow<()>> Dump<'_, V> {
    /// All frames of the segment, which end at `end` if that is known.
    fn segment(&mut self, end: Option<u64>) -> Result<ControlFlow<()>, OpenError> {
        let Some(header) = self.file.header else {
            return Ok(if self.file.unused {
                ControlFlow::Continue(())
            } else {
                self.damaged(0, "no valid header")
            });
        };
        let mut scanner = Scanner::new(self.file, header.salt);
        let mut offset = PAGE;
        while end.is_none_or(|end| offset < end) {
            let (frame, is_whole) = match scanner.frame_at(offset)? {
                Found::Frame(frame) => (Some(frame), true),
                Found::BadBody => (scanner.header_at(offset)?, false),
                Found::Nothing => (None, false),
            };
            let flow = if let Some(frame) = frame {
                let body = Bytes::copy_from_slice(scanner.body(offset, &frame)?);
                let flow = self.body(offset + FRAME_HEADER_LEN as u64, &body, header.salt, is_whole);
                offset = next_frame(offset, &frame);
                flow
            } else {
                let next = scanner.find_header(offset + PAGE, |_| true)?.map(|(at, _)| at);
                let next = next.filter(|at| end.is_none_or(|end| *at < end));
                let (Some(resume), from) = (next.or(end), offset) else { break };
                offset = resume;
                self.damaged(from, "no frame from here to the next one")
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The records of a frame's body, which begins at byte `at`.
    fn body(&mut self, at: u64, body: &Bytes, salt: u64, is_whole: bool) -> ControlFlow<()> {
        let mut damaged_before = false;
        for item in record::split(body) {
            let Some((header, offset, payload)) = item else {
                return self.damaged(at, "the rest of the frame is not made of records");
            };
            let record = &body[offset..offset + HEADER_LEN + payload.len()];
            if is_whole || record::is_intact(record, salt) {
                damaged_before = false;
                let payload = body.slice_ref(payload);
                self.record(at + offset as u64, &header, payload)?;
            } else if !std::mem::replace(&mut damaged_before, true) {
                self.damaged(at + offset as u64, "the record does not match its checksum")?;
            }
        }
        ControlFlow::Continue(())
    }

    fn record(&mut self, offset: u64, header: &RecordHeader, payload: Bytes) -> ControlFlow<()> {
        let index = header.index;
        let change = match header.kind {
            RecordKind::Append => DumpedChange::Entry { index, relocated: false, entry: payload },
            RecordKind::Relocate => DumpedChange::Entry { index, relocated: true, entry: payload },
            RecordKind::Truncate => DumpedChange::Truncate(index),
            RecordKind::Purge => DumpedChange::Purge(index),
            RecordKind::Metadata => {
                let key = payload.slice(..payload.len().min(index as usize));
                DumpedChange::Metadata { value: payload.slice(key.len()..), key }
            }
            RecordKind::Cursor => {
                DumpedChange::Cursor { name: payload, position: (index != CURSOR_REMOVED).then_some(index) }
            }
            RecordKind::Define => {
                self.names.insert(header.topic, String::from_utf8_lossy(&payload).into());
                DumpedChange::Define
            }
            RecordKind::Bounds => match payload.first_chunk() {
                Some(next) => DumpedChange::Bounds { first: index, next: u64::from_le_bytes(*next) },
                None => return self.damaged(offset, "bounds without an end"),
            },
        };
        let topic = self.names.get(&header.topic).cloned().unwrap_or_default();
        (self.visit)(Dumped::Record(DumpedRecord { segment: self.file.sequence, offset, topic, change }))
    }

    fn damaged(&mut self, offset: u64, detail: &str) -> ControlFlow<()> {
        (self.visit)(Dumped::Damaged(damage(self.file, offset, detail, Vec::new())))
    }
}
