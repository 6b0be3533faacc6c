//! TLS: version 1.3 only, certificates on both sides, verified against the cluster's authority and nothing else.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

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
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?;
    let builder = if identity.is_external() {
        let verifier = NamedByRules { identity: identity.clone(), roots: identity.root_store()? };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    } else {
        builder.with_root_certificates(identity.root_store()?)
    };
    let mut config = builder.with_client_auth_cert(identity.chain(), identity.key()).map_err(unusable)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(unusable)?))
}

/// Who is at the other end, from the certificate that the handshake has verified.
pub(crate) fn peer(
    connection: &quinn::Connection,
    own: &Identity,
) -> Result<(PeerIdentity, CertificateHash), IdentityError> {
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or(IdentityError::NotANode)?;
    let certificate = chain.first().ok_or(IdentityError::NotANode)?;
    Ok((own.identify(certificate)?, CertificateHash::of(certificate)))
}

/// Believes nodes that a company's authority vouches for and the rules name, whatever other names they have. The chain is
/// verified as the standard verifier does it; only the name that is looked for differs.
#[derive(Debug)]
struct NamedByRules {
    identity: Identity,
    roots: RootCertStore,
}

impl ServerCertVerifier for NamedByRules {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            algorithms.all,
        )?;
        match self.identity.identify(end_entity) {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(_) => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        signature_schemes()
    }
}

/// Whether `authority` itself has issued `certificate`, and it may be used now.
pub(crate) fn verify_issued(
    certificate: &CertificateDer<'_>,
    authority: &CertificateDer<'_>,
) -> Result<(), IdentityError> {
    let mut roots = RootCertStore::empty();
    let added = roots.add(authority.clone().into_owned());
    let verified = added.and_then(|()| {
        let algorithms = provider().signature_verification_algorithms;
        let certificate = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &roots, &[], UnixTime::now(), algorithms.all)
    });
    verified.map_err(|_| IdentityError::NotVouchedFor)
}

/// What every verifier of ours says of a signature of TLS 1.2, which is never negotiated.
pub(crate) fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("only TLS 1.3 is spoken here".to_owned()))
}

/// Checks the signature of a handshake, as the standard verifier does.
pub(crate) fn verify_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let algorithms = provider().signature_verification_algorithms;
    rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
}

/// The signatures that [`verify_signature`] can check.
pub(crate) fn signature_schemes() -> Vec<SignatureScheme> {
    provider().signature_verification_algorithms.supported_schemes()
}

/// A restarted node must be able to tell its peers that their old connections are gone, so the key behind stateless
/// resets is derived from a secret that outlives the process instead of being random for each.
pub(crate) fn reset_key(secret: &[u8]) -> Arc<ring::hmac::Key> {
    let derived = derived(secret, b"octopii stateless reset");
    Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived.as_ref()))
}

/// A reset is only sent for a connection id that bears this endpoint's mark, so the mark must outlive the process too:
/// otherwise packets on an old connection are dropped in silence, and the peer keeps waiting until its idle timeout.
///
/// The mark is not secret: it can be worked out from enough connection ids, and tells nothing of the secret.
pub(crate) fn connection_id_key(secret: &[u8]) -> u64 {
    let derived = derived(secret, b"octopii connection ids");
    u64::from_le_bytes(*derived.as_ref().first_chunk().expect("32 bytes are more than 8"))
}

fn derived(secret: &[u8], purpose: &[u8]) -> ring::hmac::Tag {
    ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), purpose)
}

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(e: impl std::fmt::Display) -> IdentityError {
    IdentityError::Unusable(e.to_string())
}
