//! Handlers by method name.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::effort::Effort;
use crate::reflection::{Explored, brief_type_name};
use crate::{Body, Code, Context, Encoding, MethodInfo, Reply, Request, Requests, Shape, Status};

pub(crate) type Replying = Pin<Box<dyn Future<Output = Result<Reply, Status>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Request) -> Replying + Send + Sync>;

/// Handlers by method name. Registering a name again replaces its handler.
///
/// Typed handlers take [`Bincode`](crate::Bincode) or [`Json`](crate::Json), whichever the caller writes, and answer in the
/// same. A request that does not decode is answered with [`Code::InvalidArgument`] without calling the handler. A handler's
/// future, and the stream it returned, are dropped when the caller gives up or the deadline passes; a panic in either is
/// answered with [`Code::Internal`].
#[derive(Clone, Default)]
pub struct Router {
    methods: BTreeMap<String, Method>,
}

#[derive(Clone)]
pub(crate) struct Method {
    pub(crate) shape: Shape,
    pub(crate) handler: Handler,
    /// While it is seen to compute for long, it is not begun where others wait behind it.
    pub(crate) effort: Arc<Effort>,
    info: MethodInfo,
    explored: Explored,
}

impl Router {
    /// A router without methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a handler of one request and one response.
    pub fn register<Req, Resp, F, Fut>(&mut self, method: impl Into<String>, handler: F) -> &mut Self
    where
        Req: DeserializeOwned + Send + 'static,
        Resp: Serialize + Send + 'static,
        F: Fn(Context, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Resp, Status>> + Send + 'static,
    {
        self.typed::<Req, Resp, _, _, _, _>(method, Shape::Unary, whole, handler, whole_reply)
    }

    /// Registers a handler that answers one request with a stream of responses.
    ///
    /// The stream is polled as fast as the caller reads. Its end is the end of the call, an error in it the call's status.
    pub fn register_server_stream<Req, Resp, F, Fut, S>(
        &mut self,
        method: impl Into<String>,
        handler: F,
    ) -> &mut Self
    where
        Req: DeserializeOwned + Send + 'static,
        Resp: Serialize + Send + 'static,
        F: Fn(Context, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item = Result<Resp, Status>> + Send + 'static,
    {
        self.typed::<Req, Resp, _, _, _, _>(method, Shape::ServerStream, whole, handler, stream_reply)
    }

    /// Registers a handler that answers a stream of requests with one response. It may answer before it has read them all.
    pub fn register_client_stream<Req, Resp, F, Fut>(
        &mut self,
        method: impl Into<String>,
        handler: F,
    ) -> &mut Self
    where
        Req: DeserializeOwned + Send + 'static,
        Resp: Serialize + Send + 'static,
        F: Fn(Context, Requests<Req>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Resp, Status>> + Send + 'static,
    {
        self.typed::<Req, Resp, _, _, _, _>(method, Shape::ClientStream, streamed, handler, whole_reply)
    }

    /// Registers a handler that answers a stream of requests with a stream of responses, in any order.
    pub fn register_bidirectional<Req, Resp, F, Fut, S>(
        &mut self,
        method: impl Into<String>,
        handler: F,
    ) -> &mut Self
    where
        Req: DeserializeOwned + Send + 'static,
        Resp: Serialize + Send + 'static,
        F: Fn(Context, Requests<Req>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S, Status>> + Send + 'static,
        S: Stream<Item = Result<Resp, Status>> + Send + 'static,
    {
        self.typed::<Req, Resp, _, _, _, _>(method, Shape::Bidirectional, streamed, handler, stream_reply)
    }

    /// Registers a handler of raw bytes, one request and one response.
    pub fn register_raw<F, Fut>(&mut self, method: impl Into<String>, handler: F) -> &mut Self
    where
        F: Fn(Context, Bytes) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, Status>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.register_call(method, Shape::Unary, move |request| {
            let handler = Arc::clone(&handler);
            async move {
                let Request { context, body } = request;
                if context.encoding != Encoding::Native {
                    return Err(Status::new(
                        Code::InvalidArgument,
                        "this method takes raw bytes, not JSON: call it with what its service defines",
                    ));
                }
                match body {
                    Body::Whole(body) => Ok(Reply::Whole(handler(context, body).await?)),
                    Body::Stream(_) => Err(mismatch()),
                }
            }
        })
    }

    /// Registers a handler of raw bytes of any shape. Its bodies are in [`Context::encoding`], which it may refuse.
    pub fn register_call<F, Fut>(&mut self, method: impl Into<String>, shape: Shape, handler: F) -> &mut Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, Status>> + Send + 'static,
    {
        let name = method.into();
        let info = MethodInfo {
            name: name.clone(),
            streams_requests: shape.streams_requests(),
            streams_responses: shape.streams_responses(),
            signature: "(bytes) -> bytes".to_owned(),
            doc: String::new(),
            idempotent: false,
            json: false,
            arguments: Vec::new(),
            types: Vec::new(),
            request: None,
            response: None,
        };
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        self.methods.insert(
            name,
            Method { shape, handler, effort: Arc::default(), info, explored: Explored::default() },
        );
        self
    }

    /// Registers a handler of what `take` makes of a request; `give` makes a reply of what it returns.
    fn typed<Req, Resp, In, Out, F, Fut>(
        &mut self,
        method: impl Into<String>,
        shape: Shape,
        take: fn(Request) -> Result<(Context, In), Status>,
        handler: F,
        give: fn(Encoding, Out) -> Result<Reply, Status>,
    ) -> &mut Self
    where
        Req: DeserializeOwned,
        In: Send + 'static,
        Out: Send + 'static,
        F: Fn(Context, In) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Out, Status>> + Send + 'static,
    {
        let method = method.into();
        let handler = Arc::new(handler);
        self.register_call(method.clone(), shape, move |request| {
            let handler = Arc::clone(&handler);
            async move {
                let encoding = request.context.encoding;
                let (context, taken) = take(request)?;
                give(encoding, handler(context, taken).await?)
            }
        });
        if let Some(info) = self.info_mut(&method) {
            let stream = |streams| if streams { "stream " } else { "" };
            info.signature = format!(
                "({}{}) -> {}{}",
                stream(shape.streams_requests()),
                brief_type_name::<Req>(),
                stream(shape.streams_responses()),
                brief_type_name::<Resp>()
            );
            info.json = true;
        }
        if let Some(explored) = self.explored_mut(&method) {
            explored.takes::<Req>();
        }
        self
    }

    /// What is told of each method, and how its types are found out.
    pub(crate) fn described(&self) -> impl Iterator<Item = (MethodInfo, Explored)> {
        self.methods.values().map(|method| (method.info.clone(), method.explored))
    }

    pub(crate) fn info_mut(&mut self, method: &str) -> Option<&mut MethodInfo> {
        self.methods.get_mut(method).map(|method| &mut method.info)
    }

    pub(crate) fn explored_mut(&mut self, method: &str) -> Option<&mut Explored> {
        self.methods.get_mut(method).map(|method| &mut method.explored)
    }

    pub(crate) fn handlers(&mut self) -> impl Iterator<Item = &mut Handler> {
        self.methods.values_mut().map(|method| &mut method.handler)
    }

    /// The registered names, sorted.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.keys().map(String::as_str)
    }

    pub(crate) fn method(&self, name: &str, shape: Shape) -> Result<&Method, Status> {
        let method = self
            .methods
            .get(name)
            .ok_or_else(|| Status::new(Code::Unimplemented, format!("no method {:?} here", Brief(name))))?;
        if method.shape == shape {
            Ok(method)
        } else {
            Err(Status::new(
                Code::InvalidArgument,
                format!("{name:?} is a {:?} method and was called as {shape:?}", method.shape),
            ))
        }
    }
}

/// A name that somebody else chose, not too much of it.
struct Brief<'a>(&'a str);

impl std::fmt::Debug for Brief<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", &self.0[..self.0.floor_char_boundary(64)])
    }
}

