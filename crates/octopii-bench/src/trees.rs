//! A directory of many small files, beside rsync.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use octopii_bench::Outcome;
use octopii_bench::report::{compare, head};
use octopii_transfer::{TransferOptions, TreeInbox, TreeOptions, TreeReport};
use tokio::runtime::Builder;

use crate::peers::Peers;

/// Files and their size. They lie in directories of a hundred.
const FILES: usize = 10_000;
const SIZE: usize = 4096;

pub(crate) fn measure(dir: &Path, rounds: usize) -> Outcome<()> {
    head(
        "Trees: 10,000 files of 4 KiB on one disk, from process to process on loopback with mutual TLS, beside local rsync",
        "files/s",
    );
    let source = dir.join("many");
    for n in 0..FILES {
        let dir = source.join(format!("{:03}", n / 100));
        if n % 100 == 0 {
            std::fs::create_dir_all(&dir)?;
        }
        // No two alike, so that nothing can be shared.
        let content: Vec<u8> = (0..SIZE / 8).flat_map(|at| (n * 977 + at * 31).to_le_bytes()).collect();
        std::fs::write(dir.join(format!("{n:05}")), content)?;
    }
    sync(dir)?;
    // Nothing is removed between rounds: ext4 is slow to use what was removed in the last seconds again.
    let mut fresh = 0;
    let mut place = |kind: &str| -> Outcome<PathBuf> {
        fresh += 1;
        let place = dir.join(format!("{kind}{fresh}"));
        std::fs::create_dir(&place)?;
        Ok(place)
    };
    if Command::new("rsync").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("| skipped: rsync is not installed | | | | |");
        return Ok(());
    }
    let places: Vec<_> = (0..(rounds + 1) * 2).map(|_| place("rsync")).collect::<Outcome<_>>()?;
    let inboxes: Vec<_> = (0..(rounds + 1) * 2).map(|_| place("inbox")).collect::<Outcome<_>>()?;
    sync(dir)?;
    let (mut left, mut free) = (places.iter(), inboxes.iter());
    let mut next = || left.next().ok_or("no place left");
    let mut next_inbox = || free.next().ok_or("no place left");
    compare(
        "new, durable; rsync -a, then sync",
        rounds,
        || rsync(&source, next()?, &[]),
        || own(&source, next_inbox()?, FILES as u64),
    )?;
    let (mut left, mut free) = (places[rounds + 1..].iter(), inboxes[rounds + 1..].iter());
    let mut next = || left.next().ok_or("no place left");
    let mut next_inbox = || free.next().ok_or("no place left");
    compare(
        "new, durable; rsync -a --fsync",
        rounds,
        || rsync(&source, next()?, &["--fsync"]),
        || own(&source, next_inbox()?, FILES as u64),
    )?;
    compare(
        "again, nothing has changed; rsync -a",
        rounds,
        || rsync(&source, &places[0], &[]),
        || own(&source, &inboxes[0], 0),
    )
}

fn rate(begun: Instant) -> f64 {
    FILES as f64 / begun.elapsed().as_secs_f64()
}

/// As a person would call it, from its start to the end of a sync of the file system.
fn rsync(source: &Path, to: &Path, arguments: &[&str]) -> Outcome<f64> {
    let begun = Instant::now();
    let status = Command::new("rsync").arg("-a").args(arguments).arg(source).arg(to).status()?;
    if !status.success() {
        return Err("rsync failed".into());
    }
    sync(to)?;
    Ok(rate(begun))
}

fn sync(dir: &Path) -> Outcome<()> {
    if Command::new("sync").arg("-f").arg(dir).status()?.success() {
        Ok(())
    } else {
        Err("sync failed".into())
    }
}

/// From the connection to the report.
fn own(source: &Path, inbox: &Path, stored: u64) -> Outcome<f64> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let peers = Peers::start(&TransferOptions::default())?;
        peers.receiver.receive_trees("bench", TreeInbox::new(inbox));
        let begun = Instant::now();
        let report: TreeReport =
            peers.sender.send_tree(peers.addr(), source, TreeOptions::new("bench")).await?;
        let rate = rate(begun);
        if !report.is_complete() || report.stored != stored {
            return Err(format!("not as it should be: {report:?}").into());
        }
        Ok(rate)
    })
}
