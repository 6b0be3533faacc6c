//! Services from one definition, behind layers, told to who asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use octopii_rpc::{
    Bincode, Call, CallOptions, Client, Code, Codec, Context, Encoding, METHODS, MethodInfo, Reply, Request,
    Requests, ResponseStream, Router, ServerOptions, Shape, Status,
};
use octopii_transport::StreamKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

use crate::{SOON, pair, serve};

/// What is sold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    name: String,
    price: Option<u64>,
}

octopii_rpc::service! {
    /// A shop.
    mod shop = "shop" {
        /// What an item costs.
        /// Nothing, if it is not sold.
        idempotent fn price(item: Item) -> Option<u64>;
        fn ping() -> ();
        fn add(a: u64, b: u64, label: String) -> String;
        /// Items, one after the other.
        fn list(most: u64) -> stream Item;
        fn fill(items: stream Item) -> u64;
        fn price_each(items: stream Item) -> stream u64;
    }
}

#[derive(Default)]
struct Shop {
    asked: AtomicU64,
}

impl shop::Service for Shop {
    async fn price(&self, context: Context, item: Item) -> Result<Option<u64>, Status> {
        // Fails once, to see that it is tried again.
        if self.asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(Status::new(Code::Unavailable, context.method));
        }
        Ok(item.price)
    }

    async fn ping(&self, _: Context) -> Result<(), Status> {
        Ok(())
    }

    async fn add(&self, _: Context, a: u64, b: u64, label: String) -> Result<String, Status> {
        Ok(format!("{label}: {}", a + b))
    }

    async fn list(&self, _: Context, most: u64) -> Result<ResponseStream<Item>, Status> {
        let item = |n| Ok(Item { name: format!("item {n}"), price: Some(n) });
        Ok(stream::iter((0..most).map(item)).boxed())
    }

    async fn fill(&self, _: Context, mut items: Requests<Item>) -> Result<u64, Status> {
        let mut sum = 0;
        while let Some(item) = items.next().await {
            sum += item?.price.unwrap_or(0);
        }
        Ok(sum)
    }

    async fn price_each(&self, _: Context, items: Requests<Item>) -> Result<ResponseStream<u64>, Status> {
        Ok(items.map(|item| Ok(item?.price.unwrap_or(0))).boxed())
    }
}

fn item(price: u64) -> Item {
    Item { name: "shirt".into(), price: Some(price) }
}

#[tokio::test]
async fn one_definition_serves_both_sides() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), |router| shop::register(router, Shop::default()));
    let shop = shop::Client::new(&Client::new(&a, StreamKind::Rpc), b.local_addr(), SOON);
    assert_eq!(shop.price(item(7)).await.unwrap(), Some(7), "an idempotent call is tried again");
    shop.ping().await.unwrap();
    assert_eq!(shop.add(1, 2, "sum".into()).await.unwrap(), "sum: 3");
    let listed: Vec<Item> = shop.list(3).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(listed.len(), 3);
    let mut filling = shop.fill().await.unwrap();
    filling.send(&item(3)).await.unwrap();
    filling.send(&item(4)).await.unwrap();
    assert_eq!(filling.finish().await.unwrap(), 7);
    let (mut items, mut prices) = shop.price_each().await.unwrap();
    items.send(&item(5)).await.unwrap();
    assert_eq!(prices.next().await.unwrap().unwrap(), 5);
    let impatient = shop.with_options(Duration::ZERO);
    assert_eq!(impatient.ping().await.unwrap_err().code, Code::DeadlineExceeded);
}

