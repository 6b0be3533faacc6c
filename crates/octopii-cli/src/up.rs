//! `octopii up`.

use std::time::Duration;

use octopii::{Client, OctopiiRuntime};
use serde_json::json;

use crate::args::Up;
use crate::exit::Failure;
use crate::identity;
use crate::local::{LocalCluster, NodeProcess};
use crate::output::Output;
use crate::stop::stop_signal;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Up) -> Result<(), Failure> {
    let stop = stop_signal(false)?;
    tokio::pin!(stop);
    if args.base_port > u16::MAX - 2 {
        return Err(Failure::failed("--base-port must leave room for three ports: give one below 65534"));
    }
    std::fs::create_dir_all(&args.dir)
        .map_err(|e| Failure::failed(format!("{}: {e}", args.dir.display())))?;
    let members = (1u16..=3).map(|n| (n.into(), ([127, 0, 0, 1], args.base_port + n - 1).into())).collect();
    let cluster = LocalCluster { dir: args.dir, members, authority_dir: None };
    let nodes = cluster.members.values().copied();
    let client = Client::new(runtime, &identity::load(None, None)?, nodes, Duration::from_secs(5))
        .map_err(Failure::failed)?;
    let mut processes = Vec::new();
    for id in cluster.members.keys() {
        processes.push(cluster.start(*id)?);
    }
    let outcome = tokio::select! {
        () = &mut stop => Ok(()),
        outcome = all_answer(&mut processes, &client) => outcome,
    };
    if outcome.is_ok() {
        describe(*output, &cluster, &processes);
        watch(*output, &cluster, &mut processes, stop).await;
    }
    // All at once, since each may take a few seconds to end in order.
    processes.iter_mut().for_each(NodeProcess::ask_to_stop);
    for process in &mut processes {
        process.stop(Duration::from_secs(5)).await;
    }
    client.close().await;
    outcome
}

async fn all_answer(processes: &mut [NodeProcess], client: &Client) -> Result<(), Failure> {
    for process in processes {
        process.answers(client).await?;
    }
    Ok(())
}

fn describe(output: Output, cluster: &LocalCluster, processes: &[NodeProcess]) {
    for process in processes {
        output.result(
            format_args!("node {}  {}  process {}  {}", process.id, process.addr, process.pid(), process.data_dir.display()),
            &json!({ "node": process.id, "addr": process.addr, "pid": process.pid(), "data_dir": process.data_dir }),
        );
    }
    let nodes: Vec<_> = cluster.members.values().map(ToString::to_string).collect();
    let hint = match nodes.first() {
        Some(first) if !first.ends_with(&format!(":{}", crate::args::DEFAULT_PORT)) => {
            format!(" --node {}", nodes.join(","))
        }
        _ => String::new(),
    };
    output.line(format_args!(
        "Try, in another terminal:\n  octopii kv{hint} put greeting hello\n  octopii kv{hint} get greeting\n  \
         octopii cluster{hint} status\nCtrl-C stops the nodes; their data stays in {}.",
        cluster.dir.display()
    ));
}

/// Tells of nodes that end, until asked to stop. They are left down: that is what one tries here.
async fn watch(
    output: Output,
    cluster: &LocalCluster,
    processes: &mut [NodeProcess],
    mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
) {
    let mut told = vec![false; processes.len()];
    loop {
        for (process, told) in processes.iter_mut().zip(&mut told) {
            if !*told && process.has_ended() {
                *told = true;
                output.result(
                    format_args!(
                        "node {} is down; start it again with:\n  {}",
                        process.id,
                        cluster.command_line(process.id)
                    ),
                    &json!({ "event": "down", "node": process.id }),
                );
            }
        }
        tokio::select! {
            () = &mut stop => return,
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}
