//! `tower::Service` in and out: handlers behind layers, a peer as a service.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};

use bytes::Bytes;
use octopii_transport::Address;
use tower_layer::Layer;
use tower_service::Service;

use crate::router::{Handler, Replying};
use crate::{CallOptions, Client, Reply, Request, Router, Status};

/// A registered handler as a `tower::Service`: what a layer wraps.
#[derive(Clone)]
pub struct HandlerService {
    handler: Handler,
}

impl std::fmt::Debug for HandlerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HandlerService")
    }
}

impl Service<Request> for HandlerService {
    type Response = Reply;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        (self.handler)(request)
    }
}

impl Router {
    /// Wraps every handler registered so far in a layer: authorization, limits, timing. The last layer is the outermost.
    ///
    /// Calls of every shape pass through it; streams are polled as they go on after the reply. The service is cloned for
    /// each call, and waits until it is ready within the call's deadline. An error that is a [`Status`] in a box stays that.
    pub fn layer<L>(&mut self, layer: L) -> &mut Self
    where
        L: Layer<HandlerService>,
        L::Service: Service<Request, Response = Reply> + Clone + Send + 'static,
        <L::Service as Service<Request>>::Error: Into<Status>,
        <L::Service as Service<Request>>::Future: Send,
    {
        for method in self.handlers() {
            let service = layer.layer(HandlerService { handler: Arc::clone(method) });
            *method = layered(service);
        }
        self
    }
}

fn layered<S>(service: S) -> Handler
where
    S: Service<Request, Response = Reply> + Clone + Send + 'static,
    S::Error: Into<Status>,
    S::Future: Send,
{
    // Middleware need not be `Sync`.
    let service = Mutex::new(service);
    Arc::new(move |request| -> Replying {
        let mut service = service.lock().expect("no panic while held").clone();
        Box::pin(async move {
            std::future::poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
            service.call(request).await.map_err(Into::into)
        })
    })
}

/// A peer as a `tower::Service` of unary calls with raw bytes.
#[derive(Debug, Clone)]
pub struct Channel {
    client: Client,
    addr: Address,
}

/// A unary call for a [`Channel`].
#[derive(Debug, Clone)]
pub struct Call {
    /// The method's name.
    pub method: String,
    /// The request.
    pub body: Bytes,
    /// Deadline, metadata and so on.
    pub options: CallOptions,
}

impl Client {
    /// The peer at `addr` as a `tower::Service`.
    pub fn channel(&self, addr: impl Into<Address>) -> Channel {
        Channel { client: self.clone(), addr: addr.into() }
    }
}

impl Service<Call> for Channel {
    type Response = Bytes;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        // What bounds calls is the connection's limit of streams, which a call waits for itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Self { client, addr } = self.clone();
        Box::pin(async move { client.call_raw(addr, &call.method, call.body, call.options).await })
    }
}
