//! The writing end of the segment stream: space, frames, syncs. Only one thread at a time is in here.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use octopii_vfs::{FileHandle, OpenMode, Vfs};

use crate::error::{Failure, is_full};
use crate::format::frame::{self, FrameHeader, FrameKind};
use crate::format::record::RecordHeader;
use crate::format::segment::{SegmentHeader, file_name};
use crate::format::{PAGE, pages};
use crate::spares::Spares;
use crate::state::Operation;

/// Space is taken and filled with zeroes in steps as large as what is there already, between these.
const STEPS: std::ops::RangeInclusive<u64> = (256 << 10)..=(4 << 20);
/// Frames from this size on go straight into fresh space, and past the page cache: a sync that writes some metadata costs
/// less than writing so many bytes twice, and copying them to fresh pages of the cache costs more than the disk does.
const LARGE: u64 = 256 << 10;
static ZEROES: [u8; 128 << 10] = [0; 128 << 10];

/// The segment that is being written.
#[derive(Debug)]
struct Active {
    file: FileHandle,
    header: SegmentHeader,
    /// Where the next frame begins; a multiple of [`PAGE`].
    end: u64,
    /// From `end` to here the file holds zeroes, or old bytes: space that was written before.
    prepared: u64,
    /// Frames end here at the latest.
    limit: u64,
    /// Whether `sync_data` has covered everything before `end`.
    synced: bool,
}

/// Where the stream goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    /// Sequence of the next segment to create.
    pub(crate) next_segment: u64,
    /// Where the frames of its predecessor end.
    pub(crate) predecessor_end: u64,
    /// Number of the next frame.
    pub(crate) next_frame: u64,
}

/// What the writer has done since the log was opened.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) commits: u64,
    pub(crate) syncs: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Writer {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    segment_size: u64,
    /// Bytes at the end of each segment into which only frames without entries may go, so that purging works when the
    /// disk is full.
    reserve: u64,
    seed: Option<u64>,
    active: Option<Active>,
    position: Position,
    /// Frames before this number are on stable storage.
    synced_frames: u64,
    spares: Spares,
    buffer: Vec<u8>,
    pub(crate) work: Work,
}

impl Writer {
    /// A writer that begins a new segment with its first frame. Everything before `position` is synced.
    pub(crate) fn new(
        vfs: Arc<dyn Vfs>,
        dir: PathBuf,
        segment_size: u64,
        seed: Option<u64>,
        position: Position,
        spares: Spares,
    ) -> Self {
        Self {
            vfs,
            dir,
            segment_size,
            reserve: (segment_size / 8 / PAGE * PAGE).min(64 << 10),
            seed,
            active: None,
            position,
            synced_frames: position.next_frame,
            spares,
            buffer: Vec::new(),
            work: Work::default(),
        }
    }

    pub(crate) fn active_sequence(&self) -> Option<u64> {
        self.active.as_ref().map(|a| a.header.sequence)
    }

    /// Makes sure that a frame of `body` bytes fits into the active segment, beginning a new one if it must; then
    /// `checkpoint` gives the operations that restate all topics, and the new segment's header and file are returned.
    pub(crate) fn make_room(
        &mut self,
        body: u64,
        has_entries: bool,
        checkpoint: impl Fn() -> Vec<Operation>,
    ) -> Result<Option<(SegmentHeader, FileHandle)>, Failure> {
        match self.try_make_room(body, has_entries, &checkpoint) {
            Err(Failure::Full(_)) if self.spares.release(&*self.vfs) => {
                self.try_make_room(body, has_entries, &checkpoint)
            }
            other => other,
        }
    }

    fn try_make_room(
        &mut self,
        body: u64,
        has_entries: bool,
        checkpoint: &impl Fn() -> Vec<Operation>,
    ) -> Result<Option<(SegmentHeader, FileHandle)>, Failure> {
        let needed = pages(frame::HEADER_LEN as u64 + body);
        let reserve = if has_entries { self.reserve } else { 0 };
        let mut begun = None;
        if self.active.as_ref().is_none_or(|a| a.end + needed + reserve > a.limit) {
            let checkpoint = checkpoint();
            let body: u64 = checkpoint.iter().map(|o| o.len() as u64).sum();
            let head = PAGE + pages(frame::HEADER_LEN as u64 + body);
            let extent = Extent::of_frame(head, needed, reserve);
            self.begin_segment(self.segment_size.max(head + needed + self.reserve), &extent)?;
            self.write_frame(FrameKind::Checkpoint, checkpoint.iter(), |_| {})?;
            begun = self.active.as_ref().map(|a| (a.header, Arc::clone(&a.file)));
        }
        let active = self.active.as_mut().expect("a segment was just begun");
        extend(active, &Extent::of_frame(active.end, needed, reserve))?;
        Ok(begun)
    }

