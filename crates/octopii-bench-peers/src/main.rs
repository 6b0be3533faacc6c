//! Octopii's log beside other logs: the same appends at equal durability, on the same disk, in turn in the same run.
//!
//! Every sample is taken in a process of its own: some of these logs keep threads, files and settings for the life of the
//! process (walrus-rust decides once per process whether it syncs), and none should run in another's leftovers.
#![expect(clippy::disallowed_methods, reason = "measures real time on real files")]

mod octopii;
mod okaywal;
mod peer;
mod raft_engine;
mod raft_log;
mod raw;
mod sample;
mod sqlite;
mod tables;
mod walrus;
mod workload;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use octopii_bench::Outcome;

use crate::peer::Peer;
use crate::sample::Sample;

/// Measure Octopii's log and others beside each other.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
    /// Rounds per figure; the median is told
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds per sample
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Which logs, separated by commas; the raw loop and octopii-wal are always there
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::ALL)]
    only: Vec<Peer>,
    /// Count system calls that sync, with strace, instead of measuring times
    #[arg(long)]
    syncs: bool,
    /// Where files are written
    #[arg(long, default_value = "target")]
    dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Take one sample in this process and print it
    #[command(hide = true)]
    Sample(Sample),
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    if let Some(Task::Sample(sample)) = args.task {
        return sample.take();
    }
    std::fs::create_dir_all(&args.dir)?;
    let scratch = tempfile::Builder::new().prefix("octopii-peers-").tempdir_in(&args.dir)?;
    // Some of the logs go by where the process is.
    let dir = scratch.path().canonicalize()?;
    let run = tables::Run {
        dir: &dir,
        rounds: args.rounds,
        seconds: args.seconds,
        peers: peer::chosen(&args.only),
    };
    if args.syncs { run.count_syncs() } else { run.measure() }
}
