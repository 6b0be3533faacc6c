//! Measures each layer beside a reference that uses nothing but what lies under it, in turn in the same run: the machine
//! and its neighbours change from minute to minute, ratios less so.
#![expect(clippy::disallowed_methods, reason = "measures real time on real files")]

mod propose;
mod raw;
mod report;
mod rpc;
mod transfer;
mod wal;

use clap::{Parser, ValueEnum};

/// Measure Octopii's layers, each beside a raw reference.
#[derive(Debug, Parser)]
struct Args {
    /// What to measure
    #[arg(value_enum, default_values_t = [Layer::Wal, Layer::Rpc, Layer::Transfer, Layer::Propose])]
    layers: Vec<Layer>,
    /// Rounds per figure; the median is told
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of a transfer in MiB
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    /// Seconds per round where time bounds it
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Where files are written
    #[arg(long, default_value = "target")]
    dir: std::path::PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layer {
    Wal,
    Rpc,
    Transfer,
    Propose,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.dir)?;
    let scratch = tempfile::Builder::new().prefix("octopii-bench-").tempdir_in(&args.dir)?;
    let time = std::time::Duration::from_secs(args.seconds);
    for layer in args.layers {
        match layer {
            Layer::Wal => wal::measure(scratch.path(), args.rounds, time)?,
            Layer::Rpc => rpc::measure(args.rounds, time)?,
            Layer::Transfer => transfer::measure(scratch.path(), args.rounds, args.mib)?,
            Layer::Propose => propose::measure(scratch.path(), args.rounds, time)?,
        }
    }
    Ok(())
}
