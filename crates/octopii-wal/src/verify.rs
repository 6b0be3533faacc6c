//! Checking every byte of a log.

use std::path::Path;
use std::sync::Arc;

use octopii_vfs::{FileHandle, OpenMode, Vfs};

use crate::error::{Damage, OpenError};
use crate::format::segment::SegmentHeader;
use crate::index::Slots;
use crate::inspect::{inspect, open_all};
use crate::recovery::{Tail, footer, in_parallel, threads};
use crate::replay::{Replayed, damaged, replay};
use crate::scan::SegmentFile;
use crate::seal::read_slots;

/// What [`verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Segments read.
    pub segments: u64,
    /// Frames with valid checksums.
    pub frames: u64,
    /// Entries in them, without those that were dropped within their segment.
    pub entries: u64,
    /// Bytes of the frames.
    pub bytes: u64,
    /// Sealed segments whose footer is missing or torn. That is no damage: opening the log writes them again.
    pub without_footer: u64,
    /// What follows the last whole frame.
    pub tail: Tail,
    /// Everything that is damaged: in each segment the first place, and what is wrong with the log as a whole.
    pub damage: Vec<Damage>,
}

/// Reads the whole log in `dir` and checks every checksum, several segments at a time. Opening a log reads no sealed
/// segments, so this is how to find out about damage before somebody reads the entry. Changes nothing and takes no lock; the
/// log may be open meanwhile.
///
/// # Errors
/// When files cannot be read, or were written by a later version. Damage is no error: it is in the result.
pub fn verify(dir: impl AsRef<Path>, vfs: &Arc<dyn Vfs>) -> Result<Verification, OpenError> {
    let dir = dir.as_ref();
    let (tail, of_the_whole) = match inspect(dir, vfs) {
        Ok(inspection) => (inspection.tail, None),
        Err(OpenError::Damaged(damage)) => (Tail::Clean, Some(damage)),
        Err(other) => return Err(other),
    };
    let files = open_all(dir, vfs)?;
    let pairs: Vec<_> = files.iter().zip(files.iter().skip(1).map(Some).chain([None])).collect();
    let checked = in_parallel(&pairs, threads(), |(file, next)| check(&**vfs, file, *next))?;
    let mut found = Verification {
        segments: 0,
        frames: 0,
        entries: 0,
        bytes: 0,
        without_footer: 0,
        tail,
        damage: Vec::new(),
    };
    for checked in checked {
        match checked {
            Checked::Gone => {}
            Checked::Damaged(damage) => found.damage.push(damage),
            Checked::Good { frames, entries, bytes, has_footer } => {
                found.segments += 1;
                found.frames += frames;
                found.entries += entries;
                found.bytes += bytes;
                found.without_footer += u64::from(!has_footer);
            }
        }
    }
    let is_known = |damage: &Damage| found.damage.iter().any(|known| known.segment == damage.segment);
    if let Some(damage) = of_the_whole.filter(|damage| !is_known(damage)) {
        found.damage.push(damage);
    }
    Ok(found)
}

enum Checked {
    Good {
        frames: u64,
        entries: u64,
        bytes: u64,
        has_footer: bool,
    },
    /// It was purged meanwhile, or never used.
    Gone,
    Damaged(Damage),
}

fn check(vfs: &dyn Vfs, file: &SegmentFile, next: Option<&SegmentFile>) -> Result<Checked, OpenError> {
    let Some(header) = file.header else {
        // Whether a file without a header is one too many or one too few, the inspection has found out.
        return Ok(Checked::Gone);
    };
    // A log that is open may remove the segment, or begin the next one, under our eyes. Damage looks the same twice.
    let next = next.and_then(|next| next.header);
    match scan(file, &header, next.as_ref()) {
        Err(OpenError::Damaged(_)) if !is_still_there(vfs, file)? => Ok(Checked::Gone),
        Err(OpenError::Damaged(_)) => match scan(file, &header, next.as_ref()) {
            Err(OpenError::Damaged(damage)) => Ok(Checked::Damaged(damage)),
            other => other,
        },
        other => other,
    }
}

fn is_still_there(vfs: &dyn Vfs, file: &SegmentFile) -> Result<bool, OpenError> {
    match vfs.open(&file.path, OpenMode::Read) {
        Ok(now) => {
            let now = SegmentFile::from_handle(now, file.path.clone(), file.sequence)?;
            Ok(now.header == file.header)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(reason) => Err(OpenError::Io { operation: "open", path: file.path.clone(), reason }),
    }
}

fn scan(
    file: &SegmentFile,
    header: &SegmentHeader,
    next: Option<&SegmentHeader>,
) -> Result<Checked, OpenError> {
    let replayed = replay(file, header, next.map(|next| next.predecessor_end))?;
    let has_footer = match next {
        Some(next) => check_footer(file, header, next, &replayed)?,
        None => true,
    };
    let runs = replayed.topics.values().flat_map(|topic| topic.written.entries.runs());
    let entries = runs.map(|run| run.end - run.first).sum();
    Ok(Checked::Good { frames: replayed.frames, entries, bytes: replayed.end, has_footer })
}

/// Whether there is a footer. One that is whole must say what the frames say.
fn check_footer(
    file: &SegmentFile,
    header: &SegmentHeader,
    next: &SegmentHeader,
    replayed: &Replayed,
) -> Result<bool, OpenError> {
    let Some(summary) = footer(file, header, next)? else { return Ok(false) };
    for (id, run) in &summary.runs {
        let Slots::Footer(stretch) = &run.slots else { continue };
        let slots = read_slots(&FileHandle::clone(&file.file), stretch, header.salt)
            .map_err(|reason| OpenError::Io { operation: "read", path: file.path.clone(), reason })?;
        let Some(slots) = slots else { return Ok(false) };
        let expected = replayed.topics.get(id).and_then(|topic| {
            topic.written.entries.find(run.first, run.end - run.first).map(|found| found.slots)
        });
        if expected != Some(Slots::Memory(slots)) {
            let name = replayed.topics.get(id).map_or_else(|| id.to_string(), |topic| topic.name.to_string());
            let lost = vec![(name, run.first..run.end)];
            return Err(damaged(file, next.predecessor_end, "the footer contradicts the frames", lost));
        }
    }
    Ok(true)
}
