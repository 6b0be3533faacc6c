//! Send a file with progress, receive it where a policy of your own decides. `cargo run --example file_transfer`
#![allow(clippy::disallowed_methods, reason = "an application uses files as it likes")]

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use octopii::{
    ChunkSource, Config, Destination, FailureCode, OctopiiNode, OctopiiRuntime, Offer, ReceivePolicy,
    ReceivedChunk, Refusal, SendOptions,
};

/// Takes reports of at most 1 GiB, each under its sender's id.
struct Reports(PathBuf);

impl ReceivePolicy for Reports {
    fn accept(&self, offer: &Offer) -> Result<Destination, Refusal> {
        if offer.size.is_none_or(|size| size > 1 << 30) {
            return Err(Refusal::new(FailureCode::TooLarge, "reports have at most 1 GiB"));
        }
        let name = format!("report-of-node-{}", offer.peer.node_id);
        Ok(Destination::File { dir: self.0.clone(), name, replace: true })
    }

    fn received(&self, chunk: ReceivedChunk) {
        println!("received {} bytes, SHA-256 {}", chunk.size, chunk.digest);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("report.bin");
    std::fs::write(&file, vec![42; 32 << 20])?;
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let sender = OctopiiNode::start(Config::new(home.path().join("sender")), &runtime).await?;
        let receiver = OctopiiNode::builder(Config::new(home.path().join("receiver")))
            .receive("reports", Reports(home.path().join("reports")))
            .start(&runtime)
            .await?;

        let progress = |p: octopii::Progress| println!("{} of {:?} bytes verified", p.verified, p.total);
        let options = SendOptions { progress: Some(Arc::new(progress)), ..SendOptions::new("reports") };
        let receipt =
            sender.transfer().send(receiver.local_addr(), &ChunkSource::File(file), options).await?;
        println!("durable at the receiver after {:?}", receipt.duration);

        sender.shutdown().await;
        receiver.shutdown().await;
        Ok(())
    })
}
