//! Octopii: defaults, on its own transport.

use std::time::Duration;

use octopii_bench::Outcome;
use octopii_rpc::{Client, ClientOptions, Router, Server, ServerOptions, StreamKind};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use tokio::runtime::Handle;

use crate::{Load, Sample};

pub(crate) async fn echo(load: Load, server: Handle, lanes: bool) -> Outcome<Sample> {
    let authority = ClusterAuthority::generate()?;
    let bind = |node, handle| -> Outcome<Endpoint> {
        Ok(Endpoint::bind(&Executor::new(handle), &authority.issue(node)?, EndpointOptions::default())?)
    };
    let (a, b) = (bind(1, Handle::current())?, bind(2, server)?);
    let mut router = Router::new();
    router.register_raw("echo", |_, body| async move { Ok(body) });
    let _server = Server::spawn(&b, StreamKind::Rpc, router, ServerOptions::default())?;
    let options = ClientOptions { lanes, ..ClientOptions::default() };
    let (to, body) = (b.local_addr(), load.body());
    load.drive(Client::with_options(&a, StreamKind::Rpc, options), move |client| {
        let body = body.clone();
        async move { Ok(client.call_raw(to, "echo", body, Duration::from_secs(10)).await.map(|_| ())?) }
    })
    .await
}
