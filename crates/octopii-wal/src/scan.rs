//! Reading a segment from front to back.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use octopii_vfs::{FileHandle, OpenMode, Vfs};

use crate::error::OpenError;
use crate::format::frame::{self, FrameHeader};
use crate::format::record;
use crate::format::segment::{self, ReadHeader, SegmentHeader};
use crate::format::{PAGE, pages};

const WINDOW: usize = 1 << 20;

/// A segment file as found on disk.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) sequence: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: FileHandle,
    pub(crate) len: u64,
    /// `None`: the first page is not a valid header.
    pub(crate) header: Option<SegmentHeader>,
    /// The first page says that nothing in the file counts.
    pub(crate) unused: bool,
}

/// What is at a place where a frame could begin.
#[derive(Debug)]
pub(crate) enum Found {
    /// A frame whose checksums are right; its body is in the scanner's window.
    Frame(FrameHeader),
    /// A valid header before a body that is not what the header says.
    BadBody,
    /// No frame.
    Nothing,
}

impl SegmentFile {
    pub(crate) fn open(vfs: &dyn Vfs, path: PathBuf, sequence: u64) -> Result<Self, OpenError> {
        let at = |operation| {
            let path = path.clone();
            move |reason| OpenError::Io { operation, path, reason }
        };
        let file = vfs.open(&path, OpenMode::ReadWrite).map_err(at("open"))?;
        Self::from_handle(file, path, sequence)
    }

    pub(crate) fn from_handle(file: FileHandle, path: PathBuf, sequence: u64) -> Result<Self, OpenError> {
        let io = |operation, reason| OpenError::Io { operation, path: path.clone(), reason };
        let len = file.len().map_err(|e| io("find the length of", e))?;
        let mut head = vec![0; PAGE.min(len) as usize];
        file.read_exact_at(&mut head, 0).map_err(|e| io("read", e))?;
        let decoded = SegmentHeader::decode(&head);
        let header = match decoded {
            ReadHeader::Valid(header) => Some(header),
            ReadHeader::Invalid | ReadHeader::Unused => None,
            ReadHeader::Unsupported(found) => {
                return Err(OpenError::UnsupportedVersion { path, found, supported: segment::VERSION });
            }
        };
        Ok(Self { sequence, path, file, len, header, unused: decoded == ReadHeader::Unused })
    }

    /// Writes the bytes of `range` to where they are, so that the next sync covers them.
    pub(crate) fn write_again(&self, range: Range<u64>) -> io::Result<()> {
        // Of the last frame's padding some may be missing.
        let (mut at, end) = (range.start, range.end.min(self.len));
        while at < end {
            let mut bytes = vec![0; (end - at).min(WINDOW as u64) as usize];
            self.file.read_exact_at(&mut bytes, at)?;
            self.file.write_all_at(&bytes, at)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Reads frames, holding a window of the file in memory.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    segment: &'a SegmentFile,
    salt: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(segment: &'a SegmentFile, salt: u64) -> Self {
        Self { segment, salt, window: Vec::new(), window_at: 0 }
    }

    /// Looks for a frame at `offset`.
    pub(crate) fn frame_at(&mut self, offset: u64) -> Result<Found, OpenError> {
        let Some(header) = self.header_at(offset)? else { return Ok(Found::Nothing) };
        let salt = self.salt;
        let body = self.bytes(offset + frame::HEADER_LEN as u64, header.body_len as usize)?;
        match body {
            Some(body) if record::is_body_intact(body, header.records_crc, salt) => Ok(Found::Frame(header)),
            _ => Ok(Found::BadBody),
        }
    }

    /// The frame header at `offset`, if there is a valid one.
    pub(crate) fn header_at(&mut self, offset: u64) -> Result<Option<FrameHeader>, OpenError> {
        let salt = self.salt;
        let bytes = self.bytes(offset, frame::HEADER_LEN)?;
        Ok(bytes.and_then(|b| FrameHeader::decode(b, salt, offset)))
    }

    /// The body of the frame whose header was found at `offset`.
    pub(crate) fn body(&mut self, offset: u64, header: &FrameHeader) -> Result<&[u8], OpenError> {
        Ok(self.bytes(offset + frame::HEADER_LEN as u64, header.body_len as usize)?.unwrap_or(&[]))
    }

    /// The first place after `from` with a valid frame header that `is_wanted`.
    pub(crate) fn find_header(
        &mut self,
        from: u64,
        is_wanted: impl Fn(&FrameHeader) -> bool,
    ) -> Result<Option<(u64, FrameHeader)>, OpenError> {
        let mut at = from;
        while at < self.segment.len {
            if let Some(header) = self.header_at(at)?.filter(&is_wanted) {
                return Ok(Some((at, header)));
            }
            at += PAGE;
        }
        Ok(None)
    }

    /// Whether everything from `from` on is zero.
    pub(crate) fn is_zero_from(&mut self, from: u64) -> Result<bool, OpenError> {
        let mut at = from;
        while at < self.segment.len {
            let n = (self.segment.len - at).min(WINDOW as u64) as usize;
            if self.bytes(at, n)?.is_none_or(|b| b.iter().any(|b| *b != 0)) {
                return Ok(false);
            }
            at += n as u64;
        }
        Ok(true)
    }

    /// `len` bytes at `offset`, or `None` if the file ends before. Never takes more memory than the file has bytes.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<&[u8]>, OpenError> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.segment.len) {
            return Ok(None);
        }
        let in_window =
            offset >= self.window_at && offset + len as u64 <= self.window_at + self.window.len() as u64;
        if !in_window {
            let want = (len.max(WINDOW) as u64).min(self.segment.len - offset) as usize;
            self.window.resize(want, 0);
            self.window_at = offset;
            let read = self.segment.file.read_exact_at(&mut self.window, offset);
            if let Err(reason) = read {
                self.window.clear();
                // A live log's file may be replaced or cut under an inspector.
                if reason.kind() == io::ErrorKind::UnexpectedEof {
                    return Ok(None);
                }
                return Err(OpenError::Io { operation: "read", path: self.segment.path.clone(), reason });
            }
        }
        let start = (offset - self.window_at) as usize;
        Ok(Some(&self.window[start..start + len]))
    }
}

/// Where the frame after one of this length begins.
pub(crate) fn next_frame(offset: u64, header: &FrameHeader) -> u64 {
    offset + pages(frame::HEADER_LEN as u64 + u64::from(header.body_len))
}
