//! Small files that several peers ask for: which of them go together, and to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use octopii_vfs::Timestamp;
use tokio::time::Instant;

use super::{Attempt, Outlook};
use crate::Digest;
use crate::tree::content::{Job, RECORD_COST};

/// Bytes of files in one chunk, beside the last of them: several chunks are in memory at a time.
const PORTION: u64 = 16 << 20;
/// Files in one chunk.
const FILES: usize = 16 << 10;
/// As much is sent at once if nothing else is under way.
const EARLY: u64 = 4 << 20;
/// Less is not worth the round trips of a chain.
const WORTH: u64 = 512 << 10;
/// Chunks under way at a time.
const AT_ONCE: usize = 2;

/// A file as the peers were told of it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    entry: u64,
    path: PathBuf,
    size: u64,
    modified: Timestamp,
    digest: Option<Digest>,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// The attempts.
    asked: BTreeSet<u64>,
}

/// What has been asked for and is not under way.
#[derive(Debug, Default)]
pub(super) struct Small {
    files: BTreeMap<Key, Waiting>,
    /// All together, with what their records cost.
    bytes: u64,
    /// Chunks.
    pub(super) under_way: usize,
}

/// A file and who asked for it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) job: Job,
    pub(super) by: BTreeSet<u64>,
}

/// Files that go now.
#[derive(Debug)]
pub(super) struct Batch(Vec<Asked>);

/// Who gets what how.
#[derive(Debug, Default)]
pub(super) struct Division {
    /// In one chunk, to whom it is about: in the order of their entries.
    pub(super) shared: Vec<Asked>,
    pub(super) members: BTreeSet<u64>,
    pub(super) direct: BTreeMap<u64, Vec<Job>>,
}

fn cost(size: u64) -> u64 {
    size + RECORD_COST
}

impl Small {
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn ask(&mut self, attempt: u64, jobs: Vec<Job>) {
        for Job { entry, path, size, modified, digest } in jobs {
            let key = Key { entry, path, size, modified, digest };
            let waiting = self.files.entry(key).or_insert_with(|| {
                self.bytes += cost(size);
                Waiting { since: Instant::now(), asked: BTreeSet::new() }
            });
            waiting.asked.insert(attempt);
        }
    }

    pub(super) fn forget(&mut self, attempt: u64) {
        self.files.retain(|key, waiting| {
            waiting.asked.remove(&attempt);
            if waiting.asked.is_empty() {
                self.bytes -= cost(key.size);
            }
            !waiting.asked.is_empty()
        });
    }

    /// Takes out what goes now, in the order of entries.
    pub(super) fn ready(&mut self, outlook: &Outlook, attempts: &BTreeMap<u64, Attempt>) -> Option<Batch> {
        // A limited rate is kept by one at a time.
        let is_limited = attempts.values().any(|attempt| attempt.terms.rate_limit.is_some());
        let at_once = if is_limited { 1 } else { AT_ONCE };
        if self.files.is_empty() || self.under_way >= at_once {
            return None;
        }
        let has_time = outlook.low < u64::MAX && !outlook.quiet;
        let wanted = if self.under_way == 0 { EARLY } else { PORTION };
        let is_old = |waiting: &Waiting| outlook.now >= waiting.since + outlook.patience;
        let has_time = has_time && !self.files.values().any(is_old);
        if has_time && self.bytes < wanted {
            return None;
        }
        let is_due = |key: &Key, waiting: &Waiting| outlook.is_due(key.entry, waiting.since);
        let due: u64 =
            self.files.iter().filter(|(key, file)| is_due(key, file)).map(|(key, _)| cost(key.size)).sum();
        if due == 0 || has_time && due < wanted {
            return None;
        }
        let (mut bytes, mut files) = (0, 0);
        let taken = self.files.extract_if(.., |key, waiting| {
            let goes = bytes < PORTION && files < FILES && is_due(key, waiting);
            if goes {
                bytes += cost(key.size);
                files += 1;
            }
            goes
        });
        let asked = taken.map(|(Key { entry, path, size, modified, digest }, Waiting { asked, .. })| Asked {
            job: Job { entry, path, size, modified, digest },
            by: asked,
        });
        let batch = Batch(asked.collect());
        self.bytes -= bytes;
        Some(batch)
    }
}

impl Batch {
    /// The number of its last entry.
    pub(super) fn last(&self) -> Option<u64> {
        self.0.last().map(|asked| asked.job.entry)
    }

