//! The cluster's private authority: makes the certificates that its nodes know each other by.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use rustls::pki_types::CertificateDer;

use super::certificate::{certificates, pem, private_key};
use super::key::{PublicKey, endorsed, new_key, renewal, signing, verify};
use super::names::{cluster_name, named_cluster, node_name};
use super::{
    CertificateHash, Certified, ClusterId, Identity, NodeId, NodeKey, PeerIdentity, PeerRole, peer_identity,
};
use crate::IdentityError;

/// A cluster's private certificate authority (Ed25519). Whoever holds it can admit nodes to the cluster.
pub struct ClusterAuthority {
    cluster: ClusterId,
    key: KeyPair,
    certificate: CertificateDer<'static>,
    /// Other authorities of the same cluster, whose certificates are accepted too: earlier ones, or the next.
    earlier: Vec<CertificateDer<'static>>,
}

/// Authorities that a cluster trusts at once, at the most: the current one and those being replaced.
pub(super) const MAX_ROOTS: usize = 4;

impl ClusterAuthority {
    /// Makes a new cluster with a fresh authority.
    pub fn generate() -> Result<Self, IdentityError> {
        Self::fresh(ClusterId(rand::random()), Vec::new())
    }

    /// Makes a new authority for the same cluster. What it issues trusts the earlier ones too, at most three of them, so
    /// that nodes can be moved over one by one; see [`Identity::trusting`] for the step before.
    pub fn successor(&self) -> Result<Self, IdentityError> {
        let mut earlier = vec![self.certificate.clone()];
        earlier.extend(self.earlier.iter().take(MAX_ROOTS - 2).cloned());
        Self::fresh(self.cluster, earlier)
    }

    /// The same authority, whose nodes will trust `successor` too: the first step of a change of authorities, before any node
    /// carries a certificate of the new one.
    pub fn announcing(mut self, successor: &Self) -> Result<Self, IdentityError> {
        if successor.cluster != self.cluster || self.earlier.len() + 1 >= MAX_ROOTS {
            return Err(IdentityError::NotAnAuthority);
        }
        self.earlier.push(successor.certificate.clone());
        Ok(self)
    }

    /// The same authority, without trust in its predecessors: the last step of a change of authorities.
    pub fn without_predecessors(mut self) -> Self {
        self.earlier.clear();
        self
    }

    fn fresh(cluster: ClusterId, earlier: Vec<CertificateDer<'static>>) -> Result<Self, IdentityError> {
        let key = new_key()?;
        let certificate = authority_params(cluster).self_signed(&key).map_err(signing)?.der().clone();
        Ok(Self { cluster, key, certificate, earlier })
    }

    /// The cluster this authority speaks for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The hash of its certificate: what join tokens pin.
    pub fn hash(&self) -> CertificateHash {
        CertificateHash::of(&self.certificate)
    }

    /// Issues an identity for a member: key and certificate.
    pub fn issue(&self, node_id: NodeId) -> Result<Identity, IdentityError> {
        self.issue_as(node_id, PeerRole::Member)
    }

    /// Issues an identity with a role: key and certificate.
    pub fn issue_as(&self, node_id: NodeId, role: PeerRole) -> Result<Identity, IdentityError> {
        let key = NodeKey::generate()?;
        let certified = self.certify(node_id, role, &key.public())?;
        key.into_identity(certified, &self.hash())
    }

