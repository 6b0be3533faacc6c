//! A member that attacks each limit, and everybody else meanwhile.

use std::time::Duration;

use octopii_rpc::{Client, Code, Context, ServerOptions, Shape};
use octopii_transport::{Limits, StreamError, StreamKind};

use crate::{SOON, begin_call, endpoints, pair, request, serve, until};

fn slow_and_echo(router: &mut octopii_rpc::Router) {
    router
        .register("slow", |_: Context, (): ()| std::future::pending::<Result<(), octopii_rpc::Status>>())
        .register("echo", |_: Context, n: u64| async move { Ok(n) });
}

/// Half a request costs its sender a stream and some memory of its own share, and nobody a call.
#[tokio::test]
async fn half_sent_requests_hold_no_calls() {
    let [evil, good, b] = endpoints([Limits::default(), Limits::default(), Limits::default()]);
    let options = ServerOptions {
        concurrent_calls: 4,
        request_memory: 1 << 20,
        request_memory_per_peer: 256 << 10,
        request_timeout: SOON,
        ..ServerOptions::default()
    };
    let server = serve(&b, options, slow_and_echo);
    let connection = evil.connect(b.local_addr()).await.unwrap();
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        let (mut send, mut recv) = connection.open(StreamKind::Rpc).await.unwrap();
        // Announces 100,000 bytes and sends one of them.
        send.write_all(&[160, 134, 1, 0, 1]).await.unwrap();
        match tokio::time::timeout(Duration::from_millis(300), recv.read_frame(1000)).await {
            Err(_) => held.push((send, recv)),
            Ok(answer) => {
                assert_eq!(answer.unwrap().unwrap()[0], Code::ResourceExhausted as u8);
                refused += 1;
            }
        }
        if refused == 3 {
            break;
        }
    }
    assert_eq!((held.len(), refused), (2, 3), "256 KiB are room for two requests of 100,000 bytes");
    assert_eq!(server.calls_under_way(), 0);
    // Small ones do not even take memory.
    for _ in 0..50 {
        let (mut send, recv) = connection.open(StreamKind::Rpc).await.unwrap();
        send.write_all(&[100, 0, 0, 0, 1]).await.unwrap();
        held.push((send, recv));
    }
    let client = Client::new(&good, StreamKind::Rpc);
    for n in 0..20u64 {
        assert_eq!(client.call::<_, u64>(b.local_addr(), "echo", &n, SOON).await.unwrap(), n);
    }
    let large = vec![7u8; 200_000];
    let status = client.call::<_, u64>(b.local_addr(), "echo", &large, SOON).await.unwrap_err();
    assert_eq!(status.code, Code::InvalidArgument, "read whole and found wanting: {status}");
}

#[tokio::test]
async fn one_peer_cannot_take_every_call() {
    let [evil, good, b] = endpoints([Limits::default(), Limits::default(), Limits::default()]);
    let options =
        ServerOptions { concurrent_calls: 16, concurrent_calls_per_peer: 12, ..ServerOptions::default() };
    let server = serve(&b, options, slow_and_echo);
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(begin_call(&evil, &b, Shape::Unary, "slow", 60_000).await);
    }
    until(|| server.calls_under_way() == 12).await;
    let client = Client::new(&good, StreamKind::Rpc);
    for n in 0..50u64 {
        assert_eq!(client.call::<_, u64>(b.local_addr(), "echo", &n, SOON).await.unwrap(), n);
    }
    assert_eq!(server.calls_under_way(), 12);
}

#[tokio::test]
async fn oversized_and_malformed_requests_are_told_and_forgotten() {
    let (a, b) = pair();
    let options = ServerOptions { max_request: 1000, ..ServerOptions::default() };
    let server = serve(&b, options, slow_and_echo);
    let mut endless = request(Shape::Unary, "echo", 1000, b"");
    let entries = [2, 3, 0, 1, b'x', b'y'].repeat(1000);
    let at = endless.len() - 2;
    endless[at..].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    endless.extend(entries);
    let connection = a.connect(b.local_addr()).await.unwrap();
    for (bytes, code) in [
        // A length of 4 GiB, of which nothing comes.
        (u32::MAX.to_le_bytes().to_vec(), Code::InvalidArgument),
        ([&(endless.len() as u32).to_le_bytes()[..], &endless].concat(), Code::InvalidArgument),
        (vec![0, 0, 0, 0], Code::InvalidArgument),
        (vec![10, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0], Code::Unimplemented),
        (vec![10, 0, 0, 0, 1, 255, 0, 0, 0, 0, 0, 0, 0, 0], Code::Unimplemented),
    ] {
        let (mut send, mut recv) = connection.open(StreamKind::Rpc).await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let answer = tokio::time::timeout(SOON, recv.read_frame(10_000)).await.expect("no answer");
        assert_eq!(answer.unwrap().unwrap()[0], code as u8, "{:?}", &bytes[..bytes.len().min(14)]);
    }
    // A request that ends in the middle was surely not carried out.
    let (mut send, mut recv) = connection.open(StreamKind::Rpc).await.unwrap();
    send.write_all(&[100, 0, 0, 0, 1]).await.unwrap();
    send.finish().unwrap();
    assert_eq!(recv.read_frame(1000).await, Err(StreamError::Reset(1)));
    until(|| server.calls_under_way() == 0).await;
    let client = Client::new(&a, StreamKind::Rpc);
    assert_eq!(client.call::<_, u64>(b.local_addr(), "echo", &7u64, SOON).await.unwrap(), 7);
}

/// Streams without end, each of which sends a request one byte at a time.
#[tokio::test]
async fn a_message_of_a_stream_that_never_becomes_whole_is_given_up() {
    let (a, b) = pair();
    let options = ServerOptions { request_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let server = serve(&b, options, |router| {
        router
            .register_bidirectional("echo", |_: Context, n: octopii_rpc::Requests<u64>| async move { Ok(n) });
    });
    let (mut send, mut recv) = begin_call(&a, &b, Shape::Bidirectional, "echo", 60_000).await;
    send.write_all(&[100, 0, 0, 0]).await.unwrap();
    let dripping = tokio::spawn(async move {
        while send.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let answer = tokio::time::timeout(SOON, recv.read_frame(1000)).await.expect("no answer");
    assert_eq!(answer.unwrap().unwrap()[0], Code::DeadlineExceeded as u8);
    until(|| server.calls_under_way() == 0).await;
    dripping.await.unwrap();
}
