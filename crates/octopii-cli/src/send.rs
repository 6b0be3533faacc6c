//! `octopii send`.

use octopii::{ChunkSource, OctopiiRuntime, SendOptions, TransferError, TransferResult};
use serde_json::json;

use crate::args::Send;
use crate::exit::Failure;
use crate::identity::{passing_node, required};
use crate::output::{Output, bytes};
use crate::progress::Bars;
use crate::send_tree;
use crate::stop::stop_signal;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Send) -> Result<(), Failure> {
    // Found out before anyone is dialled.
    let metadata = std::fs::metadata(&args.path)
        .map_err(|e| Failure::failed(format!("{}: {e}", args.path.display())))?;
    if metadata.is_dir() {
        return send_tree::run(runtime, output, args).await;
    }
    if !metadata.is_file() {
        return Err(Failure::failed(format!("{} is neither a file nor a directory", args.path.display())));
    }
    let identity = args.identity.identity.as_deref();
    required(&args.peers, identity)?;
    let stop = stop_signal(false)?;
    let (node, _dir) = passing_node(runtime, octopii::bind_for(&args.peers), identity, None).await?;
    let bars = Bars::new(*output, &args.peers, metadata.len());
    let options = SendOptions {
        progress: Some(bars.callback()),
        timeout: Some(args.timeout),
        ..SendOptions::new("inbox")
    };
    let source = ChunkSource::File(args.path);
    let results = tokio::select! {
        results = node.transfer().send_to_all(&source, args.peers, options) => results,
        () = stop => {
            bars.finish();
            node.shutdown().await;
            return Err(Failure::stopped("stopped before every peer had the file; send it again"));
        }
    };
    bars.finish();
    let failed = results.iter().filter(|result| !result.success).count();
    for result in &results {
        report(*output, result);
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
