//! Calls that are tried again, and those that must not be.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use octopii_rpc::{
    Advice, CallOptions, Client, ClientOptions, Code, Context, RetryPolicy, Server, ServerOptions, Status,
};
use octopii_transport::{Endpoint, StreamKind};

use crate::{SOON, pair, serve};

/// Fails so many times with this status, then answers with the number of calls it has had.
fn flaky(endpoint: &Endpoint, failures: u32, status: Status) -> (Server, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let server = serve(endpoint, ServerOptions::default(), move |router| {
        router.register("flaky", move |_: Context, (): ()| {
            let call = counted.fetch_add(1, Ordering::SeqCst);
            let status = status.clone();
            async move { if call < failures { Err(status) } else { Ok(call + 1) } }
        });
    });
    (server, calls)
}

fn quick() -> RetryPolicy {
    RetryPolicy { initial_backoff: Duration::from_millis(1), ..RetryPolicy::default() }
}

fn client(endpoint: &Endpoint, retry: RetryPolicy) -> Client {
    Client::with_options(endpoint, StreamKind::Rpc, ClientOptions { retry, ..ClientOptions::default() })
}

#[tokio::test]
async fn only_what_is_declared_idempotent_is_tried_again() {
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::Unknown] {
        let (a, b) = pair();
        let (_server, calls) = flaky(&b, 2, Status::new(code, "try again"));
        let client = client(&a, quick());
        let status = client.call::<_, u32>(b.local_addr(), "flaky", &(), SOON).await.unwrap_err();
        assert_eq!((status.code, calls.load(Ordering::SeqCst)), (code, 1));
        let options = CallOptions::new(SOON).idempotent();
        let answer: u32 = client.call(b.local_addr(), "flaky", &(), options).await.unwrap();
        assert_eq!(answer, 3);
    }
}

#[tokio::test]
async fn advice_and_other_codes_end_it() {
    let advised = |advice| Status::new(Code::Unavailable, "no").with_advice(advice);
    for status in [
        advised(Advice::Never),
        advised(Advice::Elsewhere),
        advised(Advice::After(Duration::from_secs(3600))),
        Status::new(Code::Internal, "no"),
        Status::new(Code::NotFound, "no"),
        Status::new(Code::DeadlineExceeded, "no"),
    ] {
        let (a, b) = pair();
        let (_server, calls) = flaky(&b, u32::MAX, status.clone());
        let options = CallOptions::new(SOON).idempotent();
        let failed = client(&a, quick()).call::<_, u32>(b.local_addr(), "flaky", &(), options).await;
        assert_eq!(failed.unwrap_err(), status);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn attempts_time_and_the_budget_are_bounds() {
    let (a, b) = pair();
    let (_server, calls) = flaky(&b, u32::MAX, Status::new(Code::Unavailable, "never works"));
    let idempotent = |deadline| CallOptions::new(deadline).idempotent();
    let to = b.local_addr();
    let taken = async |client: &Client, options| {
        let before = calls.load(Ordering::SeqCst);
        client.call::<_, u32>(to, "flaky", &(), options).await.unwrap_err();
        calls.load(Ordering::SeqCst) - before
    };
    assert_eq!(taken(&client(&a, quick()), idempotent(SOON)).await, 4);

    let slow = RetryPolicy { initial_backoff: Duration::from_secs(60), ..RetryPolicy::default() };
    let slow = RetryPolicy { max_backoff: Duration::from_secs(60), ..slow };
    assert_eq!(taken(&client(&a, slow), idempotent(Duration::from_secs(5))).await, 1);

    let poor = client(&a, RetryPolicy { budget: 5, refill_per_second: 0.0, ..quick() });
    assert_eq!(taken(&poor, idempotent(SOON)).await, 4);
    assert_eq!(taken(&poor.clone(), idempotent(SOON)).await, 3, "clones share the budget");
    assert_eq!(taken(&poor, idempotent(SOON)).await, 1);
}

#[tokio::test]
async fn a_peer_that_comes_late_is_found() {
    let (a, b) = pair();
    let client =
        client(&a, RetryPolicy { max_attempts: 100, initial_backoff: Duration::from_millis(50), ..quick() });
    let to = b.local_addr();
    let calling = tokio::spawn(async move {
        client.call::<_, u32>(to, "flaky", &(), CallOptions::new(SOON).idempotent()).await
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (_server, _) = flaky(&b, 0, Status::new(Code::Internal, ""));
    assert_eq!(calling.await.unwrap().unwrap(), 1);
}

/// `octopii call` tells "nobody could be reached" from "the outcome is unknown" by this.
#[tokio::test]
async fn what_never_had_a_connection_was_surely_not_carried_out_however_short_the_deadline() {
    let (a, _b) = pair();
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = nobody.local_addr().unwrap();
    let client = Client::new(&a, StreamKind::Rpc);
    let short = Duration::from_millis(200);
    let status = client.call::<_, ()>(to, "any", &(), short).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
    let status = client.server_stream::<_, ()>(to, "any", &(), short).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
}

/// The last attempt was surely not carried out, but one before it may have been.
#[tokio::test]
async fn an_unknown_outcome_stays_unknown_whatever_the_attempts_after_it_say() {
    let (a, b) = pair();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let _server = serve(&b, ServerOptions::default(), move |router| {
        router.register("lost", move |_: Context, (): ()| {
            let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            let code = if first { Code::Unknown } else { Code::Unavailable };
            async move { Err::<(), _>(Status::new(code, "gone")) }
        });
    });
    let options = CallOptions::new(SOON).idempotent();
    let failed = client(&a, quick()).call::<_, ()>(b.local_addr(), "lost", &(), options).await;
    assert_eq!(failed.unwrap_err().code, Code::Unknown);
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}