    /// Issues a certificate for a key that stays where it was made.
    pub fn certify(
        &self,
        node_id: NodeId,
        role: PeerRole,
        public_key: &[u8; 32],
    ) -> Result<Certified, IdentityError> {
        let issuer = Issuer::new(authority_params(self.cluster), &self.key);
        let name = node_name(node_id, role, self.cluster);
        let mut params =
            CertificateParams::new([cluster_name(self.cluster), name.clone()]).map_err(signing)?;
        params.distinguished_name.push(DnType::CommonName, format!("node-{node_id}"));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params);
        let certificate = params.signed_by(&PublicKey(*public_key), &issuer).map_err(signing)?.der().clone();
        let roots = self.roots();
        let endorsement = self.sign(&endorsed(&certificate, &roots))?;
        Ok(Certified { endorsement, certificate, roots })
    }

    /// Issues a certificate for another key of a node that has one already, with the same id and role. `peer` is who asks, from
    /// the certificate of its connection, and `proof` what the new key says of that ([`NodeKey::renewal_proof`]): nobody gets a
    /// certificate for somebody else's key.
    pub fn renew(
        &self,
        peer: &PeerIdentity,
        public_key: &[u8; 32],
        proof: &[u8],
    ) -> Result<Certified, IdentityError> {
        if peer.cluster != self.cluster || !verify(public_key, &renewal(peer, public_key), proof) {
            return Err(IdentityError::NotProven);
        }
        self.certify(peer.node_id, peer.role, public_key)
    }

    /// The authority as PEM: its certificate, its private key, and the certificates of earlier authorities that are still
    /// trusted. Keep it secret (mode 0600).
    pub fn to_pem(&self) -> String {
        let earlier: String = self.earlier.iter().map(|root| pem("CERTIFICATE", root)).collect();
        pem("CERTIFICATE", &self.certificate) + &self.key.serialize_pem() + &earlier
    }

    /// Reads what [`ClusterAuthority::to_pem`] wrote.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let mut found = certificates(text)?;
        if found.is_empty() {
            return Err(IdentityError::Pem { what: "the authority's certificate" });
        }
        let certificate = found.remove(0);
        // A node's identity holds the authority's certificate too, but nothing that its key signs would be believed.
        if peer_identity(&certificate).is_ok() || found.len() >= MAX_ROOTS {
            return Err(IdentityError::NotAnAuthority);
        }
        let key =
            KeyPair::try_from(&private_key(text)?).map_err(|e| IdentityError::Unusable(e.to_string()))?;
        if public_key_of(&certificate)?.as_slice() != key.der_bytes() {
            return Err(IdentityError::NotAnAuthority);
        }
        let cluster = named_cluster(&certificate)?;
        for earlier in &found {
            if named_cluster(earlier)? != cluster {
                return Err(IdentityError::NotAnAuthority);
            }
        }
        Ok(Self { cluster, key, certificate, earlier: found })
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<[u8; 64], IdentityError> {
        let signature = self.key.sign(message).map_err(signing)?;
        signature.first_chunk().copied().ok_or_else(|| IdentityError::Signing("no Ed25519 key".to_owned()))
    }

    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = vec![self.certificate.clone()];
        roots.extend(self.earlier.iter().cloned());
        roots
    }
}

/// The Ed25519 key of a certificate.
pub(crate) fn public_key_of(certificate: &CertificateDer<'_>) -> Result<[u8; 32], IdentityError> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|_| IdentityError::Pem { what: "a certificate" })?;
    let spki = parsed.subject_public_key_info();
    // RFC 8410: a fixed head, then the key.
    let key = spki.strip_prefix(&ED25519_SPKI).and_then(|key| <[u8; 32]>::try_from(key).ok());
    key.ok_or_else(|| IdentityError::Unusable("its key is not an Ed25519 key".to_owned()))
}

const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

fn authority_params(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = rcgen::string::Ia5String::try_from(cluster_name(cluster))
        .map(rcgen::SanType::DnsName)
        .into_iter()
        .collect();
    params.distinguished_name.push(DnType::CommonName, format!("Octopii cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params);
    params
}

// Membership ends by leaving the cluster, not by a date that nobody watches: a cluster must not die of its age.
fn set_validity(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(2025, 1, 1);
    params.not_after = rcgen::date_time_ymd(2099, 1, 1);
}

// Private keys never reach a log.
impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuthority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_pem_with_its_predecessors() {
        let first = ClusterAuthority::generate().unwrap();
        let again = ClusterAuthority::from_pem(&first.to_pem()).unwrap();
        assert_eq!((again.cluster(), again.hash()), (first.cluster(), first.hash()));
        let mut latest = again;
        for _ in 0..6 {
            latest = latest.successor().unwrap();
            assert_eq!(latest.cluster(), first.cluster());
            assert!(latest.roots().len() <= MAX_ROOTS);
            let read = ClusterAuthority::from_pem(&latest.to_pem()).unwrap();
            assert_eq!(read.roots(), latest.roots());
        }
        assert_eq!(latest.without_predecessors().roots().len(), 1);
        let next = first.successor().unwrap();
        assert!(next.roots().contains(&first.certificate));
        assert!(ClusterAuthority::generate().unwrap().announcing(&next).is_err());
        let announcing = first.announcing(&next).unwrap();
        assert_eq!(announcing.roots(), [announcing.certificate.clone(), next.certificate.clone()]);
    }

    #[test]
    fn a_node_is_no_authority() {
        let authority = ClusterAuthority::generate().unwrap();
        let identity = authority.issue(1).unwrap();
        let text = identity.to_pem();
        let key_at = text.find("-----BEGIN PRIVATE").unwrap();
        // Its certificate, or the authority's, beside its own key.
        let its_authority = pem("CERTIFICATE", &authority.certificate) + &text[key_at..];
        for text in [text, its_authority] {
            assert_eq!(ClusterAuthority::from_pem(&text).unwrap_err(), IdentityError::NotAnAuthority);
        }
        assert!(ClusterAuthority::from_pem("hello").is_err());
    }
}
