//! Streams of unknown length, and how fast things go.

use std::io;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use octopii_transfer::{
    ChunkSource, Digest, Location, Phase, ProgressStream, SendOptions, TransferError, TransferOptions,
};
use octopii_vfs::RealVfs;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use crate::nodes::{BLOCK, Node, content, eventually, names, quick, read};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_unknown_length_arrives() {
    let (a, b) = (Node::new(1), Node::new(2));
    let arrived = b.open_inbox();
    for len in [0, 1, BLOCK, 3 * BLOCK + 5, 40 * BLOCK] {
        let data = content(len);
        // In pieces that fit no block.
        let (mut write, read_half) = tokio::io::duplex(70_000);
        let feeding = data.clone();
        tokio::spawn(async move { write.write_all(&feeding).await });
        let options = SendOptions { name: Some(format!("s{len}")), ..SendOptions::new("file") };
        let receipt = a.transfer.send_stream(b.addr(), read_half, options).await.unwrap();
        assert_eq!((receipt.bytes, receipt.digest), (len as u64, Digest::of(&data)));
        let chunk = arrived.try_recv().unwrap();
        assert_eq!(chunk.offer.size, None);
        let Location::File(path) = chunk.location else { panic!("into a file") };
        assert!(read(&path) == data);
    }
}

/// However little there is at a time, it is not held back until a block is full.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_trickles_arrives_too() {
    let a = Node::new(1);
    let idle_timeout = Duration::from_secs(2);
    let b = Node::with(2, RealVfs::shared(), TransferOptions { idle_timeout, ..quick() });
    b.open_inbox();
    let (mut write, read_half) = tokio::io::duplex(100);
    let feeding = async move {
        for n in 0..8 {
            write.write_all(&[n]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let options = SendOptions { name: Some("s".into()), ..SendOptions::new("file") };
    let (sent, ()) = tokio::join!(a.transfer.send_stream(b.addr(), read_half, options), feeding);
    assert_eq!(sent.unwrap().digest, Digest::of(&[0, 1, 2, 3, 4, 5, 6, 7]));
    assert_eq!(read(&b.inbox().join("s")), [0, 1, 2, 3, 4, 5, 6, 7]);
}

/// Nothing can be reserved for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_does_not_fill_the_disk() {
    let a = Node::new(1);
    let b = Node::with(2, RealVfs::shared(), TransferOptions { leave_free: 1 << 60, ..quick() });
    b.open_inbox();
    let error = a.transfer.send_stream(b.addr(), &b"abc"[..], SendOptions::new("file")).await.unwrap_err();
    assert!(matches!(error, TransferError::StorageFull(_)), "{error}");
    eventually("the cleaning", || names(&b.inbox()).is_empty()).await;
}

struct Broken;

impl AsyncRead for Broken {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_an_error_and_no_short_file() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let broken = io::Cursor::new(content(5 * BLOCK)).chain(Broken);
    let error = a.transfer.send_stream(b.addr(), broken, SendOptions::new("file")).await.unwrap_err();
    assert!(matches!(&error, TransferError::Stream(e) if e.kind() == io::ErrorKind::BrokenPipe), "{error}");
    eventually("the cleaning", || names(&b.inbox()).is_empty()).await;
}

/// A lower bound only: a busy machine is slower than any limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_limited_transfer_takes_its_time() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let source = ChunkSource::Memory(content(2 * BLOCK).into());
    let rate_limit = NonZeroU64::new(4 * BLOCK as u64);
    let options = SendOptions { rate_limit, ..SendOptions::new("file") };
    let begun = Instant::now();
    a.transfer.send(b.addr(), &source, options).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(440), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_can_be_awaited() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let (progress, mut stream) = ProgressStream::new();
    let options = SendOptions { progress: Some(progress), ..SendOptions::new("file") };
    let total = 5 * BLOCK as u64;
    let sending = async {
        let source = ChunkSource::Memory(content(5 * BLOCK).into());
        a.transfer.send(b.addr(), &source, options).await.unwrap();
    };
    let watching = async {
        let mut last = None;
        while let Some(progress) = stream.next().await {
            assert_eq!((progress.peer, progress.total, progress.resumed), (b.addr(), Some(total), 0));
            last = Some(progress);
        }
        last.unwrap()
    };
    let ((), last) = tokio::join!(sending, watching);
    assert_eq!((last.phase, last.sent, last.verified), (Phase::Finishing, total, total));
}
