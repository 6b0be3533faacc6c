//! A verified chunk beside a raw quinn stream of the same bytes.

use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

use bytes::Bytes;
use octopii_bench::report::{Subject, in_turn, median, ratios};
use octopii_bench::{Outcome, raw_file};
use octopii_transfer::{
    ChunkSource, Destination, InboxPolicy, Offer, ReceivePolicy, ReceivedChunk, Refusal, SendOptions,
    TransferOptions,
};
use sha2::{Digest as _, Sha256};
use tokio::runtime::{Builder, Runtime};

use crate::peers::Peers;
use crate::{cpu, raw_quic};

/// What one run took.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// MiB per second.
    rate: f64,
    /// Processor seconds per GiB, both sides.
    cpu: f64,
}

pub(crate) fn measure(dir: &Path, rounds: usize, mib: usize) -> Outcome<()> {
    println!(
        "\n### Transfer: {mib} MiB to one peer on loopback, both sides in one process, beside raw quinn streams from memory\n\n\
         | workload | MiB/s | CPU s per GiB | of raw quinn | of raw quinn + SHA-256 | CPU of raw quinn + SHA-256 |"
    );
    println!("|---|---|---|---|---|---|");
    let bytes = mib << 20;
    let memory = Bytes::from(vec![7; bytes]);
    let source = dir.join("source.bin");
    std::fs::write(&source, &memory)?;
    let memory = ChunkSource::Memory(memory);
    let file = ChunkSource::File(source.clone());
    let inbox = dir.join("inbox");
    let mut names = vec!["raw quinn", "raw quinn, SHA-256 on a thread of each side", "memory to memory"];
    let mut subjects: Vec<Subject<'_, Run>> = vec![
        Box::new(|| run(mib, raw_stream(bytes, false))),
        Box::new(|| run(mib, raw_stream(bytes, true))),
        Box::new(|| run(mib, own(&memory, ToMemory(bytes as u64)))),
    ];
    let tmpfs = Path::new("/dev/shm");
    if tmpfs.is_dir() {
        for (name, chunk) in [("memory to a file on tmpfs", &memory), ("file to file on tmpfs", &file)] {
            let inbox = tempfile::tempdir_in(tmpfs)?;
            names.push(name);
            subjects.push(Box::new(move || run(mib, own_file(chunk, inbox.path()))));
        }
    }
    names.push("a file written on disk and synced, no network");
    let written = dir.join("written.bin");
    subjects.push(Box::new(move || {
        let begun = (Instant::now(), cpu::seconds()?);
        raw_file::whole(&written, bytes)?;
        let Taken { seconds, cpu } = Taken::since(begun)?;
        std::fs::remove_file(&written)?;
        Ok(Run { rate: mib as f64 / seconds, cpu: cpu * 1024.0 / mib as f64 })
    }));
    names.push("file to file on disk, durable");
    subjects.push(Box::new(|| run(mib, own_file(&file, &inbox))));
    let taken = in_turn(rounds, &mut subjects)?;
    let all = |pick: fn(&Run) -> f64| -> Vec<Vec<f64>> {
        taken.iter().map(|runs| runs.iter().map(pick).collect()).collect()
    };
    let (rates, cpus) = (all(|run| run.rate), all(|run| run.cpu));
    let of = |these: &[f64], those: &[f64]| median(&mut ratios(these, those));
    for (at, name) in names.into_iter().enumerate() {
        println!(
            "| {name} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} |",
            median(&mut rates[at].clone()),
            median(&mut cpus[at].clone()),
            of(&rates[at], &rates[0]),
            of(&rates[at], &rates[1]),
            of(&cpus[at], &cpus[1]),
        );
    }
    Ok(())
}

/// From the offer to the acknowledgement: connecting and cleaning up are not counted.
struct Taken {
    seconds: f64,
    cpu: f64,
}

impl Taken {
    fn since((begun, cpu): (Instant, f64)) -> Outcome<Self> {
        Ok(Self { seconds: begun.elapsed().as_secs_f64(), cpu: cpu::seconds()? - cpu })
    }
}

