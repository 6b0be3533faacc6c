//! One chunk to many peers.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use octopii_transfer::{
    ChunkSource, Destination, Digest, Offer, ReceivePolicy, ReceivedChunk, Refusal, SendOptions, SourceError,
    TransferError,
};
use octopii_transport::EndpointOptions;
use octopii_vfs::RealVfs;

use crate::nodes::{BLOCK, Node, content, endpoint_with, quick, read};

/// Takes a chunk only once the others have been offered theirs: passes only if all are under way at once.
struct Together(Arc<Barrier>, Destination);

impl ReceivePolicy for Together {
    fn accept(&self, _: &Offer) -> Result<Destination, Refusal> {
        self.0.wait();
        Ok(self.1.clone())
    }

    fn received(&self, _: ReceivedChunk) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_receive_at_the_same_time() {
    let a = Node::new(1);
    let peers: Vec<_> = (2..5).map(Node::new).collect();
    let barrier = Arc::new(Barrier::new(3));
    for peer in &peers {
        let destination = Destination::File { dir: peer.inbox(), name: "f".into(), replace: false };
        peer.transfer.receive("file", Together(Arc::clone(&barrier), destination));
    }
    let data = content(4 * BLOCK + 5);
    let source = ChunkSource::File(a.source("f", &data));
    let addrs: Vec<_> = peers.iter().map(Node::addr).collect();
    let results = a.transfer.send_to_all(&source, addrs.clone(), SendOptions::new("file")).await;
    assert_eq!(results.len(), 3);
    for ((result, peer), addr) in results.iter().zip(&peers).zip(addrs) {
        assert_eq!(result.peer, addr);
        assert!(result.success && result.checksum_verified && result.error.is_none(), "{result:?}");
        assert_eq!(result.bytes_transferred, data.len() as u64);
        assert!(!result.duration.is_zero());
        assert_eq!(Digest::of(&read(&peer.inbox().join("f"))), Digest::of(&data));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_result_per_peer_in_the_order_given() {
    let (a, good, unwilling) = (Node::new(1), Node::new(2), Node::new(3));
    good.open_inbox();
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let peers = vec![deaf.local_addr().unwrap(), good.addr(), unwilling.addr(), good.addr()];
    let options = SendOptions { timeout: Some(Duration::from_secs(3)), ..SendOptions::new("file") };
    let source = ChunkSource::Memory("abc".into());
    let results = a.transfer.send_to_all(&source, peers.clone(), options).await;
    assert_eq!(results.iter().map(|r| r.peer).collect::<Vec<_>>(), peers);
    assert_eq!(results.iter().map(|r| r.success).collect::<Vec<_>>(), [false, true, false, true]);
    assert!(matches!(results[0].error, Some(TransferError::Connect(_))), "{:?}", results[0]);
    assert!(matches!(results[2].error, Some(TransferError::Refused { .. })), "{:?}", results[2]);
    assert!(!results[0].checksum_verified && results[0].bytes_transferred == 0);
    assert!(a.transfer.send_to_all(&source, vec![], SendOptions::new("file")).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_read_fails_for_each() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let source = ChunkSource::File(a.dir.path().join("missing"));
    let results = a.transfer.send_to_all(&source, vec![b.addr(), b.addr()], SendOptions::new("file")).await;
    for result in results {
        assert!(
            matches!(result.error, Some(TransferError::Source(SourceError::NotFound(_)))),
            "{:?}",
            result.error
        );
    }
}

/// One node, found at two addresses, as a host with two networks is: neither of its transfers takes over the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_listed_under_two_addresses_gets_both() {
    let a = Node::new(1);
    let options = EndpointOptions { bind: "0.0.0.0:0".parse().unwrap(), ..EndpointOptions::default() };
    let b = Node::on(endpoint_with(2, options), RealVfs::shared(), quick());
    let _inbox = b.open_inbox();
    let port = b.addr().port();
    let addresses: Vec<SocketAddr> =
        ["127.0.0.1", "127.0.0.2"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port)).into();
    let options = SendOptions {
        name: Some("f".into()),
        // So that it may be gone on with.
        retries: 1,
        // Both are under way at the same time.
        rate_limit: NonZeroU64::new(16 << 20),
        ..SendOptions::new("file")
    };
    let source = ChunkSource::Memory(content(12 << 20).into());
    let results = a.transfer.send_to_all(&source, addresses, options).await;
    assert!(results.iter().all(|result| result.success), "{results:?}");
}

/// Awaited from a runtime that is not Octopii's, and with no timer of its own.
#[test]
fn calls_work_from_any_executor() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (a, b) = runtime.block_on(async { (Node::new(1), Node::new(2)) });
    b.open_inbox();
    let foreign = tokio::runtime::Builder::new_current_thread().build().unwrap();
    foreign.block_on(async {
        let options = SendOptions {
            name: Some("f".into()),
            timeout: Some(Duration::from_secs(15)),
            ..SendOptions::new("file")
        };
        let receipt =
            a.transfer.send(b.addr(), &ChunkSource::Memory("abc".into()), options.clone()).await.unwrap();
        a.transfer.status(b.addr(), receipt.id).await.unwrap();
        let results =
            a.transfer.send_to_all(&ChunkSource::Memory("abc".into()), vec![b.addr()], options).await;
        assert!(results[0].success, "{results:?}");
    });
}
