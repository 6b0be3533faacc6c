//! How well a rate limit is kept to.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use octopii_bench::Outcome;
use octopii_bench::report::median;
use octopii_transfer::{ChunkSource, InboxPolicy, Location, SendOptions, TransferOptions};

use crate::peers::Peers;

pub(crate) fn measure(dir: &Path, rounds: usize, time: Duration) -> Outcome<()> {
    println!(
        "\n### Rate limit: memory to a file on disk for {time:?}, by the time from the call to the acknowledgement, and by\n\
         how fast content was handed to the network\n"
    );
    println!(
        "| limit | whole call | off by (each round) | on the way | off by (each round) |\n|---|---|---|---|---|"
    );
    for mb in [10_u64, 50, 200] {
        let limit = mb * 1_000_000;
        let content = Bytes::from(vec![7; (limit as f64 * time.as_secs_f64()) as usize]);
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let taken = runtime.block_on(send(&dir.join("limited"), content.clone(), limit))?;
            // The first round warms up.
            if round > 0 {
                rates.iter_mut().zip(taken).for_each(|(rates, taken)| rates.push(taken));
            }
        }
        let [whole, way] = rates.map(|mut rates| {
            let off: Vec<String> =
                rates.iter().map(|r| format!("{:+.2} %", (r / limit as f64 - 1.0) * 100.0)).collect();
            format!("{:.2} MB/s | {}", median(&mut rates) / 1e6, off.join(", "))
        });
        println!("| {mb} MB/s | {whole} | {way} |");
    }
    Ok(())
}

/// Bytes per second of the whole call, and from the first report of bytes sent to the last.
async fn send(inbox: &Path, content: Bytes, limit: u64) -> Outcome<[f64; 2]> {
    let peers = Peers::start(&TransferOptions::default())?;
    peers.receiver.receive(
        "bench",
        InboxPolicy::new(inbox).on_received(|chunk| {
            if let Location::File(path) = chunk.location {
                // What cannot be removed only takes space.
                let _ = std::fs::remove_file(path);
            }
        }),
    );
    peers.connect().await?;
    type Point = (Instant, u64);
    let ends: Arc<Mutex<Option<(Point, Point)>>> = Arc::default();
    let seen = Arc::clone(&ends);
    let progress = Arc::new(move |progress: octopii_transfer::Progress| {
        let mut ends = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (Instant::now(), progress.sent);
        match &mut *ends {
            _ if progress.sent == 0 => {}
            None => *ends = Some((now, now)),
            Some((_, last)) if progress.sent > last.1 => *last = now,
            Some(_) => {}
        }
    });
    let bytes = content.len() as f64;
    let options = SendOptions {
        rate_limit: NonZeroU64::new(limit),
        progress: Some(progress),
        ..SendOptions::new("bench")
    };
    let begun = Instant::now();
    peers.sender.send(peers.addr(), &ChunkSource::Memory(content), options).await?;
    let whole = bytes / begun.elapsed().as_secs_f64();
    let (first, last) = ends.lock().unwrap_or_else(PoisonError::into_inner).ok_or("no progress was told")?;
    Ok([whole, (last.1 - first.1) as f64 / (last.0 - first.0).as_secs_f64()])
}
