//! Calls and messages between real endpoints on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and run on their own runtime"
)]

mod calls;
mod messages;

use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use tokio::runtime::Handle;

/// Two endpoints of one cluster: node 1 and node 2.
fn pair() -> (Endpoint, Endpoint) {
    let authority = ClusterAuthority::generate().unwrap();
    let executor = Executor::new(Handle::current());
    let bind = |node| {
        Endpoint::bind(&executor, &authority.issue(node).unwrap(), EndpointOptions::default()).unwrap()
    };
    (bind(1), bind(2))
}
