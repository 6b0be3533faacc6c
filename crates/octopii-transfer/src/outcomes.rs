//! Transfers that were acknowledged as durable, in a file: a receiver that was restarted can still tell a sender whose
//! acknowledgement was lost.
//!
//! A ring of records, each at the place of its number; the bytes are in `docs/formats/transfer.md`. They are not synced: a killed
//! process loses none, a power cut may.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use octopii_transport::NodeId;
use octopii_vfs::{FileHandle, OpenMode, Vfs};

use crate::checkpoints::checksum;
use crate::wire::{AckLevel, Acknowledgement};
use crate::{Digest, TransferId};

const NAME: &str = "finished";
/// Records in the ring.
const SLOTS: u64 = 1024;
const CHECKSUM: usize = 8;
const RECORD: usize = 8 + 8 + 16 + 8 + 32 + CHECKSUM;

/// One acknowledged transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) peer: NodeId,
    pub(crate) id: TransferId,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

/// The file.
#[derive(Debug)]
pub(crate) struct Outcomes {
    file: FileHandle,
    /// Number of the next record.
    next: Mutex<u64>,
}

impl Outcome {
    pub(crate) fn acknowledgement(&self) -> Acknowledgement {
        Acknowledgement { level: AckLevel::Durable, size: self.size, digest: self.digest }
    }
}

impl Outcomes {
    /// Opens or creates the file in `dir`. Gives what is in it, the oldest first. Blocks.
    pub(crate) fn open(vfs: &dyn Vfs, dir: &Path) -> io::Result<(Self, Vec<Outcome>)> {
        vfs.create_dir_all(dir)?;
        let path = dir.join(NAME);
        let file = match vfs.open(&path, OpenMode::ReadWrite) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => vfs.open(&path, OpenMode::CreateNew)?,
            other => other?,
        };
        let len = file.len()?.min(SLOTS * RECORD as u64);
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let records = bytes.as_chunks::<RECORD>().0.iter().zip(0..);
        let mut found: Vec<_> =
            records.filter_map(|(record, slot)| decode(record).filter(|(n, _)| n % SLOTS == slot)).collect();
        found.sort_by_key(|(number, _)| *number);
        let next = found.last().map_or(0, |(number, _)| number.saturating_add(1));
        Ok((Self { file, next: Mutex::new(next) }, found.into_iter().map(|(_, outcome)| outcome).collect()))
    }

    /// Remembers one more; the oldest is forgotten if there are too many. Blocks.
    pub(crate) fn record(&self, outcome: &Outcome) -> io::Result<()> {
        let number = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let number = *next;
            *next = number.saturating_add(1);
            number
        };
        self.file.write_all_at(&encode(number, outcome), number % SLOTS * RECORD as u64)
    }
}

fn encode(number: u64, outcome: &Outcome) -> Vec<u8> {
    let mut out = number.to_le_bytes().to_vec();
    out.extend_from_slice(&outcome.peer.to_le_bytes());
    out.extend_from_slice(&outcome.id.0.to_le_bytes());
    out.extend_from_slice(&outcome.size.to_le_bytes());
    out.extend_from_slice(&outcome.digest.0);
    let checksum = checksum(&[&out]);
    out.extend_from_slice(&checksum);
    out
}

pub(crate) fn decode(record: &[u8; RECORD]) -> Option<(u64, Outcome)> {
    let (number, rest) = record.split_first_chunk()?;
    let (peer, rest) = rest.split_first_chunk()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (size, rest) = rest.split_first_chunk()?;
    let (digest, _) = rest.split_first_chunk()?;
    let number = u64::from_le_bytes(*number);
    let outcome = Outcome {
        peer: u64::from_le_bytes(*peer),
        id: TransferId(u128::from_le_bytes(*id)),
        size: u64::from_le_bytes(*size),
        digest: Digest(*digest),
    };
    (encode(number, &outcome) == record).then_some((number, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;
    use octopii_vfs::RealVfs;

    fn outcome(n: u64) -> Outcome {
        Outcome { peer: 7, id: TransferId(n.into()), size: n, digest: Digest::of(&n.to_le_bytes()) }
    }

    #[test]
    fn the_latest_are_found_again_and_the_oldest_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        let (outcomes, found) = Outcomes::open(&RealVfs, &dir).unwrap();
        assert!(found.is_empty());
        (0..3).for_each(|n| outcomes.record(&outcome(n)).unwrap());
        let (outcomes, found) = Outcomes::open(&RealVfs, &dir).unwrap();
        assert_eq!(found, (0..3).map(outcome).collect::<Vec<_>>());
        (3..SLOTS + 2).for_each(|n| outcomes.record(&outcome(n)).unwrap());
        let (_, found) = Outcomes::open(&RealVfs, &dir).unwrap();
        assert_eq!(found, (2..SLOTS + 2).map(outcome).collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_record_is_forgotten_and_the_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (outcomes, _) = Outcomes::open(&RealVfs, dir.path()).unwrap();
        (0..3).for_each(|n| outcomes.record(&outcome(n)).unwrap());
        for at in RECORD..2 * RECORD {
            let mut byte = [0];
            outcomes.file.read_exact_at(&mut byte, at as u64).unwrap();
            outcomes.file.write_all_at(&[byte[0] ^ 0x20], at as u64).unwrap();
            let (_, found) = Outcomes::open(&RealVfs, dir.path()).unwrap();
            assert_eq!(found, [outcome(0), outcome(2)], "byte {at}");
            outcomes.file.write_all_at(&byte, at as u64).unwrap();
        }
        outcomes.file.set_len(RECORD as u64 * 2 - 1).unwrap();
        assert_eq!(Outcomes::open(&RealVfs, dir.path()).unwrap().1, [outcome(0)]);
    }
}
