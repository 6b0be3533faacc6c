//! `octopii send`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use octopii::{
    AckLevel, Address, ChunkSource, Digest, Distribution, OctopiiNode, OctopiiRuntime, SendOptions, Topology,
    TransferError, TransferResult,
};
use serde_json::json;
use tokio::time::Instant;

use crate::args::{Ack, Send, Target, mistake};
use crate::cluster;
use crate::exit::{Failure, one_line};
use crate::identity::{passing_node, required};
use crate::output::{Output, bytes};
use crate::peers::{self, Peers};
use crate::progress::{Bars, Tally};
use crate::send_tree;
use crate::stop::stop_signal;

/// How long the nodes have to tell who the members are.
const ASKING: Duration = Duration::from_secs(10);

/// One of the things to send.
#[derive(Debug)]
enum Item {
    Chunk(Chunk),
    Directory(PathBuf),
}

#[derive(Debug)]
enum Chunk {
    Stdin { name: String },
    File { path: PathBuf, len: u64 },
}

/// What came of one of them.
#[derive(Debug)]
struct Sent {
    path: String,
    /// Of a file that somebody has.
    digest: Option<Digest>,
    failure: Option<Failure>,
}

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, mut args: Send) -> Result<(), Failure> {
    let (paths, peers) = args.paths_and_peers();
    if paths.is_empty() {
        mistake("say what to send, before the peers");
    }
    match (args.to_all, peers.is_empty()) {
        (false, true) => mistake(
            "name a peer by its address, such as 127.0.0.1:4701 or host.example.com:4700, or say --to-all",
        ),
        (true, false) => mistake("either name the peers, or say --to-all"),
        _ => {}
    }
    // Found out before anyone is dialled.
    let items = items(paths, args.stdin, peers.len())?;
    if args.dry_run && items.iter().any(|item| matches!(item, Item::Chunk(_))) {
        mistake("--dry-run is for directories: files are sent as they are");
    }
    args.peers = match args.to_all {
        false => peers,
        true => {
            let identity = args.identity.identity.clone();
            required(&args.nodes, identity.as_deref())?;
            let target = Target { nodes: args.nodes.clone(), timeout: ASKING, identity };
            cluster::members(runtime, target).await?.into_iter().collect()
        }
    };
    if args.quorum.is_some_and(|quorum| quorum.get() > args.peers.len()) {
        mistake(format_args!("the quorum is larger than the number of peers, {}", args.peers.len()));
    }
    let several = items.len() > 1;
    let mut sent = Vec::new();
    let identity = args.identity.identity.as_deref();
    required(&args.peers, identity)?;
    let stop = stop_signal(false)?;
    tokio::pin!(stop);
    // Made for the first file; directories bring their own.
    let mut files = None;
    for item in items {
        let outcome = match item {
            Item::Directory(path) => {
                let shown = path.display().to_string();
                let args = Send { path, ..args.clone() };
                let failure = send_tree::run(runtime, output, args).await.err();
                Sent { path: shown, digest: None, failure }
            }
            Item::Chunk(chunk) => {
                let (node, _) = match files {
                    Some(ref there) => there,
                    None => {
                        let bind = octopii::bind_for(&args.peers);
                        files.insert(passing_node(runtime, bind, identity, None).await?)
                    }
                };
                send_chunk(node, *output, &args, chunk, several, stop.as_mut()).await
            }
        };
        let stopped = outcome.failure.as_ref().is_some_and(Failure::is_stop);
        sent.push(outcome);
        if stopped {
            break;
        }
    }
    if let Some((node, _dir)) = files {
        node.shutdown().await;
    }
    if several {
        summarize(*output, &sent, args.peers.len());
    }
    verdict(sent)
}