fn mismatch() -> Status {
    Status::new(Code::Internal, "a middleware changed the shape of the request")
}

fn whole<Req: DeserializeOwned>(request: Request) -> Result<(Context, Req), Status> {
    match request.body {
        Body::Whole(body) => {
            let decoded = request.context.encoding.decode(&body)?;
            Ok((request.context, decoded))
        }
        Body::Stream(_) => Err(mismatch()),
    }
}

fn streamed<Req: DeserializeOwned>(request: Request) -> Result<(Context, Requests<Req>), Status> {
    match request.body {
        Body::Stream(stream) => {
            let requests = Requests::new(stream, request.context.encoding);
            Ok((request.context, requests))
        }
        Body::Whole(_) => Err(mismatch()),
    }
}

fn encode<Resp: Serialize>(encoding: Encoding, response: &Resp) -> Result<Bytes, Status> {
    encoding.encode(response).map_err(|e| Status::new(Code::Internal, e.to_string()))
}

fn whole_reply<Resp: Serialize>(encoding: Encoding, response: Resp) -> Result<Reply, Status> {
    Ok(Reply::Whole(encode(encoding, &response)?))
}

fn stream_reply<Resp, S>(encoding: Encoding, stream: S) -> Result<Reply, Status>
where
    Resp: Serialize,
    S: Stream<Item = Result<Resp, Status>> + Send + 'static,
{
    Ok(Reply::Stream(stream.map(move |item| encode(encoding, &item?)).boxed()))
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.methods()).finish()
    }
}
