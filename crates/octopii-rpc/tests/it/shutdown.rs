//! Draining: no new calls, time for those under way.

use std::sync::Arc;
use std::time::Duration;

use octopii_rpc::{Advice, Client, Code, Context, ServerOptions};
use octopii_transport::StreamKind;
use tokio::sync::Semaphore;

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
