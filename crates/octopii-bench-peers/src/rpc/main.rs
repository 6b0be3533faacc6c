//! Octopii's RPC beside others: the same echo over one connection on loopback, in turn in the same run.
//!
//! Each side runs on a runtime of its own with one thread, as two processes with one thread each would.
#![expect(clippy::disallowed_methods, reason = "measures real time")]

mod certificate;
mod octopii;
mod tarpc_echo;
mod tonic_echo;

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use octopii_bench::Outcome;
use octopii_bench::report::{Subject, in_turn, median, quantile, ratios};
use tokio::runtime::{Builder, Handle, Runtime};

/// Measure Octopii's RPC and others beside each other.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds per figure; the median is told
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per sample
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
enum Peer {
    Octopii,
    OctopiiStreams,
    Tonic,
    TarpcPlain,
    TarpcTls,
}

impl Peer {
    const ALL: [Self; 5] =
        [Self::Octopii, Self::OctopiiStreams, Self::Tonic, Self::TarpcPlain, Self::TarpcTls];

    fn name(self) -> &'static str {
        match self {
            Self::Octopii => "octopii, mutual TLS",
            Self::OctopiiStreams => "octopii without lanes, mutual TLS",
            Self::Tonic => "tonic 0.14.9, mutual TLS",
            Self::TarpcPlain => "tarpc 0.38.0, plaintext TCP",
            Self::TarpcTls => "tarpc 0.38.0, mutual TLS",
        }
    }
}

/// What one sample gave.
#[derive(Debug, Clone, Copy)]
struct Sample {
    rate: f64,
    p50: Duration,
    p99: Duration,
}

/// What is asked of each.
#[derive(Debug, Clone, Copy)]
struct Load {
    size: usize,
    in_flight: usize,
    time: Duration,
}

fn main() -> Outcome<()> {
    let args = Args::parse();
    for (size, in_flight) in [(64, 1), (64, 64), (64 << 10, 1), (64 << 10, 64)] {
        let load = Load { size, in_flight, time: Duration::from_secs_f64(args.seconds) };
        let mut subjects: Vec<Subject<'_, Sample>> = Vec::new();
        for peer in Peer::ALL {
            subjects.push(Box::new(move || sample(peer, load)));
        }
        let taken = in_turn(args.rounds, &mut subjects)?;
        let rates: Vec<Vec<f64>> = taken.iter().map(|s| s.iter().map(|s| s.rate).collect()).collect();
        println!("\n### Echo of {size} B, {in_flight} in flight\n");
        println!("| | calls/s | p50, p99 | octopii, ratio (lowest to highest) |\n|---|---|---|---|");
        for ((peer, samples), rate) in Peer::ALL.iter().zip(&taken).zip(&rates) {
            let mut against = ratios(&rates[0], rate);
            let middle = median(&mut against);
            let time =
                |of: fn(&Sample) -> Duration| quantile(&mut samples.iter().map(of).collect::<Vec<_>>(), 0.5);
            println!(
                "| {} | {:.0} | {:.0?}, {:.0?} | {middle:.2} ({:.2} to {:.2}) |",
                peer.name(),
                median(&mut rate.clone()),
                time(|s| s.p50),
                time(|s| s.p99),
                against[0],
                against[against.len() - 1],
            );
        }
    }
    Ok(())
}

fn sample(peer: Peer, load: Load) -> Outcome<Sample> {
    let thread =
        || -> Outcome<Runtime> { Ok(Builder::new_multi_thread().worker_threads(1).enable_all().build()?) };
    let (client, server) = (thread()?, thread()?);
    let on = server.handle().clone();
    client.block_on(async move {
        match peer {
            Peer::Octopii => octopii::echo(load, on, true).await,
            Peer::OctopiiStreams => octopii::echo(load, on, false).await,
            Peer::Tonic => tonic_echo::echo(load, on).await,
            Peer::TarpcPlain => tarpc_echo::plain(load, on).await,
            Peer::TarpcTls => tarpc_echo::tls(load, on).await,
        }
    })
}

impl Load {
    fn body(self) -> Bytes {
        Bytes::from(vec![7; self.size])
    }

    /// As many tasks as shall be in flight, each of which calls again and again, on a client of its own made from `client`.
    async fn drive<C, F, Fut>(self, client: C, call: F) -> Outcome<Sample>
    where
        C: Clone + Send + 'static,
        F: Fn(C) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Outcome<()>> + Send,
    {
        call(client.clone()).await?;
        let begun = Instant::now();
        let tasks: Vec<_> = (0..self.in_flight)
            .map(|_| {
                let (client, call) = (client.clone(), call.clone());
                tokio::spawn(async move {
                    let mut taken = Vec::new();
                    let mut at = Instant::now();
                    while at - begun < self.time {
                        call(client.clone()).await?;
                        let now = Instant::now();
                        taken.push(now - at);
                        at = now;
                    }
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(taken)
                })
            })
            .collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await??);
        }
        let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
        Ok(Sample { rate, p50: quantile(&mut times, 0.5), p99: quantile(&mut times, 0.99) })
    }
}

/// Runs something on the server's runtime and waits for it.
async fn on<T: Send + 'static>(
    server: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Outcome<T> {
    Ok(server.spawn(work).await?)
}
