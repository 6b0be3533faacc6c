//! Calls with streams of requests, of responses, and of both.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use octopii_rpc::{
    Body, Client, Code, Context, Encoding, Reply, Request, Requests, Router, ServerOptions, Shape, Status,
};
use octopii_transport::{Limits, StreamError, StreamKind};

use crate::calls::{CountDrop, Counts};
use crate::{SOON, begin_call, pair, pair_with, serve, until};

fn count_to(n: u64) -> impl futures_util::Stream<Item = Result<u64, Status>> + Send {
    stream::iter((0..n).map(Ok))
}

fn shapes(router: &mut Router) {
    router
        .register_server_stream("count", |_: Context, n: u64| async move { Ok(count_to(n)) })
        .register_server_stream("fail_after", |_: Context, n: u64| async move {
            let failure = stream::iter([Err(Status::new(Code::NotFound, "there are no more"))]);
            Ok(count_to(n).chain(failure))
        })
        .register_client_stream("sum", |_: Context, mut numbers: Requests<u64>| async move {
            let mut sum = 0;
            while let Some(n) = numbers.next().await {
                sum += n?;
            }
            Ok(sum)
        })
        .register_client_stream("first", |_: Context, mut numbers: Requests<u64>| async move {
            numbers.next().await.unwrap_or_else(|| Err(Status::new(Code::InvalidArgument, "none")))
        })
        .register_bidirectional("double", |_: Context, numbers: Requests<u64>| async move {
            Ok(numbers.map(|n| Ok(n? * 2)))
        });
}

#[tokio::test]
async fn each_shape_carries_everything_in_order() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), shapes);
    let (client, to) = (Client::new(&a, StreamKind::Rpc), b.local_addr());

    let counted: Vec<u64> = client
        .server_stream::<_, u64>(to, "count", &10_000u64, SOON)
        .await
        .unwrap()
        .map(Result::unwrap)
        .collect()
        .await;
    assert_eq!(counted, (0..10_000).collect::<Vec<_>>());

    let mut sum = client.client_stream::<u64, u64>(to, "sum", SOON).await.unwrap();
    for n in 0..1000 {
        if n % 10 == 0 { sum.send(&n).await.unwrap() } else { sum.feed(&n).await.unwrap() }
    }
    assert_eq!(sum.finish().await.unwrap(), 499_500);

    let (mut numbers, mut doubles) = client.bidirectional::<u64, u64>(to, "double", SOON).await.unwrap();
    // A conversation, one after the other.
    for n in 0..100 {
        numbers.send(&n).await.unwrap();
        assert_eq!(doubles.next().await.unwrap().unwrap(), n * 2);
    }
    // Half-closed: the answers that are still to come do come.
    numbers.feed(&7).await.unwrap();
    numbers.finish().await.unwrap();
    assert_eq!(doubles.next().await.unwrap().unwrap(), 14);
    assert!(doubles.next().await.is_none());
}

#[tokio::test]
async fn json_and_large_messages_travel_as_well() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), |router| {
        router.register_bidirectional("echo", |_: Context, texts: Requests<String>| async move { Ok(texts) });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    for encoding in [Encoding::Native, Encoding::Json] {
        let options = octopii_rpc::CallOptions::new(SOON).encoding(encoding);
        let (mut texts, mut echoes) =
            client.bidirectional::<String, String>(b.local_addr(), "echo", options).await.unwrap();
        for size in [0, 1, 4095, 4096, 4097, 3 << 20] {
            let text = "x".repeat(size);
            texts.send(&text).await.unwrap();
            assert_eq!(echoes.next().await.unwrap().unwrap(), text);
        }
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_status() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), |router| {
        shapes(router);
        router.register_server_stream("panic", |_: Context, (): ()| async move {
            Ok(count_to(3).map(|n| if n == Ok(2) { panic!("a bug in a handler") } else { n }))
        });
    });
    let (client, to) = (Client::new(&a, StreamKind::Rpc), b.local_addr());
    for (method, items, code) in [
        ("fail_after", 5, Code::NotFound),
        ("missing", 0, Code::Unimplemented),
        // Called in another shape than it has.
        ("sum", 0, Code::InvalidArgument),
    ] {
        let mut responses = client.server_stream::<_, u64>(to, method, &5u64, SOON).await.unwrap();
        for n in 0..items {
            assert_eq!(responses.next().await.unwrap().unwrap(), n);
        }
        assert_eq!(responses.next().await.unwrap().unwrap_err().code, code, "{method}");
        assert!(responses.next().await.is_none(), "{method}");
    }
    let mut responses = client.server_stream::<_, u64>(to, "panic", &(), SOON).await.unwrap();
    let mut last = responses.next().await.unwrap();
    while last.is_ok() {
        last = responses.next().await.unwrap();
    }
    assert_eq!(last.unwrap_err().code, Code::Internal);
}

