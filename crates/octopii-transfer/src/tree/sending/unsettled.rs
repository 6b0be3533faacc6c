//! What a sender remembers of entries until they are settled.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use octopii_vfs::Timestamp;

use crate::tree::check::is_small;
use crate::tree::content::{Job, RECORD_COST};
use crate::tree::outcome::{EntryOutcome, Ledger, NotDone, TreeProgress};
use crate::tree::walk::Step;
use crate::tree::wire::{self, Entry, RECORDS, Verdict};
use crate::{Digest, TransferError};

/// An entry that is not settled.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) path: PathBuf,
    what: What,
    stage: Stage,
}

/// How far an entry has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Told,
    /// A result is to come.
    Wanted,
    /// Of a file: its content, too, is on its way.
    Sent,
}

#[derive(Debug, Clone, Copy)]
enum What {
    File {
        size: u64,
        modified: Timestamp,
        digest: Option<Digest>,
    },
    Link,
    Directory,
    /// A directory's beginning: its verdict settles it.
    Beginning,
    /// It is refused by a receiver, whatever that thinks of it: so both sides count it.
    LeftOut,
}

/// What all parts of a sending share.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What is wanted is settled by that.
    pub(super) dry_run: bool,
    pub(super) unsettled: BTreeMap<u64, Unsettled>,
    pub(super) next: u64,
    /// Entries below have their verdicts.
    pub(super) judged: u64,
    pub(super) jobs: VecDeque<Job>,
    /// Why entries were left out here: more exact than what travels.
    pub(super) left_out: BTreeMap<u64, NotDone>,
    pub(super) ledger: Ledger,
    pub(super) progress: TreeProgress,
    /// Entries and digest of the whole manifest, once it is told.
    pub(super) manifest: Option<Digest>,
}

impl State {
    pub(super) fn add(&mut self, steps: Vec<Step>) {
        for Step { entry, path, left_out } in steps {
            let what = match entry {
                Entry::File { size, modified, digest, .. } => {
                    self.progress.found += 1;
                    self.progress.found_bytes += size;
                    What::File { size, modified, digest }
                }
                Entry::Link { .. } => What::Link,
                Entry::End { .. } => What::Directory,
                Entry::Directory { .. } => What::Beginning,
                Entry::LeftOut { .. } => {
                    if let Some(why) = left_out {
                        self.left_out.insert(self.next, why);
                    }
                    What::LeftOut
                }
            };
            self.unsettled.insert(self.next, Unsettled { path, what, stage: Stage::Told });
            self.next += 1;
        }
    }

    pub(super) fn verdicts(
        &mut self,
        first: u64,
        verdicts: Vec<Verdict>,
    ) -> Result<Vec<(PathBuf, EntryOutcome)>, TransferError> {
        let mut settled = Vec::new();
        self.judged = self.judged.max(first.saturating_add(verdicts.len() as u64));
        for (entry, verdict) in (first..).zip(verdicts) {
            let Some(Unsettled { what, path, stage }) = self.unsettled.get_mut(&entry) else {
                return Err(TransferError::Protocol("a verdict on what was not told"));
            };
            // What was asked for is remembered until it is sent: once each, so that the window bounds it.
            if *stage != Stage::Told {
                return Err(TransferError::Protocol("a second verdict on an entry"));
            }
            if verdict == Verdict::Wanted {
                *stage = Stage::Wanted;
            }
            match (verdict, *what) {
                (Verdict::Wanted, What::File { size: bytes, .. }) if self.dry_run => {
                    settled.extend(self.settle(entry, EntryOutcome::Stored { bytes }));
                }
                (Verdict::Wanted, What::Link) if self.dry_run => {
                    settled.extend(self.settle(entry, EntryOutcome::Stored { bytes: 0 }));
                }
                (Verdict::Wanted, What::Directory) if self.dry_run => {
                    settled.extend(self.settle(entry, EntryOutcome::Directory));
                }
                (Verdict::Wanted, What::File { size, modified, digest }) => {
                    self.jobs.push_back(Job { entry, path: path.clone(), size, modified, digest });
                }
                (Verdict::Wanted, What::Link | What::Directory) => {}
                (Verdict::Noted, What::Beginning | What::Directory) => {
                    self.unsettled.remove(&entry);
                }
                (Verdict::Unchanged, What::File { .. } | What::Link) => {
                    settled.extend(self.settle(entry, EntryOutcome::Unchanged));
                }
                (Verdict::Refused(why), _) => {
                    let why = self.left_out.remove(&entry).unwrap_or(why);
                    settled.extend(self.settle(entry, EntryOutcome::NotDone(why)));
                }
                _ => return Err(TransferError::Protocol("a verdict that does not fit its entry")),
            }
        }
        Ok(settled)
    }

