//! The lines of a manifest.

use octopii_vfs::Timestamp;

use super::put_name;
use crate::Digest;
use crate::framing::{Malformed, Reader};
use crate::tree::name::MAX_NAME;
use crate::tree::outcome::EntryFailure;

/// Longest target of a symbolic link in bytes.
pub(crate) const MAX_TARGET: usize = 4095;
/// The longest entry: a link.
pub(super) const MAX_ENTRY: usize = 1 + 1 + MAX_NAME + 12 + 2 + MAX_TARGET;

/// One line of the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    File {
        name: Vec<u8>,
        size: u64,
        mode: u16,
        modified: Timestamp,
        digest: Option<Digest>,
    },
    /// What follows, up to the matching `End`, is in it.
    Directory {
        name: Vec<u8>,
    },
    /// The directory that was begun last is complete; the last one of all is the root's.
    End {
        mode: u16,
        modified: Timestamp,
    },
    Link {
        name: Vec<u8>,
        target: Vec<u8>,
    },
    /// Something is there that the sender does not send.
    LeftOut {
        name: Vec<u8>,
        why: EntryFailure,
    },
}

/// Appends an entry to the body of a page; names and targets have been checked against their limits.
pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::File { name, size, mode, modified, digest } => {
            out.push(1);
            put_name(out, name);
            out.extend_from_slice(&mode.to_le_bytes());
            put_time(out, *modified);
            out.extend_from_slice(&size.to_le_bytes());
            if let Some(digest) = digest {
                out.extend_from_slice(&digest.0);
            }
        }
        Entry::Directory { name } => {
            out.push(2);
            put_name(out, name);
        }
        Entry::End { mode, modified } => {
            out.push(3);
            out.extend_from_slice(&mode.to_le_bytes());
            put_time(out, *modified);
        }
        Entry::Link { name, target } => {
            out.push(4);
            put_name(out, name);
            out.extend_from_slice(&(target.len() as u16).to_le_bytes());
            out.extend_from_slice(target);
        }
        Entry::LeftOut { name, why } => {
            out.push(5);
            put_name(out, name);
            out.extend_from_slice(&why.to_u16().to_le_bytes());
        }
    }
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    out.extend_from_slice(&time.seconds.to_le_bytes());
    out.extend_from_slice(&time.nanoseconds.to_le_bytes());
}

impl Reader<'_> {
    fn time(&mut self) -> Result<Timestamp, Malformed> {
        let time = Timestamp { seconds: i64::from_le_bytes(self.array()?), nanoseconds: self.u32()? };
        if time.nanoseconds < 1_000_000_000 {
            Ok(time)
        } else {
            Err(Malformed("a second has 10^9 nanoseconds"))
        }
    }

    fn mode(&mut self) -> Result<u16, Malformed> {
        let mode = self.u16()?;
        // Set-id and sticky bits do not travel.
        if mode <= 0o777 { Ok(mode) } else { Err(Malformed("a mode has permission bits only")) }
    }

    pub(super) fn entry(&mut self, checksum: bool) -> Result<Entry, Malformed> {
        Ok(match self.u8()? {
            1 => {
                let (name, mode, modified) = (self.name()?, self.mode()?, self.time()?);
                let size = self.u64()?;
                // Offsets in files are signed.
                if size > i64::MAX as u64 {
                    return Err(Malformed("no file is that large"));
                }
                let digest = if checksum { Some(Digest(self.array()?)) } else { None };
                Entry::File { name, size, mode, modified, digest }
            }
            2 => Entry::Directory { name: self.name()? },
            3 => Entry::End { mode: self.mode()?, modified: self.time()? },
            4 => {
                let (name, len) = (self.name()?, self.u16()? as usize);
                if len > MAX_TARGET {
                    return Err(Malformed("the target of a link is too long"));
                }
                Entry::Link { name, target: self.take(len)?.to_vec() }
            }
            5 => Entry::LeftOut { name: self.name()?, why: EntryFailure::from_u16(self.u16()?) },
            _ => return Err(Malformed("unknown kind of entry")),
        })
    }
}
