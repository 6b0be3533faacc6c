//! tarpc: bincode, frames with a length, `TCP_NODELAY`, bodies as bytes rather than numbers one by one.

use std::sync::Arc;

use futures_util::StreamExt;
use octopii_bench::Outcome;
use serde_bytes::ByteBuf;
use tarpc::serde_transport;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::tokio_util::codec::LengthDelimitedCodec;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, crypto, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Load, Sample, certificate, on};

#[tarpc::service]
trait Echo {
    async fn echo(body: ByteBuf) -> ByteBuf;
}

#[derive(Clone)]
struct Echoing;

impl Echo for Echoing {
    async fn echo(self, _: tarpc::context::Context, body: ByteBuf) -> ByteBuf {
        body
    }
}

pub(crate) async fn plain(load: Load, server: Handle) -> Outcome<Sample> {
    let listener = on(&server, TcpListener::bind("127.0.0.1:0")).await??;
    let addr = listener.local_addr()?;
    let serving = server.spawn(async move {
        if let Ok((stream, _)) = listener.accept().await
            && stream.set_nodelay(true).is_ok()
        {
            serve(stream).await;
        }
    });
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let taken = drive(load, stream).await;
    serving.abort();
    taken
}

pub(crate) async fn tls(load: Load, server: Handle) -> Outcome<Sample> {
    let ours = certificate::make()?;
    let chain = || vec![CertificateDer::from(ours.certificate_der.clone())];
    let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(ours.key_der.clone()));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ours.certificate_der.clone()))?;
    let provider = Arc::new(crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), Arc::clone(&provider))
            .build()?;
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(), key())?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = on(&server, TcpListener::bind("127.0.0.1:0")).await??;
    let addr = listener.local_addr()?;
    let serving = server.spawn(async move {
        if let Ok((stream, _)) = listener.accept().await
            && stream.set_nodelay(true).is_ok()
            && let Ok(stream) = acceptor.accept(stream).await
        {
            serve(stream).await;
        }
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain(), key())?;
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let stream =
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost")?, stream).await?;
    let taken = drive(load, stream).await;
    serving.abort();
    taken
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let framed = LengthDelimitedCodec::builder().new_framed(stream);
    BaseChannel::with_defaults(serde_transport::new(framed, Bincode::default()))
        .execute(Echoing.serve())
        .for_each(|response| async move {
            tokio::spawn(response);
        })
        .await;
}

async fn drive(load: Load, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Outcome<Sample> {
    let framed = LengthDelimitedCodec::builder().new_framed(stream);
    let transport = serde_transport::new(framed, Bincode::default());
    let client = EchoClient::new(tarpc::client::Config::default(), transport).spawn();
    let body = load.body();
    load.drive(client, move |client| {
        let body = ByteBuf::from(body.to_vec());
        async move { Ok(client.echo(tarpc::context::current(), body).await.map(|_| ())?) }
    })
    .await
}
