//! The journal beside a temporary file: what of it is on the disk, and how to check that.
//!
//! Written after the data it speaks of has been synced, only ever at its end. The bytes are in `docs/formats/transfer.md`.
//! Whatever in it is not as it was written is not believed: the journal then ends before it.

use std::io;

use octopii_vfs::FileHandle;

use crate::checkpoints::checksum;
use crate::digest::{Chain, PrefixHasher};
use crate::wire::{CHECKPOINT, Have, ResumeKey};

const MAGIC: &[u8; 8] = b"OCTOPRT1";
const CHECKSUM: usize = 8;
const HEADER: usize = 8 + 16 + 8 + 4 + CHECKSUM;
/// First block and number of blocks, before the entries.
const RECORD: usize = 8 + 4;
const ENTRY: usize = Chain::LEN + 4;

/// A longer journal is neither written nor read: it vouches for 1.8 TiB in blocks of 1 MiB.
const MAX_LEN: u64 = 64 << 20;

/// No record is longer: blocks of at least [`SMALLEST_BLOCK`] are vouched for every few dozen MiB.
const MAX_RECORD: u64 = 1 << 20;

/// Of smaller blocks no journal is kept: it would be too large for what it is about.
pub(crate) const SMALLEST_BLOCK: u32 = 256 << 10;

/// Size of a chunk of unknown size.
const UNKNOWN: u64 = u64::MAX;

/// What a journal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) key: ResumeKey,
    pub(crate) size: Option<u64>,
    pub(crate) block_size: u32,
}

/// One block of content that is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where hashing stands at its end.
    pub(crate) chain: Chain,
    /// CRC-32C of the block by itself.
    pub(crate) crc: u32,
}

/// A journal to append to.
#[derive(Debug)]
pub(crate) struct Journal {
    about: About,
    file: FileHandle,
    end: u64,
    /// Blocks it vouches for.
    blocks: u64,
}

/// What was received before, by the journal's word.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefix {
    pub(crate) entries: Vec<Entry>,
}

impl Journal {
    /// Begins a new journal in an empty file. Blocks.
    pub(crate) fn begin(about: About, file: FileHandle) -> io::Result<Self> {
        file.set_len(0)?;
        let header = encode_header(&about);
        file.write_all_at(&header, 0)?;
        Ok(Self { about, file, end: header.len() as u64, blocks: 0 })
    }

    /// Reads a journal that an earlier transfer of the same content left; `None` if there is nothing in it to go on from.
    /// What is taken over ends at a checkpoint and is not longer than the `stored` bytes of the temporary file. Blocks.
    pub(crate) fn resume(about: About, file: FileHandle, stored: u64) -> io::Result<Option<(Self, Prefix)>> {
        let len = file.len()?;
        if len > MAX_LEN {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let Some((mut entries, end)) = decode(&bytes, &about) else { return Ok(None) };
        let block_size = u64::from(about.block_size);
        let whole = (entries.len() as u64 * block_size).min(stored).min(about.size.unwrap_or(u64::MAX));
        let blocks = whole / CHECKPOINT * CHECKPOINT / block_size;
        if blocks == 0 {
            return Ok(None);
        }
        entries.truncate(blocks as usize);
        Ok(Some((Self { about, file, end: end as u64, blocks }, Prefix { entries })))
    }

    /// Content bytes that the journal vouches for.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks * u64::from(self.about.block_size)
    }

    /// Whether another transfer could go on from what it vouches for, and from so many blocks more.
    pub(crate) fn is_worth_keeping(&self, more: usize) -> bool {
        self.bytes() + more as u64 * u64::from(self.about.block_size) >= CHECKPOINT
    }

    /// Whether it vouches for as much as one journal can.
    pub(crate) fn is_full(&self) -> bool {
        self.end >= MAX_LEN - MAX_RECORD
    }

    /// Vouches for the blocks that follow. Their content has been synced before. Blocks.
    pub(crate) fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let record = encode_record(&self.about, self.blocks, entries);
        self.file.write_all_at(&record, self.end)?;
        self.file.sync_data()?;
        self.end += record.len() as u64;
        self.blocks += entries.len() as u64;
        Ok(())
    }
}

impl Prefix {
    /// How hashing goes on after `blocks` blocks.
    pub(crate) fn hasher_after(&self, blocks: u64, block_size: u32) -> Option<PrefixHasher> {
        match usize::try_from(blocks).ok()?.checked_sub(1) {
            None => Some(PrefixHasher::default()),
            Some(last) => PrefixHasher::after(self.entries.get(last)?.chain, blocks * u64::from(block_size)),
        }
    }

    /// What the sender is told.
    pub(crate) fn have(&self, block_size: u32) -> Option<(Have, PrefixHasher)> {
        let blocks = self.entries.len() as u64;
        let hasher = self.hasher_after(blocks, block_size)?;
        Some((Have { bytes: blocks * u64::from(block_size), prefix: hasher.prefix() }, hasher))
    }
}

pub(crate) fn encode_header(about: &About) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&about.key.0);
    out.extend_from_slice(&about.size.unwrap_or(UNKNOWN).to_le_bytes());
    out.extend_from_slice(&about.block_size.to_le_bytes());
    let checksum = checksum(&[&out]);
    out.extend_from_slice(&checksum);
    out
}

