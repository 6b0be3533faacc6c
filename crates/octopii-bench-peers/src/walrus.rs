//! walrus-rust. Its directory comes from the environment variable `WALRUS_DATA_DIR`, which the parent process sets.

use octopii_bench::Outcome;
use octopii_bench::load::{Load, drive};
use walrus_rust::{FsyncSchedule, ReadConsistency, Walrus};

use crate::workload::{ENTRIES, ENTRY, Workload};

fn open(schedule: FsyncSchedule) -> Outcome<Walrus> {
    let consistency = ReadConsistency::AtLeastOnce { persist_every: u32::MAX };
    Ok(Walrus::with_consistency_and_schedule(consistency, schedule)?)
}

pub(crate) fn append(workload: &Workload) -> Outcome<Load> {
    let schedule = if workload.durable { FsyncSchedule::SyncEach } else { FsyncSchedule::NoFsync };
    // Through files it syncs twice, by `O_SYNC` and by `fsync`; through a mapping once, which only with very many writers is
    // not faster.
    if workload.durable && workload.writers <= 8 {
        walrus_rust::disable_fd_backend();
    }
    let log = open(schedule)?;
    let data = vec![7; workload.size];
    drive(workload.writers, workload.time, workload.every(), |n| {
        let (log, data, topic) = (&log, &data, format!("topic-{n}"));
        Ok(move || Ok(log.append_for_topic(&topic, data)?))
    })
}

pub(crate) fn fill() -> Outcome<()> {
    let log = open(FsyncSchedule::NoFsync)?;
    for _ in 0..ENTRIES {
        log.append_for_topic("topic", &[7; ENTRY])?;
    }
    Ok(())
}

pub(crate) fn read() -> Outcome<u64> {
    let log = open(FsyncSchedule::NoFsync)?;
    let mut count = 0;
    loop {
        // At most 2000 entries at a time. It reads as many bytes as are asked for, headers of 64 bytes included.
        let entries = log.batch_read_for_topic("topic", 2000 * (ENTRY + 64), true)?;
        if entries.is_empty() {
            return Ok(count);
        }
        count += std::hint::black_box(entries).len() as u64;
    }
}
