//! What a sender remembers of a source: the key under which receivers keep parts of it, and where hashing can go on.
//!
//! In a file of the sender's state directory, so that another process goes on where a killed one was. The bytes are in
//! `docs/formats/transfer.md`. Nothing here is needed for a transfer to be right: what is missing, damaged or out of date only
//! means that the content is sent, or hashed, from its beginning.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use octopii_transport::NodeId;
use octopii_vfs::{FileHandle, FileVersion, OpenMode, Vfs};
use sha2::{Digest as _, Sha256};

use crate::digest::Chain;
use crate::wire::{CHECKPOINT, ResumeKey};

const MAGIC: &[u8; 8] = b"OCTOSND1";
const CHECKSUM: usize = 8;
const HEADER: usize = 8 + 16 + VERSION + CHECKSUM;
const VERSION: usize = 8 + 8 + 8 + 16 + 16;
const ENTRY: usize = Chain::LEN + CHECKSUM;

const SUFFIX: &str = ".sending";

/// A file that nobody has sent for this long is forgotten.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Checkpoints are kept of this many files.
const MAX_FILES: usize = 1024;

/// One content's key and checkpoints.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    key: ResumeKey,
    file: Option<FileHandle>,
    // The latest first entry stands for offset CHECKPOINT; used where there is no file.
    memory: Mutex<Vec<Option<Chain>>>,
}

impl Checkpoints {
    /// With a new key, and for as long as this lives.
    pub(crate) fn in_memory() -> Self {
        Self { key: ResumeKey(rand::random()), file: None, memory: Mutex::default() }
    }

    /// Those of the content that `target` has in this version and that goes out under `purpose` and `name`, as an earlier
    /// process left them in `dir`, or new ones. Blocks.
    pub(crate) fn of_file(
        vfs: &dyn Vfs,
        dir: &Path,
        target: &Path,
        version: &FileVersion,
        (purpose, name): (&str, &str),
    ) -> Self {
        let mut hasher = Sha256::new();
        for part in [target.as_os_str().as_encoded_bytes(), purpose.as_bytes(), name.as_bytes()] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut file_name = hex(&hasher.finalize()[..16]);
        file_name.push_str(SUFFIX);
        let path = dir.join(file_name);
        Self::open(vfs, &path, version).or_else(|_| Self::create(vfs, dir, &path, version)).unwrap_or_else(
            |e| {
                tracing::debug!(path = %path.display(), "a killed transfer will begin anew: {e}");
                Self::in_memory()
            },
        )
    }

    /// Forgets the key and everything kept under it. Blocks.
    pub(crate) fn renew(&self) -> Self {
        if let Some(file) = &self.file
            && let Err(e) = file.set_len(0)
        {
            tracing::debug!("cannot forget a source's checkpoints: {e}");
        }
        Self::in_memory()
    }

    /// Under what this receiver may keep the content. Each has a key of its own: what one was told is of no use at another.
    pub(crate) fn key_at(&self, receiver: NodeId) -> ResumeKey {
        let mut hasher = Sha256::new();
        hasher.update(b"octopii resume");
        hasher.update(self.key.0);
        hasher.update(receiver.to_le_bytes());
        let mut key = [0; ResumeKey::LEN];
        key.copy_from_slice(&hasher.finalize()[..ResumeKey::LEN]);
        ResumeKey(key)
    }

    /// Remembers where hashing stands at `offset`, a multiple of [`CHECKPOINT`]. Blocks.
    pub(crate) fn note(&self, offset: u64, chain: Chain) {
        let Some(index) = index(offset) else { return };
        if let Some(file) = &self.file {
            let at = HEADER as u64 + index as u64 * ENTRY as u64;
            let entry = [&chain.0[..], &self.checksum(index, &chain)].concat();
            if let Err(e) = file.write_all_at(&entry, at) {
                tracing::debug!("cannot keep a checkpoint: {e}");
            }
            return;
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() <= index {
            memory.resize(index + 1, None);
        }
        memory[index] = Some(chain);
    }

    /// Where hashing stands at `offset`, if that is known. Blocks.
    pub(crate) fn at(&self, offset: u64) -> Option<Chain> {
        let index = index(offset)?;
        let Some(file) = &self.file else {
            return *self.memory.lock().unwrap_or_else(PoisonError::into_inner).get(index)?;
        };
        let mut entry = [0; ENTRY];
        file.read_exact_at(&mut entry, HEADER as u64 + index as u64 * ENTRY as u64).ok()?;
        let (chain, checksum) = entry.split_first_chunk()?;
        let chain = Chain(*chain);
        (checksum == self.checksum(index, &chain)).then_some(chain)
    }

    fn open(vfs: &dyn Vfs, path: &Path, version: &FileVersion) -> io::Result<Self> {
        let file = vfs.open(path, OpenMode::ReadWrite)?;
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let key = decode_header(&header, version).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { key, file: Some(file), memory: Mutex::default() })
    }

    fn create(vfs: &dyn Vfs, dir: &Path, path: &Path, version: &FileVersion) -> io::Result<Self> {
        vfs.create_dir_all(dir)?;
        match vfs.remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Whoever was quicker has the file; this process then keeps its checkpoints to itself.
        let file = vfs.open(path, OpenMode::CreateNew)?;
        let key = ResumeKey(rand::random());
        file.write_all_at(&encode_header(key, version), 0)?;
        Ok(Self { key, file: Some(file), memory: Mutex::default() })
    }

