//! TLS: version 1.3 only, certificates on both sides, verified against the cluster's authority and nothing else.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;

use crate::identity::peer_identity;
use crate::{CertificateHash, Identity, IdentityError, PeerIdentity};

/// The wire version. A peer of another version is turned away by TLS itself.
const ALPN: &[u8] = b"octopii/1";

pub(crate) fn server(identity: &Identity) -> Result<Arc<QuicServerConfig>, IdentityError> {
    let roots = identity.root_store()?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(unusable)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection proves itself anew: no ticket outlives a certificate.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(unusable)?))
}

pub(crate) fn client(identity: &Identity) -> Result<Arc<QuicClientConfig>, IdentityError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(identity.root_store()?)
        .with_client_auth_cert(identity.chain(), identity.key())
        .map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(unusable)?))
}

/// Who is at the other end, from the certificate that the handshake has verified.
pub(crate) fn peer(connection: &quinn::Connection) -> Result<(PeerIdentity, CertificateHash), IdentityError> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(IdentityError::NotANode)?;
    let certificate = chain.first().ok_or(IdentityError::NotANode)?;
    Ok((peer_identity(certificate)?, CertificateHash::of(certificate)))
}

/// A restarted node must be able to tell its peers that their old connections are gone, so the key behind stateless
/// resets is derived from the identity instead of being random for each process.
pub(crate) fn reset_key(identity: &Identity) -> Arc<ring::hmac::Key> {
    let derived = derived(identity, b"octopii stateless reset");
    Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived.as_ref()))
}

/// A reset is only sent for a connection id that bears this endpoint's mark, so the mark must outlive the process too:
/// otherwise packets on an old connection are dropped in silence, and the peer keeps waiting until its idle timeout.
///
/// The mark is not secret: it can be worked out from enough connection ids, and tells nothing of the identity's key.
pub(crate) fn connection_id_key(identity: &Identity) -> u64 {
    let derived = derived(identity, b"octopii connection ids");
    u64::from_le_bytes(*derived.as_ref().first_chunk().expect("32 bytes are more than 8"))
}

fn derived(identity: &Identity, purpose: &[u8]) -> ring::hmac::Tag {
    ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, identity.key_bytes()), purpose)
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(e: impl std::fmt::Display) -> IdentityError {
    IdentityError::Unusable(e.to_string())
}