    /// Decides who gets it together: whoever would need less than half of it does not, and `may_share` tells who may.
    pub(super) fn divide(self, may_share: impl Fn(u64) -> bool) -> Division {
        let by: BTreeSet<u64> = self.0.iter().flat_map(|asked| asked.by.iter().copied()).collect();
        let mut members: BTreeSet<u64> = by.into_iter().filter(|attempt| may_share(*attempt)).collect();
        let together = |asked: &Asked, members: &BTreeSet<u64>| asked.by.intersection(members).count() > 1;
        loop {
            let (mut total, mut needs) =
                (0, members.iter().map(|member| (*member, 0)).collect::<BTreeMap<_, _>>());
            for asked in self.0.iter().filter(|asked| together(asked, &members)) {
                let cost = cost(asked.job.size);
                total += cost;
                for member in &asked.by {
                    needs.entry(*member).and_modify(|needs| *needs += cost);
                }
            }
            if total < WORTH {
                members.clear();
                break;
            }
            // One at a time: without it, what the others need is another matter.
            let least = needs.into_iter().min_by_key(|(_, needs)| *needs);
            match least.filter(|(_, needs)| needs * 2 < total) {
                Some((member, _)) => drop(members.remove(&member)),
                None => break,
            }
        }
        let mut division = Division { members, ..Division::default() };
        for Asked { job, by } in self.0 {
            let is_shared = by.intersection(&division.members).count() > 1;
            let (together, alone): (BTreeSet<_>, BTreeSet<_>) =
                by.into_iter().partition(|attempt| is_shared && division.members.contains(attempt));
            for attempt in alone {
                division.direct.entry(attempt).or_default().push(job.clone());
            }
            if !together.is_empty() {
                division.shared.push(Asked { job, by: together });
            }
        }
        division
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const FILE: u64 = 1 << 20;

    fn job(entry: u64) -> Job {
        let modified = Timestamp { seconds: 1, nanoseconds: 2 };
        Job { entry, path: entry.to_string().into(), size: FILE, modified, digest: None }
    }

    /// Files by their numbers, and who wants each.
    fn batch(files: &[&[u64]]) -> Batch {
        let asked = (0..).zip(files).map(|(n, by)| Asked { job: job(n), by: by.iter().copied().collect() });
        Batch(asked.collect())
    }

    /// Entries that go together with those who get them, and entries that go to one directly.
    type Told = (Vec<(u64, Vec<u64>)>, Vec<(u64, Vec<u64>)>);

    fn told(division: &Division) -> Told {
        let shared = division.shared.iter();
        let shared = shared.map(|asked| (asked.job.entry, asked.by.iter().copied().collect()));
        let direct = division.direct.iter();
        let direct = direct.map(|(by, jobs)| (*by, jobs.iter().map(|job| job.entry).collect()));
        (shared.collect(), direct.collect())
    }

    #[test]
    fn what_is_wanted_alike_goes_together_and_the_rest_directly() {
        let division = batch(&[&[1, 2], &[1, 2], &[1, 2]]).divide(|_| true);
        let all = vec![1, 2];
        assert_eq!(told(&division), (vec![(0, all.clone()), (1, all.clone()), (2, all.clone())], Vec::new()));
        // A file that only one of them wants; and one who wants less than half.
        let division = batch(&[&[1, 2, 3], &[1, 2], &[1, 2], &[1]]).divide(|_| true);
        let shared = vec![(0, all.clone()), (1, all.clone()), (2, all.clone())];
        assert_eq!(told(&division), (shared, vec![(1, vec![3]), (3, vec![0])]));
        // Others want something else altogether.
        let division = batch(&[&[1, 2], &[1, 2], &[1, 2], &[3, 4], &[5]]).divide(|_| true);
        let shared = vec![(0, all.clone()), (1, all.clone()), (2, all)];
        assert_eq!(told(&division), (shared, vec![(3, vec![3]), (4, vec![3]), (5, vec![4])]));
        // Who is behind does not share.
        let division = batch(&[&[1, 2], &[1, 2]]).divide(|attempt| attempt != 2);
        assert_eq!(told(&division), (Vec::new(), vec![(1, vec![0, 1]), (2, vec![0, 1])]));
    }

    #[test]
    fn a_little_is_not_worth_a_chain() {
        let mut little = batch(&[&[1, 2]]);
        little.0[0].job.size = WORTH - RECORD_COST - 1;
        assert_eq!(told(&little.divide(|_| true)), (Vec::new(), vec![(1, vec![0]), (2, vec![0])]));
        let mut enough = batch(&[&[1, 2]]);
        enough.0[0].job.size = WORTH - RECORD_COST;
        assert_eq!(told(&enough.divide(|_| true)), (vec![(0, vec![1, 2])], Vec::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_everybody_has_been_asked_about_goes_and_the_rest_waits() {
        let (mut small, none) = (Small::default(), BTreeMap::new());
        let mut outlook =
            Outlook { now: Instant::now(), low: 4, quiet: false, patience: Duration::from_secs(10) };
        small.ask(1, (0..8).map(job).collect());
        small.ask(2, (0..8).map(job).collect());
        assert_eq!(small.bytes, 8 * cost(FILE));
        let entries = |batch: &Batch| batch.0.iter().map(|asked| asked.job.entry).collect::<Vec<_>>();
        let first = small.ready(&outlook, &none).unwrap();
        assert_eq!(entries(&first), [0, 1, 2, 3]);
        assert!(small.ready(&outlook, &none).is_none());
        // Little, until nobody asks for more, or all have been told everything.
        outlook.low = 5;
        assert!(small.ready(&outlook, &none).is_none());
        outlook.quiet = true;
        assert_eq!(entries(&small.ready(&outlook, &none).unwrap()), [4]);
        // Somebody has not been heard for a long time.
        outlook.quiet = false;
        outlook.now += outlook.patience;
        small.under_way = AT_ONCE;
        assert!(small.ready(&outlook, &none).is_none(), "too much is under way");
        small.under_way = 0;
        assert_eq!(entries(&small.ready(&outlook, &none).unwrap()), [5, 6, 7]);
        assert!(small.is_empty() && small.bytes == 0);
        // No more than a portion at a time, and nothing of those who have gone.
        small.ask(1, (0..20).map(job).collect());
        small.ask(2, (0..2).map(job).collect());
        outlook.low = u64::MAX;
        assert_eq!(entries(&small.ready(&outlook, &none).unwrap()).len(), 16);
        small.ask(2, vec![job(30)]);
        small.forget(1);
        assert_eq!(entries(&small.ready(&outlook, &none).unwrap()), [30]);
        assert!(small.is_empty() && small.bytes == 0);
    }
}
