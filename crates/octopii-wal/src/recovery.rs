//! From the segments on disk to the state in memory. Reads only; the caller makes the outcome durable.
//!
//! The last segment is scanned. Of each sealed one the footer says which entries it holds, and the checkpoint at the head of
//! the last segment says which of those still count; a segment whose footer is not there is scanned like the last.

use std::collections::BTreeMap;
use std::path::Path;

use octopii_vfs::{FileKind, Vfs};

use crate::error::OpenError;
use crate::format::footer::{HEADER_LEN, Summary};
use crate::format::segment::SegmentHeader;
use crate::format::{PAGE, segment};
use crate::index::Run;
use crate::replay::{Replayed, damaged, replay};
use crate::scan::{Scanner, SegmentFile};
use crate::state::TopicState;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, PoisonError};
use crate::writer::Position;

/// What follows the last whole frame of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing but zeroes, the end of the file, or bytes of the segment that had the file before.
    Clean,
    /// The remains of a write that a crash interrupted, from this byte of the last segment on. It was never acknowledged as
    /// synced, and is ignored.
    Torn {
        /// Where it begins.
        offset: u64,
    },
}

/// One segment that counts.
#[derive(Debug)]
pub(crate) struct KnownSegment {
    pub(crate) file: SegmentFile,
    pub(crate) header: SegmentHeader,
    /// Where its frames end.
    pub(crate) end: u64,
    pub(crate) frames: u64,
    pub(crate) has_footer: bool,
}

/// What the segments of a directory add up to.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) topics: BTreeMap<u32, TopicState>,
    /// In order, without gaps, each with at least one frame.
    pub(crate) segments: Vec<KnownSegment>,
    /// Segment files that hold nothing anybody needs: begun and never used, or purged and not quite removed.
    pub(crate) useless: Vec<SegmentFile>,
    pub(crate) position: Position,
    /// Where the frames of the last segment begin of which nothing proves that they were synced.
    pub(crate) unproven: u64,
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

/// Segment files that count, in order, and those that do not.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    pub(crate) segments: Vec<(SegmentFile, SegmentHeader)>,
    useless: Vec<SegmentFile>,
}

