//! Draining: no new calls, time for those under way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_rpc::{Advice, Client, Code, Context, ServerOptions};
use octopii_transport::StreamKind;
use tokio::sync::Semaphore;

use crate::bad_network::Proxy;
use crate::{SOON, pair, serve, until};

#[tokio::test]
async fn calls_under_way_end_well_and_new_ones_are_sent_elsewhere() {
    let (a, b) = pair();
    let gate = Arc::new(Semaphore::new(0));
    let server = serve(&b, ServerOptions::default(), |router| {
        let gate = Arc::clone(&gate);
        router.register("gated", move |_: Context, n: u64| {
            let gate = Arc::clone(&gate);
            async move {
                let _through = gate.acquire().await;
                Ok(n)
            }
        });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let to = b.local_addr();
    let running: Vec<_> = (0..10u64)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.call::<_, u64>(to, "gated", &n, SOON).await })
        })
        .collect();
    until(|| server.calls_under_way() == 10).await;
    assert_eq!(server.drain(Duration::from_millis(100)).await, 10, "they are waiting");
    let status = client.call::<_, u64>(to, "gated", &0, SOON).await.unwrap_err();
    assert_eq!((status.code, status.advice), (Code::Unavailable, Advice::Elsewhere));
    assert!(!status.is_retryable_here());
    gate.add_permits(10);
    assert_eq!(server.drain(SOON).await, 0);
    for (n, call) in running.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap(), n as u64);
    }
}

/// Written is not arrived: a node that closes its endpoint as soon as it is told that nothing is left cuts nobody off.
#[tokio::test]
async fn answers_that_are_on_their_way_arrive_before_the_endpoint_closes() {
    // On a lane, and on streams of their own.
    for (round, ballast) in [(0u8, 10), (1, 5000)] {
        let (a, b) = pair();
        let gate = Arc::new(Semaphore::new(0));
        let server = serve(&b, ServerOptions::default(), |router| {
            let gate = Arc::clone(&gate);
            router.register_raw("gated", move |_: Context, request: Bytes| {
                let gate = Arc::clone(&gate);
                let size = u32::from_le_bytes(*request.first_chunk().unwrap()) as usize;
                async move {
                    let _through = gate.acquire().await;
                    Ok(vec![round; size].into())
                }
            });
        });
        let client = Client::new(&a, StreamKind::Rpc);
        // So far away that megabytes take a while.
        let proxy = Proxy::start(b.local_addr(), u64::MAX, Duration::from_millis(30)).await;
        let to = proxy.addr;
        let sizes = [10, 4000, 5 << 20, 3 << 20];
        let running = sizes.map(|size| {
            let client = client.clone();
            let request = [&(size as u32).to_le_bytes()[..], &vec![0; ballast]].concat();
            tokio::spawn(async move { client.call_raw(to, "gated", request.into(), SOON).await })
        });
        until(|| server.calls_under_way() == sizes.len()).await;
        gate.add_permits(sizes.len());
        assert_eq!(server.drain(SOON).await, 0);
        b.close(Duration::from_millis(100)).await;
        for (size, call) in sizes.into_iter().zip(running) {
            let answer = call.await.unwrap().unwrap_or_else(|e| panic!("{size} bytes were cut off: {e}"));
            assert_eq!(answer, vec![round; size]);
        }
    }
}