pub(crate) fn encode_record(about: &About, first: u64, entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(RECORD + entries.len() * ENTRY + CHECKSUM);
    out.extend_from_slice(&first.to_le_bytes());
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        out.extend_from_slice(&entry.chain.0);
        out.extend_from_slice(&entry.crc.to_le_bytes());
    }
    let checksum = checksum(&[&about.key.0, &out]);
    out.extend_from_slice(&checksum);
    out
}

/// The blocks that a journal vouches for, and where its last good record ends; `None` if it is about something else.
///
/// A record may go back: whoever resumed did not take over everything. Its blocks take the place of those from its first on.
pub(crate) fn decode(bytes: &[u8], about: &About) -> Option<(Vec<Entry>, usize)> {
    let (header, mut rest) = bytes.split_at_checked(HEADER)?;
    if header != encode_header(about) {
        return None;
    }
    let mut entries: Vec<Entry> = Vec::new();
    while let Some((first, new, after)) = decode_record(rest, about) {
        let Some(kept) = usize::try_from(first).ok().filter(|&first| first <= entries.len()) else { break };
        entries.truncate(kept);
        entries.extend(new);
        rest = after;
    }
    Some((entries, bytes.len() - rest.len()))
}

fn decode_record<'a>(bytes: &'a [u8], about: &About) -> Option<(u64, Vec<Entry>, &'a [u8])> {
    let first = u64::from_le_bytes(*bytes.first_chunk()?);
    let count = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?) as usize;
    let len = count.checked_mul(ENTRY)?.checked_add(RECORD)?;
    let (record, rest) = bytes.split_at_checked(len)?;
    let (expected, rest) = rest.split_at_checked(CHECKSUM)?;
    if checksum(&[&about.key.0, record]) != expected {
        return None;
    }
    let (entries, _) = record[RECORD..].as_chunks::<ENTRY>();
    let entry = |entry: &[u8; ENTRY]| {
        let (chain, crc) = entry.split_first_chunk()?;
        Some(Entry { chain: Chain(*chain), crc: u32::from_le_bytes(crc.try_into().ok()?) })
    };
    Some((first, entries.iter().map(entry).collect::<Option<_>>()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use octopii_vfs::{OpenMode, RealVfs, Vfs};

    const BLOCK: u32 = 1 << 20;

    fn about() -> About {
        About { key: ResumeKey([7; 16]), size: Some(100 << 20), block_size: BLOCK }
    }

    fn entries(range: std::ops::Range<u8>) -> Vec<Entry> {
        range.map(|n| Entry { chain: Chain([n; 32]), crc: u32::from(n) }).collect()
    }

    fn file(dir: &tempfile::TempDir) -> FileHandle {
        RealVfs.open(&dir.path().join("j"), OpenMode::CreateNew).unwrap()
    }

    #[test]
    fn what_was_appended_is_taken_over_up_to_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        let mut journal = Journal::begin(about(), FileHandle::clone(&file)).unwrap();
        journal.append(&entries(0..3)).unwrap();
        let nothing = Journal::resume(about(), FileHandle::clone(&file), u64::MAX).unwrap();
        assert!(nothing.is_none(), "less than a checkpoint");
        journal.append(&entries(3..10)).unwrap();
        let again = |stored| Journal::resume(about(), FileHandle::clone(&file), stored).unwrap();
        let (mut journal, prefix) = again(u64::MAX).unwrap();
        assert_eq!((journal.bytes(), prefix.entries), (8 << 20, entries(0..8)));
        assert_eq!(again(5 << 20).unwrap().1.entries, entries(0..4), "the file is shorter");
        // It goes on from what was taken over.
        journal.append(&entries(20..24)).unwrap();
        let expected = [entries(0..8), entries(20..24)].concat();
        assert_eq!(again(u64::MAX).unwrap().1.entries, expected);
        let other = About { key: ResumeKey([8; 16]), ..about() };
        assert!(Journal::resume(other, FileHandle::clone(&file), u64::MAX).unwrap().is_none());
        let other = About { size: Some(1), ..about() };
        assert!(Journal::resume(other, FileHandle::clone(&file), u64::MAX).unwrap().is_none());
    }

    #[test]
    fn a_flipped_or_cut_journal_ends_before_the_damage() {
        let good = [
            encode_header(&about()),
            encode_record(&about(), 0, &entries(0..2)),
            encode_record(&about(), 2, &entries(2..4)),
        ]
        .concat();
        let second = HEADER + RECORD + 2 * ENTRY + CHECKSUM;
        let expect = |bytes: &[u8], damaged_at: usize| match damaged_at {
            at if at < HEADER => assert!(decode(bytes, &about()).is_none(), "{at}"),
            at if at < second => assert_eq!(decode(bytes, &about()), Some((vec![], HEADER)), "{at}"),
            at if at < good.len() => {
                assert_eq!(decode(bytes, &about()), Some((entries(0..2), second)), "{at}");
            }
            _ => assert_eq!(decode(bytes, &about()), Some((entries(0..4), good.len()))),
        };
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            expect(&bad, at);
            expect(&good[..at], at);
        }
        expect(&good, good.len());
        // A gap is no journal.
        let gap = [encode_header(&about()), encode_record(&about(), 1, &entries(0..1))].concat();
        assert_eq!(decode(&gap, &about()), Some((vec![], HEADER)));
        // A count of 4 billion reserves nothing.
        let mut lie = encode_header(&about());
        lie.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decode(&lie, &about()), Some((vec![], HEADER)));
    }
}
