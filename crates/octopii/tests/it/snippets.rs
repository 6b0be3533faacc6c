//! The lines that users know, as they are written in the README and elsewhere.
#![expect(
    unused_must_use,
    reason = "the lines are shown without error handling; what they did is checked afterwards"
)]

use std::path::PathBuf;
use std::time::Duration;

use octopii::{ChunkSource, OctopiiNode, OctopiiRuntime};
use tempfile::tempdir;

use crate::config;

#[test]
fn the_known_lines_work_as_written() {
    let home = tempdir().unwrap();
    // The other tests of this binary use absolute paths only.
    std::env::set_current_dir(home.path()).unwrap();
    std::fs::write("bigfile.dat", vec![3; 5_000_000]).unwrap();

    let runtime = OctopiiRuntime::new(4); // 4 worker threads
    runtime.block_on(async { /* all operations run in the isolated pool */ });

    let node = runtime.block_on(OctopiiNode::start(config(home.path(), "a"), &runtime)).unwrap();
    let other = runtime.block_on(OctopiiNode::start(config(home.path(), "b"), &runtime)).unwrap();
    let (peers, timeout, rpc_message) = (vec![other.local_addr()], Duration::from_secs(30), "ping");
    let (inbox, receiver) = (other.inbox_dir(), other.clone());
    let taking = runtime.spawn(async move { receiver.recv().await.1 });
    runtime.block_on(async {
        let peer = node.connect(other.local_addr()).await.unwrap();

        let chunk = ChunkSource::File(PathBuf::from("bigfile.dat"));
        let results = node.transfer_chunk_to_peers(chunk, peers, timeout).await; // peers: Vec<SocketAddr>, concurrently
        assert!(results.iter().all(|result| result.success && result.checksum_verified), "{results:?}");

        let chunk = ChunkSource::File(PathBuf::from("bigfile.dat"));
        peer.send(rpc_message).await; // fast
        peer.send_chunk_verified(&chunk).await; // concurrent, on the same connection
    });
    assert_eq!(runtime.block_on(taking).unwrap(), "ping");
    for name in ["bigfile.dat", "bigfile (1).dat"] {
        assert_eq!(std::fs::read(inbox.join(name)).unwrap(), vec![3; 5_000_000], "{name}");
    }
}
