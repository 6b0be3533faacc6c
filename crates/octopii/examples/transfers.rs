//! Receive where a rule of your own says; send with progress, a limit and retries. `cargo run --example transfers`
#![allow(clippy::disallowed_methods, reason = "an application uses files as it likes")]

use std::error::Error;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use octopii::{
    ChunkSource, Config, Destination, OctopiiNode, OctopiiRuntime, Offer, ProgressStream, Refusal,
    SendOptions,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// A file of a purpose and a sender goes under a name and into a directory that this side chooses.
async fn receiver(home: &Path, runtime: &OctopiiRuntime) -> Outcome<OctopiiNode> {
    let reports = home.join("reports");
    let place = move |offer: &Offer| match offer.size {
        Some(size) if size <= 1 << 30 => Ok(Destination::File {
            dir: reports.join(offer.peer.node_id.to_string()),
            name: "latest.bin".into(),
            replace: true,
        }),
        _ => Err(Refusal::rejected("reports have at most 1 GiB")),
    };
    let config = Config::new(home.join("receiver"));
    Ok(OctopiiNode::builder(config).receive("reports", place).start(runtime).await?)
}

/// With progress, not faster than 64 MiB a second, and over up to three lost connections.
async fn send(node: &OctopiiNode, file: PathBuf, to: &OctopiiNode) -> Outcome<()> {
    let (progress, mut watch) = ProgressStream::new();
    let rate_limit = NonZeroU64::new(64 << 20);
    let options =
        SendOptions { progress: Some(progress), rate_limit, retries: 3, ..SendOptions::new("reports") };
    let watching = async {
        while let Some(now) = watch.next().await {
            println!("{:?}: {} bytes, {:.0} a second", now.phase, now.verified, now.bytes_per_second);
        }
    };
    let source = ChunkSource::File(file);
    let sending = async move { node.transfer().send(to.local_addr(), &source, options).await };
    let (receipt, ()) = tokio::join!(sending, watching);
    println!("durable, SHA-256 {}", receipt?.digest);
    Ok(())
}

fn main() -> Outcome<()> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("report.bin");
    std::fs::write(&file, vec![42; 32 << 20])?;
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let sender = OctopiiNode::start(Config::new(home.path().join("sender")), &runtime).await?;
        let receiver = receiver(home.path(), &runtime).await?;
        send(&sender, file, &receiver).await?;
        sender.shutdown().await;
        receiver.shutdown().await;
        Ok(())
    })
}
