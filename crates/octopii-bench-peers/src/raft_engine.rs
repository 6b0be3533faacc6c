//! raft-engine: a region per writer.

use std::path::Path;

use octopii_bench::Outcome;
use octopii_bench::load::{Load, drive};
use protobuf::descriptor::UninterpretedOption;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::workload::{ENTRIES, ENTRY, Workload};

/// Entries are protobuf messages with an index. This one, of protobuf's own, has a number and bytes, and so spares
/// generating code for another.
#[derive(Clone)]
struct Entry;

impl MessageExt for Entry {
    type Entry = UninterpretedOption;

    fn index(entry: &UninterpretedOption) -> u64 {
        entry.get_positive_int_value()
    }
}

fn entry(size: usize) -> UninterpretedOption {
    let mut entry = UninterpretedOption::new();
    entry.set_string_value(vec![7; size]);
    entry
}

fn open(dir: &Path) -> Outcome<Engine> {
    let config = Config {
        dir: dir.join("engine").to_string_lossy().into_owned(),
        // The entries here would shrink to nothing; no other log compresses.
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    };
    Ok(Engine::open(config)?)
}

pub(crate) fn append(dir: &Path, workload: &Workload) -> Outcome<Load> {
    let engine = open(dir)?;
    let durable = workload.durable;
    drive(workload.writers, workload.time, workload.every(), |n| {
        let engine = &engine;
        let (mut batch, mut entry, mut index) = (LogBatch::default(), entry(workload.size), 0);
        Ok(move || {
            index += 1;
            entry.set_positive_int_value(index);
            batch.add_entries::<Entry>(n as u64 + 1, std::slice::from_ref(&entry))?;
            engine.write(&mut batch, durable)?;
            Ok(())
        })
    })
}

pub(crate) fn fill(dir: &Path) -> Outcome<()> {
    let engine = open(dir)?;
    let (mut batch, mut entry) = (LogBatch::default(), entry(ENTRY));
    for index in 1..=ENTRIES {
        entry.set_positive_int_value(index);
        batch.add_entries::<Entry>(1, std::slice::from_ref(&entry))?;
        engine.write(&mut batch, false)?;
    }
    engine.sync()?;
    Ok(())
}

pub(crate) fn read(dir: &Path) -> Outcome<u64> {
    let engine = open(dir)?;
    let (mut at, mut entries) = (engine.first_index(1).ok_or("nothing is there")?, Vec::new());
    let (end, mut count) = (engine.last_index(1).ok_or("nothing is there")? + 1, 0);
    while at < end {
        let next = end.min(at + 10_000);
        engine.fetch_entries_to::<Entry>(1, at, next, None, &mut entries)?;
        count += std::hint::black_box(&entries).len() as u64;
        entries.clear();
        at = next;
    }
    Ok(count)
}
