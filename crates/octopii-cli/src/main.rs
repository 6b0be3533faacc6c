//! The `octopii` command: what was typed, what it means, one call of the library.

#![expect(
    clippy::disallowed_methods,
    reason = "the command reads what the user names: it keeps nothing of its own on disk"
)]

mod args;
mod call;
mod cluster;
mod demo;
mod exit;
mod identity;
mod kv;
mod local;
mod node;
mod output;
mod peers;
mod progress;
mod recv;
mod send;
mod send_tree;
mod stop;
mod token;
mod up;
mod wal;

use std::process::ExitCode;

use clap::Parser;
use octopii::OctopiiRuntime;
use tracing_subscriber::EnvFilter;

use crate::args::{Args, Command};
use crate::exit::Failure;
use crate::output::Output;

/// What a node cannot do for good is also what its command fails with, and said there.
const DEFAULT_LOG: &str = "warn,quinn=error,openraft=off,octopii::node=off";

/// Threads for Octopii's own work. One endpoint is one task, so more would not make a single node faster.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_env("OCTOPII_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let output = Output::new(args.json);
    let outcome = OctopiiRuntime::try_new(THREADS)
        .map_err(|e| Failure::failed(format!("cannot start threads: {e}")))
        .and_then(|runtime| {
            let outcome = runtime
                .block_on(run(&runtime, &output, args))
                .and_then(|()| output::lost().map_or(Ok(()), Err));
            runtime.shutdown(std::time::Duration::from_secs(2));
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            failure.exit_code()
        }
    }
}

async fn run(runtime: &OctopiiRuntime, output: &Output, args: Args) -> Result<(), Failure> {
    // Boxed: each command's future is large, and only one of them runs.
    match args.command {
        Command::Demo(demo) => Box::pin(demo::run(runtime, output, demo)).await,
        Command::Up(up) => Box::pin(up::run(runtime, output, up)).await,
        Command::Node(node) => Box::pin(node::run(runtime, output, node)).await,
        Command::Send(send) => Box::pin(send::run(runtime, output, send)).await,
        Command::Recv(recv) => Box::pin(recv::run(runtime, output, recv)).await,
        Command::Kv(kv) => Box::pin(kv::run(runtime, output, kv)).await,
        Command::Call(call) => Box::pin(call::run(runtime, output, call)).await,
        Command::Cluster(cluster) => Box::pin(cluster::run(runtime, output, cluster)).await,
        Command::Token(token) => Box::pin(token::run(runtime, output, token)).await,
        Command::Wal(wal) => wal::run(output, &wal),
    }
}
