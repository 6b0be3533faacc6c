//! The bytes of one file: what is seen, what is durable, and what lies between.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use crate::Rng;

/// Bytes that a disk writes whole or not at all.
pub(super) const SECTOR: u64 = 512;

/// Changes to one file that may wait for a sync. Beyond it the oldest reach the disk by themselves, as a kernel's
/// write-back would have it.
const UNSYNCED_LIMIT: usize = 64 * 1024;

type Sector = Arc<[u8; SECTOR as usize]>;

/// Preallocated files are mostly zeroes: they share one sector.
static ZEROES: LazyLock<Sector> = LazyLock::new(|| Arc::new([0; SECTOR as usize]));

/// A length and sectors; a sector that is not there reads as zeroes.
#[derive(Debug, Clone, Default)]
struct Image {
    len: u64,
    sectors: BTreeMap<u64, Sector>,
}

/// One step from the durable image towards the live one. Sizes are steps of their own: a crash may keep data and lose
/// the size that makes it visible, or the other way round.
#[derive(Debug, Clone)]
enum Change {
    Sector {
        index: u64,
        data: Sector,
    },
    /// The sectors of a range are no longer there.
    Hole {
        first: u64,
        end: u64,
    },
    Grow(u64),
    Cut(u64),
}

/// How much of the unsynced changes a crash (or a failed sync) leaves.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Nothing,
    Everything,
    /// The first ones, as many as given.
    Prefix(u64),
    /// Each by the toss of a coin.
    Subset,
}

#[derive(Debug, Default)]
pub(super) struct Content {
    live: Image,
    durable: Image,
    unsynced: VecDeque<Change>,
    allocated: u64,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.live.len
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let available = self.live.len.saturating_sub(offset);
        let want = available.min(buf.len() as u64) as usize;
        for (at, index, within, count) in pieces(offset, want) {
            match self.live.sectors.get(&index) {
                Some(data) => buf[at..at + count].copy_from_slice(&data[within..within + count]),
                None => buf[at..at + count].fill(0),
            }
        }
        want
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        if data.is_empty() {
            return;
        }
        for (at, index, within, count) in pieces(offset, data.len()) {
            let mut sector = match self.live.sectors.get(&index) {
                Some(old) => **old,
                None => [0; SECTOR as usize],
            };
            sector[within..within + count].copy_from_slice(&data[at..at + count]);
            let data = if sector == **ZEROES { ZEROES.clone() } else { Arc::new(sector) };
            self.change(Change::Sector { index, data });
        }
        let end = offset + data.len() as u64;
        if end > self.live.len {
            self.change(Change::Grow(end));
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        match len.cmp(&self.live.len) {
            std::cmp::Ordering::Less => self.change(Change::Cut(len)),
            std::cmp::Ordering::Greater => self.change(Change::Grow(len)),
            std::cmp::Ordering::Equal => {}
        }
    }

    pub(super) fn allocate(&mut self, len: u64) {
        self.allocated = self.allocated.max(len);
    }

    /// The first sectors in a row that are there, from `offset` on.
    pub(super) fn content_from(&self, offset: u64) -> Option<Range<u64>> {
        let mut there = self.live.sectors.range(offset / SECTOR..).map(|(index, _)| *index);
        let first = there.next().filter(|first| first * SECTOR < self.live.len)?;
        let last = there.zip(first + 1..).take_while(|(index, next)| index == next).last();
        let end = last.map_or(first, |(last, _)| last) + 1;
        Some((first * SECTOR).max(offset)..(end * SECTOR).min(self.live.len))
    }

