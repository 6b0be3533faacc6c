//! Looking into a log's directory without opening the log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use octopii_vfs::{OpenMode, Vfs};

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
    for _ in 0..TRIES {
        match inspect_once(dir, vfs) {
            Err(error) if error.to_string() != before => before = error.to_string(),
            outcome => return outcome,
        }
    }
    inspect_once(dir, vfs)
}

fn inspect_once(dir: &Path, vfs: &Arc<dyn Vfs>) -> Result<Inspection, OpenError> {
    let recovered = recovery::recover(open_all(dir, vfs)?, recovery::threads())?;
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
    Ok(Inspection { segments, topics, bytes, tail: recovered.tail })
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