#[tokio::test]
async fn an_answer_that_comes_early_ends_the_sending() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), shapes);
    let client = Client::new(&a, StreamKind::Rpc);
    let mut upload = client.client_stream::<u64, u64>(b.local_addr(), "first", SOON).await.unwrap();
    let status = tokio::time::timeout(SOON, async {
        loop {
            if let Err(status) = upload.send(&42).await {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the sending never ended");
    assert_eq!(status.code, Code::Cancelled);
    assert_eq!(upload.finish().await.unwrap(), 42);
}

#[tokio::test]
async fn dropping_either_side_tells_the_other() {
    let (a, b) = pair();
    let counts = Arc::new(Counts::default());
    let (cut_off, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let _server = serve(&b, ServerOptions::default(), |router| {
        let (counts, cut_off, taken) = (Arc::clone(&counts), Arc::clone(&cut_off), Arc::clone(&taken));
        router.register_server_stream("endless", move |_: Context, (): ()| {
            let counts = Arc::clone(&counts);
            async move {
                counts.begun.fetch_add(1, Ordering::SeqCst);
                let dropped = CountDrop(counts);
                Ok(stream::once(async { Ok(1u64) }).chain(stream::pending()).map(move |n| {
                    let _ = &dropped;
                    n
                }))
            }
        });
        router.register_client_stream("whole", move |_: Context, mut numbers: Requests<u64>| {
            let (cut_off, taken) = (Arc::clone(&cut_off), Arc::clone(&taken));
            async move {
                while let Some(n) = numbers.next().await {
                    if n.is_err() { &cut_off } else { &taken }.fetch_add(1, Ordering::SeqCst);
                    n?;
                }
                Ok(())
            }
        });
    });
    let (client, to) = (Client::new(&a, StreamKind::Rpc), b.local_addr());
    let mut endless = client.server_stream::<_, u64>(to, "endless", &(), SOON).await.unwrap();
    assert_eq!(endless.next().await.unwrap().unwrap(), 1);
    assert_eq!(counts.dropped.load(Ordering::SeqCst), 0);
    drop(endless);
    until(|| counts.dropped.load(Ordering::SeqCst) == 1).await;

    // Cut off in the middle, as seen by a handler that still listens: an error, not an end that looks whole.
    let (mut send, _recv) = begin_call(&a, &b, Shape::ClientStream, "whole", 60_000).await;
    send.write_frame(&[7]).await.unwrap();
    // Otherwise the reset could overtake everything.
    until(|| taken.load(Ordering::SeqCst) == 1).await;
    drop(send);
    until(|| cut_off.load(Ordering::SeqCst) == 1).await;
}

/// A handler that makes more than anybody takes must wait, and so must a caller.
#[tokio::test]
async fn who_does_not_read_slows_the_other_side_down() {
    let small = || Limits { stream_window: 64 << 10, send_window: 64 << 10, ..Limits::default() };
    let (a, b) = pair_with(small(), small());
    let made = Arc::new(AtomicUsize::new(0));
    let _server = serve(&b, ServerOptions::default(), |router| {
        let made = Arc::clone(&made);
        router.register_call("flood", Shape::ServerStream, move |_: Request| {
            let made = Arc::clone(&made);
            async move {
                let blocks = stream::repeat_with(move || {
                    made.fetch_add(1, Ordering::SeqCst);
                    Ok(Bytes::from(vec![7; 16 << 10]))
                });
                Ok(Reply::Stream(blocks.boxed()))
            }
        });
        router.register_call("ignore", Shape::ClientStream, |request: Request| async move {
            let Body::Stream(_unread) = request.body else { panic!("not a stream") };
            std::future::pending::<()>().await;
            Ok(Reply::Whole(Bytes::new()))
        });
    });
    let (_send, mut recv) = begin_call(&a, &b, Shape::ServerStream, "flood", 60_000).await;
    until(|| made.load(Ordering::SeqCst) > 2).await;
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = made.load(Ordering::SeqCst);
        if now == before {
            break;
        }
        assert!(now < 64, "{now} blocks of 16 KiB although nobody reads");
        before = now;
    }
    for _ in 0..100 {
        assert_eq!(recv.read_frame(17 << 10).await.unwrap().unwrap().len(), 1 + (16 << 10));
    }

    let client = Client::new(&a, StreamKind::Rpc);
    let limit = Duration::from_secs(2);
    let mut upload = client.client_stream::<Vec<u8>, ()>(b.local_addr(), "ignore", limit).await.unwrap();
    let block = vec![7; 16 << 10];
    let mut sent = 0;
    let status = loop {
        match upload.send(&block).await {
            Ok(()) => sent += 1,
            Err(status) => break status,
        }
    };
    assert_eq!(status.code, Code::DeadlineExceeded);
    assert!(sent < 64, "{sent} blocks of 16 KiB although nobody reads");
}

#[tokio::test]
async fn streams_have_deadlines_on_both_sides() {
    let (a, b) = pair();
    let options =
        ServerOptions { max_stream_deadline: Duration::from_millis(300), ..ServerOptions::default() };
    let counts = Arc::new(Counts::default());
    let _server = serve(&b, options, |router| {
        let counts = Arc::clone(&counts);
        router.register_server_stream("silent", move |_: Context, (): ()| {
            let dropped = CountDrop(Arc::clone(&counts));
            async move {
                Ok(stream::pending::<Result<(), Status>>().map(move |n| {
                    let _ = &dropped;
                    n
                }))
            }
        });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    // The caller's own, and the longest that is granted.
    for (n, deadline) in [Duration::from_millis(100), SOON].into_iter().enumerate() {
        let mut silent =
            client.server_stream::<_, ()>(b.local_addr(), "silent", &(), deadline).await.unwrap();
        let status = silent.next().await.unwrap().unwrap_err();
        assert_eq!(status.code, Code::DeadlineExceeded, "{status}");
        until(|| counts.dropped.load(Ordering::SeqCst) > n).await;
    }
}

#[tokio::test]
async fn a_caller_that_takes_or_sends_nothing_is_given_up() {
    let (a, b) = pair_with(Limits { stream_window: 1024, ..Limits::default() }, Limits::default());
    let options = ServerOptions { stream_idle: Duration::from_millis(200), ..ServerOptions::default() };
    let server = serve(&b, options, |router| {
        shapes(router);
        router.register_call("flood", Shape::ServerStream, |_: Request| async move {
            Ok(Reply::Stream(stream::repeat_with(|| Ok(Bytes::from(vec![7; 16 << 10]))).boxed()))
        });
    });
    let (_send, mut unread) = begin_call(&a, &b, Shape::ServerStream, "flood", 60_000).await;
    let (_idle, mut answer) = begin_call(&a, &b, Shape::ClientStream, "sum", 60_000).await;
    let answer = tokio::time::timeout(SOON, answer.read_frame(1000)).await.expect("no answer");
    assert_eq!(answer.unwrap().unwrap()[0], Code::DeadlineExceeded as u8);
    until(|| server.calls_under_way() == 0).await;
    let reset = loop {
        match unread.read_frame(20 << 10).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert_eq!(reset, Err(StreamError::Reset(0)));
}

#[tokio::test]
async fn messages_of_a_stream_are_bounded() {
    let (a, b) = pair();
    let options = ServerOptions { max_request: 1000, ..ServerOptions::default() };
    let _server = serve(&b, options, |router| {
        router.register_client_stream("bytes", |_: Context, mut blocks: Requests<Vec<u8>>| async move {
            let mut sum = 0;
            while let Some(block) = blocks.next().await {
                sum += block?.len();
            }
            Ok(sum)
        });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let mut upload = client.client_stream::<Vec<u8>, usize>(b.local_addr(), "bytes", SOON).await.unwrap();
    upload.send(&vec![0; 900]).await.unwrap();
    upload.send(&vec![0; 1001]).await.unwrap();
    let status = upload.finish().await.unwrap_err();
    assert_eq!(status.code, Code::InvalidArgument, "{status}");
    assert!(status.message.contains("too large"), "{status}");
}

/// A send that was dropped half way has left something out: what comes behind it must not make the stream look whole.
#[tokio::test]
async fn a_stream_with_a_request_missing_never_looks_whole() {
    let (a, b) = pair_with(Limits::default(), Limits { stream_window: 1024, ..Limits::default() });
    let (gate, ends) =
        (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let _server = serve(&b, ServerOptions::default(), |router| {
        let (gate, ends) = (Arc::clone(&gate), Arc::clone(&ends));
        router.register_client_stream("late", move |_: Context, mut requests: Requests<Vec<u8>>| {
            let (gate, ends) = (Arc::clone(&gate), Arc::clone(&ends));
            async move {
                let _through = gate.acquire().await;
                let mut last = Ok(());
                while let Some(request) = requests.next().await {
                    last = request.map(drop);
                }
                ends.lock().unwrap().push(last.clone().map_err(|status| status.code));
                last
            }
        });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let mut upload = client.client_stream::<Vec<u8>, ()>(b.local_addr(), "late", SOON).await.unwrap();
    // The window is full, and what this one had put together is not written.
    let request = vec![1u8; 3000];
    let dropped = tokio::time::timeout(Duration::from_millis(300), async {
        loop {
            upload.send(&request).await.unwrap();
        }
    });
    assert!(dropped.await.is_err(), "the window takes everything");
    gate.add_permits(1);
    assert_eq!(upload.send(&request).await.unwrap_err().code, Code::Cancelled);
    upload.finish().await.unwrap_err();
    until(|| !ends.lock().unwrap().is_empty()).await;
    assert_eq!(*ends.lock().unwrap(), [Err(Code::Cancelled)]);
}

/// As somebody who types requests waits for the answer as well.
#[tokio::test]
async fn an_early_answer_is_told_while_requests_are_still_to_come() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), shapes);
    let client = Client::new(&a, StreamKind::Rpc);
    let first = client.client_stream::<u64, u64>(b.local_addr(), "first", SOON).await.unwrap();
    let (mut numbers, mut answer) = first.split();
    numbers.send(&7).await.unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap(), 7);
    assert!(answer.next().await.is_none(), "there is one answer");
}

#[tokio::test]
async fn a_deadline_that_no_clock_can_count_is_far_away() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), shapes);
    let client = Client::new(&a, StreamKind::Rpc);
    let counted =
        client.server_stream::<_, u64>(b.local_addr(), "count", &3u64, Duration::MAX).await.unwrap();
    assert_eq!(counted.count().await, 3);
    let status = client.call::<_, u64>(b.local_addr(), "none", &(), Duration::MAX).await.unwrap_err();
    assert_eq!(status.code, Code::Unimplemented);
}
