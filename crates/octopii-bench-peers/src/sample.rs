//! One measurement in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use octopii_bench::Outcome;
use octopii_bench::load::Load;

use crate::peer::Peer;
use crate::workload::{ENTRIES, Workload};

/// What a process of its own is to do.
#[derive(Debug, Clone, Args)]
pub(crate) struct Sample {
    #[arg(value_enum)]
    peer: Peer,
    #[arg(value_enum)]
    what: What,
    #[arg(long, default_value_t = 100)]
    size: usize,
    #[arg(long, default_value_t = 1)]
    writers: usize,
    #[arg(long)]
    lazy: bool,
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    #[arg(long)]
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    Append,
    Fill,
    Read,
}

impl Sample {
    /// Does it and prints the figures.
    pub(crate) fn take(&self) -> Outcome<()> {
        let workload = Workload {
            size: self.size,
            writers: self.writers,
            durable: !self.lazy,
            time: Duration::from_millis(self.millis),
        };
        match self.what {
            What::Append => {
                let load = self.peer.append(&self.dir, &workload)?;
                println!("{} {} {}", load.rate, load.p50.as_nanos(), load.p99.as_nanos());
            }
            What::Fill => self.peer.fill(&self.dir)?,
            What::Read => {
                let begun = Instant::now();
                let count = self.peer.read(&self.dir)?;
                if count != ENTRIES {
                    return Err(format!("{count} entries were read, not {ENTRIES}").into());
                }
                println!("{}", begun.elapsed().as_secs_f64());
            }
        }
        Ok(())
    }
}

/// Appends in a process of its own, in a new directory that is removed again; under `strace` writing to a file, if asked.
pub(crate) fn append(dir: &Path, peer: Peer, workload: &Workload, strace: Option<&Path>) -> Outcome<Load> {
    let home = tempfile::tempdir_in(dir)?;
    let mut command = Command::new(if strace.is_some() { "strace".into() } else { std::env::current_exe()? });
    if let Some(output) = strace {
        command.args(["-f", "-c", "-e", "trace=fsync,fdatasync,sync_file_range,msync", "-o"]).arg(output);
        command.arg(std::env::current_exe()?);
    }
    command.arg("sample").arg(peer.name()).arg("append").arg("--dir").arg(home.path());
    command.arg("--size").arg(workload.size.to_string());
    command.arg("--writers").arg(workload.writers.to_string());
    command.arg("--millis").arg(workload.time.as_millis().to_string());
    if !workload.durable {
        command.arg("--lazy");
    }
    let told = run(command, home.path())?;
    let [rate, p50, p99] = numbers(&told)?[..] else { return Err(format!("unexpected: {told}").into()) };
    Ok(Load { rate, p50: Duration::from_nanos(p50 as u64), p99: Duration::from_nanos(p99 as u64) })
}

/// Makes a log, then opens and reads it in another process. Returns the seconds of the latter.
pub(crate) fn read(dir: &Path, peer: Peer) -> Outcome<f64> {
    let home = tempfile::tempdir_in(dir)?;
    let command = |what| -> Outcome<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("sample").arg(peer.name()).arg(what).arg("--dir").arg(home.path());
        Ok(command)
    };
    run(command("fill")?, home.path())?;
    let told = run(command("read")?, home.path())?;
    numbers(&told)?.first().copied().ok_or_else(|| "nothing was told".into())
}

fn run(mut command: Command, home: &Path) -> Outcome<String> {
    // Without the second it prints every step, to where the figures go.
    command.env("WALRUS_DATA_DIR", home).env("WALRUS_QUIET", "1");
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn numbers(told: &str) -> Outcome<Vec<f64>> {
    Ok(told.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
}
