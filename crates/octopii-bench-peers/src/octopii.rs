//! Octopii's own log.

use std::path::Path;

use octopii_bench::Outcome;
use octopii_bench::load::Load;
use octopii_bench::logs::{self, Appends, Topics};
use octopii_wal::Durability;

use crate::workload::{ENTRIES, ENTRY, Workload};

pub(crate) fn append(dir: &Path, workload: &Workload) -> Outcome<Load> {
    let durability = if workload.durable { Durability::Synced } else { Durability::None };
    let Workload { size, writers, time, .. } = *workload;
    Appends { size, writers, topics: Topics::Own, durability, purge_after: None }.run(dir, time)
}

pub(crate) fn fill(dir: &Path) -> Outcome<()> {
    logs::fill(dir, ENTRIES, ENTRY).map(drop)
}

pub(crate) fn read(dir: &Path) -> Outcome<u64> {
    logs::read_all(&logs::open(dir)?.1)
}