/// Tells the segments among `files`, which are in order of their sequence, from what a crash has left over.
pub(crate) fn sort(mut files: Vec<SegmentFile>) -> Result<Sorted, OpenError> {
    let mut useless = Vec::new();
    // A header is synced before the first frame is written, so a file without a valid one never held any.
    if let Some(last) = files.pop_if(|last| last.header.is_none()) {
        if !last.unused && !Scanner::new(&last, 0).is_zero_from(PAGE)? {
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
    let mut segments = Vec::with_capacity(files.len());
    for file in files {
        match file.header.filter(|h| h.sequence == file.sequence) {
            Some(header) => segments.push((file, header)),
            None => return Err(damaged(&file, 0, "the segment's header is not valid", Vec::new())),
        }
    }
    Ok(Sorted { segments, useless })
}

/// Finds out what `files` add up to, scanning with as many threads.
pub(crate) fn recover(files: Vec<SegmentFile>, threads: usize) -> Result<Recovered, OpenError> {
    let Sorted { mut segments, mut useless } = sort(files)?;
    let mut tail = Tail::Clean;
    let mut last = None;
    let mut stated_end = None;
    while let Some((file, header)) = segments.pop() {
        let replayed = replay(&file, &header, stated_end)?;
        if stated_end.is_none() && is_torn(&file, &header, replayed.end)? {
            tail = Tail::Torn { offset: replayed.end };
        }
        if replayed.frames > 0 {
            last = Some((file, header, replayed));
            break;
        }
        // Begun and never used. The one before was still whole then, or this one would not have been begun.
        stated_end = Some(header.predecessor_end);
        useless.push(file);
    }
    let Some((file, header, Replayed { end, frames, unproven, topics })) = last else {
        let position = Position { next_segment: 1, predecessor_end: 0, next_frame: 1 };
        let (topics, segments) = (BTreeMap::new(), Vec::new());
        return Ok(Recovered { topics, segments, useless, position, unproven: 0, tail });
    };
    let position = Position {
        next_segment: file.sequence + 1,
        predecessor_end: end,
        next_frame: header.first_frame.wrapping_add(frames),
    };

    let successors: Vec<SegmentHeader> =
        segments.iter().skip(1).map(|(_, header)| *header).chain([header]).collect();
    let sealed: Vec<_> = segments.into_iter().zip(successors).collect();
    let contents = in_parallel(&sealed, threads, |((file, header), next)| contents(file, header, next))?;
    let mut runs: BTreeMap<u32, Vec<Run>> = BTreeMap::new();
    let mut known = Vec::with_capacity(sealed.len() + 1);
    for (((file, header), next), contents) in sealed.into_iter().zip(contents) {
        for (topic, run) in contents.runs {
            runs.entry(topic).or_default().push(run);
        }
        let end = next.predecessor_end;
        known.push(KnownSegment {
            file,
            header,
            end,
            frames: contents.frames,
            has_footer: contents.has_footer,
        });
    }
    known.push(KnownSegment { file, header, end, frames, has_footer: false });

    let topics = merge(topics, runs, &known[0].file)?;
    Ok(Recovered { topics, segments: known, useless, position, unproven, tail })
}

/// Whether something that was meant to be a frame begins at `end`.
fn is_torn(file: &SegmentFile, header: &SegmentHeader, end: u64) -> Result<bool, OpenError> {
    let mut scanner = Scanner::new(file, header.salt);
    // In a file that is used again, bytes of the former segment follow in any case.
    if header.reused { Ok(scanner.header_at(end)?.is_some()) } else { Ok(!scanner.is_zero_from(end)?) }
}

/// What a sealed segment holds.
#[derive(Debug)]
struct Contents {
    frames: u64,
    runs: Vec<(u32, Run)>,
    has_footer: bool,
}

fn contents(file: &SegmentFile, header: &SegmentHeader, next: &SegmentHeader) -> Result<Contents, OpenError> {
    let contents = match footer(file, header, next)? {
        Some(summary) => Contents { frames: summary.frames, runs: summary.runs, has_footer: true },
        None => {
            let Replayed { frames, topics, .. } = replay(file, header, Some(next.predecessor_end))?;
            let runs = topics.into_iter().flat_map(|(topic, state)| {
                state.written.entries.into_runs().into_iter().map(move |run| (topic, run))
            });
            Contents { frames, runs: runs.collect(), has_footer: false }
        }
    };
    if header.first_frame.wrapping_add(contents.frames) != next.first_frame {
        let detail = "the segment does not lead to the one after it";
        return Err(damaged(file, next.predecessor_end, detail, Vec::new()));
    }
    Ok(contents)
}

/// The footer of a sealed segment, if it is there and valid. Without it nothing is lost but time.
pub(crate) fn footer(
    file: &SegmentFile,
    header: &SegmentHeader,
    next: &SegmentHeader,
) -> Result<Option<Summary>, OpenError> {
    let at = next.predecessor_end;
    let left = file.len.saturating_sub(at);
    let read = |len: usize| {
        let mut bytes = vec![0; len];
        file.file.read_exact_at(&mut bytes, at).map(|()| bytes).map_err(|reason| OpenError::Io {
            operation: "read",
            path: file.path.clone(),
            reason,
        })
    };
    if left < HEADER_LEN as u64 {
        return Ok(None);
    }
    let len = read(HEADER_LEN)?.first_chunk().and_then(Summary::stated_len);
    let Some(len) = len.filter(|len| *len as u64 <= left) else { return Ok(None) };
    let summary = Summary::decode(&read(len)?, header.salt, at, file.len);
    Ok(summary.filter(|s| {
        s.sequence == header.sequence
            && s.first_frame == header.first_frame
            && s.first_frame.wrapping_add(s.frames) == next.first_frame
    }))
}

/// Puts the runs of the sealed segments, in order, and those of the last, which `topics` has, together.
fn merge(
    mut topics: BTreeMap<u32, TopicState>,
    mut sealed: BTreeMap<u32, Vec<Run>>,
    first: &SegmentFile,
) -> Result<BTreeMap<u32, TopicState>, OpenError> {
    let mut holes = Vec::new();
    for (id, topic) in &mut topics {
        let last = std::mem::take(&mut topic.written.entries);
        let entries = &mut topic.written.entries;
        let bounds = (last.first(), last.next());
        sealed.remove(id).into_iter().flatten().chain(last.into_runs()).for_each(|run| entries.adopt(run));
        entries.clip(bounds.0, bounds.1);
        holes.extend(entries.hole().map(|hole| (topic.name.to_string(), hole)));
        topic.fall_back();
    }
    if !sealed.is_empty() {
        return Err(damaged(first, 0, "there are entries of a topic that no checkpoint names", Vec::new()));
    }
    if !holes.is_empty() {
        return Err(damaged(first, 0, "segments before this one are missing", holes));
    }
    Ok(topics)
}

/// Threads for scanning segments: as many as the machine runs at once, but not so many that they fight for the disk.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(8))
}

/// Applies `work` to all `items`; the result is in their order, or the first error in their order.
pub(crate) fn in_parallel<T: Sync, R: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let threads = threads.min(items.len());
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    crate::sync::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((i, item)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    items.get(i).map(|item| (i, item))
                } {
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(i, result);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}
