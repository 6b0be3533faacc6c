//! Looking into a log's directory without opening the log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use octopii_vfs::{FileHandle, OpenMode, Vfs};

use crate::error::OpenError;
use crate::recovery::{self, Tail};
use crate::scan::SegmentFile;

/// Inspections of a log that changes under our eyes are tried this often.
const TRIES: usize = 100;

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// Segments in order.
    pub segments: Vec<SegmentInfo>,
    /// Topics, sorted by name.
    pub topics: Vec<TopicInfo>,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// What follows the last whole frame. On a live log this may be a write under way.
    pub tail: Tail,
}

/// One segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentInfo {
    /// The file.
    pub path: PathBuf,
    /// Its place in the log.
    pub sequence: u64,
    /// Its salt.
    pub salt: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Where its frames end.
    pub used: u64,
    /// Number of frames.
    pub frames: u64,
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Index of its first entry.
    pub first_index: u64,
    /// Index its next entry will get.
    pub next_index: u64,
    /// Metadata keys with the bytes of their values.
    pub metadata: Vec<(String, u64)>,
    /// Cursors, sorted by name, with the index of the first entry that each has not acknowledged.
    pub cursors: Vec<(String, u64)>,
}

/// Reads the log in `dir`, verifying every frame, and tells what is there. Changes nothing and takes no lock; a log may be
/// open in `dir` meanwhile, and then the answer is one of the states it went through.
///
/// # Errors
/// As [`WriteAheadLog::open`](crate::WriteAheadLog::open), above all [`OpenError::Damaged`].
pub fn inspect(dir: impl AsRef<Path>, vfs: &Arc<dyn Vfs>) -> Result<Inspection, OpenError> {
    let dir = dir.as_ref();
    // A live log may begin, fill and remove segments while they are listed and read, which can look like damage. What is
    // really damaged looks the same twice.
    let mut before = String::new();
    let mut tries = 0;
    loop {
        tries += 1;
        match inspect_once(dir, vfs) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) if tries < TRIES => {}
            Err(error) if error.to_string() != before && tries < TRIES => before = error.to_string(),
            Ok(None) => return Err(changing(dir)),
            Err(error) => return Err(error),
        }
    }
}

fn changing(dir: &Path) -> OpenError {
    let reason =
        io::Error::new(io::ErrorKind::ResourceBusy, "its segments change faster than they can be read");
    OpenError::Io { operation: "inspect", path: dir.to_owned(), reason }
}

/// `None` if a file was made ready for another segment while it was read.
fn inspect_once(dir: &Path, vfs: &Arc<dyn Vfs>) -> Result<Option<Inspection>, OpenError> {
    let files = open_all(dir, vfs)?;
    let segments = files.iter().filter(|f| f.header.is_some());
    let opened: Vec<_> =
        segments.map(|f| (FileHandle::clone(&f.file), f.path.clone(), f.sequence, f.header)).collect();
    let recovered = recovery::recover(files, recovery::threads())?;
    // The header is the first thing to go when a file is used again, so what was read before was the segment's.
    for (file, path, sequence, header) in opened {
        if SegmentFile::from_handle(file, path, sequence)?.header != header {
            return Ok(None);
        }
    }
    let segments: Vec<_> = recovered
        .segments
        .iter()
        .map(|s| SegmentInfo {
            path: s.file.path.clone(),
            sequence: s.file.sequence,
            salt: s.header.salt,
            bytes: s.file.len,
            used: s.end,
            frames: s.frames,
        })
        .collect();
    let mut topics: Vec<_> = recovered
        .topics
        .values()
        .map(|t| TopicInfo {
            name: t.name.to_string(),
            first_index: t.first(),
            next_index: t.next(),
            metadata: t
                .written
                .metadata
                .iter()
                .map(|(k, v)| (String::from_utf8_lossy(k).into_owned(), v.len() as u64))
                .collect(),
            cursors: t
                .cursors()
                .iter()
                .map(|(name, position)| (String::from_utf8_lossy(name).into_owned(), *position))
                .collect(),
        })
        .collect();
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let bytes = segments.iter().map(|s| s.bytes).chain(recovered.useless.iter().map(|f| f.len)).sum();
    Ok(Some(Inspection { segments, topics, bytes, tail: recovered.tail }))
}

/// Opens the segments that were in `dir` at one moment. Open files stay readable when a live log removes them.
pub(crate) fn open_all(dir: &Path, vfs: &Arc<dyn Vfs>) -> Result<Vec<SegmentFile>, OpenError> {
    let open = |path: PathBuf, sequence| match vfs.open(&path, OpenMode::Read) {
        Ok(file) => SegmentFile::from_handle(file, path, sequence).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(OpenError::Io { operation: "open", path, reason }),
    };
    let mut files = recovery::list(&**vfs, dir, open)?;
    for _ in 0..TRIES {
        let again = recovery::list(&**vfs, dir, open)?;
        // The same names are not enough: a file made ready for a segment gets its header a little later.
        let seen = |f: &SegmentFile| (f.sequence, f.header, f.unused);
        if files.iter().map(seen).eq(again.iter().map(seen)) {
            break;
        }
        files = again;
    }
    Ok(files)
}
