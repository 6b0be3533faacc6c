//! A verified chunk beside a raw quinn stream of the same bytes.

use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use octopii_bench::Outcome;
use octopii_bench::report::{compare, head};
use octopii_transfer::{
    ChunkSource, Destination, InboxPolicy, Offer, ReceivePolicy, ReceivedChunk, Refusal, SendOptions,
    Transfer, TransferOptions,
};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use octopii_wal::vfs::RealVfs;
use tokio::runtime::{Builder, Runtime};

use crate::raw_quic;

pub(crate) fn measure(dir: &Path, rounds: usize, mib: usize) -> Outcome<()> {
    head(
        "Transfer: one peer on loopback, both sides in one process, beside a raw quinn stream from memory",
        "MiB/s",
    );
    let bytes = mib << 20;
    let rate = |begun: Instant| mib as f64 / begun.elapsed().as_secs_f64();
    let raw = || threads()?.block_on(async { Ok(rate(raw_stream(bytes).await?)) });
    let memory = Bytes::from(vec![7; bytes]);
    let source = dir.join("source.bin");
    std::fs::write(&source, &memory)?;

    let chunk = ChunkSource::Memory(memory);
    compare(format_args!("{mib} MiB, memory to memory, SHA-256 on both sides"), rounds, raw, || {
        threads()?.block_on(async { Ok(rate(own(&chunk, ToMemory(bytes as u64)).await?)) })
    })?;
    let chunk = ChunkSource::File(source.clone());
    let tmpfs = Path::new("/dev/shm");
    if tmpfs.is_dir() {
        let inbox = tempfile::tempdir_in(tmpfs)?;
        compare(format_args!("{mib} MiB, file to file on tmpfs"), rounds, raw, || {
            threads()?.block_on(async { Ok(rate(own_file(&chunk, inbox.path()).await?)) })
        })?;
    }
    let inbox = dir.join("inbox");
    compare(format_args!("{mib} MiB, file to file on disk, durable"), rounds, raw, || {
        threads()?.block_on(async { Ok(rate(own_file(&chunk, &inbox).await?)) })
    })
}

fn threads() -> Outcome<Runtime> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

async fn raw_stream(bytes: usize) -> Outcome<Instant> {
    let pair = raw_quic::pair().await?;
    let begun = Instant::now();
    let client = pair.client.clone();
    let sending = tokio::spawn(async move {
        let block = Bytes::from(vec![7; 256 << 10]);
        let (mut send, mut recv) = client.open_bi().await?;
        for _ in 0..bytes / block.len() {
            send.write_chunk(block.clone()).await?;
        }
        send.finish()?;
        // One byte back, as an acknowledgement.
        recv.read_to_end(1).await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
    });
    let (mut send, mut recv) = pair.server.accept_bi().await?;
    let mut got = 0;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await? {
        got += chunk.bytes.len();
    }
    send.write_all(&[1]).await?;
    send.finish()?;
    sending.await??;
    if got != bytes {
        return Err("the raw stream lost bytes".into());
    }
    Ok(begun)
}

async fn own_file(chunk: &ChunkSource, inbox: &Path) -> Outcome<Instant> {
    let begun = own(chunk, InboxPolicy::new(inbox)).await?;
    std::fs::remove_dir_all(inbox)?;
    Ok(begun)
}

async fn own(chunk: &ChunkSource, policy: impl ReceivePolicy) -> Outcome<Instant> {
    let executor = Executor::new(tokio::runtime::Handle::current());
    let authority = ClusterAuthority::generate()?;
    let a = Endpoint::bind(&executor, &authority.issue(1)?, EndpointOptions::default())?;
    let b = Endpoint::bind(&executor, &authority.issue(2)?, EndpointOptions::default())?;
    let options = TransferOptions { max_memory: u64::MAX, ..TransferOptions::default() };
    let sender = Transfer::start(&a, RealVfs::shared(), options.clone())?;
    let receiver = Transfer::start(&b, RealVfs::shared(), options)?;
    receiver.receive("bench", policy);
    a.connect(b.local_addr()).await?;
    let begun = Instant::now();
    sender.send(b.local_addr(), chunk, SendOptions::new("bench")).await?;
    Ok(begun)
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
