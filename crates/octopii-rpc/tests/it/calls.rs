//! Requests and responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use octopii_rpc::{Client, Code, Context, Server, ServerOptions, Shape, Status};
use octopii_transport::{Endpoint, Limits, StreamError, StreamKind};
use serde::{Deserialize, Serialize};

use crate::{SOON, begin_call, pair, pair_with, serve, until};

#[derive(Serialize, Deserialize)]
struct Sum {
    numbers: Vec<u64>,
}

#[tokio::test]
async fn typed_calls_run_concurrently_and_know_their_caller() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), |router| {
        router.register("sum", |_: Context, sum: Sum| async move { Ok(sum.numbers.iter().sum::<u64>()) });
        router.register("whoami", |context: Context, (): ()| async move { Ok(context.peer.node_id) });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let calls: Vec<_> = (0..200u64)
        .map(|n| {
            let (client, to) = (client.clone(), b.local_addr());
            tokio::spawn(async move {
                client.call::<_, u64>(to, "sum", &Sum { numbers: vec![n, 1] }, SOON).await.unwrap()
            })
        })
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), n as u64 + 1);
    }
    assert_eq!(client.call::<_, u64>(b.local_addr(), "whoami", &(), SOON).await.unwrap(), 1);
}

#[tokio::test]
async fn failures_carry_a_code_that_says_what_to_do() {
    let (a, b) = pair();
    let options = ServerOptions { max_request: 1000, ..ServerOptions::default() };
    let _server = serve(&b, options, |router| {
        router.register("fail", |_: Context, (): ()| async move {
            Err::<(), _>(
                Status::new(Code::NotFound, "no such thing").with_details(Bytes::from_static(b"why")),
            )
        });
        router.register("panic", |_: Context, (): ()| async move {
            if true {
                panic!("a bug in a handler");
            }
            Ok(())
        });
        router.register("text", |_: Context, text: String| async move { Ok(text) });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let to = b.local_addr();
    let status = client.call::<_, ()>(to, "fail", &(), SOON).await.unwrap_err();
    assert_eq!(status, Status::new(Code::NotFound, "no such thing").with_details(Bytes::from_static(b"why")));
    assert_eq!(client.call::<_, ()>(to, "panic", &(), SOON).await.unwrap_err().code, Code::Internal);
    assert_eq!(client.call::<_, ()>(to, "missing", &(), SOON).await.unwrap_err().code, Code::Unimplemented);
    // Not a string: a length beyond the bytes.
    let status = client.call_raw(to, "text", Bytes::from_static(&[200]), SOON).await.unwrap_err();
    assert_eq!(status.code, Code::InvalidArgument);
    let status = client.call_raw(to, "text", Bytes::from(vec![0; 100_000]), SOON).await.unwrap_err();
    assert_eq!(status.code, Code::InvalidArgument);
    assert!(status.message.contains("too large"), "{status}");
    // After all of that the server still answers.
    assert_eq!(client.call::<_, String>(to, "text", "fine", SOON).await.unwrap(), "fine");
}

/// Counts handlers that were started, and those that ran to their end.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) begun: AtomicUsize,
    pub(crate) ended: AtomicUsize,
    pub(crate) dropped: AtomicUsize,
}

pub(crate) struct CountDrop(pub(crate) Arc<Counts>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

fn serve_slow(endpoint: &Endpoint, counts: &Arc<Counts>) -> Server {
    let counts = Arc::clone(counts);
    serve(endpoint, ServerOptions::default(), move |router| {
        router.register("slow", move |_: Context, (): ()| {
            let counts = Arc::clone(&counts);
            async move {
                let _dropped = CountDrop(Arc::clone(&counts));
                counts.begun.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(60)).await;
                counts.ended.fetch_add(1, Ordering::SeqCst);
                Ok(())
            }
        });
    })
}

#[tokio::test]
async fn a_deadline_ends_the_call_on_both_sides() {
    let (a, b) = pair();
    let counts = Arc::new(Counts::default());
    let _server = serve_slow(&b, &counts);
    let client = Client::new(&a, StreamKind::Rpc);
    let status =
        client.call::<_, ()>(b.local_addr(), "slow", &(), Duration::from_millis(150)).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded);
    until(|| counts.dropped.load(Ordering::SeqCst) == 1).await;
    assert_eq!((counts.begun.load(Ordering::SeqCst), counts.ended.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test]
async fn the_server_keeps_the_deadline_by_itself() {
    let (a, b) = pair();
    let options = ServerOptions { max_deadline: Duration::from_millis(300), ..ServerOptions::default() };
    let _server = serve(&b, options, |router| {
        router.register("slow", |_: Context, (): ()| std::future::pending::<Result<(), Status>>());
    });
    // The caller's own, and the longest that is granted.
    for deadline_ms in [100, 60_000] {
        let (_send, mut recv) = begin_call(&a, &b, Shape::Unary, "slow", deadline_ms).await;
        let answer = tokio::time::timeout(SOON, recv.read_frame(1000)).await.expect("no answer");
        assert_eq!(answer.unwrap().unwrap()[0], Code::DeadlineExceeded as u8);
    }
}

#[tokio::test]
async fn a_request_that_stops_half_way_is_given_up() {
    let (a, b) = pair();
    let options = ServerOptions { request_timeout: Duration::from_millis(100), ..ServerOptions::default() };
    let _server = serve(&b, options, |_| {});
    let connection = a.connect(b.local_addr()).await.unwrap();
    let (mut send, mut recv) = connection.open(StreamKind::Rpc).await.unwrap();
    send.write_all(&[100, 0, 0, 0, 1]).await.unwrap();
    let answer = tokio::time::timeout(SOON, recv.read_frame(1000)).await.expect("no answer");
    assert_eq!(answer.unwrap().unwrap()[0], Code::DeadlineExceeded as u8);
}

/// A caller that never reads must not make the server hold one response after the other.
#[tokio::test]
async fn a_response_that_nobody_reads_is_a_call_under_way_until_its_deadline() {
    let (a, b) = pair_with(Limits { stream_window: 1024, ..Limits::default() }, Limits::default());
    let options = ServerOptions {
        concurrent_calls: 1,
        request_timeout: Duration::from_millis(500),
        ..ServerOptions::default()
    };
    let _server = serve(&b, options, |router| {
        router
            .register_raw("big", |_: Context, _: Bytes| async move { Ok(Bytes::from(vec![7; 1 << 20])) })
            .register("echo", |_: Context, n: u64| async move { Ok(n) });
    });
    let (_send, mut unread) = begin_call(&a, &b, Shape::Unary, "big", 700).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let client = Client::new(&a, StreamKind::Rpc);
    let status = client.call::<_, u64>(b.local_addr(), "echo", &7u64, SOON).await.unwrap_err();
    assert_eq!(status.code, Code::ResourceExhausted);
    // It is given up in the end.
    tokio::time::timeout(SOON, async {
        while client.call::<_, u64>(b.local_addr(), "echo", &7u64, SOON).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the response is held for ever");
    assert_eq!(unread.read_frame(2 << 20).await, Err(StreamError::Reset(0)));
}

/// The request was carried out: a code that says "surely not, try again" would have it carried out twice.
#[tokio::test]
async fn a_response_too_long_is_no_reason_to_try_again() {
    let (a, b) = pair();
    let mut acceptor = b.acceptor(StreamKind::Rpc).unwrap();
    let answering = tokio::spawn(async move {
        let mut incoming = acceptor.accept().await.unwrap();
        incoming.send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        incoming
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let status = client.call_raw(b.local_addr(), "big", Bytes::new(), SOON).await.unwrap_err();
    assert!(status.message.contains("over the limit"), "{status}");
    assert!(!status.code.is_retryable() && status.code.is_outcome_unknown(), "{status}");
    drop(answering);
}

#[tokio::test]
async fn a_call_under_way_does_not_keep_the_endpoint() {
    let (a, b) = pair();
    let counts = Arc::new(Counts::default());
    let server = serve_slow(&b, &counts);
    let addr = b.local_addr();
    let _call = begin_call(&a, &b, Shape::Unary, "slow", 60_000).await;
    until(|| counts.begun.load(Ordering::SeqCst) == 1).await;
    drop((server, b));
    until(|| counts.dropped.load(Ordering::SeqCst) == 1).await;
    until(|| std::net::UdpSocket::bind(addr).is_ok()).await;
}

#[tokio::test]
async fn dropping_a_call_cancels_its_handler() {
    let (a, b) = pair();
    let counts = Arc::new(Counts::default());
    let _server = serve_slow(&b, &counts);
    let client = Client::new(&a, StreamKind::Rpc);
    let to = b.local_addr();
    let call =
        tokio::spawn(async move { client.call::<_, ()>(to, "slow", &(), Duration::from_secs(60)).await });
    until(|| counts.begun.load(Ordering::SeqCst) == 1).await;
    call.abort();
    until(|| counts.dropped.load(Ordering::SeqCst) == 1).await;
    assert_eq!(counts.ended.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn calls_beyond_the_bound_are_turned_away_at_once() {
    let (a, b) = pair();
    let options = ServerOptions { concurrent_calls: 2, ..ServerOptions::default() };
    let begun = Arc::new(AtomicUsize::new(0));
    let _server = serve(&b, options, |router| {
        let begun = Arc::clone(&begun);
        router.register("slow", move |_: Context, (): ()| {
            begun.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Result<(), Status>>()
        });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let to = b.local_addr();
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.call::<_, ()>(to, "slow", &(), Duration::from_secs(60)).await })
        })
        .collect();
    until(|| begun.load(Ordering::SeqCst) == 2).await;
    let status = client.call::<_, ()>(to, "slow", &(), SOON).await.unwrap_err();
    assert_eq!(status.code, Code::ResourceExhausted);
    assert!(status.code.is_retryable());
    busy.iter().for_each(|call| call.abort());
}

#[tokio::test]
async fn calls_are_answered_while_bulk_data_fills_the_same_connection() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), |router| {
        router.register("echo", |_: Context, n: u64| async move { Ok(n) });
    });
    let mut bulk = b.acceptor(StreamKind::Transfer).unwrap();
    let (mut send, _recv) =
        a.connect(b.local_addr()).await.unwrap().open(StreamKind::Transfer).await.unwrap();
    let sending = tokio::spawn(async move {
        let block = Bytes::from(vec![0u8; 256 << 10]);
        for _ in 0..400 {
            send.write_chunk(block.clone()).await.unwrap();
        }
        send.finish().unwrap();
    });
    let receiving = tokio::spawn(async move {
        let mut incoming = bulk.accept().await.unwrap();
        let mut total = 0;
        while let Some(chunk) = incoming.recv.read_chunk(usize::MAX).await.unwrap() {
            total += chunk.len();
        }
        total
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let mut answered = 0u64;
    while !receiving.is_finished() {
        assert_eq!(client.call::<_, u64>(b.local_addr(), "echo", &answered, SOON).await.unwrap(), answered);
        answered += 1;
    }
    sending.await.unwrap();
    assert_eq!(receiving.await.unwrap(), 400 * (256 << 10));
    assert!(answered > 5, "only {answered} calls during 100 MiB");
    assert_eq!(a.open_connections(), 1, "the transfer had a connection of its own");
}
