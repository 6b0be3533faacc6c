//! `octopii send`.

use std::net::SocketAddr;

use octopii::{ChunkSource, OctopiiRuntime, SendOptions, TransferResult};
use serde_json::json;

use crate::args::Send;
use crate::exit::Failure;
use crate::identity::passing_node;
use crate::output::{Output, bytes};
use crate::progress::Bars;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Send) -> Result<(), Failure> {
    // Found out before anyone is dialled.
    let metadata = std::fs::metadata(&args.path)
        .map_err(|e| Failure::failed(format!("{}: {e}", args.path.display())))?;
    if !metadata.is_file() {
        return Err(Failure::failed(format!(
            "{} is not a file: send its files one by one",
            args.path.display()
        )));
    }
    let loopback = args.peers.iter().all(|peer| peer.ip().is_loopback());
    let bind =
        if loopback { SocketAddr::from(([127, 0, 0, 1], 0)) } else { SocketAddr::from(([0, 0, 0, 0], 0)) };
    let (node, _dir) = passing_node(runtime, bind, args.identity.identity.as_deref(), None).await?;
    let bars = Bars::new(*output, &args.peers, metadata.len());
    let options = SendOptions {
        progress: Some(bars.callback()),
        timeout: Some(args.timeout),
        ..SendOptions::new("inbox")
    };
    let results = node.transfer().send_to_all(&ChunkSource::File(args.path), args.peers, options).await;
    bars.finish();
    let failed = results.iter().filter(|result| !result.success).count();
    for result in &results {
        report(*output, result);
    }
    node.shutdown().await;
    match failed {
        0 => Ok(()),
        n if n == results.len() => Err(Failure::failed("the file reached nobody")),
        n => Err(Failure::failed(format!("the file did not reach {n} of {} peers", results.len()))),
    }
}

fn report(output: Output, result: &TransferResult) {
    let error = result.error.as_ref().map(ToString::to_string);
    let digest = result.digest.map(|digest| digest.to_string());
    let line = match &error {
        None => format!(
            "{}  {}  {} in {:.2?}, durable",
            digest.as_deref().unwrap_or_default(),
            result.peer,
            bytes(result.bytes_transferred),
            result.duration
        ),
        Some(error) => format!("{}  failed: {}", result.peer, Failure::failed(error)),
    };
    output.result(
        line,
        &json!({
            "peer": result.peer,
            "success": result.success,
            "bytes": result.bytes_transferred,
            "sha256": digest,
            "seconds": result.duration.as_secs_f64(),
            "error": error,
        }),
    );
}