/// Runs `transfer` on a runtime of its own.
fn run(mib: usize, transfer: impl Future<Output = Outcome<Taken>>) -> Outcome<Run> {
    let taken = threads()?.block_on(transfer)?;
    Ok(Run { rate: mib as f64 / taken.seconds, cpu: taken.cpu * 1024.0 / mib as f64 })
}

fn threads() -> Outcome<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Chunks that wait for a hashing thread.
const HASH_QUEUE: usize = 64;

/// A thread that hashes what it is given, and gives the digest in the end.
fn hasher() -> Hashing {
    let (tx, rx) = sync_channel::<Vec<Bytes>>(HASH_QUEUE);
    let hashing = std::thread::spawn(move || {
        let mut hasher = Sha256::new();
        rx.iter().flatten().for_each(|part| hasher.update(&part));
        hasher.finalize().into()
    });
    (tx, hashing)
}

async fn raw_stream(bytes: usize, hashed: bool) -> Outcome<Taken> {
    let pair = raw_quic::pair(&tokio::runtime::Handle::current()).await?;
    let begun = (Instant::now(), cpu::seconds()?);
    let client = pair.client.clone();
    let sending = tokio::spawn(async move {
        let block = Bytes::from(vec![7; 256 << 10]);
        let (mut send, mut recv) = client.open_bi().await?;
        let hashing = hashed.then(hasher);
        for _ in 0..bytes / block.len() {
            if let Some((tx, _)) = &hashing {
                tx.send(vec![block.clone()])?;
            }
            send.write_chunk(block.clone()).await?;
        }
        send.finish()?;
        let digest = finish(hashing)?;
        // The digest comes back, as an acknowledgement.
        let acknowledged = recv.read_to_end(32).await?;
        if digest.is_some_and(|digest| digest[..] != acknowledged[..]) {
            return Err("the digests differ".into());
        }
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    });
    let (mut send, mut recv) = pair.server.accept_bi().await?;
    let hashing = hashed.then(hasher);
    let mut got = 0;
    // Handed over in batches: a hand-over per packet would measure the queue.
    let mut parts: Vec<Bytes> = Vec::new();
    let mut held = 0;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await? {
        got += chunk.bytes.len();
        if let Some((tx, _)) = &hashing {
            held += chunk.bytes.len();
            parts.push(chunk.bytes);
            if held >= 256 << 10 {
                tx.send(std::mem::take(&mut parts))?;
                held = 0;
            }
        }
    }
    if let Some((tx, _)) = &hashing {
        tx.send(parts)?;
    }
    let digest = finish(hashing)?.unwrap_or_default();
    send.write_all(&digest).await?;
    send.finish()?;
    sending.await??;
    let taken = Taken::since(begun)?;
    if got != bytes {
        return Err("the raw stream lost bytes".into());
    }
    Ok(taken)
}

type Hashing = (SyncSender<Vec<Bytes>>, std::thread::JoinHandle<[u8; 32]>);

fn finish(hashing: Option<Hashing>) -> Outcome<Option<[u8; 32]>> {
    let Some((tx, thread)) = hashing else { return Ok(None) };
    drop(tx);
    Ok(Some(thread.join().map_err(|_| "the hashing thread panicked")?))
}

async fn own_file(chunk: &ChunkSource, inbox: &Path) -> Outcome<Taken> {
    let taken = own(chunk, InboxPolicy::new(inbox)).await?;
    std::fs::remove_dir_all(inbox)?;
    Ok(taken)
}

async fn own(chunk: &ChunkSource, policy: impl ReceivePolicy) -> Outcome<Taken> {
    let peers = Peers::start(&TransferOptions { max_memory: u64::MAX, ..TransferOptions::default() })?;
    peers.receiver.receive("bench", policy);
    peers.connect().await?;
    let begun = (Instant::now(), cpu::seconds()?);
    peers.sender.send(peers.addr(), chunk, SendOptions::new("bench")).await?;
    Taken::since(begun)
}

struct ToMemory(u64);

impl ReceivePolicy for ToMemory {
    fn accept(&self, _: &Offer) -> Result<Destination, Refusal> {
        Ok(Destination::Memory { limit: self.0 })
    }

    fn received(&self, received: ReceivedChunk) {
        drop(received);
    }
}
