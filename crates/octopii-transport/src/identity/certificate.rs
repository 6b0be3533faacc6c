//! A node's identity: private key, certificate, and whom it trusts.

use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::authority::MAX_ROOTS;
use super::names::named_cluster;
use super::{
    CertificateHash, Certified, ClusterAuthority, ClusterId, NameRules, NodeId, NodeKey, PeerIdentity,
    PeerRole, peer_identity,
};
use crate::IdentityError;

/// A node's private key and certificate, with the authorities' certificates to verify peers against.
pub struct Identity {
    peer: PeerIdentity,
    chain: Vec<CertificateDer<'static>>,
    /// The first has signed the certificate.
    roots: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    /// For certificates of somebody else's making.
    rules: Option<Arc<NameRules>>,
}

impl Identity {
    pub(super) fn assemble(
        peer: PeerIdentity,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(IdentityError::Unusable(format!("it names {} authorities", roots.len())));
        }
        Ok(Self::from_parts(peer, chain, roots, key, None))
    }

    pub(super) fn from_parts(
        peer: PeerIdentity,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        rules: Option<Arc<NameRules>>,
    ) -> Self {
        Self { peer, chain, roots, key, rules }
    }

    /// Who another certificate names, whose chain has been verified: a node of this cluster, or an error.
    pub(crate) fn identify(&self, certificate: &CertificateDer<'_>) -> Result<PeerIdentity, IdentityError> {
        let peer = match &self.rules {
            Some(rules) => rules.identify(certificate)?,
            None => peer_identity(certificate)?,
        };
        if peer.cluster == self.peer.cluster { Ok(peer) } else { Err(IdentityError::NotANode) }
    }

    /// Whether the certificates carry names of somebody else's choice.
    pub(crate) fn is_external(&self) -> bool {
        self.rules.is_some()
    }

    /// The id on the certificate.
    pub fn node_id(&self) -> NodeId {
        self.peer.node_id
    }

    /// The cluster on the certificate.
    pub fn cluster(&self) -> ClusterId {
        self.peer.cluster
    }

    /// What peers learn from the certificate.
    pub fn peer(&self) -> PeerIdentity {
        self.peer
    }

    /// The role on the certificate.
    pub fn role(&self) -> PeerRole {
        self.peer.role
    }

    /// The hash of the certificate, by which it alone can be revoked.
    pub fn hash(&self) -> CertificateHash {
        CertificateHash::of(&self.chain[0])
    }

    /// The hash of the authority's certificate: what a join token pins.
    pub fn authority_hash(&self) -> CertificateHash {
        CertificateHash::of(&self.roots[0])
    }

    /// The same key and certificate, trusting what another authority of the cluster issues too. The first step of a change of
    /// authorities: when every node trusts the new one, nodes may begin to carry its certificates.
    pub fn trusting(&self, authority: &ClusterAuthority) -> Result<Self, IdentityError> {
        if authority.cluster() != self.peer.cluster {
            return Err(IdentityError::Unusable("the authority is another cluster's".to_owned()));
        }
        let mut roots = self.roots.clone();
        roots.extend(authority.roots().into_iter().filter(|root| !self.roots.contains(root)));
        Self::assemble(self.peer, self.chain.clone(), roots, self.key.clone_key())
    }

    /// The identity that follows this one: a new key, and a certificate for it that names the same node in the same role, issued by
    /// an authority that this identity trusts. What comes with it is believed as far as that authority has signed it, whoever
    /// has passed it on.
    pub fn renewed(&self, key: NodeKey, certified: Certified) -> Result<Self, IdentityError> {
        let next = key.with(certified, |root| self.roots.iter().any(|own| own == root))?;
        if (next.peer.node_id, next.peer.cluster) != (self.peer.node_id, self.peer.cluster) {
            return Err(IdentityError::AnotherNode { found: next.peer.node_id, expected: self.peer.node_id });
        }
        if next.peer.role != self.peer.role {
            return Err(IdentityError::AnotherRole { found: next.peer.role, expected: self.peer.role });
        }
        Ok(next)
    }

    /// The identity as PEM: node certificate, authorities' certificates, private key. Keep it secret (mode 0600). One of
    /// [`external`](Self::external) making cannot be read again from it: its rules are not in it.
    pub fn to_pem(&self) -> String {
        let certificates: String =
            self.chain.iter().chain(&self.roots).map(|der| pem("CERTIFICATE", der)).collect();
        certificates + &pem("PRIVATE KEY", self.key.secret_der())
    }

    /// Reads what [`Identity::to_pem`] wrote.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let mut found = certificates(text)?;
        if found.len() < 2 {
            return Err(IdentityError::Pem { what: "the identity (node and authority certificates)" });
        }
        let certificate = found.remove(0);
        let key = PrivateKeyDer::Pkcs8(private_key(text)?);
        let peer = peer_identity(&certificate)?;
        for root in &found {
            if named_cluster(root)? != peer.cluster {
                return Err(IdentityError::Unusable("the authority is another cluster's".to_owned()));
            }
        }
        Self::assemble(peer, vec![certificate], found, key)
    }

    pub(crate) fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(crate) fn root_store(&self) -> Result<RootCertStore, IdentityError> {
        let mut roots = RootCertStore::empty();
        for root in &self.roots {
            roots.add(root.clone()).map_err(|e| IdentityError::Unusable(e.to_string()))?;
        }
        Ok(roots)
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    pub(crate) fn key_bytes(&self) -> &[u8] {
        self.key.secret_der()
    }
}

pub(super) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| IdentityError::Pem { what: "a certificate" })
}

pub(super) fn private_key(text: &str) -> Result<PrivatePkcs8KeyDer<'static>, IdentityError> {
    PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| IdentityError::Pem { what: "the private key" })
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new(label, der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

// Private keys never reach a log.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            peer: self.peer,
            chain: self.chain.clone(),
            roots: self.roots.clone(),
            key: self.key.clone_key(),
            rules: self.rules.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_pem() {
        let authority = ClusterAuthority::generate().unwrap();
        let identity = authority.issue_as(7, PeerRole::Client).unwrap();
        let identity = identity.trusting(&authority.successor().unwrap()).unwrap();
        let read = Identity::from_pem(&identity.to_pem()).unwrap();
        assert_eq!((read.peer, read.roots.clone()), (identity.peer, identity.roots.clone()));
        assert_eq!((read.node_id(), read.role(), read.cluster()), (7, PeerRole::Client, authority.cluster()));
        assert_eq!(read.authority_hash(), authority.hash());
        assert!(identity.trusting(&ClusterAuthority::generate().unwrap()).is_err());
    }

    #[test]
    fn secrets_stay_out_of_debug() {
        let authority = ClusterAuthority::generate().unwrap();
        let identity = authority.issue(1).unwrap();
        let shown = format!("{authority:?} {identity:?} {:?}", NodeKey::generate().unwrap());
        assert!(shown.contains("cluster") && shown.len() < 300, "{shown}");
    }

    #[test]
    fn damaged_pem_is_a_typed_error() {
        let pem = ClusterAuthority::generate().unwrap().issue(1).unwrap().to_pem();
        for cut in [0, 10, pem.len() / 3, pem.len() / 2, pem.len() - 40] {
            assert!(Identity::from_pem(&pem[..cut]).is_err(), "cut at {cut}");
        }
    }
}