fn items(paths: Vec<PathBuf>, stdin: bool, peers: usize) -> Result<Vec<Item>, Failure> {
    if stdin {
        return match (&paths[..], peers) {
            ([name], 1) => {
                let name = name.to_string_lossy().into_owned();
                Ok(vec![Item::Chunk(Chunk::Stdin { name })])
            }
            ([_], _) => {
                Err(Failure::failed("standard input is read once: it goes to one peer, or into a file first"))
            }
            _ => Err(Failure::failed("standard input has one name")),
        };
    }
    let item = |path: PathBuf| {
        let metadata =
            std::fs::metadata(&path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
        if metadata.is_dir() {
            return Ok(Item::Directory(path));
        }
        if !metadata.is_file() {
            return Err(Failure::failed(format!("{} is neither a file nor a directory", path.display())));
        }
        Ok(Item::Chunk(Chunk::File { path, len: metadata.len() }))
    };
    paths.into_iter().map(item).collect()
}

/// Sends one file, or standard input, to all peers, and reports each one's result.
async fn send_chunk(
    node: &OctopiiNode,
    output: Output,
    args: &Send,
    chunk: Chunk,
    several: bool,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Sent {
    let (path, source, total) = match chunk {
        Chunk::File { path, len } => (path.display().to_string(), Some(ChunkSource::File(path)), Some(len)),
        Chunk::Stdin { name } => (name, None, None),
    };
    // Anew for each file: names move.
    let Peers { found, missing } = tokio::select! {
        peers = peers::find(node, &args.peers) => peers,
        () = stop.as_mut() => {
            let failure = Failure::stopped("stopped before anything was sent");
            return Sent { path, digest: None, failure: Some(failure) };
        }
    };
    let bars = Bars::new(output, &found, total);
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
        let Some(source) = source else {
            let options = SendOptions { name: Some(path.clone()), ..options };
            let mut results = Vec::new();
            for peer in &found {
                results.push(send_stdin(node, peer.addr, options.clone()).await);
            }
            return results;
        };
        let quorum = args.quorum.map(usize::from);
        let how = Distribution { send: options, topology: Topology::Auto, quorum };
        let peers = found.iter().map(|peer| peer.addr).collect();
        node.transfer().send_to_all(&source, peers, how).await
    };
    let results = tokio::select! {
        results = sending => results,
        () = stop => {
            bars.finish();
            let failure = Failure::stopped("stopped before every peer had the file; send it again");
            return Sent { path, digest: None, failure: Some(failure) };
        }
    };
    bars.finish();
    for (peer, result) in found.iter().zip(&results) {
        report(output, &peer.name, result, bars.tally(result.peer), &path, several);
    }
    let mut results = results;
    for (name, error) in missing {
        let result = not_found(error);
        report(output, &name, &result, Tally::default(), &path, several);
        results.push(result);
    }
    let digest = results.iter().find_map(|result| result.digest);
    Sent { path, digest, failure: fell_short(&results, args.quorum.map(usize::from)) }
}

fn fell_short(results: &[TransferResult], quorum: Option<usize>) -> Option<Failure> {
    let good = results.iter().filter(|result| result.success).count();
    let missing = results.len() - good;
    let unreachable = |result: &TransferResult| matches!(result.error, Some(TransferError::Connect(_)));
    match quorum {
        _ if missing == 0 => None,
        Some(quorum) if good >= quorum => None,
        _ if good == 0 && results.iter().all(unreachable) => {
            Some(Failure::unreachable("the file reached nobody"))
        }
        _ if good == 0 => Some(Failure::failed("the file reached nobody")),
        Some(quorum) => Some(Failure::failed(format!("the file reached {good} peers, not {quorum}"))),
        None => Some(Failure::failed(format!("the file did not reach {missing} of {} peers", results.len()))),
    }
}

/// Of a peer that was never sent to.
fn not_found(error: octopii::ConnectError) -> TransferResult {
    TransferResult {
        peer: SocketAddr::from(([0, 0, 0, 0], 0)),
        success: false,
        bytes_transferred: 0,
        checksum_verified: false,
        digest: None,
        level: None,
        travelled: 0,
        duration: Duration::ZERO,
        error: Some(error.into()),
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
        travelled: receipt.map_or(0, |receipt| receipt.travelled),
        duration: begun.elapsed(),
        error: sent.err(),
    }
}

fn report(output: Output, peer: &Address, result: &TransferResult, tally: Tally, path: &str, several: bool) {
    let Tally { resumed, resent, .. } = tally;
    let error = result.error.as_ref().map(ToString::to_string);
    let digest = result.digest.map(|digest| digest.to_string());
    let level = result.level.map(|level| level.to_string());
    let name = if several { format!("{}  ", one_line(path)) } else { String::new() };
    let mut asides = Vec::new();
    if resumed > 0 {
        asides.push(format!("{} of them from before", bytes(resumed)));
    }
    if result.travelled + resumed < result.bytes_transferred && result.travelled > 0 {
        asides.push(format!("{} travelled", bytes(result.travelled)));
    }
    let asides = if asides.is_empty() { String::new() } else { format!(" ({})", asides.join(", ")) };
    let line = match &error {
        None => format!(
            "{}  {name}{}  {}{asides} in {:.2?}, {}",
            digest.as_deref().unwrap_or_default(),
            peer,
            bytes(result.bytes_transferred),
            result.duration,
            level.as_deref().unwrap_or_default()
        ),
        Some(error) => format!("{name}{peer}  failed: {}", one_line(error)),
    };
    output.result(
        line,
        &json!({
            "path": path,
            "peer": peer,
            "success": result.success,
            "bytes": result.bytes_transferred,
            "resumed": resumed,
            "resent": resent,
            "travelled": result.travelled,
            "sha256": digest,
            "level": level,
            "seconds": result.duration.as_secs_f64(),
            "error": error,
        }),
    );
}

fn summarize(output: Output, sent: &[Sent], peers: usize) {
    let good = sent.iter().filter(|one| one.failure.is_none()).count();
    let mut lines = vec![format!("{good} of {} sent to {peers} peers", sent.len())];
    for one in sent {
        let digest = one.digest.map_or_else(|| "-".repeat(64), |digest| digest.to_string());
        let why = one.failure.as_ref().map(|why| format!("  ({why})")).unwrap_or_default();
        lines.push(format!("{digest}  {}{why}", one_line(&one.path)));
    }
    let items = sent.iter().map(|one| {
        json!({
            "path": one.path,
            "sha256": one.digest.map(|digest| digest.to_string()),
            "error": one.failure.as_ref().map(ToString::to_string),
        })
    });
    let items: Vec<_> = items.collect();
    output.result(
        lines.join("\n"),
        &json!({ "event": "summary", "sent": good, "peers": peers, "items": items }),
    );
}

/// What the command ends with.
fn verdict(mut sent: Vec<Sent>) -> Result<(), Failure> {
    let all = sent.len();
    let mut failures: Vec<_> = sent.iter_mut().filter_map(|one| one.failure.take()).collect();
    match (failures.pop(), failures.len()) {
        (None, _) => Ok(()),
        (Some(only), 0) if all == 1 || only.is_stop() => Err(only),
        (Some(last), _) if last.is_stop() => Err(last),
        (Some(last), others) if others + 1 == all && last.is_unreachable() => {
            match failures.iter().all(Failure::is_unreachable) {
                true => Err(Failure::unreachable("nothing reached anybody")),
                false => Err(Failure::failed(format!("{all} of {all} did not reach all peers"))),
            }
        }
        (Some(_), others) => Err(Failure::failed(format!("{} of {all} did not reach all peers", others + 1))),
    }
}
