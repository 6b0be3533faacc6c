//! Small calls that share a stream.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;
use octopii_rpc::{CallOptions, Client, ClientOptions, Code, Context, Router, ServerOptions, Shape};
use octopii_transport::{Address, Endpoint, Limits, RecvStream, SendStream, StreamKind};

use crate::{SOON, pair, pair_with, request, serve, until};

const MIB: usize = 1 << 20;

fn methods(router: &mut Router) {
    router
        .register("echo", |_: Context, n: u64| async move { Ok(n) })
        .register("later", |_: Context, n: u64| async move {
            tokio::task::yield_now().await;
            Ok(n)
        })
        .register("never", |_: Context, (): ()| std::future::pending::<Result<(), octopii_rpc::Status>>())
        .register_raw("big", |_: Context, size: Bytes| async move {
            let size = u32::from_le_bytes(size[..].try_into().unwrap());
            Ok((0..size).map(|n| n as u8).collect())
        });
}

#[tokio::test]
async fn small_calls_share_one_stream_and_large_ones_do_not() {
    let (a, b) = pair();
    let mut acceptor = b.acceptor(StreamKind::Rpc).unwrap();
    let client = Client::new(&a, StreamKind::Rpc);
    let to = b.local_addr();
    let calls: Vec<_> = [4096, 1, 2, 5000, 3, 4097]
        .into_iter()
        .map(|size| {
            let client = client.clone();
            tokio::spawn(async move { client.call_raw(to, "x", Bytes::from(vec![7; size]), SOON).await })
        })
        .collect();
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(tokio::time::timeout(SOON, acceptor.accept()).await.expect("too few streams").unwrap());
    }
    let more = tokio::time::timeout(Duration::from_millis(200), acceptor.accept()).await;
    assert!(more.is_err(), "two large calls and a lane make three streams");
    // Nobody knows how far these calls came.
    drop(streams);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().code, Code::Unknown);
    }
}

#[tokio::test]
async fn answers_of_all_sizes_find_their_callers() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), methods);
    for lanes in [true, false] {
        let options = ClientOptions { lanes, ..ClientOptions::default() };
        let client = Client::with_options(&a, StreamKind::Rpc, options);
        let to = b.local_addr();
        let small: Vec<_> = (0..500u64)
            .map(|n| {
                let client = client.clone();
                let method = if n % 2 == 0 { "echo" } else { "later" };
                tokio::spawn(async move { client.call::<_, u64>(to, method, &n, SOON).await.unwrap() })
            })
            .collect();
        let big: Vec<_> = [0, 1, 4096, 4097, 16 << 10, (16 << 10) + 1, 3 * MIB, 5 * MIB]
            .map(|size| {
                let client = client.clone();
                let ask = Bytes::copy_from_slice(&(size as u32).to_le_bytes());
                (size, tokio::spawn(async move { client.call_raw(to, "big", ask, SOON).await.unwrap() }))
            })
            .into();
        for (n, call) in small.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), n as u64);
        }
        for (size, call) in big {
            let body = call.await.unwrap();
            assert_eq!(body.len(), size);
            assert!(body.iter().enumerate().all(|(n, byte)| *byte == n as u8), "{size}");
        }
    }
}

#[tokio::test]
async fn a_response_over_the_limit_fails_alone() {
    let (a, b) = pair();
    let server = serve(&b, ServerOptions::default(), methods);
    let options = ClientOptions { max_response: MIB, ..ClientOptions::default() };
    let client = Client::with_options(&a, StreamKind::Rpc, options);
    let to = b.local_addr();
    for size in [2 * MIB, MIB + 1] {
        let ask = Bytes::copy_from_slice(&(size as u32).to_le_bytes());
        let (big, small) = tokio::join!(
            client.call_raw(to, "big", ask, SOON),
            client.call::<_, u64>(to, "later", &7u64, SOON)
        );
        let status = big.unwrap_err();
        assert!(!status.code.is_retryable() && status.message.contains("over the limit"), "{status}");
        assert_eq!(small.unwrap(), 7);
    }
    until(|| server.calls_under_way() == 0).await;
}

#[tokio::test]
async fn a_lane_that_is_lost_fails_its_calls_and_the_next_one_is_another() {
    let (a, b) = pair();
    let to = b.local_addr();
    let client = Client::new(&a, StreamKind::Rpc);
    let mut acceptor = b.acceptor(StreamKind::Rpc).unwrap();
    for _ in 0..3 {
        let waiting = {
            let client = client.clone();
            tokio::spawn(async move { client.call::<_, u64>(to, "echo", &1u64, SOON).await })
        };
        let lane = tokio::time::timeout(SOON, acceptor.accept()).await.expect("no lane").unwrap();
        drop(lane);
        assert_eq!(waiting.await.unwrap().unwrap_err().code, Code::Unknown);
    }
    // Nonsense on a lane is the end of it as well.
    let waiting = tokio::spawn(async move { client.call::<_, u64>(to, "echo", &1u64, SOON).await });
    let mut lane = tokio::time::timeout(SOON, acceptor.accept()).await.expect("no lane").unwrap();
    lane.send.write_frame(&[1, 2]).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().code, Code::Unknown);
}

