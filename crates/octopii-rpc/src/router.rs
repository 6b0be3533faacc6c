//! Handlers by method name.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use octopii_transport::PeerIdentity;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::{Bincode, Code, Codec, Status};

/// What a handler knows of a call besides its request.
#[derive(Debug, Clone)]
pub struct Context {
    /// Who calls, from the verified certificate.
    pub peer: PeerIdentity,
    /// Where the call came from.
    pub remote_addr: SocketAddr,
    /// When the caller stops waiting. Nested calls should not outlast it.
    pub deadline: Instant,
    /// The method's name.
    pub method: String,
}

type Reply = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;
type Handler = Arc<dyn Fn(Context, Bytes) -> Reply + Send + Sync>;

/// Handlers by method name. Registering a name again replaces its handler.
#[derive(Clone, Default)]
pub struct Router {
    handlers: BTreeMap<String, Handler>,
}

impl Router {
    /// A router without methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a typed handler: the request is decoded from bincode, the response encoded to it. A request that does
    /// not decode is answered with [`Code::InvalidArgument`] without calling the handler.
    ///
    /// The handler's future is dropped when the caller gives up or the deadline passes; a panic in it is answered with
    /// [`Code::Internal`].
    pub fn register<Req, Resp, F, Fut>(&mut self, method: impl Into<String>, handler: F) -> &mut Self
    where
        Req: DeserializeOwned + Send + 'static,
        Resp: Serialize + Send + 'static,
        F: Fn(Context, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Resp, Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.register_raw(method, move |context, body| {
            let handler = Arc::clone(&handler);
            async move {
                let request = Bincode::decode(&body)?;
                let response = handler(context, request).await?;
                let body =
                    Bincode::encode(&response).map_err(|e| Status::new(Code::Internal, e.to_string()))?;
                Ok(Bytes::from(body))
            }
        })
    }

    /// Registers a handler of raw bytes.
    pub fn register_raw<F, Fut>(&mut self, method: impl Into<String>, handler: F) -> &mut Self
    where
        F: Fn(Context, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Status>> + Send + 'static,
    {
        self.handlers.insert(method.into(), Arc::new(move |context, body| Box::pin(handler(context, body))));
        self
    }

    /// The registered names, sorted.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        self.handlers.keys().map(String::as_str)
    }

    pub(crate) fn handler(&self, method: &str) -> Result<&Handler, Status> {
        self.handlers
            .get(method)
            .ok_or_else(|| Status::new(Code::Unimplemented, format!("no method {method:?} here")))
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.methods()).finish()
    }
}
