//! RPC goes on while a large chunk travels on the same connection. `cargo run --release --example rpc_beside_transfer`
#![allow(clippy::disallowed_methods, reason = "an application asks the clock as it likes")]

use std::error::Error;
use std::time::{Duration, Instant};

use octopii::{ChunkSource, Config, Context, OctopiiNode, OctopiiRuntime, Router};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Add {
    a: u64,
    b: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let mut router = Router::new();
    router.register("add", |_: Context, add: Add| async move { Ok(add.a + add.b) });

    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let client = OctopiiNode::start(Config::new(home.path().join("client")), &runtime).await?;
        let server = OctopiiNode::builder(Config::new(home.path().join("server")))
            .router(router)
            .start(&runtime)
            .await?;
        let peer = client.connect(server.local_addr()).await?;

        let bulk = peer.clone();
        let chunk = ChunkSource::Memory(vec![7; 128 << 20].into());
        let transfer = runtime.spawn(async move { bulk.send_chunk_verified(&chunk).await });
        let (mut calls, mut slowest) = (0u64, Duration::ZERO);
        while !transfer.is_finished() {
            let begun = Instant::now();
            let sum: u64 = peer.call("add", &Add { a: calls, b: 1 }, Duration::from_secs(5)).await?;
            assert_eq!(sum, calls + 1);
            (calls, slowest) = (calls + 1, slowest.max(begun.elapsed()));
        }
        let receipt = transfer.await??;
        println!(
            "{} bytes in {:?}; {calls} calls meanwhile, the slowest {slowest:?}",
            receipt.bytes, receipt.duration
        );

        client.shutdown().await;
        server.shutdown().await;
        Ok(())
    })
}
