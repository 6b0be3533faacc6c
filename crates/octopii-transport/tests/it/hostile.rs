//! Strangers get nothing, and lengths from the network are not trusted with memory.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use octopii_transport::{ClusterAuthority, EndpointOptions, Limits, StreamError, StreamKind};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::{endpoint, endpoint_with};

#[tokio::test]
async fn a_node_of_another_cluster_gets_no_stream() {
    let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
    let (a, stranger) = (endpoint(&ours, 1), endpoint(&theirs, 1));
    let mut acceptors: Vec<_> = StreamKind::ALL.iter().map(|k| a.acceptor(*k).unwrap()).collect();

    // The stranger refuses us ...
    let error = a.connect(stranger.local_addr()).await.unwrap_err();
    assert!(error.to_string().contains("not a member of this cluster"), "{error}");
    // ... and is refused by us.
    let error = stranger.connect(a.local_addr()).await.unwrap_err();
    assert!(error.to_string().contains("not a member of this cluster"), "{error}");
    for acceptor in &mut acceptors {
        let nothing = tokio::time::timeout(Duration::from_millis(50), acceptor.accept()).await;
        assert!(nothing.is_err(), "a stranger's stream was delivered");
    }
    // A closed connection lingers for a few round trips, to answer late packets.
    while a.open_connections() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Knows the cluster's authority, which is no secret, but has no certificate of its own.
#[tokio::test]
async fn a_client_without_a_certificate_gets_no_stream() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let mut acceptors: Vec<_> = StreamKind::ALL.iter().map(|k| a.acceptor(*k).unwrap()).collect();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.to_pem().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let mut tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    tls.alpn_protocols = vec![b"octopii/1".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let client = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let name = format!("{}.octopii.internal", authority.cluster());
    let connection = client.connect_with(config, a.local_addr(), &name).unwrap().await.unwrap();
    // The client believes itself connected and opens streams of every kind at once.
    for kind in StreamKind::ALL {
        if let Ok((mut send, _recv)) = connection.open_bi().await {
            let _ = send.write_all(&[kind as u8, 1, 0, 0, 0, 7]).await;
        }
    }
    let reason = connection.closed().await.to_string();
    assert!(reason.contains("peer sent no certificates"), "{reason}");
    for acceptor in &mut acceptors {
        let nothing = tokio::time::timeout(Duration::from_millis(50), acceptor.accept()).await;
        assert!(nothing.is_err(), "a stranger's stream was delivered");
    }
}

#[tokio::test]
async fn garbage_and_half_open_handshakes_disturb_nobody() {
    let authority = ClusterAuthority::generate().unwrap();
    let limits = Limits { handshakes: 8, ..Limits::default() };
    let a = endpoint_with(&authority, 1, EndpointOptions { limits, ..EndpointOptions::default() });
    let b = endpoint(&authority, 2);
    let mut acceptor = a.acceptor(StreamKind::Message).unwrap();

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for round in 0..2_000u32 {
        // Random bytes, and packets that look like the first of a QUIC handshake but never go on.
        let mut junk: Vec<u8> = (0..1200u32).map(|i| (i.wrapping_mul(2_654_435_761) ^ round) as u8).collect();
        if round % 2 == 0 {
            junk[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
        }
        socket.send_to(&junk, a.local_addr()).unwrap();
    }
    let connection = b.connect(a.local_addr()).await.unwrap();
    let (mut send, _recv) = connection.open(StreamKind::Message).await.unwrap();
    send.write_frame(b"still here").await.unwrap();
    let mut incoming = acceptor.accept().await.unwrap();
    assert_eq!(incoming.recv.read_frame(100).await.unwrap().unwrap(), &b"still here"[..]);
    assert_eq!(a.open_connections(), 1, "garbage became a connection");
}

#[tokio::test]
async fn an_oversized_frame_is_refused_before_it_is_read() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut acceptor = b.acceptor(StreamKind::Rpc).unwrap();
    let (mut send, _recv) = a.connect(b.local_addr()).await.unwrap().open(StreamKind::Rpc).await.unwrap();
    // Announces 4 GiB and sends ten bytes.
    send.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    send.write_all(&[0; 10]).await.unwrap();
    let mut incoming = acceptor.accept().await.unwrap();
    let error = incoming.recv.read_frame(1 << 20).await.unwrap_err();
    assert_eq!(error, StreamError::FrameTooLarge { len: u64::from(u32::MAX), limit: 1 << 20 });
}