    /// Writes one frame into the room made for it. `placed` gets each record's offset in the segment, in order.
    pub(crate) fn write_frame<'a>(
        &mut self,
        kind: FrameKind,
        operations: impl Iterator<Item = &'a Operation> + Clone,
        mut placed: impl FnMut(u32),
    ) -> Result<(), Failure> {
        let active = self.active.as_mut().expect("room was made");
        let body_len: usize = operations.clone().map(Operation::len).sum();
        let frame_len = pages((frame::HEADER_LEN + body_len) as u64) as usize;
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.reserve(frame_len + PAGE as usize);
        // Writes past the page cache begin at a page of memory, too. Nothing below outgrows what is reserved.
        let start = buffer.as_ptr().align_offset(PAGE as usize);
        buffer.resize(start + frame::HEADER_LEN, 0);
        let mut records_crc = 0;
        for operation in operations {
            placed(active.end as u32 + (buffer.len() - start) as u32);
            let header = RecordHeader {
                kind: operation.kind,
                topic: operation.topic,
                index: operation.index,
                len: operation.payload.len() as u32,
            };
            let header = header.encode(operation.payload_crc, active.header.salt);
            records_crc = crc32c::crc32c_append(records_crc, &header);
            buffer.extend_from_slice(&header);
            buffer.extend_from_slice(&operation.payload);
        }
        let header = FrameHeader {
            kind,
            body_len: u32::try_from(body_len).map_err(|_| {
                Failure::Fatal("write a frame over 4 GiB", io::ErrorKind::FileTooLarge.into())
            })?,
            records_crc,
            number: self.position.next_frame,
            synced: self.synced_frames,
        };
        buffer.resize(start + frame_len, 0);
        let bytes = &mut buffer[start..];
        bytes[..frame::HEADER_LEN].copy_from_slice(&header.encode(active.header.salt, active.end));
        active.synced = false;
        let written = if bytes.len() as u64 >= LARGE {
            active.file.write_all_at_uncached(bytes, active.end)
        } else {
            active.file.write_all_at(bytes, active.end)
        };
        written.map_err(|e| Failure::Fatal("write", e))?;
        active.end += frame_len as u64;
        self.position.next_frame += 1;
        self.work.commits += u64::from(kind == FrameKind::Batches);
        self.work.bytes += frame_len as u64;
        // One large batch must not pin its size for the life of the log.
        if buffer.capacity() > 16 << 20 {
            *buffer = Vec::new();
        }
        Ok(())
    }

    /// Makes every frame written so far durable.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        if let Some(active) = self.active.as_mut().filter(|a| !a.synced) {
            active.file.sync_data().map_err(|e| Failure::Fatal("sync", e))?;
            active.synced = true;
            self.work.syncs += 1;
        }
        self.synced_frames = self.position.next_frame;
        Ok(())
    }

    /// Disposes of segments that nobody needs any more.
    pub(crate) fn retire_segments(&mut self, retired: Vec<(u64, FileHandle)>, is_full: bool) {
        self.spares.retire(&*self.vfs, &self.dir, self.segment_size, retired, is_full);
    }

    /// Files kept for segments to come.
    pub(crate) fn spares(&self) -> usize {
        self.spares.len()
    }

    fn begin_segment(&mut self, limit: u64, first_extent: &Extent) -> Result<(), Failure> {
        if limit > u64::from(u32::MAX) {
            return Err(Failure::Fatal("write a segment over 4 GiB", io::ErrorKind::FileTooLarge.into()));
        }
        // The new header vouches for the predecessor's frames, so they are synced first.
        self.sync()?;
        let predecessor_end = self.active.as_ref().map_or(self.position.predecessor_end, |a| a.end);
        let sequence = self.position.next_segment;
        let header = SegmentHeader {
            sequence,
            salt: self.salt(sequence),
            first_frame: self.position.next_frame,
            predecessor_end,
            reused: false,
        };
        let path = self.dir.join(file_name(sequence));
        let active = match self.open_segment(&path, header, limit, first_extent) {
            Ok(active) => active,
            Err(failure) => {
                if matches!(failure, Failure::Full(_)) {
                    match self.vfs.remove_file(&path) {
                        Err(e) if e.kind() != io::ErrorKind::NotFound => {
                            return Err(Failure::Fatal("remove an unfinished segment", e));
                        }
                        _ => {}
                    }
                }
                return Err(failure);
            }
        };
        self.work.syncs += 1;
        self.position.next_segment += 1;
        self.position.predecessor_end = predecessor_end;
        self.active = Some(active);
        Ok(())
    }

    /// Makes a segment file whose header is durable before its first frame is written: a file without a valid header is
    /// thus one that never held a frame.
    fn open_segment(
        &mut self,
        path: &Path,
        mut header: SegmentHeader,
        limit: u64,
        first_extent: &Extent,
    ) -> Result<Active, Failure> {
        let spare = self.spares.take(&*self.vfs, path)?;
        header.reused = spare.is_some();
        let (file, prepared) = match spare {
            Some(spare) => spare,
            None => match self.vfs.open(path, OpenMode::CreateNew) {
                Ok(file) => (file, 0),
                Err(e) if is_full(&e) => return Err(Failure::Full(e)),
                Err(e) => return Err(Failure::Fatal("create a segment", e)),
            },
        };
        let mut active = Active { file, header, end: PAGE, prepared, limit, synced: true };
        extend(&mut active, first_extent)?;
        active.file.write_all_at(&header.encode(), 0).map_err(|e| Failure::Fatal("write", e))?;
        active.file.sync_data().map_err(|e| Failure::Fatal("sync", e))?;
        self.vfs.sync_dir(&self.dir).map_err(|e| Failure::Fatal("sync the directory", e))?;
        Ok(active)
    }

    fn salt(&self, sequence: u64) -> u64 {
        match self.seed {
            Some(seed) => {
                let mut mix = seed ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.position.next_frame;
                mix = (mix ^ (mix >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mix = (mix ^ (mix >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                mix ^ (mix >> 31)
            }
            // The standard library's own source of unpredictable numbers; nothing here is secret.
            None => std::hash::RandomState::new().build_hasher().finish(),
        }
    }
}

/// Space that a frame needs.
struct Extent {
    /// What the frame itself will fill, if that is enough to be left alone.
    untouched: Range<u64>,
    end: u64,
}

impl Extent {
    /// For a frame of `needed` bytes at `at`, with `reserve` bytes behind it.
    fn of_frame(at: u64, needed: u64, reserve: u64) -> Self {
        let end = at + needed;
        Self { untouched: if needed >= LARGE { at..end } else { at..at }, end: end + reserve }
    }
}

/// Takes space and fills it with written zeroes, so that later syncs need not write metadata, for `extent` at least.
fn extend(active: &mut Active, extent: &Extent) -> Result<(), Failure> {
    if extent.end <= active.prepared {
        return Ok(());
    }
    let step = active.prepared.clamp(*STEPS.start(), *STEPS.end());
    let target = if extent.untouched.is_empty() {
        pages(extent.end).max((active.prepared + step).min(active.limit))
    } else {
        pages(extent.end)
    };
    let full_or_fatal =
        |e| if is_full(&e) { Failure::Full(e) } else { Failure::Fatal("extend a segment", e) };
    active.file.allocate(target).map_err(full_or_fatal)?;
    let mut at = active.prepared;
    while at < target {
        if extent.untouched.contains(&at) {
            at = extent.untouched.end;
            continue;
        }
        let end = if at < extent.untouched.start { extent.untouched.start } else { target };
        let n = (end - at).min(ZEROES.len() as u64);
        active.file.write_all_at(&ZEROES[..n as usize], at).map_err(full_or_fatal)?;
        at += n;
    }
    active.prepared = target;
    Ok(())
}
