//! `octopii recv`.

use octopii::{
    ExistingTree, InboxPolicy, Location, OctopiiRuntime, ReceivedChunk, ReceivedTree, TreeInbox, shown_path,
};
use serde_json::json;
use tokio::sync::mpsc;

use crate::args::{Existing, Recv};
use crate::exit::Failure;
use crate::identity::{passing_node, required};
use crate::output::{Output, bytes};
use crate::stop::stop_signal;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Recv) -> Result<(), Failure> {
    match std::fs::metadata(&args.dir) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(Failure::failed(format!("{} is not a directory", args.dir.display()))),
        Err(e) => return Err(Failure::failed(format!("{}: {e}", args.dir.display()))),
    }
    // Found out before anyone sends.
    tempfile::tempfile_in(&args.dir)
        .map_err(|e| Failure::failed(format!("cannot write into {}: {e}", args.dir.display())))?;
    let identity = args.identity.identity.as_deref();
    required(&[args.bind], identity)?;
    let stop = stop_signal(false)?;
    tokio::pin!(stop);
    let (arrived, mut arrivals) = mpsc::channel(1024);
    let trees = arrived.clone();
    let files = InboxPolicy::new(&args.dir).on_received(move |chunk| {
        // Told before the sender is: the channel waits when the printing falls behind.
        let _ = arrived.blocking_send(Arrival::File(Box::new(chunk)));
    });
    let trees = TreeInbox::new(&args.dir)
        .existing(match args.existing {
            Existing::Own => ExistingTree::UpdateOwn,
            Existing::Update => ExistingTree::Update,
            Existing::Fresh => ExistingTree::Fresh,
            Existing::Refuse => ExistingTree::Refuse,
        })
        .links(args.links)
        .delete(args.delete)
        .on_received(move |tree| {
            let _ = trees.blocking_send(Arrival::Tree(Box::new(tree)));
        });
    let (node, _dir) = passing_node(runtime, args.bind, identity, Some((files, trees))).await?;
    output.result(
        format_args!("receiving into {} on {}", args.dir.display(), node.local_addr()),
        &json!({ "event": "listening", "addr": node.local_addr() }),
    );
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        tokio::select! {
            () = &mut stop => break,
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => arrival.report(*output),
                None => break,
            },
        }
        left -= 1;
    }
    node.shutdown().await;
    // What was acknowledged while the node stopped is told too.
    while let Ok(arrival) = arrivals.try_recv() {
        arrival.report(*output);
    }
    Ok(())
}

enum Arrival {
    File(Box<ReceivedChunk>),
    Tree(Box<ReceivedTree>),
}

impl Arrival {
    fn report(&self, output: Output) {
        match self {
            Self::File(chunk) => report(output, chunk),
            Self::Tree(tree) => report_tree(output, tree),
        }
    }
}

fn report_tree(output: Output, tree: &ReceivedTree) {
    let (path, report) = (shown_path(&tree.path), &tree.report);
    let from = tree.offer.peer.node_id;
    output.result(
        format_args!(
            "{path}  {} files ({}), {} unchanged, {} not done, from node {from}",
            report.stored,
            bytes(report.stored_bytes),
            report.unchanged,
            report.not_done,
        ),
        &json!({
            "event": "received_tree",
            "path": path,
            "stored": report.stored,
            "bytes": report.stored_bytes,
            "unchanged": report.unchanged,
            "directories": report.directories,
            "not_done": report.not_done,
            "manifest_sha256": report.manifest.to_string(),
            "from": from,
        }),
    );
}

pub(crate) fn report(output: Output, chunk: &ReceivedChunk) {
    let path = match &chunk.location {
        Location::File(path) => path.display().to_string(),
        Location::Memory(_) => String::new(),
    };
    output.result(
        format_args!(
            "{}  {path}  {} from node {}",
            chunk.digest,
            bytes(chunk.size),
            chunk.offer.peer.node_id
        ),
        &json!({
            "event": "received",
            "path": path,
            "bytes": chunk.size,
            "sha256": chunk.digest.to_string(),
            "level": chunk.level.to_string(),
            "from": chunk.offer.peer.node_id,
        }),
    );
}
