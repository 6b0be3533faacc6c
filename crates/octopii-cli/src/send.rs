//! `octopii send`.

use std::net::SocketAddr;

use octopii::{
    AckLevel, ChunkSource, OctopiiNode, OctopiiRuntime, SendOptions, TransferError, TransferResult,
};
use serde_json::json;
use tokio::time::Instant;

use crate::args::{Ack, Send};
use crate::exit::Failure;
use crate::identity::{passing_node, required};
use crate::output::{Output, bytes};
use crate::progress::Bars;
use crate::send_tree;
use crate::stop::stop_signal;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Send) -> Result<(), Failure> {
    let total = match &args {
        Send { stdin: true, peers, .. } if peers.len() > 1 => {
            return Err(Failure::failed(
                "standard input is read once: it goes to one peer, or into a file first",
            ));
        }
        Send { stdin: true, .. } => None,
        Send { path, .. } => {
            // Found out before anyone is dialled.
            let metadata =
                std::fs::metadata(path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
            if metadata.is_dir() {
                return send_tree::run(runtime, output, args).await;
            }
            if !metadata.is_file() {
                return Err(Failure::failed(format!("{} is neither a file nor a directory", path.display())));
            }
            Some(metadata.len())
        }
    };
    let identity = args.identity.identity.as_deref();
    required(&args.peers, identity)?;
    let stop = stop_signal(false)?;
    let (node, _dir) = passing_node(runtime, octopii::bind_for(&args.peers), identity, None).await?;
    let bars = Bars::new(*output, &args.peers, total);
    let options = SendOptions {
        progress: Some(bars.callback()),
        timeout: Some(args.timeout),
        resume: !args.no_resume,
        retries: args.retries,
        rate_limit: args.limit_rate,
        compress: args.compress,
        ack: Some(match args.ack {
            Ack::Received => AckLevel::Received,
            Ack::Verified => AckLevel::Verified,
            Ack::Durable => AckLevel::Durable,
        }),
        ..SendOptions::new("inbox")
    };
    let sending = async {
        match args.peers.first() {
            Some(&peer) if args.stdin => {
                let name = args.path.to_string_lossy().into_owned();
                let options = SendOptions { name: Some(name), ..options };
                vec![send_stdin(&node, peer, options).await]
            }
            _ => {
                let source = ChunkSource::File(args.path);
                node.transfer().send_to_all(&source, args.peers, options).await
            }
        }
    };
    let results = tokio::select! {
        results = sending => results,
        () = stop => {
            bars.finish();
            node.shutdown().await;
            return Err(Failure::stopped("stopped before every peer had the file; send it again"));
        }
    };
    bars.finish();
    let failed = results.iter().filter(|result| !result.success).count();
    for result in &results {
        report(*output, result, bars.resumed(result.peer));
    }
    node.shutdown().await;
    match failed {
        0 => Ok(()),
        n if n == results.len() => {
            let unreachable =
                |result: &TransferResult| matches!(result.error, Some(TransferError::Connect(_)));
            let told = "the file reached nobody";
            Err(if results.iter().all(unreachable) {
                Failure::unreachable(told)
            } else {
                Failure::failed(told)
            })
        }
        n => Err(Failure::failed(format!("the file did not reach {n} of {} peers", results.len()))),
    }
}

async fn send_stdin(node: &OctopiiNode, peer: SocketAddr, options: SendOptions) -> TransferResult {
    let begun = Instant::now();
    let sent = node.transfer().send_stream(peer, tokio::io::stdin(), options).await;
    let receipt = sent.as_ref().ok();
    TransferResult {
        peer,
        success: receipt.is_some(),
        bytes_transferred: receipt.map_or(0, |receipt| receipt.bytes),
        checksum_verified: receipt.is_some(),
        digest: receipt.map(|receipt| receipt.digest),
        level: receipt.map(|receipt| receipt.level),
        duration: begun.elapsed(),
        travelled: receipt.map_or(0, |receipt| receipt.travelled),
        error: sent.err(),
    }
}

fn report(output: Output, result: &TransferResult, resumed: u64) {
    let error = result.error.as_ref().map(ToString::to_string);
    let digest = result.digest.map(|digest| digest.to_string());
    let level = result.level.map(|level| level.to_string());
    let line = match &error {
        None => format!(
            "{}  {}  {}{} in {:.2?}, {}",
            digest.as_deref().unwrap_or_default(),
            result.peer,
            bytes(result.bytes_transferred),
            if resumed > 0 { format!(" ({} of them from before)", bytes(resumed)) } else { String::new() },
            result.duration,
            level.as_deref().unwrap_or_default()
        ),
        Some(error) => format!("{}  failed: {}", result.peer, Failure::failed(error)),
    };
    output.result(
        line,
        &json!({
            "peer": result.peer,
            "success": result.success,
            "bytes": result.bytes_transferred,
            "resumed": resumed,
            "travelled": result.travelled,
            "sha256": digest,
            "level": level,
            "seconds": result.duration.as_secs_f64(),
            "error": error,
        }),
    );
}
