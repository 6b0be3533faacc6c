//! The joiner's side: pins the authority, proves the secret, gets a certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::time::{Instant, timeout_at};

use super::message::{MAX_RESPONSE, read_response, request, statement};
use super::{ALPN, JoinToken, MARK, binding};
use crate::identity::{cluster_name, peer_identity};
use crate::{CertificateHash, Executor, Identity, JoinError, NodeKey, PeerRole, RecvStream, SendStream, tls};

/// Asks the nodes that a token names for a certificate, one after the other, and gives the new identity.
///
/// The private key stays here. The node that answers must show the authority that the token pins, and a member's certificate of
/// it; what it is sent is a signature that is good on this very connection only. A lost answer is asked for again with the same
/// key, which an issuing node answers again. The certificate must be the pinned authority's, and every other authority that comes
/// with it signed by that one. Not cancel-safe: a dropped call may have spent the token, which is then good for
/// this key only. Who keeps the key before the call can make it again (see [`NodeKey::to_pem`]).
pub async fn join(
    executor: &Executor,
    token: &JoinToken,
    key: NodeKey,
    timeout: Duration,
) -> Result<Identity, JoinError> {
    let (token, own) = (token.clone(), executor.clone());
    let joining = async move { join_on(&own, &token, key, timeout).await };
    executor.run(joining).await.unwrap_or(Err(JoinError::ShuttingDown))
}

async fn join_on(
    executor: &Executor,
    token: &JoinToken,
    key: NodeKey,
    limit: Duration,
) -> Result<Identity, JoinError> {
    let end = Instant::now() + limit;
    let mut last = JoinError::Unreachable("no address was tried".to_owned());
    // A lost answer is asked for once more.
    let tries = token.addresses().iter().chain(token.addresses());
    let total = token.addresses().len() * 2;
    for (i, address) in tries.enumerate() {
        let left = end.saturating_duration_since(Instant::now());
        // The first must leave time for the others.
        let turn = Instant::now() + left / u32::try_from(total - i).unwrap_or(u32::MAX);
        let asking = ask(executor, token, &key, address, i / token.addresses().len());
        last = match timeout_at(turn, asking).await {
            Ok(Ok(certified)) => {
                // The pin holds for what is issued as it holds for who issues: any member can answer here.
                let identity =
                    key.into_identity(certified, &token.authority()).map_err(|_| JoinError::Misissued)?;
                if identity.cluster() != token.cluster() || identity.role() != token.role() {
                    return Err(JoinError::Misissued);
                }
                return Ok(identity);
            }
            Ok(Err(e @ (JoinError::NotTrusted(_) | JoinError::Refused(_)))) => return Err(e),
            Ok(Err(e)) => e,
            Err(_) => JoinError::Unreachable(address.clone()),
        };
    }
    Err(last)
}

async fn ask(
    executor: &Executor,
    token: &JoinToken,
    key: &NodeKey,
    address: &str,
    round: usize,
) -> Result<crate::Certified, JoinError> {
    let unreachable = || JoinError::Unreachable(address.to_owned());
    // Asked anew each time: names move.
    let mut found: Vec<SocketAddr> =
        tokio::net::lookup_host(address).await.map_err(|_| unreachable())?.take(8).collect();
    // One address of a name in each round, the other family in the second.
    found.sort_by_key(|to| to.is_ipv6() != (round > 0));
    let to = *found.first().ok_or_else(unreachable)?;
    let local: SocketAddr = if to.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = std::net::UdpSocket::bind(local).map_err(|_| unreachable())?;
    let entered = executor.handle().enter();
    let endpoint =
        quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(executor.clone()))
            .map_err(|_| unreachable())?;
    drop(entered);
    let connecting = endpoint
        .connect_with(client_config(token)?, to, &cluster_name(token.cluster()))
        .map_err(|_| unreachable())?;
    let connection = connecting.await.map_err(|e| connect_error(address, &e))?;
    let answer = converse(token, key, &connection, address).await;
    connection.close(0u32.into(), b"");
    endpoint.close(0u32.into(), b"");
    // So that the issuing node hears of the end; losing that packet only costs it an idle timeout.
    let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
    answer
}

async fn converse(
    token: &JoinToken,
    key: &NodeKey,
    connection: &quinn::Connection,
    address: &str,
) -> Result<crate::Certified, JoinError> {
    let lost = |e: crate::StreamError| JoinError::Lost { address: address.to_owned(), reason: e.to_string() };
    let binding = binding(connection).ok_or_else(|| JoinError::Lost {
        address: address.to_owned(),
        reason: "no keying material".into(),
    })?;
    let signature =
        key.sign(&statement(&binding, &token.verifier(), &key.public())).map_err(JoinError::Identity)?;
    let (send, recv) = connection.open_bi().await.map_err(|e| lost(crate::stream::lost(&e)))?;
    let (mut send, mut recv) = (SendStream::new(send), RecvStream::new(recv));
    send.write_frame(&request(token, &key.public(), &signature, &binding)).await.map_err(lost)?;
    send.finish().map_err(lost)?;
    let frame = recv.read_frame(MAX_RESPONSE).await.map_err(lost)?.unwrap_or_default();
    match read_response(&frame) {
        Some(outcome) => outcome.map_err(JoinError::Refused),
        None => Err(JoinError::Lost {
            address: address.to_owned(),
            reason: "an answer that makes no sense".into(),
        }),
    }
}

fn client_config(token: &JoinToken) -> Result<quinn::ClientConfig, JoinError> {
    let unusable = |e: String| JoinError::Identity(crate::IdentityError::Unusable(e));
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority(token.authority())))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    let crypto = QuicClientConfig::try_from(config).map_err(|e| unusable(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.initial_dst_cid_provider(Arc::new(|| {
        let mut id = [0; 20];
        id[..MARK.len()].copy_from_slice(&MARK);
        rand::Rng::fill(&mut rand::rng(), &mut id[MARK.len()..]);
        quinn_proto::ConnectionId::new(&id)
    }));
    Ok(config)
}

fn connect_error(address: &str, e: &quinn::ConnectionError) -> JoinError {
    match e {
        quinn::ConnectionError::TransportError(found) if (0x100..0x200).contains(&u64::from(found.code)) => {
            JoinError::NotTrusted(address.to_owned())
        }
        quinn::ConnectionError::ConnectionClosed(close)
            if close.error_code == quinn_proto::TransportErrorCode::CONNECTION_REFUSED
                || (0x100..0x200).contains(&u64::from(close.error_code)) =>
        {
            JoinError::Closed(address.to_owned())
        }
        _ => JoinError::Unreachable(address.to_owned()),
    }
}

/// Believes whoever shows a member's certificate of the one authority that the token pins.
#[derive(Debug)]
struct PinnedAuthority(CertificateHash);

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|shown| CertificateHash::of(shown) == self.0);
        let pinned = pinned.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider())
            .build()
            .map_err(|_| CertificateError::UnknownIssuer)?;
        let verified = verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        // A client of the cluster has a certificate too, and no business here.
        match peer_identity(end_entity) {
            Ok(peer) if peer.role == PeerRole::Member => Ok(verified),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls::no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls::verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::signature_schemes()
    }
}
