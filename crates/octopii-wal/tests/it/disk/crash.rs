//! Which states a power cut may leave: of everything unsynced any part, each sector, length and name for itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::coin::Coin;
use super::state::{File, State, Unsynced};

/// At most this many things unsynced are tried in all combinations.
const EXHAUSTIVE_UNITS: usize = 6;
const EXHAUSTIVE_STATES: usize = 64;

/// One thing that may survive or not, whatever becomes of the others.
#[derive(Debug, Clone, Copy)]
enum Unit {
    Sector(u64, usize),
    Length(u64),
    Name(usize),
}

/// What is unsynced at some moment.
#[derive(Debug)]
pub(crate) struct Units {
    /// With the number of versions that each has had since it was last synced.
    units: Vec<(Unit, usize)>,
}

/// For each unit, which version survives: 0 is the synced one.
pub(crate) type Picks = Vec<usize>;

impl Units {
    pub(crate) fn nothing(&self) -> Picks {
        vec![0; self.units.len()]
    }

    pub(crate) fn everything(&self) -> Picks {
        self.units.iter().map(|(_, versions)| *versions).collect()
    }

    fn of(&self, keep: impl Fn(usize) -> bool) -> Picks {
        self.units.iter().enumerate().map(|(i, (_, versions))| if keep(i) { *versions } else { 0 }).collect()
    }

    /// One at random, from one of several distributions: coins, biased coins, all but one, one alone, a prefix.
    pub(crate) fn random(&self, coin: &mut Coin) -> Picks {
        let n = self.units.len().max(1) as u64;
        let one = coin.below(n) as usize;
        match coin.below(10) {
            0 => self.nothing(),
            1 => self.everything(),
            2 => self.of(|i| i == one),
            3 => self.of(|i| i != one),
            4 => self.of(|i| i <= one),
            5 => self.units.iter().map(|(_, v)| if coin.one_in(8) { *v } else { 0 }).collect(),
            6 => self.units.iter().map(|(_, v)| if coin.one_in(8) { 0 } else { *v }).collect(),
            _ => self.units.iter().map(|(_, v)| coin.below(*v as u64 + 1) as usize).collect(),
        }
    }

    /// The states to try: all of them when there are few. Otherwise nothing and everything, enough states that any two
    /// units are seen in all four combinations, and `random` more.
    pub(crate) fn states(&self, random: usize, coin: &mut Coin) -> Vec<Picks> {
        let total = self.units.iter().fold(1usize, |n, (_, versions)| n.saturating_mul(versions + 1));
        if self.units.len() <= EXHAUSTIVE_UNITS && total <= EXHAUSTIVE_STATES {
            return (0..total).map(|n| self.nth(n)).collect();
        }
        let mut out = vec![self.nothing(), self.everything()];
        out.extend(pairwise(self.units.len()).into_iter().map(|row| self.of(|i| row[i])));
        out.extend((0..random).map(|_| self.random(coin)));
        out
    }

    fn nth(&self, mut n: usize) -> Picks {
        let digit = |(_, versions): &(Unit, usize)| {
            let digit = n % (versions + 1);
            n /= versions + 1;
            digit
        };
        self.units.iter().map(digit).collect()
    }
}

/// Rows of `units` booleans such that any two columns show all four combinations. Each column is a word of as many bits as
/// there are rows; distinct words that begin with 0 and have the same number of ones, at least half, will do (Kleitman
/// and Spencer, 1973).
fn pairwise(units: usize) -> Vec<Vec<bool>> {
    let mut rows = 4;
    while binomial(rows - 1, rows.div_ceil(2)) < units {
        rows += 1;
    }
    let words = (0u32..1 << (rows - 1)).filter(|w| w.count_ones() as usize == rows.div_ceil(2)).take(units);
    let words: Vec<_> = words.collect();
    (0..rows).map(|row| words.iter().map(|word| word >> row & 1 == 1).collect()).collect()
}

fn binomial(n: usize, k: usize) -> usize {
    (0..k).fold(1, |out, i| out * (n - i) / (i + 1))
}

impl State {
    pub(crate) fn units(&self) -> Units {
        let mut units = Vec::new();
        let created = self.unsynced_names.iter().filter_map(|change| match change {
            super::state::NameChange::Create(_, id) => Some(*id),
            _ => None,
        });
        let reachable: BTreeSet<u64> = self.synced_names.values().copied().chain(created).collect();
        for id in reachable {
            let file = &self.files[&id];
            for at in changed(file) {
                units.push((Unit::Sector(id, at), versions(file, at)));
            }
            let lens = file.dirty.lens.len() + file.limbo.lens.len();
            if lens > 0 {
                units.push((Unit::Length(id), lens));
            }
        }
        units.extend((0..self.unsynced_names.len()).map(|i| (Unit::Name(i), 1)));
        Units { units }
    }

    /// The disk after a power cut.
    pub(crate) fn survive(&self, units: &Units, picks: &[usize]) -> Self {
        let mut names = (*self.synced_names).clone();
        let mut files = std::collections::BTreeMap::new();
        for ((unit, _), pick) in units.units.iter().zip(picks) {
            if let (Unit::Name(i), true) = (unit, *pick > 0) {
                self.unsynced_names[*i].apply(&mut names);
            }
        }
        for id in names.values() {
            files.insert(*id, self.files[id].synced.clone());
        }
        for ((unit, _), pick) in units.units.iter().zip(picks).filter(|(_, pick)| **pick > 0) {
            let (Unit::Sector(id, _) | Unit::Length(id)) = unit else { continue };
            let Some(content) = files.get_mut(id) else { continue };
            let File { limbo, dirty, .. } = &*self.files[id];
            match unit {
                Unit::Sector(_, at) => {
                    let all = [limbo, dirty].into_iter().filter_map(|u| u.sectors.get(at)).flatten();
                    content.set(*at, all.clone().nth(pick - 1).unwrap().clone());
                }
                _ => content.len = *limbo.lens.iter().chain(&dirty.lens).nth(pick - 1).unwrap(),
            }
        }
        let files = files.into_iter().map(|(id, mut content)| {
            content.cut();
            (id, Arc::new(File::with(content)))
        });
        let names = Arc::new(names);
        Self {
            files: files.collect(),
            synced_names: Arc::clone(&names),
            names,
            unsynced_names: Vec::new(),
            next_file: self.next_file,
        }
    }
}

fn changed(file: &File) -> BTreeSet<usize> {
    let keys = |u: &Unsynced| u.sectors.keys().copied().collect::<Vec<_>>();
    keys(&file.dirty).into_iter().chain(keys(&file.limbo)).collect()
}

fn versions(file: &File, at: usize) -> usize {
    [&file.dirty, &file.limbo].into_iter().filter_map(|u| u.sectors.get(&at)).map(Vec::len).sum()
}

#[test]
fn any_two_unsynced_things_are_seen_in_all_four_combinations() {
    for units in [7, 8, 11, 36, 130, 500] {
        let rows = pairwise(units);
        assert!(rows.len() <= 13, "{}", rows.len());
        for a in 0..units {
            for b in 0..a {
                let seen: BTreeSet<_> = rows.iter().map(|row| (row[a], row[b])).collect();
                assert_eq!(seen.len(), 4, "{a} and {b} of {units}");
            }
        }
    }
}
