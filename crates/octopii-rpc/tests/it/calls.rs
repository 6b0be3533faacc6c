//! Requests and responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use octopii_rpc::{Client, Code, Context, Router, Server, ServerOptions, Status};
use octopii_transport::{Endpoint, StreamKind};
use serde::{Deserialize, Serialize};

use crate::pair;

const SOON: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct Sum {
    numbers: Vec<u64>,
}

fn serve(endpoint: &Endpoint, options: ServerOptions, build: impl FnOnce(&mut Router)) -> Server {
    let mut router = Router::new();
    build(&mut router);
    Server::spawn(endpoint, StreamKind::Rpc, router, options).unwrap()
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
struct Counts {
    begun: AtomicUsize,
    ended: AtomicUsize,
    dropped: AtomicUsize,
}

struct CountDrop(Arc<Counts>);

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

async fn until(condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("did not happen within 5 s");
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
    let _server = serve(&b, options, |router| {
        router.register("slow", |_: Context, (): ()| async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Ok(())
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
    let status = loop {
        match client.call::<_, ()>(to, "slow", &(), Duration::from_millis(200)).await.unwrap_err() {
            // The two busy calls have not both arrived yet.
            status if status.code == Code::DeadlineExceeded => {}
            status => break status,
        }
    };
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
