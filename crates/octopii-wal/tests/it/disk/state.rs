//! What is on the disk and what is only in the system's memory. Snapshots share everything that has not changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

pub(crate) const SECTOR: usize = 512;

/// `None`: zeroes.
pub(crate) type Sector = Option<Arc<[u8; SECTOR]>>;

fn sector(bytes: &[u8; SECTOR]) -> Sector {
    if bytes.iter().all(|b| *b == 0) { None } else { Some(Arc::new(*bytes)) }
}

/// Contents of a file, shared between snapshots until they change.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    sectors: Arc<Vec<Sector>>,
    pub(crate) len: usize,
}

impl Content {
    fn get(&self, at: usize) -> Sector {
        self.sectors.get(at).cloned().flatten()
    }

    pub(crate) fn set(&mut self, at: usize, to: Sector) {
        let sectors = Arc::make_mut(&mut self.sectors);
        if sectors.len() <= at {
            sectors.resize(at + 1, None);
        }
        sectors[at] = to;
    }

    /// Nothing beyond the length is ever read again.
    pub(crate) fn cut(&mut self) {
        let keep = self.len.div_ceil(SECTOR);
        if self.sectors.len() > keep {
            Arc::make_mut(&mut self.sectors).truncate(keep);
        }
        let within = self.len % SECTOR;
        let last = self.get(self.len / SECTOR).map(|s| *s).filter(|_| within > 0);
        if let Some(mut last) = last {
            last[within..].fill(0);
            self.set(self.len / SECTOR, sector(&last));
        }
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: usize) -> usize {
        let n = buf.len().min(self.len.saturating_sub(offset));
        let mut done = 0;
        while done < n {
            let (at, within) = ((offset + done) / SECTOR, (offset + done) % SECTOR);
            let m = (SECTOR - within).min(n - done);
            match self.sectors.get(at) {
                Some(Some(bytes)) => buf[done..done + m].copy_from_slice(&bytes[within..within + m]),
                _ => buf[done..done + m].fill(0),
            }
            done += m;
        }
        n
    }

    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        self.read(&mut out, 0);
        out
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Self {
        let sectors = bytes.chunks(SECTOR).map(|chunk| {
            let mut whole = [0; SECTOR];
            whole[..chunk.len()].copy_from_slice(chunk);
            sector(&whole)
        });
        Self { sectors: Arc::new(sectors.collect()), len: bytes.len() }
    }
}

/// What a sector or a length has been since the last sync, oldest first. A crash may leave any of them, or none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unsynced {
    pub(crate) sectors: Arc<BTreeMap<usize, Vec<Sector>>>,
    pub(crate) lens: Vec<usize>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    /// What programs read.
    pub(crate) now: Content,
    /// What is on the disk for certain.
    pub(crate) synced: Content,
    /// What the next sync will write.
    pub(crate) dirty: Unsynced,
    /// What a failed sync gave up: no later sync writes it, and nobody knows whether it is on the disk.
    pub(crate) limbo: Unsynced,
    pub(crate) reserved: usize,
}

impl File {
    pub(crate) fn with(content: Content) -> Self {
        Self { synced: content.clone(), now: content, ..Self::default() }
    }

    pub(crate) fn write(&mut self, data: &[u8], offset: usize) {
        if data.is_empty() {
            return;
        }
        let mut done = 0;
        while done < data.len() {
            let (at, within) = ((offset + done) / SECTOR, (offset + done) % SECTOR);
            let m = (SECTOR - within).min(data.len() - done);
            let before = self.now.get(at);
            let mut bytes = before.as_ref().map_or([0; SECTOR], |b| **b);
            // The same bytes once more are worth a sync only if an earlier one failed to write them.
            if bytes[within..within + m] != data[done..done + m] || self.limbo.sectors.contains_key(&at) {
                bytes[within..within + m].copy_from_slice(&data[done..done + m]);
                self.change(at, sector(&bytes));
            }
            done += m;
        }
        if offset + data.len() > self.now.len {
            self.set_len(offset + data.len());
        }
    }

