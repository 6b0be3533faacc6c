//! One snapshot as a file.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | magic `OCTOSNAP` |
//! | 4 | version, 1 |
//! | 4 | length of the metadata |
//! | … | metadata: last log id, membership (bincode) |
//! | … | sessions |
//! | … | the state machine's own bytes |
//! | 8 | length of everything before this field |
//! | 4 | CRC32C of everything before this field |
//!
//! Integers are little-endian. A file appears under its final name only when it is whole and synced.

use std::io;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use octopii_vfs::{FileHandle, OpenMode, Vfs};

use crate::error::SnapshotError;
use crate::session::Sessions;
use crate::state_machine::SnapshotSource;
use crate::wire;

const MAGIC: &[u8; 8] = b"OCTOSNAP";
const VERSION: u32 = 1;
const HEADER: u64 = 16;
const TRAILER: u64 = 12;
/// A membership of thousands of nodes is far smaller.
const META_LIMIT: u32 = 4 << 20;
const BUFFER: usize = 256 << 10;

/// Writes a snapshot to `path`, which it replaces: to a temporary file, synced, renamed, its directory synced.
pub(crate) fn write(
    vfs: &dyn Vfs,
    path: &Path,
    meta: &wire::SnapshotMeta,
    sessions: &Sessions,
    source: Box<dyn SnapshotSource>,
) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    match vfs.remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = write_temporary(vfs, &temporary, meta, sessions, source);
    if let Err(e) = written {
        // The error that matters is the first one; a file left over is removed at the next start.
        let _ = vfs.remove_file(&temporary);
        return Err(e);
    }
    vfs.rename(&temporary, path)?;
    vfs.sync_dir(path.parent().unwrap_or(Path::new(".")))
}

fn write_temporary(
    vfs: &dyn Vfs,
    path: &Path,
    meta: &wire::SnapshotMeta,
    sessions: &Sessions,
    source: Box<dyn SnapshotSource>,
) -> io::Result<()> {
    let mut out =
        Out { file: vfs.open(path, OpenMode::CreateNew)?, at: 0, crc: 0, buffer: Vec::with_capacity(BUFFER) };
    let meta = wire::encode(meta);
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_le_bytes())?;
    out.write_all(&(meta.len() as u32).to_le_bytes())?;
    out.write_all(&meta)?;
    sessions.write_to(&mut out)?;
    source.write_to(&mut out)?;
    out.flush()?;
    let (len, crc) = (out.at, out.crc);
    out.write_all(&len.to_le_bytes())?;
    out.write_all(&crc.to_le_bytes())?;
    out.flush()?;
    out.file.sync_data()
}

/// Checks every byte of the snapshot at `path` and returns what it contains, ready to be read.
pub(crate) fn open(vfs: &dyn Vfs, path: &Path) -> Result<Verified, SnapshotError> {
    let damaged = |what| SnapshotError::Damaged { path: path.to_owned(), what };
    let io = |source| SnapshotError::Io { path: path.to_owned(), source };
    let file = vfs.open(path, OpenMode::Read).map_err(io)?;
    let size = file.len().map_err(io)?;
    let Some(end) = size.checked_sub(TRAILER).filter(|end| *end >= HEADER) else {
        return Err(damaged("it is too short"));
    };
    let mut trailer = [0; TRAILER as usize];
    file.read_exact_at(&mut trailer, end).map_err(io)?;
    let (len, crc) = trailer.split_at(8);
    if len != end.to_le_bytes() {
        return Err(damaged("its length is not the one recorded"));
    }
    if crc != checksum(&file, end).map_err(io)?.to_le_bytes() {
        return Err(damaged("its checksum does not match"));
    }
    let mut payload = Payload { file, at: 0, end, buffer: Vec::new(), taken: 0 };
    let mut header = [0; HEADER as usize];
    payload.read_exact(&mut header).map_err(io)?;
    if &header[..8] != MAGIC {
        return Err(damaged("it is not a snapshot"));
    }
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(8) != VERSION {
        return Err(SnapshotError::Version { path: path.to_owned(), found: word(8), known: VERSION });
    }
    if word(12) > META_LIMIT {
        return Err(damaged("its metadata is too long"));
    }
    let mut meta = vec![0; word(12) as usize];
    payload.read_exact(&mut meta).map_err(io)?;
    let meta = wire::decode(&meta).map_err(|_| damaged("its metadata cannot be read"))?;
    Ok(Verified { path: path.to_owned(), meta, payload })
}

