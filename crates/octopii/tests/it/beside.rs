//! Work of different kinds on one connection.

use std::time::Duration;

use octopii::{ChunkSource, OctopiiNode, OctopiiRuntime, Router};
use tempfile::tempdir;

use crate::config;

/// Chunks and RPC once stole each other's streams: the transfer failed and RPC stalled for 5 s.
#[test]
fn a_transfer_completes_and_rpc_is_answered_throughout_on_one_connection() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(2);
    let mut router = Router::new();
    router.register("double", |_: octopii::Context, n: u64| async move { Ok(n * 2) });
    runtime.block_on(async {
        let a = OctopiiNode::start(config(home.path(), "a"), &runtime).await.unwrap();
        let b = OctopiiNode::builder(config(home.path(), "b")).router(router).start(&runtime).await.unwrap();
        let peer = a.connect(b.local_addr()).await.unwrap();
        let file = home.path().join("bulk.bin");
        std::fs::write(&file, vec![5; 64 << 20]).unwrap();
        let bulk = peer.clone();
        let transfer = runtime.spawn(async move { bulk.send_chunk_verified(&ChunkSource::File(file)).await });
        let mut calls = 0u64;
        while !transfer.is_finished() {
            let doubled: u64 = peer.call("double", &calls, Duration::from_secs(5)).await.unwrap();
            assert_eq!(doubled, calls * 2);
            calls += 1;
        }
        let receipt = transfer.await.unwrap().unwrap();
        assert_eq!(receipt.bytes, 64 << 20);
        assert!(calls >= 5, "only {calls} calls were answered during the transfer");
    });
}