    pub(super) fn results(
        &mut self,
        outcomes: Vec<wire::Outcome>,
    ) -> Result<Vec<(PathBuf, EntryOutcome)>, TransferError> {
        let mut settled = Vec::new();
        for wire::Outcome { entry, result } in outcomes {
            let Some(unsettled) = self.unsettled.get(&entry) else {
                return Err(TransferError::Protocol("a result of what was settled, or never told"));
            };
            let expected = match unsettled.what {
                What::File { .. } => unsettled.stage == Stage::Sent,
                What::Link | What::Directory => unsettled.stage == Stage::Wanted,
                What::Beginning | What::LeftOut => false,
            };
            if !expected {
                return Err(TransferError::Protocol("a result that nothing was done for"));
            }
            let outcome = match (result, unsettled.what) {
                (Err(why), _) => EntryOutcome::NotDone(why),
                (Ok(()), What::File { size, .. }) => EntryOutcome::Stored { bytes: size },
                (Ok(()), What::Link) => EntryOutcome::Stored { bytes: 0 },
                (Ok(()), _) => EntryOutcome::Directory,
            };
            settled.extend(self.settle(entry, outcome));
        }
        Ok(settled)
    }

    /// Last of all.
    pub(super) fn removed(&mut self, outcomes: &[(PathBuf, EntryOutcome)]) -> Result<(), TransferError> {
        if self.manifest.is_none() || !self.unsettled.is_empty() {
            return Err(TransferError::Protocol("something was removed before all was settled"));
        }
        outcomes.iter().for_each(|(path, outcome)| self.ledger.settle(path, outcome));
        Ok(())
    }

    fn settle(&mut self, entry: u64, outcome: EntryOutcome) -> Option<(PathBuf, EntryOutcome)> {
        let Unsettled { path, what, .. } = self.unsettled.remove(&entry)?;
        if let What::File { size, .. } = what {
            self.progress.settled += 1;
            self.progress.settled_bytes += size;
        }
        self.ledger.settle(&path, &outcome);
        Some((path, outcome))
    }

    /// Small files for one pack of about `portion` bytes, or one large file; and whether there will be no more.
    pub(super) fn take_jobs(&mut self, portion: u64) -> (Vec<Job>, Option<Job>, bool) {
        let mut small = Vec::new();
        let mut bytes = 0;
        while let Some(job) = self.jobs.pop_front_if(|job| is_small(job.size)) {
            bytes += job.size + RECORD_COST;
            self.sent(job.entry);
            small.push(job);
            if bytes >= portion || small.len() == RECORDS {
                return (small, None, false);
            }
        }
        if !small.is_empty() {
            return (small, None, false);
        }
        // Only files can still be asked for; what else is unsettled needs nothing from here.
        let at_end = self.manifest.is_some()
            && self.jobs.is_empty()
            && !self.unsettled.values().any(|unsettled| matches!(unsettled.what, What::File { .. }));
        let large = self.jobs.pop_front();
        large.iter().for_each(|job| self.sent(job.entry));
        (small, large, at_end)
    }

    /// Whatever is wanted of entries below has been taken.
    pub(super) fn taken(&self) -> u64 {
        let judged = match self.manifest {
            Some(_) if self.judged >= self.next => u64::MAX,
            _ => self.judged,
        };
        self.jobs.iter().map(|job| job.entry).min().unwrap_or(judged).min(judged)
    }

    fn sent(&mut self, entry: u64) {
        if let Some(unsettled) = self.unsettled.get_mut(&entry) {
            unsettled.stage = Stage::Sent;
        }
    }
}