    fn checksum(&self, index: usize, chain: &Chain) -> [u8; CHECKSUM] {
        checksum(&[&self.key.0, &(index as u64).to_le_bytes(), &chain.0])
    }
}

/// Removes what has not been used for long, and the oldest of what is too many. Returns how many were removed. Blocks.
pub(crate) fn tidy(vfs: &dyn Vfs, dir: &Path, now: SystemTime) -> io::Result<usize> {
    let entries = match vfs.read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut files: Vec<(Duration, PathBuf)> = Vec::new();
    for entry in entries {
        if !entry.name.to_str().is_some_and(|name| name.ends_with(SUFFIX)) {
            continue;
        }
        let path = dir.join(&entry.name);
        let modified = vfs.open(&path, OpenMode::Read)?.modified()?.unwrap_or(now);
        files.push((now.duration_since(modified).unwrap_or_default(), path));
    }
    files.sort();
    let mut removed = 0;
    for (at, (age, path)) in files.into_iter().enumerate() {
        if age > KEPT || at >= MAX_FILES {
            vfs.remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn index(offset: u64) -> Option<usize> {
    if !offset.is_multiple_of(CHECKPOINT) {
        return None;
    }
    usize::try_from(offset / CHECKPOINT).ok()?.checked_sub(1)
}

fn encode_header(key: ResumeKey, version: &FileVersion) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&key.0);
    out.extend_from_slice(&version.device.to_le_bytes());
    out.extend_from_slice(&version.inode.to_le_bytes());
    out.extend_from_slice(&version.len.to_le_bytes());
    out.extend_from_slice(&version.modified_ns.to_le_bytes());
    out.extend_from_slice(&version.changed_ns.to_le_bytes());
    let checksum = checksum(&[&out]);
    out.extend_from_slice(&checksum);
    out
}

/// The key, if the header is whole and of this version of the file.
fn decode_header(header: &[u8; HEADER], version: &FileVersion) -> Option<ResumeKey> {
    let key = ResumeKey(header[8..24].try_into().ok()?);
    (header[..] == encode_header(key, version)).then_some(key)
}

pub(crate) fn checksum(parts: &[&[u8]]) -> [u8; CHECKSUM] {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    let mut out = [0; CHECKSUM];
    out.copy_from_slice(&hasher.finalize()[..CHECKSUM]);
    out
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing into a string cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use octopii_vfs::RealVfs;

    fn version(changed_ns: i128) -> FileVersion {
        FileVersion { device: 1, inode: 2, len: 3, modified_ns: 4, changed_ns }
    }

    fn of(dir: &Path, version: &FileVersion) -> Checkpoints {
        Checkpoints::of_file(&RealVfs, dir, Path::new("/a"), version, ("p", "n"))
    }

    #[test]
    fn another_process_finds_them_as_long_as_the_source_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let first = of(&dir, &version(5));
        first.note(CHECKPOINT, Chain([1; 32]));
        first.note(3 * CHECKPOINT, Chain([3; 32]));
        let second = of(&dir, &version(5));
        assert_eq!(second.key, first.key);
        assert_eq!(second.at(CHECKPOINT), Some(Chain([1; 32])));
        assert_eq!(second.at(3 * CHECKPOINT), Some(Chain([3; 32])));
        for unknown in [0, 1, CHECKPOINT - 1, 2 * CHECKPOINT, 4 * CHECKPOINT, u64::MAX] {
            assert_eq!(second.at(unknown), None);
        }
        let other = Checkpoints::of_file(&RealVfs, &dir, Path::new("/a"), &version(5), ("p", "m"));
        assert_ne!(other.key, first.key);
        let changed = of(&dir, &version(6));
        assert_ne!(changed.key, first.key);
        assert_eq!(changed.at(CHECKPOINT), None);
        let renewed = changed.renew();
        assert_ne!(renewed.key, changed.key);
        assert_ne!(of(&dir, &version(6)).key, changed.key);
    }

    #[test]
    fn each_receiver_has_a_key_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (first, other) = (of(dir.path(), &version(5)), Checkpoints::in_memory());
        assert_eq!(first.key_at(1), of(dir.path(), &version(5)).key_at(1));
        let keys = [first.key, first.key_at(1), first.key_at(2), other.key_at(1), other.key_at(2)];
        assert_eq!(std::collections::BTreeSet::from(keys).len(), keys.len());
    }

    #[test]
    fn a_flipped_bit_is_a_checkpoint_unknown_or_another_key() {
        let dir = tempfile::tempdir().unwrap();
        let first = of(dir.path(), &version(5));
        first.note(CHECKPOINT, Chain([1; 32]));
        let path = dir.path().join(RealVfs.read_dir(dir.path()).unwrap().remove(0).name);
        let good = octopii_vfs::read_file(&RealVfs, &path, 1000).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            octopii_vfs::write_file_durable(&RealVfs, &path, &bad).unwrap();
            let found = of(dir.path(), &version(5));
            assert!(found.key != first.key || found.at(CHECKPOINT).is_none(), "byte {at}");
        }
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        of(dir.path(), &version(5));
        assert_eq!(tidy(&RealVfs, dir.path(), SystemTime::now()).unwrap(), 0);
        assert_eq!(tidy(&RealVfs, dir.path(), SystemTime::now() + KEPT + KEPT).unwrap(), 1);
        assert_eq!(tidy(&RealVfs, &dir.path().join("missing"), SystemTime::now()).unwrap(), 0);
    }
}