    /// The whole sectors within are no longer there, and the rest becomes zeroes.
    pub(super) fn punch_hole(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.live.len);
        let (first, last) = (offset.next_multiple_of(SECTOR), end / SECTOR * SECTOR);
        if first >= last {
            // Within a sector, or on both sides of where two meet.
            return self.write_zeroes(offset, end);
        }
        self.write_zeroes(offset, first);
        self.change(Change::Hole { first: first / SECTOR, end: last / SECTOR });
        self.write_zeroes(last, end);
    }

    fn write_zeroes(&mut self, from: u64, to: u64) {
        // Less than two sectors.
        let zeroes = vec![0; to.saturating_sub(from) as usize];
        self.write(&zeroes, from);
    }

    /// Bytes of disk in use.
    pub(super) fn used(&self) -> u64 {
        (self.live.sectors.len() as u64 * SECTOR).max(self.allocated.next_multiple_of(SECTOR))
    }

    /// Bytes of disk in use if `len` bytes were written at `offset`.
    pub(super) fn used_after_write(&self, len: usize, offset: u64) -> u64 {
        let fresh = pieces(offset, len)
            .filter(|(_, index, ..)| !self.live.sectors.contains_key(index))
            .count() as u64;
        ((self.live.sectors.len() as u64 + fresh) * SECTOR).max(self.allocated.next_multiple_of(SECTOR))
    }

    /// Bytes of disk in use if `len` bytes were reserved.
    pub(super) fn used_after_allocate(&self, len: u64) -> u64 {
        self.used().max(len.next_multiple_of(SECTOR))
    }

    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            self.durable.apply(&change);
        }
    }

    /// A sync that failed: some of the changes made it, and the kernel has marked the others clean. They are still
    /// read back, but no later sync will write them.
    pub(super) fn sync_failed(&mut self, rng: &mut Rng) {
        for change in self.survivors(rng) {
            self.durable.apply(&change);
        }
    }

    /// The power goes: part of what was not synced survives, chosen by `rng`.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        for change in self.survivors(rng) {
            self.durable.apply(&change);
        }
        self.durable.hide_beyond_end();
        self.live = self.durable.clone();
    }

    /// Takes the unsynced changes and returns those that reach the disk.
    fn survivors(&mut self, rng: &mut Rng) -> Vec<Change> {
        let total = self.unsynced.len() as u64;
        // Data and size go through different parts of a file system: each has a fate of its own.
        let data = Fate::draw(rng, total);
        let size = Fate::draw(rng, total);
        let changes = std::mem::take(&mut self.unsynced);
        let survives = |(position, change): &(u64, Change)| match change {
            Change::Sector { .. } | Change::Hole { .. } => data.keeps(*position, rng),
            Change::Grow(_) | Change::Cut(_) => size.keeps(*position, rng),
        };
        (0..).zip(changes).filter(survives).map(|(_, change)| change).collect()
    }

    fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.unsynced.push_back(change);
        if self.unsynced.len() > UNSYNCED_LIMIT
            && let Some(oldest) = self.unsynced.pop_front()
        {
            self.durable.apply(&oldest);
        }
    }
}

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Sector { index, data } => {
                self.sectors.insert(*index, data.clone());
            }
            Change::Hole { first, end } => {
                let mut behind = self.sectors.split_off(first);
                self.sectors.append(&mut behind.split_off(end));
            }
            Change::Grow(len) => self.len = *len,
            Change::Cut(len) => {
                self.len = *len;
                self.hide_beyond_end();
            }
        }
    }

    /// What lies beyond the end reads as zeroes if the file grows again.
    fn hide_beyond_end(&mut self) {
        self.sectors.split_off(&self.len.div_ceil(SECTOR));
        let within = (self.len % SECTOR) as usize;
        if within > 0
            && let Some(last) = self.sectors.get_mut(&(self.len / SECTOR))
        {
            let mut cut = **last;
            cut[within..].fill(0);
            *last = Arc::new(cut);
        }
    }
}

impl Fate {
    fn draw(rng: &mut Rng, total: u64) -> Self {
        match rng.below(4) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 => Self::Prefix(rng.below(total + 1)),
            _ => Self::Subset,
        }
    }

    fn keeps(self, position: u64, rng: &mut Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Prefix(count) => position < count,
            Self::Subset => rng.one_in(2),
        }
    }
}

