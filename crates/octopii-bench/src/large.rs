//! A very large file between two processes: how soon it begins, and what memory it takes.

use std::path::Path;

use octopii_bench::{Outcome, raw_file};

use crate::process::Pair;

pub(crate) fn measure(dir: &Path, gib: u64) -> Outcome<()> {
    println!("\n### {gib} GiB from process to process, disk to disk, durable\n");
    println!("| MiB/s | first payload byte | peak resident memory: sender | receiver |\n|---|---|---|---|");
    let file = dir.join("large.bin");
    raw_file::whole(&file, (gib << 30) as usize)?;
    let pair = Pair::start(dir)?;
    let sent = pair.send(&file)?;
    println!(
        "| {:.0} | {:.1} ms | {:.1} MiB | {:.1} MiB |",
        (gib << 10) as f64 / sent.seconds,
        sent.first_byte * 1e3,
        sent.peak_kib as f64 / 1024.0,
        pair.receiver_peak_kib()? as f64 / 1024.0
    );
    Ok(())
}
