//! Calls and messages between real endpoints on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and run on their own runtime"
)]

mod bad_network;
mod calls;
mod hostile;
mod inherited;
mod lanes;
mod messages;
mod response_metadata;
mod retry;
mod services;
mod shutdown;
mod streams;

use std::time::Duration;

use octopii_rpc::{Router, Server, ServerOptions, Shape};
use octopii_transport::{
    ClusterAuthority, Endpoint, EndpointOptions, Executor, Limits, RecvStream, SendStream, StreamKind,
};
use tokio::runtime::Handle;

/// Far longer than anything takes, even on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Two endpoints of one cluster: node 1 and node 2.
fn pair() -> (Endpoint, Endpoint) {
    pair_with(Limits::default(), Limits::default())
}

/// The same, with limits for each.
fn pair_with(first: Limits, second: Limits) -> (Endpoint, Endpoint) {
    let [a, b] = endpoints([first, second]);
    (a, b)
}

/// Endpoints of one cluster: node 1 and so on.
fn endpoints<const N: usize>(limits: [Limits; N]) -> [Endpoint; N] {
    let authority = ClusterAuthority::generate().unwrap();
    let executor = Executor::new(Handle::current());
    let mut node = 0;
    limits.map(|limits| {
        node += 1;
        let options = EndpointOptions { limits, ..EndpointOptions::default() };
        Endpoint::bind(&executor, &authority.issue(node).unwrap(), options).unwrap()
    })
}

fn serve(endpoint: &Endpoint, options: ServerOptions, build: impl FnOnce(&mut Router)) -> Server {
    let mut router = Router::new();
    build(&mut router);
    Server::spawn(endpoint, StreamKind::Rpc, router, options).unwrap()
}

/// Waits until something has happened.
async fn until(condition: impl Fn() -> bool) {
    tokio::time::timeout(SOON, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("did not happen");
}

/// The head of a request as the wire knows it, with the body behind it.
fn request(shape: Shape, method: &str, deadline_ms: u32, body: &[u8]) -> Vec<u8> {
    let shape = u8::from(shape.streams_responses()) + 2 * u8::from(shape.streams_requests());
    let mut request = vec![1, shape, 0, method.len() as u8];
    request.extend_from_slice(method.as_bytes());
    request.extend_from_slice(&deadline_ms.to_le_bytes());
    request.extend_from_slice(&[0, 0]);
    request.extend_from_slice(body);
    request
}

/// Begins a call without a client that keeps time or reads the answer.
async fn begin_call(
    from: &Endpoint,
    to: &Endpoint,
    shape: Shape,
    method: &str,
    deadline_ms: u32,
) -> (SendStream, RecvStream) {
    let (mut send, recv) = from.connect(to.local_addr()).await.unwrap().open(StreamKind::Rpc).await.unwrap();
    send.write_frame(&request(shape, method, deadline_ms, b"")).await.unwrap();
    if !shape.streams_requests() {
        send.finish().unwrap();
    }
    (send, recv)
}
