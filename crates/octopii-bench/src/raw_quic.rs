//! quinn by itself, with mutual TLS and the transport's settings: the reference for what runs on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::PrivatePkcs8KeyDer;

use octopii_bench::Outcome;

/// Two endpoints on loopback, and a connection from the first to the second.
pub(crate) struct Pair {
    pub(crate) client: quinn::Connection,
    pub(crate) server: quinn::Connection,
    // Close with the pair.
    _endpoints: (quinn::Endpoint, quinn::Endpoint),
}

/// As the transport on loopback.
const MTU: u16 = 6500;

/// The accepting side runs on `server`, the other on the current runtime.
pub(crate) async fn pair(server_side: &tokio::runtime::Handle) -> Outcome<Pair> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let certificate = rcgen::CertificateParams::new(["localhost".to_owned()])?.self_signed(&key)?;
    let private = || PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let chain = vec![certificate.der().clone()];
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots.clone()),
        Arc::clone(&provider),
    )
    .build()?;
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), private())?;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, private())?;

    let limits = octopii_transport::Limits::default();
    let mut transport = quinn::TransportConfig::default();
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(MTU);
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(10u32.into());
    let mut congestion = quinn::congestion::CubicConfig::default();
    congestion.initial_window(10 * u64::from(MTU));
    transport
        .max_concurrent_bidi_streams(1024u32.into())
        .stream_receive_window(limits.stream_window.into())
        .receive_window(limits.connection_window.into())
        .send_window(limits.send_window)
        .send_fairness(false)
        .mtu_discovery_config(Some(discovery))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(congestion))
        .initial_rtt(Duration::from_millis(100));
    let transport = Arc::new(transport);
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    server.transport_config(Arc::clone(&transport));
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    client.transport_config(transport);

    let bind = |server| {
        let mut config = quinn::EndpointConfig::default();
        config.max_udp_payload_size(MTU)?;
        let socket = std::net::UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(quinn::Endpoint::new(
            config,
            server,
            socket,
            Arc::new(quinn::TokioRuntime),
        )?)
    };
    let from = bind(None)?;
    let to = {
        let _entered = server_side.enter();
        bind(Some(server))?
    };
    let connecting = from.connect_with(client, to.local_addr()?, "localhost")?;
    let accepting = async {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(
            to.accept().await.ok_or("the endpoint is open")?.await?,
        )
    };
    let (client, server) = tokio::join!(connecting, accepting);
    Ok(Pair { client: client?, server: server?, _endpoints: (from, to) })
}