fn checksum(file: &FileHandle, end: u64) -> io::Result<u32> {
    let mut buffer = vec![0; BUFFER];
    let (mut at, mut crc) = (0, 0);
    while at < end {
        let part = &mut buffer[..(end - at).min(BUFFER as u64) as usize];
        file.read_exact_at(part, at)?;
        crc = crc32c::crc32c_append(crc, part);
        at += part.len() as u64;
    }
    Ok(crc)
}

/// A snapshot whose checksum held.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) path: PathBuf,
    pub(crate) meta: wire::SnapshotMeta,
    /// Sessions, then the state machine's bytes.
    pub(crate) payload: Payload,
}

#[derive(Debug)]
struct Out {
    file: FileHandle,
    at: u64,
    crc: u32,
    buffer: Vec<u8>,
}

impl Write for Out {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.at)?;
        self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Reads a file up to where its trailer begins.
#[derive(Debug)]
pub(crate) struct Payload {
    file: FileHandle,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    taken: usize,
}

impl Read for Payload {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.buffer.len() {
            self.buffer.resize((self.end - self.at).min(BUFFER as u64) as usize, 0);
            self.taken = 0;
            self.file.read_exact_at(&mut self.buffer, self.at)?;
            self.at += self.buffer.len() as u64;
        }
        let part = &self.buffer[self.taken..];
        let len = part.len().min(out.len());
        out[..len].copy_from_slice(&part[..len]);
        self.taken += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use octopii_vfs::RealVfs;

    use super::*;

    struct Bytes(Vec<u8>);

    impl SnapshotSource for Bytes {
        fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(&self.0)
        }
    }

    struct Failing;

    impl SnapshotSource for Failing {
        fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
            out.write_all(&vec![7; 2 * BUFFER])?;
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    fn meta() -> wire::SnapshotMeta {
        let last = Some(wire::LogId { leader: wire::Leader { term: 2, node: 1 }, index: 9 });
        let membership = wire::Membership { voters: vec![], nodes: BTreeMap::new() };
        wire::SnapshotMeta { last, membership_at: None, membership }
    }

    #[test]
    fn a_snapshot_survives_and_ends_where_it_should() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.snap");
        let body: Vec<u8> = (0..3 * BUFFER as u32 + 17).map(|i| (i * 31) as u8).collect();
        write(&RealVfs, &path, &meta(), &Sessions::default(), Box::new(Bytes(body.clone()))).unwrap();
        let mut verified = open(&RealVfs, &path).unwrap();
        assert_eq!(verified.meta, meta());
        Sessions::read_from(&mut verified.payload).unwrap();
        let mut read = Vec::new();
        verified.payload.read_to_end(&mut read).unwrap();
        assert_eq!(read, body);
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.snap");
        write(&RealVfs, &path, &meta(), &Sessions::default(), Box::new(Bytes(vec![5; 40]))).unwrap();
        let whole = octopii_vfs::read_file(&RealVfs, &path, 1 << 20).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            octopii_vfs::write_file_durable(&RealVfs, &path, &damaged).unwrap();
            assert!(matches!(open(&RealVfs, &path), Err(SnapshotError::Damaged { .. })), "byte {at}");
            octopii_vfs::write_file_durable(&RealVfs, &path, &whole[..at]).unwrap();
            assert!(matches!(open(&RealVfs, &path), Err(SnapshotError::Damaged { .. })), "cut at {at}");
        }
    }

    #[test]
    fn a_failed_snapshot_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.snap");
        let error = write(&RealVfs, &path, &meta(), &Sessions::default(), Box::new(Failing)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(RealVfs.read_dir(dir.path()).unwrap().is_empty());
    }
}
