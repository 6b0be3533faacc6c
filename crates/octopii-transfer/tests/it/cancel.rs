//! Giving up, from either side and by the clock.

use std::sync::Arc;
use std::time::Duration;

use octopii_transfer::{ChunkSource, Destination, SendOptions, TransferError, TransferOptions};
use octopii_transport::StreamKind;
use octopii_vfs::RealVfs;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::nodes::{BLOCK, Node, content, endpoint, eventually, names, quick};
use crate::raw::{ACCEPT, Raw, accept_body, message, read_offer};

/// Options that tell when the first bytes have gone out.
fn noticing(purpose: &str) -> (SendOptions, Arc<Notify>) {
    let moving = Arc::new(Notify::new());
    let notify = Arc::clone(&moving);
    let progress = Arc::new(move |p: octopii_transfer::Progress| {
        if p.sent > 0 {
            notify.notify_one();
        }
    });
    (SendOptions { progress: Some(progress), ..SendOptions::new(purpose) }, moving)
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_call_cleans_up_on_both_sides() {
    let a = Node::new(1);
    let b = Node::with(2, RealVfs::shared(), TransferOptions { max_incoming: 1, ..quick() });
    let events =
        b.receive_into("file", Destination::File { dir: b.inbox(), name: "f".into(), replace: false });
    let source = ChunkSource::Memory(content(64 * BLOCK).into());
    let (options, moving) = noticing("file");
    tokio::select! {
        biased;
        () = moving.notified() => {}
        result = a.transfer.send(b.addr(), &source, options) => panic!("{result:?}"),
    }
    let started = Instant::now();
    eventually("the receiver's cleaning up", || {
        events.try_recv().is_ok_and(|e| {
            assert!(matches!(e.failed(), TransferError::Cancelled));
            true
        })
    })
    .await;
    assert!(started.elapsed() < quick().idle_timeout, "told, not timed out");
    assert_eq!(names(&b.inbox()), [""; 0]);
    // The only place is free again, too.
    let small = ChunkSource::Memory("x".into());
    a.transfer.send(b.addr(), &small, SendOptions::new("file")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_goes_away_leaves_nothing() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let inbox = b.inbox();
    let Node { endpoint, transfer, dir } = b;
    let addr = endpoint.local_addr();
    let (options, moving) = noticing("file");
    let sending = tokio::spawn(async move {
        let source = ChunkSource::Memory(content(64 * BLOCK).into());
        (a.transfer.send(addr, &source, options).await, a)
    });
    moving.notified().await;
    drop(transfer);
    let (result, _a) = sending.await.unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, TransferError::Lost(_)) && error.is_retryable(), "{error}");
    eventually("the cleaning", || names(&inbox).is_empty()).await;
    drop((endpoint, dir));
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limits_hold_against_a_silent_receiver() {
    let (a, silent) = (Node::new(1), endpoint(2));
    let mut acceptor = silent.acceptor(StreamKind::Transfer).unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let mut raw = Raw::accept(&mut acceptor).await;
            read_offer(&mut raw).await;
            raw.write(&message(ACCEPT, &accept_body(0, b""))).await;
            held.push(raw);
        }
    });
    let source = ChunkSource::Memory(content(32 * BLOCK).into());
    let limit = Duration::from_millis(300);
    let started = Instant::now();
    let options = SendOptions { timeout: Some(limit), ..SendOptions::new("file") };
    let error = a.transfer.send(silent.local_addr(), &source, options).await.unwrap_err();
    assert!(matches!(error, TransferError::Timeout { .. }), "{error}");
    assert!(started.elapsed() >= limit && started.elapsed() < 10 * limit);

    let options = SendOptions { idle_timeout: limit, ..SendOptions::new("file") };
    let error = a.transfer.send(silent.local_addr(), &source, options).await.unwrap_err();
    assert!(matches!(error, TransferError::Stalled { .. }), "{error}");

    // Everything fits into the windows here: the sender is done, and cannot know what became of it.
    let options = SendOptions { timeout: Some(limit), ..SendOptions::new("file") };
    let small = ChunkSource::Memory("x".into());
    let error = a.transfer.send(silent.local_addr(), &small, options).await.unwrap_err();
    assert!(matches!(error, TransferError::OutcomeUnknown { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_answer_is_a_typed_error() {
    let a = Node::new(1);
    let deaf = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let options = SendOptions { timeout: Some(Duration::from_millis(300)), ..SendOptions::new("file") };
    let source = ChunkSource::Memory("x".into());
    let error = a.transfer.send(deaf.local_addr().unwrap(), &source, options).await.unwrap_err();
    assert!(matches!(error, TransferError::Connect(_)), "{error}");
}

/// `octopii recv --count 1` once stopped between storing the file and telling its sender, who then waited half a minute
/// and learned nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_drains_before_it_stops_leaves_no_sender_in_doubt() {
    for _ in 0..20 {
        let (a, b) = (Node::new(1), Node::new(2));
        let arrivals = b.open_inbox();
        let to = b.addr();
        let source = ChunkSource::Memory(content(3 * BLOCK).into());
        let sending =
            tokio::spawn(async move { a.transfer.send(to, &source, SendOptions::new("file")).await });
        // Told by the policy, before the acknowledgement is sent.
        tokio::task::spawn_blocking(move || arrivals.recv().unwrap()).await.unwrap();
        b.transfer.drain(Duration::from_secs(5)).await;
        b.transfer.drain(Duration::from_secs(5)).await;
        b.endpoint.close(Duration::from_secs(1)).await;
        sending.await.unwrap().expect("acknowledged");
        assert!(b.transfer.is_closed());
    }
}
