//! What handlers send back beside their responses.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use octopii_rpc::{
    CallOptions, Client, ClientOptions, Code, Context, MAX_METADATA_ENTRIES, MetadataError, ResponseMetadata,
    ResponseStream, Router, ServerOptions, Status,
};
use octopii_transport::StreamKind;
use tokio::time::timeout;

use crate::{SOON, pair, serve};

octopii_rpc::service! {
    mod shop = "shop" {
        fn price(name: String) -> u64;
        fn count(n: u64) -> stream u64;
    }
}

struct Shop;

impl shop::Service for Shop {
    async fn price(&self, context: Context, name: String) -> Result<u64, Status> {
        context.respond_with("served-by", "node 7").unwrap();
        context.respond_with("currency", vec![0xff, 0]).unwrap();
        if name.is_empty() { Err(Status::new(Code::NotFound, "no name")) } else { Ok(name.len() as u64) }
    }

    async fn count(&self, context: Context, n: u64) -> Result<ResponseStream<u64>, Status> {
        context.respond_with("leading", "1").unwrap();
        let trailing = stream::once(async move {
            context.respond_with("trailing", n.to_string()).unwrap();
        });
        // Nothing comes of the last one but its metadata.
        Ok(stream::iter((0..n).map(Ok)).chain(trailing.filter_map(async |()| None)).boxed())
    }
}

fn shop_and_more(router: &mut Router) {
    shop::register(router, Shop);
    router.register("later", |context: Context, (): ()| async move {
        tokio::task::yield_now().await;
        context.respond_with("served-by", "a task").map_err(|e| Status::new(Code::Internal, e.to_string()))
    });
    router.register("never", |context: Context, (): ()| async move {
        context.respond_with("so_far", "begun").map_err(|e| Status::new(Code::Internal, e.to_string()))?;
        std::future::pending::<Result<(), Status>>().await
    });
    router.register("large", |context: Context, size: usize| async move {
        context.respond_with("size", size.to_string()).unwrap();
        Ok("x".repeat(size))
    });
    router.register("too_much", |context: Context, (): ()| async move {
        for _ in 0..MAX_METADATA_ENTRIES {
            context.respond_with("n", "1").unwrap();
        }
        let refused = [context.respond_with("n", "1"), context.respond_with("No", "1")];
        assert!(matches!(refused, [Err(MetadataError::TooMuch), Err(MetadataError::Name(_))]));
        Ok(())
    });
}

#[tokio::test]
async fn it_comes_beside_answers_and_failures_on_lanes_and_streams() {
    let (a, b) = pair();
    let options = ServerOptions { max_deadline: Duration::from_millis(300), ..ServerOptions::default() };
    let _server = serve(&b, options, shop_and_more);
    for lanes in [true, false] {
        let options = ClientOptions { lanes, ..ClientOptions::default() };
        let client = Client::with_options(&a, StreamKind::Rpc, options);
        let (to, received) = (b.local_addr(), ResponseMetadata::new());
        let options = || CallOptions::new(SOON).response_metadata(&received);
        let shop = shop::Client::new(&client, to, options());
        assert_eq!(shop.price("shirt".into()).await.unwrap(), 5);
        let told = received.get();
        assert_eq!(told.get_str("served-by"), Some("node 7"));
        assert_eq!(told.get("currency"), Some(&Bytes::from_static(&[0xff, 0])));
        assert_eq!(shop.price(String::new()).await.unwrap_err().code, Code::NotFound);
        assert_eq!(received.get(), told, "a failure has it as well, and only its own");
        client.call::<_, ()>(to, "later", &(), options()).await.unwrap();
        assert_eq!(received.get().iter().count(), 1);
        // The server has no more patience than this, whatever the caller grants.
        let status = client.call::<_, ()>(to, "never", &(), options()).await.unwrap_err();
        assert_eq!((status.code, received.get().get_str("so_far")), (Code::DeadlineExceeded, Some("begun")));
        for size in [10, 5000, 100_000] {
            let body: String = client.call(to, "large", &size, options()).await.unwrap();
            assert_eq!((body.len(), received.get().get_str("size")), (size, Some(&*size.to_string())));
        }
        client.call::<_, ()>(to, "too_much", &(), options()).await.unwrap();
        assert_eq!(received.get().get_all("n").count(), MAX_METADATA_ENTRIES);
        // Who does not ask is told nothing, and hears the answer.
        client.call::<_, ()>(to, "later", &(), SOON).await.unwrap();
        // A call that sends none clears what was there.
        let status = client.call::<_, ()>(to, "none", &(), options()).await.unwrap_err();
        assert_eq!((status.code, received.get().is_empty()), (Code::Unimplemented, true));
    }
}

