//! A file to the two others, with RPC answered meanwhile.

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use octopii::{ChunkSource, ECHO, OctopiiNode, SendOptions};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Stage, broken};
use crate::args::Sabotage;
use crate::exit::Failure;
use crate::output::bytes;
use crate::peers::Peer;
use crate::progress::Bars;

/// Size of the file made when none is given.
const SAMPLE: usize = 256 << 20;

pub(super) async fn show(
    stage: &Stage<'_>,
    file: Option<&Path>,
    sabotage: Option<Sabotage>,
) -> Result<(), Failure> {
    let file = match file {
        Some(path) => path.to_owned(),
        None => sample(&stage.cluster.dir.join("sample.bin"))?,
    };
    let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let size =
        std::fs::metadata(&file).map_err(|e| Failure::failed(format!("{}: {e}", file.display())))?.len();
    let peers: Vec<_> = stage.processes.iter().map(|p| p.addr).collect();
    stage.say(
        format_args!(
            "shipping {name} ({}) to {} and {}, calling RPC on the same connections",
            bytes(size),
            peers[0],
            peers[1]
        ),
        &json!({ "event": "shipping", "file": file, "bytes": size }),
    );

    let calls: Vec<_> = peers.iter().map(|peer| Calls::begin(&stage.node, *peer)).collect();
    let shown: Vec<_> = peers.iter().map(|addr| Peer { name: (*addr).into(), addr: *addr }).collect();
    let bars = Bars::new(*stage.output, &shown, Some(size));
    let options = SendOptions { progress: Some(bars.callback()), ..SendOptions::new("inbox") };
    let results = stage.node.transfer().send_to_all(&ChunkSource::File(file.clone()), peers, options).await;
    bars.finish();
    let mut round_trips = Vec::new();
    for call in calls {
        round_trips.extend(call.end().await?);
    }

    let sent = digest(&file)?;
    stage.say(
        format_args!("{sent}  {name} at node 1"),
        &json!({ "event": "digest", "node": 1, "sha256": sent }),
    );
    for (process, result) in stage.processes.iter().zip(&results) {
        if let Some(e) = &result.error {
            return Err(broken(format!("node {} receives the file: {e}", process.id)));
        }
        let received = received_file(&process.data_dir)?;
        if sabotage == Some(Sabotage::ReceivedByte) && process.id == 2 {
            flip_a_byte(&received)?;
        }
        // What lies on its disk now, read again: not what anyone said about it.
        let found = digest(&received)?;
        stage.say(
            format_args!("{found}  {name} at node {}, {:.2?}, durable", process.id, result.duration),
            &json!({ "event": "digest", "node": process.id, "sha256": found, "seconds": result.duration.as_secs_f64() }),
        );
        let acknowledged = result.digest.map(|d| d.to_string());
        if found != sent || acknowledged.as_ref() != Some(&sent) || !result.checksum_verified {
            return Err(broken(format!("the file at node {} is the one that was sent", process.id)));
        }
    }
    stage.claim("both received files are the one that was sent", &json!({ "event": "shipped" }));
    round_trips.sort_unstable();
    let (Some(p50), Some(p99)) = (quantile(&round_trips, 0.5), quantile(&round_trips, 0.99)) else {
        return Err(broken("RPC is answered during the transfer"));
    };
    stage.claim(
        format_args!("{} RPC calls answered meanwhile, p50 {p50:.2?}, p99 {p99:.2?}", round_trips.len()),
        &json!({ "event": "rpc", "calls": round_trips.len(), "p50": p50.as_secs_f64(), "p99": p99.as_secs_f64() }),
    );
    Ok(())
}

/// Calls a peer again and again until told to end.
struct Calls {
    stop: tokio::sync::watch::Sender<bool>,
    task: JoinHandle<Result<Vec<Duration>, Failure>>,
}

impl Calls {
    fn begin(node: &OctopiiNode, peer: SocketAddr) -> Self {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let rpc = node.rpc().clone();
        let calling = async move {
            let mut round_trips = Vec::new();
            // At least one, however quick the transfer was.
            loop {
                let begun = Instant::now();
                rpc.call_raw(peer, ECHO, Bytes::from_static(&[7; 64]), Duration::from_secs(10))
                    .await
                    .map_err(|e| broken(format!("RPC to {peer} is answered during the transfer: {e}")))?;
                round_trips.push(begun.elapsed());
                if *stopped.borrow() {
                    return Ok(round_trips);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        Self { stop, task: node.executor().spawn(calling) }
    }

    async fn end(self) -> Result<Vec<Duration>, Failure> {
        self.stop.send_replace(true);
        self.task.await.map_err(Failure::failed)?
    }
}

fn quantile(sorted: &[Duration], q: f64) -> Option<Duration> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * q).round() as usize).copied()
}

/// A file that does not compress, different from run to run.
fn sample(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("cannot make {}: {e}", path.display()));
    let mut file = File::create_new(path).map_err(failed)?;
    let mut state = u64::from(std::process::id()) | 1;
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..SAMPLE / block.len() {
        for word in block.chunks_exact_mut(8) {
            // xorshift64 (Marsaglia, 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block).map_err(failed)?;
    }
    Ok(path.to_owned())
}

/// The only file in a node's inbox.
fn received_file(data_dir: &Path) -> Result<PathBuf, Failure> {
    let inbox = data_dir.join("inbox");
    let mut files = std::fs::read_dir(&inbox)
        .and_then(|entries| entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>())
        .map_err(|e| broken(format!("{} holds the file: {e}", inbox.display())))?;
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        _ => Err(broken(format!("{} holds the file and nothing else", inbox.display()))),
    }
}

/// SHA-256 as `sha256sum` prints it.
fn digest(path: &Path) -> Result<String, Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block).map_err(failed)? {
            0 => return Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect()),
            n => hash.update(&block[..n]),
        }
    }
}

fn flip_a_byte(path: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::FileExt;
    let flip = || {
        let file = File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0)?;
        file.write_all_at(&[byte[0] ^ 1], 0)
    };
    flip().map_err(|e: std::io::Error| Failure::failed(format!("{}: {e}", path.display())))
}
