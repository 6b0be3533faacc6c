//! What one peer can make an endpoint hold, seen from the wire: a bare quinn client speaks to it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use octopii_transport::{
    ClusterAuthority, ConnectError, Endpoint, EndpointOptions, Identity, Limits, StreamError, StreamKind,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{endpoint, endpoint_with};

const SOON: Duration = Duration::from_secs(5);

/// A member's certificates and key, as TLS takes them: node, authority, key.
fn parts(identity: &Identity) -> (CertificateDer<'static>, rustls::RootCertStore, PrivateKeyDer<'static>) {
    let pem = identity.to_pem();
    let mut found = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap);
    let node = found.next().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(found.next().unwrap()).unwrap();
    (node, roots, PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A member that speaks QUIC as it likes.
pub(crate) fn bare_client(identity: &Identity) -> quinn::Endpoint {
    let (node, roots, key) = parts(identity);
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![node], key)
        .unwrap();
    tls.alpn_protocols = vec![b"octopii/1".to_vec()];
    let mut client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    client.set_default_client_config(quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(tls).unwrap(),
    )));
    client
}

pub(crate) async fn dial(
    client: &quinn::Endpoint,
    to: SocketAddr,
    authority: &ClusterAuthority,
) -> quinn::Connection {
    client.connect(to, &format!("{}.octopii.internal", authority.cluster())).unwrap().await.unwrap()
}

fn limited(authority: &ClusterAuthority, limits: Limits) -> Endpoint {
    endpoint_with(authority, 1, EndpointOptions { limits, ..EndpointOptions::default() })
}

#[tokio::test]
async fn the_accepting_side_says_welcome_with_the_byte_1_and_its_instance() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let client = bare_client(&authority.issue(2).unwrap());
    let connection = dial(&client, a.local_addr(), &authority).await;
    let mut welcome = connection.accept_uni().await.unwrap();
    let said = welcome.read_to_end(10).await.unwrap();
    assert_eq!((said.len(), said[0]), (9, 1));
    let again = dial(&client, a.local_addr(), &authority).await;
    assert_eq!(again.accept_uni().await.unwrap().read_to_end(10).await.unwrap(), said);
    // No more than the one stream by which a dialler says hello.
    let _first = connection.open_uni().await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(100), connection.open_uni()).await;
    assert!(second.is_err(), "a second unidirectional stream could be opened");
}

#[tokio::test]
async fn another_welcome_is_another_wire_version() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let (node, roots, key) = parts(&authority.issue(2).unwrap());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![node], key)
        .unwrap();
    tls.alpn_protocols = vec![b"octopii/1".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let server = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let to = server.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let mut welcome = connection.open_uni().await.unwrap();
        welcome.write_all(&[2]).await.unwrap();
        connection.closed().await;
    });
    let error = a.connect(to).await.unwrap_err();
    assert!(matches!(error, ConnectError::WireVersion(at) if at == to), "{error}");
    answering.await.unwrap();
}

#[tokio::test]
async fn a_stream_that_does_not_tell_its_kind_is_turned_away() {
    let authority = ClusterAuthority::generate().unwrap();
    let limits = Limits { stream_header_timeout: Duration::from_millis(200), ..Limits::default() };
    let a = limited(&authority, limits);
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    let client = bare_client(&authority.issue(2).unwrap());
    let connection = dial(&client, a.local_addr(), &authority).await;
    // The second stream makes the first one known, on which nothing is ever sent.
    let (_silent, mut answer) = connection.open_bi().await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[StreamKind::Rpc as u8]).await.unwrap();
    assert!(acceptor.accept().await.is_some());
    let error =
        tokio::time::timeout(SOON, answer.read_to_end(10)).await.expect("waits for ever").unwrap_err();
    assert!(
        matches!(&error, quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) if *code == 1u32.into())
    );
}

#[tokio::test]
async fn streams_beyond_the_accept_queue_are_turned_away() {
    let authority = ClusterAuthority::generate().unwrap();
    let limits =
        Limits { accept_queue: 2, stream_header_timeout: Duration::from_millis(200), ..Limits::default() };
    let (a, b) = (limited(&authority, limits), endpoint(&authority, 2));
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    let connection = b.connect(a.local_addr()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(connection.open(StreamKind::Rpc).await.unwrap());
    }
    let mut refused = 0;
    for (_send, recv) in &mut streams {
        if let Ok(result) = tokio::time::timeout(Duration::from_millis(600), recv.read_frame(10)).await {
            assert_eq!(result, Err(StreamError::Reset(1)));
            refused += 1;
        }
    }
    assert_eq!(refused, 3);
    for _ in 0..2 {
        assert!(acceptor.accept().await.is_some());
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_and_a_freed_place_is_given_away() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = limited(&authority, Limits { connections: 2, ..Limits::default() });
    let peers: Vec<_> = (2..5).map(|node| endpoint(&authority, node)).collect();
    let first = peers[0].connect(a.local_addr()).await.unwrap();
    peers[1].connect(a.local_addr()).await.unwrap();
    let error = peers[2].connect(a.local_addr()).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("too many connections"), "{error}");
    first.close("makes room");
    while peers[2].connect(a.local_addr()).await.is_err() {}
}

