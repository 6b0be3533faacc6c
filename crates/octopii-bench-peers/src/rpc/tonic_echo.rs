//! tonic: HTTP/2 over mutual TLS, bodies as raw bytes (no protobuf), windows as large as Octopii's.

use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use octopii_bench::Outcome;
use tokio::runtime::Handle;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::{Load, Sample, certificate};

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

pub(crate) async fn echo(load: Load, server: Handle) -> Outcome<Sample> {
    let ours = certificate::make()?;
    let identity = Identity::from_pem(&ours.certificate, &ours.key);
    let trusted = Certificate::from_pem(&ours.certificate);
    let incoming = {
        let _entered = server.enter();
        TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true))
    };
    let addr = incoming.local_addr()?;
    let tls = ServerTlsConfig::new().identity(identity.clone()).client_ca_root(trusted.clone());
    let serving = Server::builder()
        .tls_config(tls)?
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(Echo);
    let serving = server.spawn(async move { serving.serve_with_incoming(incoming).await });
    let tls = ClientTlsConfig::new().identity(identity).ca_certificate(trusted).domain_name("localhost");
    let channel = Endpoint::from_shared(format!("https://{addr}"))?
        .tls_config(tls)?
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect()
        .await?;
    let body = load.body();
    let taken = load
        .drive(channel, move |channel: Channel| {
            let body = body.clone();
            async move {
                let mut grpc = tonic::client::Grpc::new(channel);
                grpc.ready().await?;
                let path = http::uri::PathAndQuery::from_static("/echo.Echo/Echo");
                grpc.unary(Request::new(body), path, Raw).await?;
                Ok(())
            }
        })
        .await;
    serving.abort();
    taken
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "echo.Echo";
}

impl Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(Echoing, request).await) })
    }
}

struct Echoing;

impl UnaryService<Bytes> for Echoing {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}

/// Bytes as they are.
#[derive(Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
