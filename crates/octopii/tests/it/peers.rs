//! Peers: messages, chunks, and what is told when they fail.

use std::time::Duration;

use octopii::{ChunkSource, Code, Location, OctopiiNode, OctopiiRuntime};
use tempfile::tempdir;

use crate::config;

#[test]
fn chunks_and_messages_reach_the_peer_that_asks_for_them() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let a = OctopiiNode::start(config(home.path(), "a"), &runtime).await.unwrap();
        let b = OctopiiNode::start(config(home.path(), "b"), &runtime).await.unwrap();
        let c = OctopiiNode::start(config(home.path(), "c"), &runtime).await.unwrap();
        let at_b = (a.connect(b.local_addr()).await.unwrap(), c.connect(b.local_addr()).await.unwrap());
        let from_a = b.connect(a.local_addr()).await.unwrap();
        let from_c = b.connect(c.local_addr()).await.unwrap();

        let memory = |byte| ChunkSource::Memory(vec![byte; 50_000].into());
        at_b.1.send_chunk_verified(&memory(3)).await.unwrap();
        let receipt = at_b.0.send_chunk_verified(&memory(1)).await.unwrap();
        // c's came first, but a's is what is asked for.
        let chunk = from_a.recv_chunk_verified().await.unwrap();
        assert_eq!((chunk.digest, chunk.size), (receipt.digest, 50_000));
        let Location::File(path) = chunk.location else { panic!("a chunk in the inbox is a file") };
        assert_eq!(std::fs::read(path).unwrap(), vec![1; 50_000]);
        assert_eq!(from_c.recv_chunk_verified().await.unwrap().offer.peer.node_id, c.node_id());

        // A message is never taken for a chunk, nor a chunk for a message.
        let (sent, got) = tokio::join!(at_b.1.send("from c"), from_c.recv());
        sent.unwrap();
        assert_eq!(got.unwrap(), "from c");
    });
}

#[test]
fn one_peers_failure_does_not_touch_the_others() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let a = OctopiiNode::start(config(home.path(), "a"), &runtime).await.unwrap();
        let b = OctopiiNode::start(config(home.path(), "b"), &runtime).await.unwrap();
        let stranger_config = octopii::Config {
            identity: octopii::IdentitySource::LocalAuthority(home.path().join("another")),
            ..config(home.path(), "stranger")
        };
        let stranger = OctopiiNode::start(stranger_config, &runtime).await.unwrap();
        let file = home.path().join("file.bin");
        std::fs::write(&file, vec![9; 3_000_000]).unwrap();
        let peers = vec![stranger.local_addr(), b.local_addr()];
        let results =
            a.transfer_chunk_to_peers(ChunkSource::File(file.clone()), peers, Duration::from_secs(10)).await;
        assert!(!results[0].success && !results[0].checksum_verified);
        let told = results[0].error.as_ref().unwrap().to_string();
        assert!(told.contains("not a member of this cluster"), "{told}");
        assert!(results[1].success && results[1].checksum_verified);
        assert_eq!(results[1].bytes_transferred, 3_000_000);
        assert!(!stranger.inbox_dir().exists(), "a stranger received something");
        let refused = stranger.peer(a.local_addr()).send("let me in").await.unwrap_err();
        assert_eq!(refused.code, Code::Unavailable);
    });
}
