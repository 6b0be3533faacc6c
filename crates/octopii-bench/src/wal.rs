//! The log beside a raw file: appending, opening, reading back; and what it takes of disk and memory.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::memory;
use octopii_bench::logs::{self, Appends, Topics};
use octopii_bench::report::{compare, head};
use octopii_bench::{Outcome, raw_file};
use octopii_wal::{Durability, Options, WriteAheadLog};

const MILLION: u64 = 1_000_000;
const MIB: u64 = 1 << 20;

/// How large the logs are that are opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) gib: u64,
    /// Millions of entries.
    pub(crate) millions: u64,
}

pub(crate) fn measure(dir: &Path, rounds: usize, time: Duration, sizes: Sizes) -> Outcome<()> {
    durable(dir, rounds, time)?;
    not_durable(dir, rounds, time)?;
    opening(dir, rounds, sizes)?;
    disk(dir, time)?;
    memory(dir, sizes)
}

fn durable(dir: &Path, rounds: usize, time: Duration) -> Outcome<()> {
    head("Write-ahead log: durable appends beside one raw pwrite + fdatasync loop", "appends/s");
    let appends = |size, writers, purge_after| Appends {
        size,
        writers,
        topics: Topics::Own,
        durability: Durability::Synced,
        purge_after,
    };
    let row = |workload: &str, appends: Appends| {
        let reference = || Ok(raw_file::appends(dir, appends.size, true, time)?.rate);
        compare(workload, rounds, reference, || Ok(appends.run(dir, time)?.rate))
    };
    for size in [100, 1 << 10, 64 << 10] {
        for writers in [1, 8, 64] {
            row(&format!("{size} B, {writers} writers on {writers} topics"), appends(size, writers, None))?;
        }
    }
    // The raw loop overwrites its file again and again. A log can do the same only with what it has been told to drop.
    row("65536 B, 1 writer that purges every 16 MiB", appends(64 << 10, 1, Some(16 * MIB)))
}

fn not_durable(dir: &Path, rounds: usize, time: Duration) -> Outcome<()> {
    head("Write-ahead log: appends that do not wait for the disk, beside one raw pwrite loop", "appends/s");
    for writers in [1, 64] {
        let appends = Appends {
            size: 100,
            writers,
            topics: Topics::Own,
            durability: Durability::None,
            purge_after: None,
        };
        compare(
            format_args!("100 B, {writers} writers on {writers} topics"),
            rounds,
            || Ok(raw_file::appends(dir, 100, false, time)?.rate),
            || Ok(appends.run(dir, time)?.rate),
        )?;
    }
    Ok(())
}

fn opening(dir: &Path, rounds: usize, sizes: Sizes) -> Outcome<()> {
    head(
        "Write-ahead log: opening, beside reading its files from beginning to end (from the cache)",
        "MiB/s",
    );
    let small = dir.join("small");
    let bytes = logs::fill(&small, MILLION, 100)?;
    let raw = |path: &Path| per_second(bytes, || raw_file::scan(path).map(drop));
    let open = || logs::open(&small).map(drop);
    compare("1 M entries of 100 B", rounds, || raw(&small), || per_second(bytes, open))?;
    let open_and_read = || match logs::read_all(&logs::open(&small)?.1)? {
        MILLION => Ok(()),
        n => Err(format!("{n} entries were read, not {MILLION}").into()),
    };
    let workload = "1 M entries of 100 B, and reading them all";
    compare(workload, rounds, || raw(&small), || per_second(bytes, open_and_read))?;
    let records = dir.join("records");
    raw_file::write_records(&records, MILLION, 100)?;
    let bare = || match raw_file::read_records(&records)? {
        MILLION => Ok(()),
        n => Err(format!("{n} records were read, not {MILLION}").into()),
    };
    compare(
        "the same, beside reading as many checked records from one file",
        rounds,
        || per_second(bytes, bare),
        || per_second(bytes, open_and_read),
    )?;
    std::fs::remove_file(records)?;
    std::fs::remove_dir_all(&small)?;

    let large = dir.join("large");
    let bytes = logs::fill(&large, sizes.gib << 20, 1 << 10)?;
    let raw = || per_second(bytes, || raw_file::scan(&large).map(drop));
    let open = || per_second(bytes, || logs::open(&large).map(drop));
    compare(format_args!("{} GiB in entries of 1 KiB", sizes.gib), rounds, raw, open)?;
    std::fs::remove_dir_all(&large)?;
    Ok(())
}