/// Open until dropped: diallers that are never answered go on asking, and would take every place that comes free.
struct Way(Arc<AtomicBool>);

impl Way {
    fn open() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Passes datagrams on to `to`, but of the answers at most the retry packet: whoever dials through it can prove the address
/// if that is passed on, and never ends the handshake. It dials from 127.0.0.`host`.
fn one_way(to: SocketAddr, host: u8, pass_retry: bool, way: &Way) -> SocketAddr {
    let is_open = Arc::clone(&way.0);
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    let back = UdpSocket::bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
    let at = front.local_addr().unwrap();
    std::thread::spawn(move || {
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        }
        let mut dialler = None;
        let mut buf = [0; 2048];
        while is_open.load(Ordering::Relaxed) {
            if let Ok((len, from)) = front.recv_from(&mut buf) {
                dialler = Some(from);
                back.send_to(&buf[..len], to).unwrap();
            }
            if let (Ok((len, _)), Some(dialler)) = (back.recv_from(&mut buf), dialler)
                && pass_retry
                && buf[0] & 0xf0 == 0xf0
            {
                front.send_to(&buf[..len], dialler).unwrap();
            }
        }
    });
    at
}

#[tokio::test]
async fn half_open_handshakes_are_capped_and_time_out() {
    let authority = ClusterAuthority::generate().unwrap();
    // Long enough for a busy machine to get all of them under way before the first is given up.
    let limits = Limits { handshakes: 4, handshake_timeout: Duration::from_secs(4), ..Limits::default() };
    let a = limited(&authority, limits);
    let client = bare_client(&authority.issue(2).unwrap());
    let name = format!("{}.octopii.internal", authority.cluster());
    let way = Way::open();
    // From several addresses: one alone would get no more than its share.
    let stalled: Vec<_> = (0..8)
        .map(|i| client.connect(one_way(a.local_addr(), 2 + i % 4, true, &way), &name).unwrap())
        .collect();
    // All four places are taken; four more attempts are not.
    tokio::time::timeout(SOON, async {
        while a.open_connections() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the attempts arrive");
    let b = endpoint(&authority, 3);
    let error = b.connect(a.local_addr()).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Refused { .. }), "{error}");
    assert_eq!(a.open_connections(), 4);
    // The stalled ones are given up, and their places serve others.
    drop(way);
    tokio::time::timeout(4 * SOON, async { while b.connect(a.local_addr()).await.is_err() {} })
        .await
        .expect("the places come free");
    drop(stalled);
}

/// Addresses can be forged: those that are not proven get a quarter of the places, and the rest is for real peers.
#[tokio::test]
async fn unproven_addresses_leave_room_for_real_peers() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = limited(&authority, Limits { handshakes: 4, ..Limits::default() });
    let client = bare_client(&authority.issue(2).unwrap());
    let name = format!("{}.octopii.internal", authority.cluster());
    let way = Way::open();
    let stalled: Vec<_> =
        (0..8).map(|_| client.connect(one_way(a.local_addr(), 1, false, &way), &name).unwrap()).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(a.open_connections(), 1);
    endpoint(&authority, 3).connect(a.local_addr()).await.unwrap();
    drop(stalled);
}

/// Someone with one real address holds all the places that he can get.
#[tokio::test]
async fn one_address_leaves_room_for_others() {
    let authority = ClusterAuthority::generate().unwrap();
    let limits = Limits { handshakes: 8, handshake_timeout: Duration::from_secs(60), ..Limits::default() };
    let a = limited(&authority, limits);
    let client = bare_client(&authority.issue(2).unwrap());
    let name = format!("{}.octopii.internal", authority.cluster());
    let way = Way::open();
    let stalled: Vec<_> =
        (0..16).map(|_| client.connect(one_way(a.local_addr(), 2, true, &way), &name).unwrap()).collect();
    // Two before it has to prove its address, then a quarter of all.
    tokio::time::timeout(4 * SOON, async {
        while a.open_connections() < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the attempts arrive");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(a.open_connections(), 4);
    endpoint(&authority, 3).connect(a.local_addr()).await.unwrap();
    drop(stalled);
}
