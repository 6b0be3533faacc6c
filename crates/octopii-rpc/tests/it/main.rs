//! Calls and messages between real endpoints on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and run on their own runtime"
)]

mod calls;
mod messages;

use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor, Limits};
use tokio::runtime::Handle;

/// Two endpoints of one cluster: node 1 and node 2.
fn pair() -> (Endpoint, Endpoint) {
    pair_with(Limits::default(), Limits::default())
}

/// The same, with limits for each.
fn pair_with(first: Limits, second: Limits) -> (Endpoint, Endpoint) {
    let authority = ClusterAuthority::generate().unwrap();
    let executor = Executor::new(Handle::current());
    let bind = |node, limits| {
        let options = EndpointOptions { limits, ..EndpointOptions::default() };
        Endpoint::bind(&executor, &authority.issue(node).unwrap(), options).unwrap()
    };
    (bind(1, first), bind(2, second))
}
