//! `octopii node`.

use std::future::Future;
use std::io::Read;

use octopii::{Config, IdentitySource, InboxPolicy, OctopiiNode, OctopiiRuntime};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::args::Node;
use crate::exit::Failure;
use crate::output::Output;
use crate::recv::report;

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
    let starting = OctopiiNode::builder(config).receive("inbox", policy).start(runtime);
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
    let outcome = loop {
        tokio::select! {
            () = &mut stop => break Ok(()),
            outcome = &mut joined, if joining => {
                joining = false;
                match outcome {
                    Ok(()) => output.result("ready", &json!({ "event": "ready", "node": node.node_id() })),
                    Err(e) => break Err(Failure::failed(e)),
                }
            }
            Some(chunk) = arrivals.recv() => report(*output, &chunk),
        }
    };
    node.shutdown().await;
    outcome
}

fn config(args: Node) -> Result<Config, Failure> {
    let mut config = Config::load(args.config.as_deref()).map_err(Failure::failed)?;
    if let Some(dir) = args.data_dir {
        config.data_dir = dir;
    }
    if let Some(bind) = args.bind {
        config.bind = bind;
    }
    if let Some(path) = args.identity {
        config.identity = IdentitySource::File(path);
    } else if let Some(dir) = args.authority_dir {
        config.identity = IdentitySource::LocalAuthority(dir);
    }
    config.node_id = args.id.or(config.node_id);
    config.members.extend(args.members);
    Ok(config)
}

/// Ends with Ctrl-C, SIGTERM, or (if asked) the end of standard input.
pub(crate) fn stop_signal(until_eof: bool) -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| signal(kind).map_err(|e| Failure::failed(format!("cannot listen for signals: {e}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let (eof, at_eof) = oneshot::channel();
    if until_eof {
        // A thread of its own: reading standard input cannot be cancelled.
        std::thread::spawn(move || {
            let mut nothing = [0; 1024];
            while matches!(std::io::stdin().read(&mut nothing), Ok(n) if n > 0) {}
            let _ = eof.send(());
        });
    } else {
        // Never resolves: there is no thread to send.
        std::mem::forget(eof);
    }
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = at_eof => {}
        }
    })
}
