//! Chunks of every size arrive whole; what cannot be sent is a clear error.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_transfer::{
    AckLevel, ChunkSource, Destination, Digest, FailureCode, Location, SendOptions, SourceError,
    TransferError,
};
use octopii_transport::{ConnectError, Executor, StreamKind};
use octopii_vfs::{OpenMode, RealVfs, Vfs};

use crate::nodes::{BLOCK, Node, content, endpoint, endpoint_on, names, quick, read};

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_size_arrive_durable_and_verified() {
    let (a, b) = (Node::new(1), Node::new(2));
    let arrived = b.open_inbox();
    for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 20 * BLOCK] {
        let data = content(len);
        let name = format!("f{len}");
        let source = ChunkSource::File(a.source(&name, &data));
        let receipt = a.transfer.send(b.addr(), &source, SendOptions::new("file")).await.unwrap();
        assert_eq!(receipt.digest, Digest::of(&data));
        assert_eq!((receipt.bytes, receipt.level), (len as u64, AckLevel::Durable));
        let chunk = arrived.try_recv().expect("the policy hears of it before the sender does");
        assert_eq!((chunk.digest, chunk.size), (receipt.digest, receipt.bytes));
        assert_eq!(chunk.offer.peer.node_id, 1);
        assert_eq!(chunk.location, Location::File(b.inbox().join(&name)));
        assert!(read(&b.inbox().join(&name)) == data, "{len} bytes differ");
    }
    assert_eq!(names(&b.inbox()).len(), 6, "and nothing else: {:?}", names(&b.inbox()));
}

