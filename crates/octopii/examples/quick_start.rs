//! Two nodes on this machine: ship a file, send a message. `cargo run --example quick_start`
#![allow(clippy::disallowed_methods, reason = "an application uses files as it likes")]

use std::error::Error;
use std::time::Duration;

use octopii::{ChunkSource, Config, OctopiiNode, OctopiiRuntime};

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("bigfile.dat");
    std::fs::write(&file, vec![42; 8 << 20])?;

    let runtime = OctopiiRuntime::new(4); // 4 worker threads
    runtime.block_on(async {
        let node = OctopiiNode::start(Config::new(home.path().join("a")), &runtime).await?;
        let other = OctopiiNode::start(Config::new(home.path().join("b")), &runtime).await?;
        let (peers, timeout) = (vec![other.local_addr()], Duration::from_secs(60));

        let chunk = ChunkSource::File(file.clone());
        let results = node.transfer_chunk_to_peers(chunk, peers, timeout).await; // peers: Vec<SocketAddr>, concurrently
        for result in &results {
            println!(
                "{}: {} bytes, verified: {}",
                result.peer, result.bytes_transferred, result.checksum_verified
            );
        }

        let peer = node.connect(other.local_addr()).await?;
        let rpc_message = "hello";
        let chunk = ChunkSource::File(file.clone());
        let (sent, shipped, received) = tokio::join!(
            peer.send(rpc_message),           // fast
            peer.send_chunk_verified(&chunk), // concurrent, on the same connection
            other.recv(),
        );
        sent?;
        println!("the peer took {:?}; its copy has SHA-256 {}", received.1, shipped?.digest);

        node.shutdown().await;
        other.shutdown().await;
        Ok(())
    })
}
