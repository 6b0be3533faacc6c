//! All workloads for all logs, in turn, as tables.

use std::path::Path;
use std::time::Duration;

use octopii_bench::Outcome;
use octopii_bench::load::Load;
use octopii_bench::report::{Subject, in_turn, median, ratios};

use crate::peer::Peer;
use crate::sample;
use crate::workload::Workload;

/// What to measure, and where.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) peers: Vec<Peer>,
}

impl Run<'_> {
    pub(crate) fn measure(&self) -> Outcome<()> {
        println!("How each is told to sync before it acknowledges:\n");
        for peer in &self.peers {
            println!("- {}: {}", peer.name(), peer.durability());
        }
        for size in [100, 1 << 10, 64 << 10] {
            for writers in [1, 8, 64] {
                self.appends(&self.workload(size, writers, true))?;
            }
        }
        for writers in [1, 64] {
            self.appends(&self.workload(100, writers, false))?;
        }
        self.reading()
    }

    fn workload(&self, size: usize, writers: usize, durable: bool) -> Workload {
        Workload { size, writers, durable, time: Duration::from_secs_f64(self.seconds) }
    }

    fn appends(&self, workload: &Workload) -> Outcome<()> {
        let Workload { size, writers, durable, .. } = workload;
        let kind = if *durable { "Durable" } else { "Not durable" };
        let peers: Vec<_> = self.peers.iter().filter(|p| *durable || p.can_be_lazy()).collect();
        let mut subjects: Vec<Subject<'_, Load>> = Vec::new();
        for peer in &peers {
            subjects.push(Box::new(|| sample::append(self.dir, **peer, workload, None)));
        }
        let taken = in_turn(self.rounds, &mut subjects)?;
        let rates: Vec<Vec<f64>> = taken.iter().map(|loads| loads.iter().map(|l| l.rate).collect()).collect();
        println!("\n### {kind} appends of {size} B, {writers} writers (the raw loop: one writer)\n");
        println!(
            "| log | appends/s (lowest to highest) | p50, µs | p99, µs | of octopii-wal | of the raw loop |"
        );
        println!("|---|---|---|---|---|---|");
        for ((peer, loads), rate) in peers.iter().zip(&taken).zip(&rates) {
            let micros = |of: fn(&Load) -> Duration| {
                median(&mut loads.iter().map(|l| of(l).as_secs_f64() * 1e6).collect::<Vec<_>>())
            };
            println!(
                "| {} | {} | {:.1} | {:.1} | {:.2} | {:.2} |",
                peer.name(),
                spread(rate, 0),
                micros(|l| l.p50),
                micros(|l| l.p99),
                median(&mut ratios(rate, &rates[1])),
                median(&mut ratios(rate, &rates[0])),
            );
        }
        Ok(())
    }

    fn reading(&self) -> Outcome<()> {
        let mut subjects: Vec<Subject<'_, f64>> = Vec::new();
        for peer in &self.peers {
            subjects.push(Box::new(|| sample::read(self.dir, *peer)));
        }
        let taken = in_turn(self.rounds, &mut subjects)?;
        println!(
            "\n### Opening a log of 1 M entries of 100 B and reading them all (the raw file: reading it)\n"
        );
        println!("| log | seconds (lowest to highest) | of octopii-wal |\n|---|---|---|");
        for (peer, seconds) in self.peers.iter().zip(&taken) {
            let of_ours = median(&mut ratios(seconds, &taken[1]));
            println!("| {} | {} | {of_ours:.2} |", peer.name(), spread(seconds, 3));
        }
        Ok(())
    }

    /// Runs each once under `strace` and tells how many system calls that sync there were per append. What opening and
    /// closing take is in there, too.
    pub(crate) fn count_syncs(&self) -> Outcome<()> {
        println!(
            "| log | writers | appends | fsync | fdatasync | msync | sync_file_range | syncs per append |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for peer in &self.peers {
            for writers in [1, 8, 64] {
                let (workload, file) = (self.workload(100, writers, true), self.dir.join("strace"));
                let load = sample::append(self.dir, *peer, &workload, Some(&file))?;
                let appends = load.rate * self.seconds;
                let counted = std::fs::read_to_string(&file)?;
                let calls =
                    ["fsync", "fdatasync", "msync", "sync_file_range"].map(|name| calls(&counted, name));
                let [fsync, fdatasync, msync, range] = calls;
                let each = calls.iter().sum::<u64>() as f64 / appends;
                println!(
                    "| {} | {writers} | {appends:.0} | {fsync} | {fdatasync} | {msync} | {range} | {each:.3} |",
                    peer.name()
                );
            }
        }
        Ok(())
    }
}

/// The column "calls" of `strace -c`.
fn calls(counted: &str, name: &str) -> u64 {
    let mut lines = counted.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|columns| columns.last() == Some(&name));
    line.and_then(|columns| columns.get(3)?.parse().ok()).unwrap_or(0)
}

fn spread(values: &[f64], digits: usize) -> String {
    let mut values = values.to_vec();
    let middle = median(&mut values);
    let (low, high) = (values.first().copied(), values.last().copied());
    format!(
        "{middle:.digits$} ({:.digits$} to {:.digits$})",
        low.unwrap_or(f64::NAN),
        high.unwrap_or(f64::NAN)
    )
}
