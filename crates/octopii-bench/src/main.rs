//! Measures each layer beside a reference that uses nothing but what lies under it, in turn in the same run: the machine
//! and its neighbours change from minute to minute, ratios less so.
#![expect(clippy::disallowed_methods, reason = "measures real time on real files")]

mod beside;
mod cpu;
mod distribute;
mod large;
mod limited;
mod memory;
mod peers;
mod process;
mod propose;
mod raw_quic;
mod rpc;
mod transfer;
mod trees;
mod wal;
mod whole;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use octopii_bench::Outcome;

/// Measure Octopii's layers, each beside a raw reference.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure
    #[arg(value_enum, default_values_t = [Layer::Wal, Layer::Rpc, Layer::Transfer, Layer::Beside, Layer::Trees, Layer::Propose])]
    layers: Vec<Layer>,
    /// Rounds per figure; the median is told
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of a transfer in MiB
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    /// Size of the log whose opening is measured, and of the large file, in GiB; it takes as much disk
    #[arg(long, default_value_t = 1)]
    gib: u64,
    /// Entries of 100 B, in millions, of the log whose memory is measured
    #[arg(long, default_value_t = 5)]
    millions: u64,
    /// Receivers of a distribution
    #[arg(long, default_value_t = 16)]
    receivers: usize,
    /// KiB that one stream may have under way, where calls are measured beside a transfer; the default of the library
    #[arg(long)]
    window: Option<u32>,
    /// Mbit/s of each receiver's link, and of the sender's
    #[arg(long, default_value_t = 100)]
    mbit: u32,
    /// Seconds per round where time bounds it
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Where files are written
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Open this log, tell what memory it takes, and do nothing else
    #[arg(long, hide = true)]
    memory_of: Option<PathBuf>,
    #[command(flatten)]
    role: process::Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layer {
    Wal,
    Rpc,
    Transfer,
    Trees,
    Propose,
    /// Calls and heartbeats beside a transfer
    Beside,
    /// How well a rate limit is kept to; not among the defaults
    Limited,
    /// A file of `--gib` from process to process; not among the defaults
    Large,
    /// A file of `--mib` beside rsync and scp, as far as they are installed; not among the defaults
    Whole,
    /// Needs root; not among the defaults
    Distribute,
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    if let Some(dir) = args.memory_of {
        return wal::tell_memory_of(&dir);
    }
    if args.role.play()? {
        return Ok(());
    }
    std::fs::create_dir_all(&args.dir)?;
    let scratch = tempfile::Builder::new().prefix("octopii-bench-").tempdir_in(&args.dir)?;
    let (dir, rounds) = (scratch.path(), args.rounds);
    let time = std::time::Duration::from_secs(args.seconds);
    for layer in args.layers {
        match layer {
            Layer::Wal => {
                let sizes = wal::Sizes { gib: args.gib, millions: args.millions };
                wal::measure(dir, rounds, time, sizes)?;
            }
            Layer::Rpc => rpc::measure(rounds, time)?,
            Layer::Transfer => transfer::measure(dir, rounds, args.mib)?,
            Layer::Beside => beside::measure(dir, rounds, args.mib, time, args.window)?,
            Layer::Limited => limited::measure(dir, rounds, time)?,
            Layer::Large => large::measure(dir, args.gib)?,
            Layer::Trees => trees::measure(dir, rounds)?,
            Layer::Propose => propose::measure(dir, rounds, time)?,
            Layer::Whole => whole::measure(dir, rounds, args.mib)?,
            Layer::Distribute => distribute::measure(dir, rounds, args.mib, args.receivers, args.mbit)?,
        }
    }
    Ok(())
}