#[tokio::test]
async fn a_lane_that_nobody_takes_is_surely_no_call() {
    let (a, b) = pair();
    let client = Client::new(&a, StreamKind::Rpc);
    let status = client.call::<_, u64>(b.local_addr(), "echo", &1u64, SOON).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
}

/// A lane as the wire knows it.
async fn open_lane(from: &Endpoint, to: &Endpoint) -> (SendStream, RecvStream) {
    let (mut send, recv) = from.connect(to.local_addr()).await.unwrap().open(StreamKind::Rpc).await.unwrap();
    send.write_frame(&[1, 4]).await.unwrap();
    (send, recv)
}

fn on_lane(id: u32, request: &[u8]) -> Vec<u8> {
    [&[0][..], &id.to_le_bytes(), request].concat()
}

#[tokio::test]
async fn the_bytes_of_a_lane() {
    let (a, b) = pair();
    let server = serve(&b, ServerOptions::default(), methods);
    let (mut send, mut recv) = open_lane(&a, &b).await;
    let mut answer =
        async || tokio::time::timeout(SOON, recv.read_frame(1000)).await.unwrap().unwrap().unwrap();
    send.write_frame(&on_lane(7, &request(Shape::Unary, "echo", 1000, &[42]))).await.unwrap();
    assert_eq!(answer().await, [7, 0, 0, 0, 0, 42][..]);
    send.write_frame(&on_lane(8, &request(Shape::Unary, "nothing", 1000, &[]))).await.unwrap();
    assert_eq!(answer().await[..5], [8, 0, 0, 0, Code::Unimplemented as u8]);
    send.write_frame(&on_lane(9, &request(Shape::ServerStream, "echo", 1000, &[]))).await.unwrap();
    assert_eq!(answer().await[..5], [9, 0, 0, 0, Code::InvalidArgument as u8]);
    send.write_frame(&on_lane(10, &[1, 2])).await.unwrap();
    assert_eq!(answer().await[..4], [10, 0, 0, 0]);
    // Cancelled, as often as one likes; and the number is free again.
    send.write_frame(&on_lane(11, &request(Shape::Unary, "never", 60_000, &[]))).await.unwrap();
    until(|| server.calls_under_way() == 1).await;
    for _ in 0..3 {
        send.write_frame(&[1, 11, 0, 0, 0]).await.unwrap();
    }
    until(|| server.calls_under_way() == 0).await;
    send.write_frame(&on_lane(11, &request(Shape::Unary, "echo", 1000, &[1]))).await.unwrap();
    assert_eq!(answer().await, [11, 0, 0, 0, 0, 1][..]);
    // Whoever has the answer may use the number again at once.
    for n in 0..200 {
        send.write_frame(&on_lane(13, &request(Shape::Unary, "later", 1000, &[n]))).await.unwrap();
        assert_eq!(answer().await[..], [&[13, 0, 0, 0, 0][..], &[n]].concat());
    }
    // The deadline is the server's business too.
    send.write_frame(&on_lane(12, &request(Shape::Unary, "never", 50, &[]))).await.unwrap();
    assert_eq!(answer().await[..5], [12, 0, 0, 0, Code::DeadlineExceeded as u8]);
}