/// Addresses are given to others: who has it now must not have what was for another.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_node_that_is_meant_gets_anything() {
    let (a, b) = (Node::new(1), Node::new(2));
    let arrived = b.open_inbox();
    let source = ChunkSource::File(a.source("secret", &content(BLOCK)));
    let meant = |node| SendOptions { node: Some(node), ..SendOptions::new("file") };
    let error = a.transfer.send(b.addr(), &source, meant(3)).await.unwrap_err();
    assert!(
        matches!(error, TransferError::Connect(ConnectError::WrongNode { expected: 3, found: 2, .. })),
        "{error}"
    );
    assert!(arrived.try_recv().is_err() && names(&b.inbox()).is_empty());
    a.transfer.send(b.addr(), &source, meant(2)).await.unwrap();
    assert_eq!(names(&b.inbox()), ["secret"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_to_memory() {
    let (a, b) = (Node::new(1), Node::new(2));
    let events = b.receive_into("blob", Destination::Memory { limit: 8 << 20 });
    for len in [0, 1, BLOCK, 3 * BLOCK + 17] {
        let data = content(len);
        let options =
            SendOptions { meta: "hello".into(), name: Some("../x".into()), ..SendOptions::new("blob") };
        let source = ChunkSource::Memory(data.clone().into());
        let receipt = a.transfer.send(b.addr(), &source, options).await.unwrap();
        assert_eq!((receipt.digest, receipt.level), (Digest::of(&data), AckLevel::Verified));
        let chunk = events.try_recv().unwrap().received();
        assert_eq!(&chunk.offer.meta[..], b"hello");
        assert_eq!(chunk.offer.name.as_deref(), Some("../x"), "a name is only told, memory has none");
        assert!(chunk.location == Location::Memory(data.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_has_its_limit() {
    let (a, b) = (Node::new(1), Node::new(2));
    let _events = b.receive_into("blob", Destination::Memory { limit: 1000 });
    let source = ChunkSource::Memory(vec![0; 1001].into());
    let error = a.transfer.send(b.addr(), &source, SendOptions::new("blob")).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::TooLarge),
        "{error}"
    );
    let source = ChunkSource::Memory(vec![0; 1000].into());
    a.transfer.send(b.addr(), &source, SendOptions::new("blob")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_memory_destinations_share_a_limit() {
    let a = Node::new(1);
    let b =
        Node::with(2, RealVfs::shared(), octopii_transfer::TransferOptions { max_memory: 1000, ..quick() });
    let _events = b.receive_into("blob", Destination::Memory { limit: 1 << 20 });
    let source = ChunkSource::Memory(vec![0; 1001].into());
    let error = a.transfer.send(b.addr(), &source, SendOptions::new("blob")).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::TooLarge),
        "{error}"
    );
    for _ in 0..3 {
        let source = ChunkSource::Memory(vec![0; 900].into());
        a.transfer.send(b.addr(), &source, SendOptions::new("blob")).await.expect("memory is given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_purpose_is_refused() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let source = ChunkSource::Memory("x".into());
    let error = a.transfer.send(b.addr(), &source, SendOptions::new("other")).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::UnknownPurpose),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_service_refuses() {
    let (a, b) = (Node::new(1), endpoint(2));
    let source = ChunkSource::Memory(content(BLOCK * 5).into());
    let error = a.transfer.send(b.local_addr(), &source, SendOptions::new("file")).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::UnknownPurpose),
        "{error}"
    );
    assert!(b.acceptor(StreamKind::Transfer).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_file_cannot_be_sent() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let missing = ChunkSource::File(a.dir.path().join("missing"));
    let error = a.transfer.send(b.addr(), &missing, SendOptions::new("file")).await.unwrap_err();
    assert!(matches!(error, TransferError::Source(SourceError::NotFound(_))), "{error}");
    let directory = ChunkSource::File(a.dir.path().to_owned());
    let error = a.transfer.send(b.addr(), &directory, SendOptions::new("file")).await.unwrap_err();
    assert!(matches!(error, TransferError::Source(SourceError::Directory(_))), "{error}");
    let socket = a.dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error =
        a.transfer.send(b.addr(), &ChunkSource::File(socket), SendOptions::new("file")).await.unwrap_err();
    assert!(matches!(error, TransferError::Source(SourceError::NotAFile(_))), "{error}");
    assert!(names(&b.inbox()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_sends_what_it_points_to() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let target = a.source("target", b"content");
    let link = a.dir.path().join("link");
    std::os::unix::fs::symlink(&target, &link).unwrap();
    a.transfer.send(b.addr(), &ChunkSource::File(link), SendOptions::new("file")).await.unwrap();
    assert_eq!(read(&b.inbox().join("link")), b"content");
}

/// Changes the source when the transfer has begun: a truncated, grown or rewritten file never arrives as if it were whole.
/// The rewriting shows in the time of the last change only.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_is_an_error() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    for len_after in [BLOCK as u64, 41 * BLOCK as u64, 40 * BLOCK as u64] {
        let path = a.source("changing", &content(40 * BLOCK));
        let file = RealVfs.open(&path, OpenMode::ReadWrite).unwrap();
        let once = Mutex::new(Some(file));
        let progress = Arc::new(move |_| {
            if let Some(file) = once.lock().unwrap().take() {
                file.set_len(len_after).unwrap();
                file.write_all_at(b"changed", 0).unwrap();
            }
        });
        let options = SendOptions { progress: Some(progress), ..SendOptions::new("file") };
        let error = a.transfer.send(b.addr(), &ChunkSource::File(path), options).await.unwrap_err();
        assert!(matches!(error, TransferError::SourceChanged(_)), "{error}");
        crate::nodes::eventually("the receiver's cleaning up", || names(&b.inbox()).is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_ends_with_everything_verified() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let (sent, verified) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (s, v) = (Arc::clone(&sent), Arc::clone(&verified));
    let progress = Arc::new(move |p: octopii_transfer::Progress| {
        assert_eq!(p.total, Some(5 * BLOCK as u64));
        assert!(s.swap(p.sent, Ordering::Relaxed) <= p.sent);
        v.store(p.verified, Ordering::Relaxed);
    });
    let options = SendOptions { progress: Some(progress), ..SendOptions::new("file") };
    let source = ChunkSource::Memory(content(5 * BLOCK).into());
    a.transfer.send(b.addr(), &source, options).await.unwrap();
    assert_eq!(sent.load(Ordering::Relaxed), 5 * BLOCK as u64);
    assert_eq!(verified.load(Ordering::Relaxed), 5 * BLOCK as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_beyond_the_protocol_are_refused_before_anything_is_sent() {
    let a = Node::new(1);
    let nowhere = "127.0.0.1:9".parse().unwrap();
    let source = ChunkSource::Memory("x".into());
    for options in [
        SendOptions::new(""),
        SendOptions::new("p".repeat(65)),
        SendOptions { name: Some("n".repeat(1025)), ..SendOptions::new("p") },
        SendOptions { meta: vec![0; (64 << 10) + 1].into(), ..SendOptions::new("p") },
        SendOptions { idle_timeout: Duration::ZERO, ..SendOptions::new("p") },
    ] {
        let error = a.transfer.send(nowhere, &source, options).await.unwrap_err();
        assert!(matches!(error, TransferError::InvalidOptions(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_service_on_one_endpoint_is_an_error() {
    let a = Node::new(1);
    assert!(octopii_transfer::Transfer::start(&a.endpoint, RealVfs::shared(), quick()).is_err());
}

/// As in a simulation: one thread, and blocking work in place. No part of a transfer may wait for another inside it.
#[tokio::test]
async fn everything_on_one_thread() {
    let executor = Executor::simulated(tokio::runtime::Handle::current());
    let [a, b] = [1, 2].map(|id| Node::on(endpoint_on(id, &executor), RealVfs::shared(), quick()));
    b.open_inbox();
    let data = content(40 * BLOCK);
    let source = ChunkSource::File(a.source("f", &data));
    let results = a.transfer.send_to_all(&source, vec![b.addr(), b.addr()], SendOptions::new("file")).await;
    assert!(results.iter().all(|r| r.success), "{results:?}");
    assert_eq!(names(&b.inbox()), ["f", "f (1)"]);
    assert!(read(&b.inbox().join("f (1)")) == data);
}