    fn change(&mut self, at: usize, to: Sector) {
        Arc::make_mut(&mut self.dirty.sectors).entry(at).or_default().push(to.clone());
        self.now.set(at, to);
    }

    pub(crate) fn set_len(&mut self, len: usize) {
        if len != self.now.len {
            let shorter = len < self.now.len;
            self.now.len = len;
            self.dirty.lens.push(len);
            if shorter {
                self.now.cut();
                // What is beyond the end is gone for good, even if the file grows again before it is synced.
                let sectors = Arc::make_mut(&mut self.dirty.sectors);
                sectors.retain(|at, _| *at < len.div_ceil(SECTOR));
            }
        }
    }

    pub(crate) fn sync(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        for at in dirty.sectors.keys() {
            self.synced.set(*at, self.now.get(*at));
            if self.limbo.sectors.contains_key(at) {
                Arc::make_mut(&mut self.limbo.sectors).remove(at);
            }
        }
        if !dirty.lens.is_empty() {
            self.synced.len = self.now.len;
            self.limbo.lens.clear();
        }
        self.synced.cut();
    }

    /// As Linux does it: the pages count as clean from now on, and no later sync writes them.
    pub(crate) fn fail_sync(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        let limbo = Arc::make_mut(&mut self.limbo.sectors);
        for (at, versions) in dirty.sectors.iter() {
            limbo.entry(*at).or_default().extend(versions.iter().cloned());
        }
        self.limbo.lens.extend(dirty.lens);
    }
}

/// A change to a directory that is not synced yet.
#[derive(Debug, Clone)]
pub(crate) enum NameChange {
    Create(Arc<Path>, u64),
    Remove(Arc<Path>),
    /// Atomic, as POSIX has it: both names change or neither does.
    Rename(Arc<Path>, Arc<Path>, u64),
}

impl NameChange {
    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Create(path, _) | Self::Remove(path) | Self::Rename(_, path, _) => {
                path.parent() == Some(dir)
            }
        }
    }

    pub(crate) fn apply(&self, names: &mut BTreeMap<Arc<Path>, u64>) {
        match self {
            Self::Create(path, id) => {
                names.insert(Arc::clone(path), *id);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, id) => {
                names.remove(from);
                names.insert(Arc::clone(to), *id);
            }
        }
    }
}

/// Files and names. A clone is a snapshot and costs a few pointers.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<u64, Arc<File>>,
    pub(crate) names: Arc<BTreeMap<Arc<Path>, u64>>,
    pub(crate) synced_names: Arc<BTreeMap<Arc<Path>, u64>>,
    pub(crate) unsynced_names: Vec<NameChange>,
    pub(crate) next_file: u64,
}

impl State {
    pub(crate) fn id(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or(io::ErrorKind::NotFound.into())
    }

    pub(crate) fn file(&mut self, id: u64) -> &mut File {
        Arc::make_mut(self.files.get_mut(&id).unwrap())
    }

    pub(crate) fn change_names(&mut self, change: NameChange) {
        change.apply(Arc::make_mut(&mut self.names));
        self.unsynced_names.push(change);
    }

    pub(crate) fn create(&mut self, path: &Path) -> u64 {
        self.next_file += 1;
        self.files.insert(self.next_file, Arc::default());
        self.change_names(NameChange::Create(path.into(), self.next_file));
        self.next_file
    }

    pub(crate) fn sync_dir(&mut self, dir: &Path) {
        let names = Arc::make_mut(&mut self.synced_names);
        self.unsynced_names.retain(|change| {
            let here = change.is_in(dir);
            if here {
                change.apply(names);
            }
            !here
        });
    }

    pub(crate) fn used(&self) -> usize {
        let live: BTreeSet<_> = self.names.values().collect();
        let sizes =
            self.files.iter().filter(|(id, _)| live.contains(id)).map(|(_, f)| f.now.len.max(f.reserved));
        sizes.sum()
    }
}
