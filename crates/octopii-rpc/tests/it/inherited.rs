//! What travels with a call, and on to the calls that its handler makes.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use octopii_rpc::{
    CallOptions, Cancellation, Client, Code, Context, Metadata, Server, ServerOptions, Status, TraceContext,
};
use octopii_transport::{Endpoint, Limits, StreamKind};

use crate::{SOON, endpoints, serve, until};

/// Node 2 answers "outer" by asking node 3 for "inner", in the given time.
fn chain(b: &Endpoint, c: &Endpoint, inner: Duration, spawned: bool) -> Server {
    let (client, to) = (Client::new(b, StreamKind::Rpc), c.local_addr());
    serve(b, ServerOptions::default(), |router| {
        router.register("outer", move |context: Context, (): ()| {
            let client = client.clone();
            async move {
                let call = async move { client.call::<_, String>(to, "inner", &(), inner).await };
                if spawned {
                    tokio::spawn(async move { context.scope(call).await }).await.unwrap()
                } else {
                    call.await
                }
            }
        });
    })
}

#[tokio::test]
async fn metadata_reaches_the_handler_and_no_further() {
    let [a, b, c] = endpoints([Limits::default(), Limits::default(), Limits::default()]);
    let _c = serve(&c, ServerOptions::default(), |router| {
        router.register("inner", |context: Context, (): ()| async move {
            Ok(context.metadata.get_str("tenant").unwrap_or("none").to_owned())
        });
    });
    let _b = chain(&b, &c, SOON, false);
    let client = Client::new(&a, StreamKind::Rpc);
    let mut metadata = Metadata::new();
    metadata.insert("tenant", "acme").unwrap();
    let options = CallOptions::new(SOON).metadata(metadata);
    let direct: String = client.call(c.local_addr(), "inner", &(), options.clone()).await.unwrap();
    assert_eq!(direct, "acme");
    let nested: String = client.call(b.local_addr(), "outer", &(), options).await.unwrap();
    assert_eq!(nested, "none");
}

#[tokio::test]
async fn a_trace_goes_on_with_a_span_of_its_own() {
    for spawned in [false, true] {
        let [a, b, c] = endpoints([Limits::default(), Limits::default(), Limits::default()]);
        let _c = serve(&c, ServerOptions::default(), |router| {
            router.register("inner", |context: Context, (): ()| async move {
                Ok(context.trace.map(|trace| trace.to_string()).unwrap_or_default())
            });
        });
        let _b = chain(&b, &c, SOON, spawned);
        let client = Client::new(&a, StreamKind::Rpc);
        let trace = TraceContext::begin(true);
        let options = CallOptions::new(SOON).trace(trace);
        let nested: String = client.call(b.local_addr(), "outer", &(), options).await.unwrap();
        let nested: TraceContext = nested.parse().unwrap();
        assert_eq!((nested.trace_id(), nested.is_sampled()), (trace.trace_id(), true));
        assert_ne!(nested.span_id(), trace.span_id());
        // Without a trace there is none.
        let none: String = client.call(b.local_addr(), "outer", &(), SOON).await.unwrap();
        assert_eq!(none, "");
    }
}

#[tokio::test]
async fn a_deadline_is_inherited_and_only_ever_shortened() {
    for spawned in [false, true] {
        let [a, b, c] = endpoints([Limits::default(), Limits::default(), Limits::default()]);
        let _c = serve(&c, ServerOptions::default(), |router| {
            router.register("inner", |context: Context, (): ()| async move {
                Ok(context.time_left().as_millis().to_string())
            });
        });
        let left = async |outer: Duration, inner: Duration| {
            let server = chain(&b, &c, inner, spawned);
            let client = Client::new(&a, StreamKind::Rpc);
            let left: String = client.call(b.local_addr(), "outer", &(), outer).await.unwrap();
            (left.parse::<u128>().unwrap(), server)
        };
        // Less than its own hour: no more than what the outer call had.
        let (ms, _server) = left(SOON, Duration::from_secs(3600)).await;
        assert!(ms <= SOON.as_millis(), "{ms} ms");
    }
    let [a, b] = endpoints([Limits::default(), Limits::default()]);
    let _b = serve(&b, ServerOptions::default(), |router| {
        router.register("left", |context: Context, (): ()| async move {
            Ok(context.time_left().as_millis().to_string())
        });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let own: String = client.call(b.local_addr(), "left", &(), Duration::from_secs(60)).await.unwrap();
    let own: u128 = own.parse().unwrap();
    assert!((30_000..=60_000).contains(&own), "{own} ms of a minute");
}

#[tokio::test]
async fn work_elsewhere_learns_that_nobody_waits() {
    let [a, b] = endpoints([Limits::default(), Limits::default()]);
    let seen: Arc<Mutex<Vec<Cancellation>>> = Arc::default();
    let _b = serve(&b, ServerOptions::default(), |router| {
        let seen = Arc::clone(&seen);
        router.register("wait", move |context: Context, forever: bool| {
            seen.lock().unwrap().push(context.cancellation.clone());
            async move {
                if forever {
                    std::future::pending::<()>().await;
                }
                assert!(!context.cancellation.is_cancelled());
                Ok::<_, Status>(())
            }
        });
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let to = b.local_addr();
    client.call::<_, ()>(to, "wait", &false, SOON).await.unwrap();
    let limit = Duration::from_millis(200);
    let status = client.call::<_, ()>(to, "wait", &true, limit).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded);
    until(|| seen.lock().unwrap().len() == 2).await;
    let seen = seen.lock().unwrap().clone();
    for cancellation in seen {
        tokio::time::timeout(SOON, cancellation.cancelled()).await.expect("the call has ended");
        assert!(cancellation.is_cancelled());
    }
}
