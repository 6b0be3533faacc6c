//! `octopii node`.

use std::time::Duration;

use octopii::{Config, IdentitySource, InboxPolicy, OctopiiNode, OctopiiRuntime, QueryError, Role};
use serde_json::json;
use tokio::sync::mpsc;

use crate::args::Node;
use crate::exit::Failure;
use crate::output::Output;
use crate::recv::report;
use crate::stop::{reload_signal, stop_signal};
use crate::token::to_join_with;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Node) -> Result<(), Failure> {
    let until_eof = args.until_eof;
    let config = config(args)?;
    let (arrived, mut arrivals) = mpsc::channel(1024);
    let policy = InboxPolicy::new(config.data_dir.join("inbox")).on_received(move |chunk| {
        let _ = arrived.blocking_send(chunk);
    });
    // Before anything is on disk: a stop during recovery is a stop.
    let stop = stop_signal(until_eof)?;
    tokio::pin!(stop);
    let starting = OctopiiNode::builder(config).receive(octopii::INBOX, policy).start(runtime);
    let node = tokio::select! {
        node = starting => node.map_err(Failure::failed)?,
        () = &mut stop => return Ok(()),
    };
    output.result(
        format_args!(
            "node {} listens on {}, data in {}",
            node.node_id(),
            node.local_addr(),
            node.data_dir().display()
        ),
        &json!({ "event": "listening", "node": node.node_id(), "addr": node.local_addr() }),
    );
    let joined = node.joined();
    tokio::pin!(joined);
    let mut joining = true;
    let mut reload = reload_signal()?;
    let outcome = loop {
        tokio::select! {
            () = &mut stop => break Ok(()),
            () = reload.asked() => match node.reload_identity().await {
                Ok(changed) => output.result(
                    if changed { "a new identity is in use" } else { "the identity has not changed" },
                    &json!({ "event": "reloaded", "changed": changed }),
                ),
                Err(e) => tracing::error!("the identity was not read again: {e}"),
            },
            outcome = &mut joined, if joining => {
                joining = false;
                match outcome {
                    Ok(()) => output.result("ready", &json!({ "event": "ready", "node": node.node_id() })),
                    Err(e) => break Err(Failure::failed(e)),
                }
            }
            why = consensus_stopped(&node) => break Err(Failure::failed(why)),
            Some(chunk) = arrivals.recv() => report(*output, &chunk),
        }
    };
    node.shutdown().await;
    // What was acknowledged while the node stopped is told too.
    while let Ok(chunk) = arrivals.try_recv() {
        report(*output, &chunk);
    }
    outcome
}

/// Waits until consensus stops by itself, as it does when the log cannot be written; tells why. The node is then of no
/// use to its cluster until it is started again.
async fn consensus_stopped(node: &OctopiiNode) -> String {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if node.consensus_status().is_some_and(|status| status.role == Role::Stopped) {
            return match node.query(&[]).await {
                Err(e @ QueryError::Stopped(_)) => format!("{e}; then start the node again"),
                _ => "consensus on this node has stopped; start the node again".to_owned(),
            };
        }
    }
}

fn config(args: Node) -> Result<Config, Failure> {
    let mut config = Config::load(args.config.as_deref()).map_err(Failure::failed)?;
    if let Some(dir) = args.data_dir {
        config.data_dir = dir;
    }
    if let Some(bind) = args.bind {
        config.bind = bind;
    }
    config.authority = args.authority.or(config.authority);
    let token = if args.identity.is_some() { None } else { to_join_with(args.join.as_deref())? };
    if let Some(token) = token {
        config.identity = IdentitySource::Token(token);
    } else if let Some(path) = args.identity {
        config.identity = IdentitySource::File(path);
    } else if let Some(dir) = args.authority_dir {
        config.identity = IdentitySource::LocalAuthority(dir);
    }
    config.node_id = args.id.or(config.node_id);
    config.members.extend(args.members);
    Ok(config)
}
