//! raft-log: one log per process of a Raft group, written by one thread at a time; its worker writes and syncs.
//!
//! Durable appends share one log behind a lock, held while an entry is handed over but not while it is synced. Without
//! durability each writer has a log of its own and hands over what it has written every 1024 entries.

use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_bench::Outcome;
use octopii_bench::load::{Load, drive};
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Config, RaftLog, Types};

use crate::workload::{ENTRIES, ENTRY, Workload};

const HAND_OVER: u64 = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Kinds;

impl Types for Kinds {
    type LogId = (u64, u64);
    type LogPayload = Vec<u8>;
    type Vote = (u64, u64);
    type UserData = String;
    type Callback = SyncSender<std::io::Result<()>>;

    fn log_index(id: &(u64, u64)) -> u64 {
        id.1
    }

    fn payload_size(payload: &Vec<u8>) -> u64 {
        payload.len() as u64
    }
}

/// By default it waits a millisecond for company before it syncs, which caps a lone writer at under 1000 appends a second.
/// Without waiting at all it syncs for each writer by itself.
fn company(writers: usize) -> Duration {
    Duration::from_micros(if writers == 1 { 0 } else { 100 })
}

fn open(dir: &Path, wait: Duration) -> Outcome<RaftLog<Kinds>> {
    std::fs::create_dir_all(dir)?;
    let mut config = Config::new(dir.to_string_lossy());
    config.wal.flush_batch_wait = Some(wait);
    // What it keeps in memory of what is written; by default 1 GiB.
    config.log_cache_capacity = Some(64 << 20);
    Ok(RaftLog::open(Arc::new(config))?)
}

pub(crate) fn append(dir: &Path, workload: &Workload) -> Outcome<Load> {
    if workload.durable { durable(dir, workload) } else { not_durable(dir, workload) }
}

fn durable(dir: &Path, workload: &Workload) -> Outcome<Load> {
    let shared = Mutex::new((open(dir, company(workload.writers))?, 0));
    drive(workload.writers, workload.time, workload.every(), |_| {
        let shared = &shared;
        Ok(move || {
            let (done, wait) = sync_channel(1);
            let payload = vec![7; workload.size];
            let mut log = shared.lock().map_err(|_| "another writer panicked")?;
            log.1 += 1;
            let id = (1, log.1);
            log.0.append([(id, payload)])?;
            log.0.flush(true, Some(done))?;
            drop(log);
            Ok(wait.recv()??)
        })
    })
}

fn not_durable(dir: &Path, workload: &Workload) -> Outcome<Load> {
    drive(workload.writers, workload.time, workload.every(), |n| {
        let (mut log, mut index) = (open(&dir.join(n.to_string()), company(1))?, 0);
        Ok(move || {
            index += 1;
            log.append([((1, index), vec![7; workload.size])])?;
            if index % HAND_OVER == 0 {
                log.flush(false, None)?;
            }
            Ok(())
        })
    })
}

pub(crate) fn fill(dir: &Path) -> Outcome<()> {
    let mut log = open(dir, company(1))?;
    for index in 1..=ENTRIES {
        log.append([((1, index), vec![7; ENTRY])])?;
        if index % HAND_OVER == 0 {
            log.flush(false, None)?;
        }
    }
    let (done, wait) = sync_channel(1);
    log.flush(true, Some(done))?;
    Ok(wait.recv()??)
}

pub(crate) fn read(dir: &Path) -> Outcome<u64> {
    let log = open(dir, company(1))?;
    let mut count = 0;
    for entry in log.read(0, ENTRIES + 1) {
        std::hint::black_box(entry?);
        count += 1;
    }
    Ok(count)
}
