//! `octopii recv`.

use octopii::{InboxPolicy, Location, OctopiiRuntime, ReceivedChunk};
use serde_json::json;
use tokio::sync::mpsc;

use crate::args::Recv;
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
    let policy = InboxPolicy::new(&args.dir).on_received(move |chunk| {
        // Told before the sender is: the channel waits when the printing falls behind.
        let _ = arrived.blocking_send(chunk);
    });
    let (node, _dir) = passing_node(runtime, args.bind, identity, Some(policy)).await?;
    output.result(
        format_args!("receiving into {} on {}", args.dir.display(), node.local_addr()),
        &json!({ "event": "listening", "addr": node.local_addr() }),
    );
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        tokio::select! {
            () = &mut stop => break,
            chunk = arrivals.recv() => match chunk {
                Some(chunk) => report(*output, &chunk),
                None => break,
            },
        }
        left -= 1;
    }
    node.shutdown().await;
    // What was acknowledged while the node stopped is told too.
    while let Ok(chunk) = arrivals.try_recv() {
        report(*output, &chunk);
    }
    Ok(())
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
            "from": chunk.offer.peer.node_id,
        }),
    );
}
