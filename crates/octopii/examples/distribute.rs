//! One file to five peers that hand it on to one another; three of them are enough. `cargo run --example distribute`
#![allow(clippy::disallowed_methods, reason = "an application uses files as it likes")]

use std::error::Error;

use octopii::{ChunkSource, Config, Distribution, INBOX, OctopiiNode, OctopiiRuntime, SendOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("image.bin");
    std::fs::write(&file, vec![42; 64 << 20])?;
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let origin = OctopiiNode::start(Config::new(home.path().join("origin")), &runtime).await?;
        let mut peers = Vec::new();
        for name in ["a", "b", "c", "d", "e"] {
            peers.push(OctopiiNode::start(Config::new(home.path().join(name)), &runtime).await?);
        }

        let to = peers.iter().map(OctopiiNode::local_addr).collect();
        let how = Distribution { quorum: Some(3), ..SendOptions::new(INBOX).into() };
        for result in origin.transfer().send_to_all(&ChunkSource::File(file), to, how).await {
            match result.error {
                None => println!("{}: durable after {:?}", result.peer, result.duration),
                Some(error) => println!("{}: {error}", result.peer),
            }
        }

        for node in [origin].iter().chain(&peers) {
            node.shutdown().await;
        }
        Ok(())
    })
}