#[tokio::test]
async fn every_typed_method_takes_json() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), |router| {
        shop::register(router, Shop { asked: AtomicU64::new(1) });
        router.register_raw("raw", |_: Context, body: Bytes| async move { Ok(body) });
    });
    let (client, to) = (Client::new(&a, StreamKind::Rpc), b.local_addr());
    let options = CallOptions::new(SOON).encoding(Encoding::Json);
    for (method, request, response) in [
        ("shop.price", json!({ "name": "shirt", "price": 12 }), json!(12)),
        ("shop.ping", json!(null), json!(null)),
        ("shop.add", json!([1, 2, "sum"]), json!("sum: 3")),
    ] {
        let answer: Value = client.call(to, method, &request, options.clone()).await.unwrap();
        assert_eq!(answer, response, "{method}");
    }
    let mut listed =
        client.server_stream::<_, Value>(to, "shop.list", &json!(2), options.clone()).await.unwrap();
    assert_eq!(listed.next().await.unwrap().unwrap(), json!({ "name": "item 0", "price": 0 }));
    for (method, request) in [("shop.price", json!({ "name": 1 })), ("raw", json!("x"))] {
        let status = client.call::<_, Value>(to, method, &request, options.clone()).await.unwrap_err();
        assert_eq!(status.code, Code::InvalidArgument, "{status}");
    }
    let deep = Bytes::from("[".repeat(100_000));
    let status = client.call_raw(to, "shop.price", deep, options).await.unwrap_err();
    assert_eq!(status.code, Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn a_server_tells_what_it_offers() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), |router| {
        shop::register(router, Shop::default());
        router.register("sum", |_: Context, n: Vec<u64>| async move { Ok(n.iter().sum::<u64>()) });
        router.register_raw("raw", |_: Context, body: Bytes| async move { Ok(body) });
        router.with_reflection();
    });
    let client = Client::new(&a, StreamKind::Rpc);
    let methods: Vec<MethodInfo> = client.call(b.local_addr(), METHODS, &(), SOON).await.unwrap();
    let told: Vec<_> = methods.iter().map(|m| format!("{}{}", m.name, m.signature)).collect();
    assert_eq!(
        told,
        [
            "octopii.methods() -> Vec<MethodInfo>",
            "raw(bytes) -> bytes",
            "shop.add(a: u64, b: u64, label: String) -> String",
            "shop.fill(items: stream Item) -> u64",
            "shop.list(most: u64) -> stream Item",
            "shop.ping() -> ()",
            "shop.price(item: Item) -> Option<u64>",
            "shop.price_each(items: stream Item) -> stream u64",
            "sum(Vec<u64>) -> u64",
        ]
    );
    let as_json: Vec<_> = methods.iter().skip(1).map(MethodInfo::json_signature).collect();
    assert_eq!(
        as_json,
        [
            "raw(bytes) -> bytes",
            "shop.add(a: u64, b: u64, label: string) -> string",
            "shop.fill(items: stream Item) -> u64",
            "shop.list(most: u64) -> stream Item",
            "shop.ping() -> null",
            "shop.price(item: Item) -> u64 | null",
            "shop.price_each(items: stream Item) -> stream u64",
            "sum(u64[]) -> u64",
        ]
    );
    for of_items in [3, 4, 6, 7] {
        assert_eq!(methods[of_items].json_types(), ["Item = {name: string, price?: u64}"]);
    }
    // What tells of types is one itself.
    assert_eq!(methods[0].json_signature(), "octopii.methods() -> MethodInfo[]");
    let own = methods[0].json_types();
    assert!(
        own[0].contains("types: TypeInfo[]")
            && own[1].contains(r#"{"struct": {name: string, fields: FieldInfo[]}}"#),
        "{own:?}"
    );
    let price = &methods[6];
    assert_eq!(price.doc, "What an item costs.\nNothing, if it is not sold.");
    assert!(price.idempotent && price.json && !methods[1].json && !methods[5].idempotent);
    assert_eq!(methods[7].shape(), Shape::Bidirectional);
}

/// Lets only some callers through.
#[derive(Clone)]
struct OnlyNode(u64);

#[derive(Clone)]
struct Guarded<S>(u64, S);

impl<S> Layer<S> for OnlyNode {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded(self.0, inner)
    }
}

impl<S> Service<Request> for Guarded<S>
where
    S: Service<Request, Response = Reply, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Reply;
    type Error = Status;
    type Future = futures_util::future::BoxFuture<'static, Result<Reply, Status>>;

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        self.1.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        if request.context.peer.node_id == self.0 {
            self.1.call(request).boxed()
        } else {
            futures_util::future::ready(Err(Status::new(Code::PermissionDenied, "not you"))).boxed()
        }
    }
}

#[tokio::test]
async fn layers_see_every_call() {
    let [a, b, c] = crate::endpoints([(); 3].map(|()| octopii_transport::Limits::default()));
    let _server = serve(&c, ServerOptions::default(), |router: &mut Router| {
        shop::register(router, Shop { asked: AtomicU64::new(1) });
        router.register("slow", |_: Context, (): ()| std::future::pending::<Result<(), Status>>());
        // The outermost: its errors are boxes.
        router.layer(OnlyNode(1));
        router.layer(ServiceBuilder::new().timeout(Duration::from_millis(200)).concurrency_limit(100));
    });
    let (first, second) = (Client::new(&a, StreamKind::Rpc), Client::new(&b, StreamKind::Rpc));
    let to = c.local_addr();
    first.call::<_, ()>(to, "shop.ping", &(), SOON).await.unwrap();
    let listed = first.server_stream::<_, Item>(to, "shop.list", &3u64, SOON).await.unwrap();
    assert_eq!(listed.count().await, 3);
    let status = second.call::<_, ()>(to, "shop.ping", &(), SOON).await.unwrap_err();
    assert_eq!(status.code, Code::PermissionDenied);
    let mut listed = second.server_stream::<_, Item>(to, "shop.list", &3u64, SOON).await.unwrap();
    assert_eq!(listed.next().await.unwrap().unwrap_err().code, Code::PermissionDenied);
    let status = first.call::<_, ()>(to, "slow", &(), SOON).await.unwrap_err();
    assert_eq!(status.code, Code::Internal, "tower's timeout: {status}");
}

#[tokio::test]
async fn a_peer_is_a_service() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), |router| shop::register(router, Shop::default()));
    let calls = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&calls);
    let channel = ServiceBuilder::new()
        .map_request(move |call: Call| {
            counted.fetch_add(1, Ordering::SeqCst);
            call
        })
        .concurrency_limit(1)
        .service(Client::new(&a, StreamKind::Rpc).channel(b.local_addr()));
    let body = Bytes::from(Bincode::encode(&(1u64, 2u64, "sum")).unwrap());
    let call = Call { method: "shop.add".into(), body, options: SOON.into() };
    let answer = channel.oneshot(call).await.unwrap();
    assert_eq!(Bincode::decode::<String>(&answer).unwrap(), "sum: 3");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