#[tokio::test]
async fn streams_have_it_ahead_of_what_it_belongs_to() {
    let (a, b) = pair();
    let _server = serve(&b, ServerOptions::default(), shop_and_more);
    let (client, received) = (Client::new(&a, StreamKind::Rpc), ResponseMetadata::new());
    let options = CallOptions::new(SOON).response_metadata(&received);
    let mut counted = shop::Client::new(&client, b.local_addr(), options).count(3).await.unwrap();
    for n in 0..3 {
        assert_eq!(counted.next().await.unwrap().unwrap(), n);
        assert_eq!(received.get().get_str("leading"), Some("1"));
        assert_eq!(received.get().get("trailing"), None);
    }
    assert!(counted.next().await.is_none());
    assert_eq!(received.get().get_str("trailing"), Some("3"));
}

/// A server that goes by no bounds.
#[tokio::test]
async fn more_than_may_come_fails_the_call_that_wants_it() {
    for lanes in [true, false] {
        let (a, b) = pair();
        let mut acceptor = b.acceptor(StreamKind::Rpc).unwrap();
        let options = ClientOptions { lanes, ..ClientOptions::default() };
        let client = Client::with_options(&a, StreamKind::Rpc, options);
        let mut lane = None;
        for (extras, wanted, ends) in [
            (b"\x02\x02\0\x01n".repeat(65), true, Err(Code::Unknown)),
            (b"\x02\x02\0\x01n".repeat(65), false, Ok(())),
            (vec![2, 200, 0, 1], true, Err(Code::Unknown)),
            (b"\x02\x02\0\x01n".to_vec(), true, Ok(())),
        ] {
            let (client, to, received) = (client.clone(), b.local_addr(), ResponseMetadata::new());
            let kept = received.clone();
            let calling = tokio::spawn(async move {
                let mut options = CallOptions::new(SOON);
                options.response_metadata = wanted.then_some(kept);
                client.call_raw(to, "x", Bytes::new(), options).await
            });
            let mut incoming = match lane.take() {
                Some(lane) => lane,
                None => timeout(SOON, acceptor.accept()).await.unwrap().unwrap(),
            };
            // On a lane each frame begins with the call's number, and the call must have come before it is answered.
            let mut head = Vec::new();
            while lanes && head.is_empty() {
                match timeout(SOON, incoming.recv.read_frame(1000)).await.unwrap().unwrap() {
                    Some(call) if call.len() > 5 => head.extend_from_slice(&call[1..5]),
                    Some(_opening) => {}
                    None => incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap(),
                }
            }
            incoming.send.write_frame(&[&head[..], &[253], &extras].concat()).await.unwrap();
            incoming.send.write_frame(&[&head[..], &[0]].concat()).await.unwrap();
            if lanes {
                lane = Some(incoming);
            } else {
                incoming.send.finish().unwrap();
            }
            assert_eq!(calling.await.unwrap().map(drop).map_err(|e| e.code), ends, "lanes: {lanes}");
            assert!(received.get().iter().count() <= MAX_METADATA_ENTRIES);
        }
    }
}
