//! Durable appends beside a raw loop of pwrite and fdatasync.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use octopii_wal::{Durability, Options, WriteAheadLog};

use crate::Outcome;
use crate::report::{compare, head};

/// The raw loop writes into space that is there already, as the log does.
const SPACE: u64 = 64 << 20;

pub(crate) fn measure(dir: &Path, rounds: usize, time: Duration) -> Outcome<()> {
    head("Write-ahead log: durable appends beside one raw pwrite + fdatasync loop", "appends/s");
    for size in [100, 1 << 10, 64 << 10] {
        for writers in [1, 8, 64] {
            let workload = format!("{size} B, {writers} writers on {writers} topics");
            compare(
                workload,
                rounds,
                || raw(dir, size, time),
                || own(dir, size, writers, time, Durability::Synced),
            )?;
        }
    }
    head("Write-ahead log: appends that do not wait for the disk, beside raw pwrite", "appends/s");
    compare(
        "100 B, 1 writer",
        rounds,
        || raw_unsynced(dir, 100, time),
        || own(dir, 100, 1, time, Durability::None),
    )
}

fn zeroed(path: &Path) -> Outcome<File> {
    let file = File::options().create(true).truncate(true).write(true).open(path)?;
    let zeroes = vec![0; 1 << 20];
    for at in (0..SPACE).step_by(zeroes.len()) {
        file.write_all_at(&zeroes, at)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn raw(dir: &Path, size: usize, time: Duration) -> Outcome<f64> {
    raw_loop(dir, size, time, |file| file.sync_data())
}

fn raw_unsynced(dir: &Path, size: usize, time: Duration) -> Outcome<f64> {
    raw_loop(dir, size, time, |_| Ok(()))
}

fn raw_loop(
    dir: &Path,
    size: usize,
    time: Duration,
    sync: impl Fn(&File) -> std::io::Result<()>,
) -> Outcome<f64> {
    let path = dir.join("raw.log");
    let file = zeroed(&path)?;
    let (data, begun) = (vec![7; size], Instant::now());
    let (mut n, mut at) = (0u64, 0);
    while begun.elapsed() < time {
        file.write_all_at(&data, at)?;
        sync(&file)?;
        n += 1;
        at = (at + size as u64) % (SPACE - size as u64);
    }
    let rate = n as f64 / begun.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}

fn own(dir: &Path, size: usize, writers: usize, time: Duration, durability: Durability) -> Outcome<f64> {
    let home = tempfile::tempdir_in(dir)?;
    let log = WriteAheadLog::open(home.path(), Options { durability, ..Options::default() })?;
    // The first segment is made before the clock runs, as the raw loop's file is.
    log.topic("warm-up")?.append(vec![7; size])?.wait()?;
    let topics = (0..writers).map(|n| log.topic(&format!("topic-{n}"))).collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    let total = std::thread::scope(|scope| {
        let threads: Vec<_> = topics
            .iter()
            .map(|topic| {
                scope.spawn(move || {
                    let data = bytes::Bytes::from(vec![7; size]);
                    let mut n = 0u64;
                    while begun.elapsed() < time {
                        let ticket = topic.append(data.clone())?;
                        // Without durability there is nothing to wait for.
                        if durability == Durability::Synced {
                            ticket.wait()?;
                        }
                        n += 1;
                    }
                    Ok::<_, octopii_wal::Error>(n)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a writer panicked")).sum::<Result<u64, _>>()
    })?;
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}
