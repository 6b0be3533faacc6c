//! Directories: which names are seen, and which are durable.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use crate::Rng;

/// The number of a file or directory.
pub(super) type Ino = u64;

/// The root directory.
pub(super) const ROOT: Ino = 1;

/// A change of names that a crash keeps or loses as a whole.
#[derive(Debug, Clone)]
struct Change {
    removes: Option<OsString>,
    adds: Option<(OsString, Ino)>,
    /// A rename between two directories is one change in each, tied by this number.
    passage: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    live: BTreeMap<OsString, Ino>,
    durable: BTreeMap<OsString, Ino>,
    unsynced: Vec<Change>,
}

impl Directory {
    pub(super) fn get(&self, name: &OsStr) -> Option<Ino> {
        self.live.get(name).copied()
    }

    pub(super) fn names(&self) -> &BTreeMap<OsString, Ino> {
        &self.live
    }

    pub(super) fn add(&mut self, name: &OsStr, ino: Ino, passage: Option<u64>) {
        self.change(Change { removes: None, adds: Some((name.to_owned(), ino)), passage });
    }

    pub(super) fn remove(&mut self, name: &OsStr, passage: Option<u64>) {
        self.change(Change { removes: Some(name.to_owned()), adds: None, passage });
    }

    pub(super) fn rename(&mut self, from: &OsStr, to: &OsStr, ino: Ino) {
        self.change(Change {
            removes: Some(from.to_owned()),
            adds: Some((to.to_owned(), ino)),
            passage: None,
        });
    }

    /// Makes every change durable. Returns the passages that left this directory: their other ends must follow.
    pub(super) fn sync(&mut self) -> Vec<u64> {
        let changes = std::mem::take(&mut self.unsynced);
        for change in &changes {
            apply(&mut self.durable, change);
        }
        changes.iter().filter(|change| change.removes.is_some()).filter_map(|change| change.passage).collect()
    }

    /// Makes the arriving end of a passage durable, if it is still pending here.
    pub(super) fn sync_arrival(&mut self, passage: u64) {
        let durable = &mut self.durable;
        self.unsynced.retain(|change| {
            let arrives = change.passage == Some(passage) && change.adds.is_some();
            if arrives {
                apply(durable, change);
            }
            !arrives
        });
    }

    /// The power goes: chooses which unsynced changes survive and drops the others. Returns the passages whose
    /// arrival was lost here.
    pub(super) fn choose_survivors(&mut self, rng: &mut Rng) -> Vec<u64> {
        let total = self.unsynced.len() as u64;
        let fate = rng.below(4);
        let prefix = rng.below(total + 1);
        let mut lost = Vec::new();
        let mut position = 0;
        self.unsynced.retain(|change| {
            let keeps = match fate {
                0 => false,
                1 => true,
                2 => position < prefix,
                _ => rng.one_in(2),
            };
            position += 1;
            if !keeps && change.adds.is_some() {
                lost.extend(change.passage);
            }
            keeps
        });
        lost
    }

    /// The second half of a crash: a file whose arrival was lost elsewhere has not left here.
    pub(super) fn crash(&mut self, lost_arrivals: &BTreeSet<u64>) {
        for change in std::mem::take(&mut self.unsynced) {
            let stays = change.adds.is_none()
                && change.passage.is_some_and(|passage| lost_arrivals.contains(&passage));
            if !stays {
                apply(&mut self.durable, &change);
            }
        }
        self.live = self.durable.clone();
    }

    /// Everything that a name here stands for, or will after some crash.
    pub(super) fn references(&self) -> impl Iterator<Item = Ino> {
        let pending = self.unsynced.iter().filter_map(|change| change.adds.as_ref().map(|(_, ino)| *ino));
        self.live.values().chain(self.durable.values()).copied().chain(pending)
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.live, &change);
        self.unsynced.push(change);
    }
}

fn apply(names: &mut BTreeMap<OsString, Ino>, change: &Change) {
    if let Some(name) = &change.removes {
        names.remove(name);
    }
    if let Some((name, ino)) = &change.adds {
        names.insert(name.clone(), *ino);
    }
}