#[tokio::test]
async fn what_is_no_lane_ends_with_all_its_calls() {
    let (a, b) = pair();
    let options = ServerOptions { request_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let server = serve(&b, options, methods);
    let never = on_lane(1, &request(Shape::Unary, "never", 60_000, &[]));
    let frame = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat();
    for hostile in [
        frame(&[9, 1, 0, 0, 0]),
        frame(&[0, 1]),
        frame(&[]),
        frame(&[1, 1, 0, 0, 0, 0]),
        // A number that is under way.
        frame(&never),
        // A request that belongs on a stream of its own, announced and never sent.
        u32::MAX.to_le_bytes().to_vec(),
        100_000u32.to_le_bytes().to_vec(),
        // Half a request.
        frame(&never)[..20].to_vec(),
    ] {
        let (mut send, mut recv) = open_lane(&a, &b).await;
        send.write_frame(&never).await.unwrap();
        until(|| server.calls_under_way() == 1).await;
        send.write_all(&hostile).await.unwrap();
        let end = tokio::time::timeout(SOON, recv.read_frame(1000)).await.expect("the lane goes on");
        assert!(end.is_err(), "{hostile:?}: {end:?}");
        until(|| server.calls_under_way() == 0).await;
    }
    let client = Client::new(&a, StreamKind::Rpc);
    assert_eq!(client.call::<_, u64>(b.local_addr(), "echo", &7u64, SOON).await.unwrap(), 7);
}

#[tokio::test]
async fn a_caller_that_takes_nothing_is_given_up() {
    let (a, b) = pair_with(Limits { stream_window: 1024, ..Limits::default() }, Limits::default());
    let options = ServerOptions { request_timeout: Duration::from_millis(300), ..ServerOptions::default() };
    let server = serve(&b, options, methods);
    let (mut send, _unread) = open_lane(&a, &b).await;
    let mut sent = 0;
    tokio::time::timeout(SOON, async {
        loop {
            sent += 1;
            let size = (MIB as u32).to_le_bytes();
            let call = on_lane(sent, &request(Shape::Unary, "big", 60_000, &size));
            if send.write_frame(&call).await.is_err() || server.calls_under_way() > 100 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the lane goes on");
    assert!(server.calls_under_way() <= 100, "responses that nobody takes pile up");
    until(|| server.calls_under_way() == 0).await;
}

/// Nobody asks a connection whether it is open before a call takes its lane: that it is lost is noticed all the same, and nothing of it is the
/// caller's business as long as the request has not left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_on_a_connection_that_is_gone_takes_another() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), methods);
    let client = Client::new(&a, StreamKind::Rpc);
    let name: Address = format!("localhost:{}", b.local_addr().port()).parse().unwrap();
    for to in [b.local_addr().into(), name] {
        for n in 0..25u64 {
            assert_eq!(client.call::<_, u64>(&to, "echo", &n, SOON).await.unwrap(), n);
            a.connect(&to).await.unwrap().close("by the test");
            assert_eq!(client.call::<_, u64>(&to, "echo", &n, SOON).await.unwrap(), n);
        }
    }
}

/// Two that need each other at the same moment: one behind the other they would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handlers_that_compute_for_long_do_not_wait_for_each_other() {
    let (a, b) = pair();
    let meeting = Arc::new(Barrier::new(2));
    let _server = serve(&b, ServerOptions::default(), |router| {
        router.register("compute", move |_: Context, meet: bool| {
            let meeting = Arc::clone(&meeting);
            async move {
                if meet {
                    meeting.wait();
                } else {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            }
        });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let call = |meet: bool| {
        let (client, to) = (client.clone(), b.local_addr());
        async move { client.call::<_, ()>(to, "compute", &meet, CallOptions::new(SOON)).await.unwrap() }
    };
    call(false).await;
    tokio::join!(call(true), call(true));
}

/// Small responses that nobody takes are memory as well.
#[tokio::test]
async fn small_responses_count_as_calls_until_they_are_taken() {
    let (a, b) = pair_with(Limits { stream_window: 1024, ..Limits::default() }, Limits::default());
    let done = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let options = ServerOptions { concurrent_calls_per_peer: 300, ..ServerOptions::default() };
    let server = serve(&b, options, |router| {
        let done = Arc::clone(&done);
        router.register_raw("page", move |_: Context, _| {
            let done = Arc::clone(&done);
            async move {
                tokio::task::yield_now().await;
                done.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                Ok(Bytes::from_static(&[7; 4096]))
            }
        });
    });
    let mut lanes = Vec::new();
    for _ in 0..4 {
        let (mut send, unread) = open_lane(&a, &b).await;
        for id in 0..300 {
            send.write_frame(&on_lane(id, &request(Shape::Unary, "page", 60_000, &[]))).await.unwrap();
        }
        lanes.push((send, unread));
    }
    let done = || done.load(std::sync::atomic::Ordering::SeqCst);
    until(|| done() >= 250).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let lying = server.calls_under_way();
    // The windows take a few; whatever else has been answered is lying here, and no more than a peer may have.
    assert!(done() <= 350, "{} pages were made for who takes none", done());
    assert!(lying >= 200, "{} pages were made, and {lying} of them count", done());
}

/// Between nodes that have nothing more to say to each other: the lane must not keep their connection.
#[tokio::test]
async fn a_connection_with_an_idle_lane_counts_as_unused() {
    let authority = octopii_transport::ClusterAuthority::generate().unwrap();
    let executor = octopii_transport::Executor::new(tokio::runtime::Handle::current());
    let bind = |node| {
        let options = octopii_transport::EndpointOptions {
            close_unused: Some(Duration::from_millis(300)),
            ..octopii_transport::EndpointOptions::default()
        };
        Endpoint::bind(&executor, &authority.issue(node).unwrap(), options).unwrap()
    };
    let (a, b) = (bind(1), bind(2));
    let _server = serve(&b, ServerOptions::default(), methods);
    let client = Client::new(&a, StreamKind::Rpc);
    for n in 0..2u64 {
        assert_eq!(client.call::<_, u64>(b.local_addr(), "echo", &n, SOON).await.unwrap(), n);
        until(|| a.open_connections() == 0 && b.open_connections() == 0).await;
    }
    // While a call waits, the lane stays.
    let options = CallOptions::new(Duration::from_millis(2500));
    let waited = client.call::<_, ()>(b.local_addr(), "never", &(), options).await.unwrap_err();
    assert_eq!(waited.code, Code::DeadlineExceeded);
}