/// MiB per second, were `bytes` what `work` works through.
fn per_second(bytes: u64, work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
    let begun = Instant::now();
    work()?;
    Ok(bytes as f64 / MIB as f64 / begun.elapsed().as_secs_f64())
}

fn disk(dir: &Path, time: Duration) -> Outcome<()> {
    println!("\n### Write-ahead log: disk\n\n| what | bytes |\n|---|---|");
    let home = dir.join("new");
    let log = WriteAheadLog::open(&home, Options::default())?;
    let topic = log.topic("topic")?;
    println!("| a new log | {} |", raw_file::disk_usage(&home)?);
    topic.append(vec![7; 100])?.wait()?;
    println!("| after its first durable append of 100 B | {} |", raw_file::disk_usage(&home)?);
    log.close()?;
    std::fs::remove_dir_all(&home)?;

    logs::fill(&home, MILLION, 100)?;
    let each = raw_file::disk_usage(&home)? as f64 / MILLION as f64;
    println!("| an entry of 100 B, 1 M of them, not durable one by one | {each:.1} |");
    std::fs::remove_dir_all(&home)?;
    for writers in [1, 8, 64] {
        let each = written_per_entry(&home, writers, time)?;
        println!("| an entry of 100 B, {writers} writers, each durable | {each:.1} |");
        std::fs::remove_dir_all(&home)?;
    }
    Ok(())
}

/// Bytes of frames per durable entry; the zeroes ahead of them are none.
fn written_per_entry(home: &Path, writers: usize, time: Duration) -> Outcome<f64> {
    let log = WriteAheadLog::open(home, Options::default())?;
    let topics = (0..writers).map(|n| log.topic(&format!("topic-{n}"))).collect::<Result<Vec<_>, _>>()?;
    octopii_bench::load::drive(writers, time, 1, |n| {
        let topic = &topics[n];
        Ok(move || Ok(topic.append(vec![7; 100])?.wait()?))
    })?;
    let entries: u64 = topics.iter().map(octopii_wal::Topic::next_index).sum();
    Ok(log.stats().bytes_written as f64 / entries as f64)
}

fn memory(dir: &Path, sizes: Sizes) -> Outcome<()> {
    println!("\n### Write-ahead log: memory\n");
    let (home, millions) = (dir.join("many"), sizes.millions);
    logs::fill(&home, millions * MILLION, 100)?;
    // In a process of its own, which has nothing else in its memory.
    let told = Command::new(std::env::current_exe()?).arg("--memory-of").arg(&home).output()?;
    if !told.status.success() {
        return Err(format!("could not measure memory: {}", String::from_utf8_lossy(&told.stderr)).into());
    }
    let told = String::from_utf8(told.stdout)?;
    let kib = told.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    let [before, after, peak] = kib[..] else { return Err("memory was told in an unknown way".into()) };
    println!(
        "Opening a log with {millions} M entries of 100 B: resident {:.1} MiB before, {:.1} MiB after, at most {:.1} MiB; \
         {:.2} MiB per million entries, at most {:.2}.",
        before as f64 / 1024.0,
        after as f64 / 1024.0,
        peak as f64 / 1024.0,
        after.saturating_sub(before) as f64 / 1024.0 / millions as f64,
        peak.saturating_sub(before) as f64 / 1024.0 / millions as f64,
    );
    std::fs::remove_dir_all(&home)?;
    Ok(())
}

/// Prints KiB of memory before opening the log in `dir`, after it, and at most.
pub(crate) fn tell_memory_of(dir: &Path) -> Outcome<()> {
    let before = memory::kib("self")?;
    let _open = logs::open(dir)?;
    println!("{before} {} {}", memory::kib("self")?, memory::peak_kib("self")?);
    Ok(())
}
