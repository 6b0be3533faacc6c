//! Who a node is: the cluster's authority, and the certificate it issues to each node.

use std::fmt;
use std::str::FromStr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::IdentityError;

/// A node's number within its cluster, as its certificate states it.
pub type NodeId = u64;

/// A cluster's random 128-bit name; written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(u128);

/// Who is at the other end of a connection, taken from its verified certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The node's id.
    pub node_id: NodeId,
    /// The cluster that vouches for it: always this node's own.
    pub cluster: ClusterId,
}

/// A cluster's private certificate authority (Ed25519). Whoever holds it can admit nodes to the cluster.
pub struct ClusterAuthority {
    cluster: ClusterId,
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

/// A node's private key and certificate, with the authority's certificate to verify peers against.
pub struct Identity {
    peer: PeerIdentity,
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
}

impl ClusterAuthority {
    /// Makes a new cluster with a fresh authority.
    pub fn generate() -> Result<Self, IdentityError> {
        let cluster = ClusterId(rand::random());
        let key = new_key()?;
        let certificate = authority_params(cluster).self_signed(&key).map_err(signing)?.der().clone();
        Ok(Self { cluster, key, certificate })
    }

    /// The cluster this authority speaks for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Issues an identity for a node.
    pub fn issue(&self, node_id: NodeId) -> Result<Identity, IdentityError> {
        let key = new_key()?;
        let issuer = Issuer::new(authority_params(self.cluster), &self.key);
        let mut params =
            CertificateParams::new([cluster_name(self.cluster), node_name(node_id, self.cluster)])
                .map_err(signing)?;
        params.distinguished_name.push(DnType::CommonName, node_name(node_id, self.cluster));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params);
        let certificate = params.signed_by(&key, &issuer).map_err(signing)?.der().clone();
        Ok(Identity {
            peer: PeerIdentity { node_id, cluster: self.cluster },
            authority: self.certificate.clone(),
            certificate,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
        })
    }

    /// The authority as PEM: its certificate followed by its private key. Keep it secret (mode 0600).
    pub fn to_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate) + &self.key.serialize_pem()
    }

    /// Reads what [`ClusterAuthority::to_pem`] wrote.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let mut found = certificates(text)?;
        let certificate = found.pop().ok_or(IdentityError::Pem { what: "the authority's certificate" })?;
        // A node's identity holds the authority's certificate too, but nothing that its key signs would be believed.
        if !found.is_empty() || peer_identity(&certificate).is_ok() {
            return Err(IdentityError::NotAnAuthority);
        }
        let key =
            KeyPair::try_from(&private_key(text)?).map_err(|e| IdentityError::Unusable(e.to_string()))?;
        let cluster =
            names(&certificate)?.find_map(|n| parse_cluster_name(&n)).ok_or(IdentityError::NotANode)?;
        Ok(Self { cluster, key, certificate })
    }
}

impl Identity {
    /// The id on the certificate.
    pub fn node_id(&self) -> NodeId {
        self.peer.node_id
    }

    /// The cluster on the certificate.
    pub fn cluster(&self) -> ClusterId {
        self.peer.cluster
    }

    /// The identity as PEM: node certificate, authority certificate, private key. Keep it secret (mode 0600).
    pub fn to_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
            + &pem("CERTIFICATE", &self.authority)
            + &pem("PRIVATE KEY", self.key.secret_pkcs8_der())
    }

    /// Reads what [`Identity::to_pem`] wrote.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let mut found = certificates(text)?.into_iter();
        let (Some(certificate), Some(authority)) = (found.next(), found.next()) else {
            return Err(IdentityError::Pem { what: "the identity (node and authority certificates)" });
        };
        let key = private_key(text)?;
        let peer = peer_identity(&certificate)?;
        Ok(Self { peer, authority, certificate, key })
    }

    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        &self.authority
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    pub(crate) fn key_bytes(&self) -> &[u8] {
        self.key.secret_pkcs8_der()
    }
}

/// The name under which every node of a cluster can be verified, without knowing which node answers at an address.
pub(crate) fn cluster_name(cluster: ClusterId) -> String {
    format!("{cluster}.octopii.internal")
}

/// Reads node id and cluster from a certificate that TLS has verified.
pub(crate) fn peer_identity(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, IdentityError> {
    names(certificate)?.find_map(|n| parse_node_name(&n)).ok_or(IdentityError::NotANode)
}

fn node_name(node: NodeId, cluster: ClusterId) -> String {
    format!("node-{node}.{cluster}.octopii.internal")
}

fn parse_cluster_name(name: &str) -> Option<ClusterId> {
    name.strip_suffix(".octopii.internal")?.parse().ok()
}

fn parse_node_name(name: &str) -> Option<PeerIdentity> {
    let (node, rest) = name.strip_prefix("node-")?.split_once('.')?;
    Some(PeerIdentity { node_id: node.parse().ok()?, cluster: parse_cluster_name(rest)? })
}

fn names(certificate: &CertificateDer<'_>) -> Result<impl Iterator<Item = String>, IdentityError> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|_| IdentityError::Pem { what: "a certificate" })?;
    Ok(parsed.valid_dns_names().map(str::to_owned).collect::<Vec<_>>().into_iter())
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

fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(signing)
}

fn signing(e: rcgen::Error) -> IdentityError {
    IdentityError::Signing(e.to_string())
}

fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| IdentityError::Pem { what: "a certificate" })
}

fn private_key(text: &str) -> Result<PrivatePkcs8KeyDer<'static>, IdentityError> {
    PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| IdentityError::Pem { what: "the private key" })
}

fn pem(label: &str, der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new(label, der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ClusterId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        if text.len() != 32 {
            return Err(IdentityError::NotANode);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| IdentityError::NotANode)
    }
}

// Private keys never reach a log.
impl fmt::Debug for ClusterAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterAuthority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            peer: self.peer,
            authority: self.authority.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone_key(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_and_identity_survive_pem() {
        let authority = ClusterAuthority::generate().unwrap();
        let again = ClusterAuthority::from_pem(&authority.to_pem()).unwrap();
        assert_eq!(again.cluster(), authority.cluster());
        let identity = again.issue(7).unwrap();
        let read = Identity::from_pem(&identity.to_pem()).unwrap();
        assert_eq!((read.node_id(), read.cluster()), (7, authority.cluster()));
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let authority = ClusterAuthority::generate().unwrap();
        let identity = authority.issue(1).unwrap();
        let shown = format!("{authority:?} {identity:?}");
        assert!(shown.contains("cluster") && shown.len() < 250, "{shown}");
    }

    #[test]
    fn damaged_pem_is_a_typed_error() {
        let pem = ClusterAuthority::generate().unwrap().issue(1).unwrap().to_pem();
        for cut in [0, 10, pem.len() / 3, pem.len() / 2, pem.len() - 40] {
            assert!(Identity::from_pem(&pem[..cut]).is_err(), "cut at {cut}");
        }
        assert!(ClusterAuthority::from_pem("hello").is_err());
    }

    #[test]
    fn a_node_is_no_authority() {
        let identity = ClusterAuthority::generate().unwrap().issue(1).unwrap();
        let only_its_own =
            pem("CERTIFICATE", &identity.certificate) + &pem("PRIVATE KEY", identity.key_bytes());
        for text in [identity.to_pem(), only_its_own] {
            assert_eq!(ClusterAuthority::from_pem(&text).unwrap_err(), IdentityError::NotAnAuthority);
        }
    }
}
