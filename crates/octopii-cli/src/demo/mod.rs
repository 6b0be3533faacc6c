//! `octopii demo`: every claim shown on real nodes, and checked.

mod failover;
mod keys;
mod ship;

use std::path::{Path, PathBuf};
use std::time::Duration;

use octopii::{Client, Config, IdentitySource, NodeId, OctopiiNode, OctopiiRuntime};
use serde_json::json;
use tokio::time::Instant;

use crate::args::Demo;
use crate::exit::Failure;
use crate::identity;
use crate::local::{LocalCluster, NodeProcess, free_addresses};
use crate::output::Output;
use crate::stop::stop_signal;

/// The three nodes: the first in this process, on a runtime of its own, the others each in a process of their own, so that
/// one of them can be killed for real.
struct Stage<'a> {
    output: &'a Output,
    begun: Instant,
    cluster: LocalCluster,
    // Before the runtime it runs on.
    node: OctopiiNode,
    client: Client,
    processes: Vec<NodeProcess>,
}

const NODES: usize = 3;
const OWN: NodeId = 1;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Demo) -> Result<(), Failure> {
    if let Some(path) = &args.file {
        let metadata =
            std::fs::metadata(path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        if !metadata.is_file() {
            return Err(Failure::failed(format!("{} is not a file", path.display())));
        }
    }
    let stopped = || Failure::stopped("stopped before everything was shown");
    let stop = stop_signal(false)?;
    tokio::pin!(stop);
    let (dir, _temporary) = directory(args.dir.as_deref())?;
    // A Ctrl-C ends the nodes in their processes too: what they then fail to do is no broken claim.
    let mut stage = tokio::select! {
        biased;
        () = &mut stop => return Err(stopped()),
        stage = Stage::set(runtime, output, dir.clone()) => stage?,
    };
    let outcome = tokio::select! {
        biased;
        () = &mut stop => Err(stopped()),
        outcome = play(&mut stage, &args) => outcome,
    };
    if outcome.is_ok() {
        stage.by_hand();
    }
    stage.clear().await;
    outcome
}

async fn play(stage: &mut Stage<'_>, args: &Demo) -> Result<(), Failure> {
    ship::show(stage, args.file.as_deref(), args.sabotage).await?;
    let acknowledged = keys::show(stage, args.sabotage).await?;
    failover::show(stage, acknowledged, args.sabotage).await
}

impl<'a> Stage<'a> {
    async fn set(runtime: &OctopiiRuntime, output: &'a Output, dir: PathBuf) -> Result<Self, Failure> {
        let begun = Instant::now();
        let authority_dir = dir.join("authority");
        let members = (1..).zip(free_addresses(NODES)?).collect();
        let cluster = LocalCluster { dir, members, authority_dir: Some(authority_dir.clone()) };
        let identity = identity::load(None, Some(&authority_dir))?;
        let nodes = cluster.members.values().copied();
        let client =
            Client::new(runtime, &identity, nodes, Duration::from_secs(5)).map_err(Failure::failed)?;
        let mut processes = Vec::new();
        for id in cluster.members.keys().filter(|id| **id != OWN) {
            processes.push(cluster.start(*id)?);
        }
        let config = Config {
            bind: cluster.members[&OWN],
            node_id: Some(OWN),
            identity: IdentitySource::LocalAuthority(authority_dir),
            members: cluster.members.iter().map(|(id, addr)| (*id, (*addr).into())).collect(),
            ..Config::new(cluster.data_dir(OWN))
        };
        let own_threads = OctopiiRuntime::try_new(2).map_err(Failure::failed)?;
        let node = OctopiiNode::start(config, &own_threads).await.map_err(Failure::failed)?;
        let mut stage = Self { output, begun, cluster, node, client, processes };
        for process in &mut stage.processes {
            process.answers(&stage.client).await?;
        }
        stage.node.joined().await.map_err(Failure::failed)?;
        let leader = stage.leader().await?;
        for (id, addr) in &stage.cluster.members {
            let place = match stage.processes.iter().find(|p| p.id == *id) {
                Some(process) => format!("process {}", process.pid()),
                None => "in this process".to_owned(),
            };
            stage.say(
                format_args!("node {id} on {addr}, {place}, its own runtime and data directory"),
                &json!({
                    "event": "node", "node": id, "addr": addr,
                }),
            );
        }
        stage.claim(
            format_args!("three nodes with certificates of a fresh private authority form a cluster; node {leader} leads"),
            &json!({ "event": "cluster", "leader": leader }),
        );
        Ok(stage)
    }

    /// The leader that a majority can reach.
    async fn leader(&self) -> Result<NodeId, Failure> {
        let known = self.node.wait_for_leader(Duration::from_secs(20)).await;
        known.map(|(id, _)| id).ok_or_else(|| broken("the cluster has a leader within 20 s"))
    }

    /// Something seen.
    fn say(&self, line: impl std::fmt::Display, value: &serde_json::Value) {
        self.output.result(format_args!("{:>6.2}s    {line}", self.begun.elapsed().as_secs_f64()), value);
    }

    /// Something claimed, and just checked.
    fn claim(&self, line: impl std::fmt::Display, value: &serde_json::Value) {
        self.output.result(format_args!("{:>6.2}s ok {line}", self.begun.elapsed().as_secs_f64()), value);
    }

    fn by_hand(&self) {
        self.output.line(
            "\nEverything above, by hand:\n  \
             octopii up                                  three nodes, until Ctrl-C\n  \
             octopii send FILE 127.0.0.1:4701            into that node's inbox, verified and durable\n  \
             octopii kv put greeting hello               through any node\n  \
             octopii kv get greeting\n  \
             octopii cluster status                      who leads, and its process id is in the output of `up`\n  \
             kill -9 PID                                 then read again: nothing acknowledged is lost\n  \
             octopii wal verify octopii-cluster/node1    the log under it, every byte of it\n\
             (`octopii` is target/release/octopii, or `cargo install --path crates/octopii-cli`)",
        );
    }

    async fn clear(mut self) {
        self.processes.iter_mut().for_each(NodeProcess::ask_to_stop);
        self.node.shutdown().await;
        for process in &mut self.processes {
            process.stop(Duration::from_secs(5)).await;
        }
        self.client.close().await;
    }
}

/// A claim that did not hold.
fn broken(claim: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("claim broken: {claim}"))
}

fn directory(asked: Option<&Path>) -> Result<(PathBuf, Option<tempfile::TempDir>), Failure> {
    match asked {
        Some(dir) => {
            std::fs::create_dir(dir).map_err(|e| Failure::failed(format!("{}: {e}", dir.display())))?;
            Ok((dir.to_owned(), None))
        }
        None => {
            let temporary = tempfile::Builder::new()
                .prefix("octopii-demo-")
                .tempdir()
                .map_err(|e| Failure::failed(format!("cannot make a temporary directory: {e}")))?;
            Ok((temporary.path().to_owned(), Some(temporary)))
        }
    }
}
