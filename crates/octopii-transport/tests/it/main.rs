//! The transport against real sockets on loopback: who gets in, who does not, and what reaches whom.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and run on their own runtime"
)]

mod budgets;
mod executor;
mod external;
mod hostile;
mod joining;
mod keeping;
mod limits;
mod links;
mod names;
mod pool;
mod revoking;
mod streams;
mod succession;

use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use tokio::runtime::Handle;

fn endpoint(authority: &ClusterAuthority, node: u64) -> Endpoint {
    endpoint_with(authority, node, EndpointOptions::default())
}

fn endpoint_with(authority: &ClusterAuthority, node: u64, options: EndpointOptions) -> Endpoint {
    Endpoint::bind(&Executor::new(Handle::current()), &authority.issue(node).unwrap(), options).unwrap()
}