/// Splits `len` bytes at `offset` by sectors: (position in the buffer, sector, offset within it, count).
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let position = offset + done as u64;
        let within = (position % SECTOR) as usize;
        let count = (SECTOR as usize - within).min(len - done);
        let piece = (done, position / SECTOR, within, count);
        done += count;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn bytes(content: &Content) -> Vec<u8> {
        let mut out = vec![0; content.len() as usize];
        assert_eq!(content.read(&mut out, 0), out.len());
        out
    }

    #[test]
    fn synced_bytes_survive_every_crash() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut content = Content::default();
            content.write(&[1; 3000], 0);
            content.sync();
            content.write(&[2; 3000], 3000);
            content.crash(&mut rng);
            let after = bytes(&content);
            assert!(after.len() >= 3000 && after[..3000] == [1; 3000], "seed {seed}: {}", after.len());
        }
    }

    #[test]
    fn crashes_lose_nothing_all_and_parts() {
        let mut seen = BTreeSet::new();
        for seed in 0..400 {
            let mut content = Content::default();
            content.write(&[1; 2048], 0);
            content.crash(&mut Rng::new(seed));
            let sectors: Vec<bool> = bytes(&content).chunks(512).map(|sector| sector[0] == 1).collect();
            seen.insert((content.len(), sectors));
        }
        assert!(seen.contains(&(0, vec![])));
        assert!(seen.contains(&(2048, vec![true; 4])));
        assert!(seen.contains(&(2048, vec![false; 4])), "the size came, the data did not");
        assert!(seen.contains(&(2048, vec![true, true, false, false])), "a prefix");
        assert!(seen.contains(&(2048, vec![false, true, false, true])), "a hole before later data");
    }

    #[test]
    fn a_sector_is_never_torn() {
        for seed in 0..100 {
            let mut content = Content::default();
            content.write(&[1; 512], 0);
            content.sync();
            content.write(&[2; 512], 0);
            content.write(&[3; 512], 0);
            content.crash(&mut Rng::new(seed));
            let after = bytes(&content);
            assert!(after.iter().all(|byte| *byte == after[0]), "seed {seed}");
        }
    }

    #[test]
    fn cutting_zeroes_what_lay_beyond() {
        let mut content = Content::default();
        content.write(&[7; 1500], 0);
        content.set_len(700);
        content.set_len(1500);
        let after = bytes(&content);
        assert_eq!(&after[..700], [7; 700]);
        assert_eq!(&after[700..], [0; 800]);
        content.sync();
        content.crash(&mut Rng::new(0));
        assert_eq!(bytes(&content), after);
    }

    #[test]
    fn a_hole_reads_as_zeroes_takes_nothing_and_may_be_lost() {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let mut content = Content::default();
            content.write(&[7; 5000], 0);
            content.sync();
            content.punch_hole(500, 3000);
            content.punch_hole(4000, u64::MAX);
            let mut expected = [7; 5000];
            expected[500..3500].fill(0);
            expected[4000..].fill(0);
            assert_eq!(bytes(&content), expected);
            assert_eq!(content.used(), 4 * SECTOR, "the first, and three in which something is left");
            assert_eq!(content.content_from(0), Some(0..512));
            assert_eq!(content.content_from(600), Some(3072..4096));
            assert_eq!(content.content_from(4096), Some(4608..5000));
            if seed == 0 {
                content.sync();
                content.crash(&mut Rng::new(seed));
                assert_eq!(bytes(&content), expected);
                continue;
            }
            content.crash(&mut Rng::new(seed));
            seen.insert(bytes(&content)[1024] == 0);
        }
        assert_eq!(seen.len(), 2, "until it is synced, it may be there after a crash or not");
    }

    #[test]
    fn a_failed_sync_is_not_healed_by_a_later_one() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut content = Content::default();
            content.write(&[1; 1024], 0);
            content.sync_failed(&mut rng);
            assert_eq!(bytes(&content), [1; 1024], "still in the page cache");
            content.sync();
            content.crash(&mut rng);
            lost += usize::from(bytes(&content) != [1; 1024]);
        }
        assert!(lost > 10, "{lost}");
    }
}
