//! A node's key before it has a certificate: made where it is used, and never sent.

use std::fmt;

use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::authority::{MAX_ROOTS, public_key_of};
use super::certificate::private_key;
use super::names::named_cluster;
use super::{CertificateHash, Identity, PeerIdentity, peer_identity, sha256};
use crate::{IdentityError, tls};

/// A node's private key that waits for its certificate.
pub struct NodeKey(KeyPair);

/// A certificate that an authority has issued, with the authorities that its holder is to trust, and the authority's signature
/// that those two belong together: whoever passes them on can neither add an authority nor leave one out.
///
/// Not secret: without the private key it is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// By the first of `roots`.
    pub(super) endorsement: [u8; 64],
    pub(super) certificate: CertificateDer<'static>,
    /// The first has signed the certificate.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

pub(super) struct PublicKey(pub(super) [u8; 32]);

/// Ours have some 400 bytes.
const MAX_CERTIFICATE: usize = 4096;

impl NodeKey {
    /// Makes a key (Ed25519).
    pub fn generate() -> Result<Self, IdentityError> {
        Ok(Self(new_key()?))
    }

    /// The key as PEM, for who must not lose it before its certificate has come. Keep it secret (mode 0600).
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Reads what [`to_pem`](Self::to_pem) wrote.
    pub fn from_pem(text: &str) -> Result<Self, IdentityError> {
        let key =
            KeyPair::try_from(&private_key(text)?).map_err(|e| IdentityError::Unusable(e.to_string()))?;
        if key.is_compatible(&PKCS_ED25519) {
            Ok(Self(key))
        } else {
            Err(IdentityError::Unusable("its key is not an Ed25519 key".to_owned()))
        }
    }

    /// The half that may be told.
    pub fn public(&self) -> [u8; 32] {
        self.0.der_bytes().try_into().expect("an Ed25519 public key has 32 bytes")
    }

    /// Proves that whoever sends the public half has this key too.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], IdentityError> {
        let signature = self.0.sign(message).map_err(signing)?;
        signature.first_chunk().copied().ok_or_else(|| IdentityError::Signing("no Ed25519 key".to_owned()))
    }

    /// Proves to an issuing node that the node itself, which has a certificate already, asks for one for this key.
    pub fn renewal_proof(&self, peer: &PeerIdentity) -> Result<[u8; 64], IdentityError> {
        self.sign(&renewal(peer, &self.public()))
    }

    /// Puts key and certificate together, if they belong together and the authority with this hash vouches for the certificate
    /// and for every authority that comes with it.
    pub fn into_identity(
        self,
        certified: Certified,
        authority: &CertificateHash,
    ) -> Result<Identity, IdentityError> {
        self.with(certified, |root| CertificateHash::of(root) == *authority)
    }

    pub(super) fn with(
        self,
        certified: Certified,
        is_trusted: impl Fn(&CertificateDer<'_>) -> bool,
    ) -> Result<Identity, IdentityError> {
        let peer = certified.verify(is_trusted)?;
        if public_key_of(&certified.certificate)? != self.public() {
            return Err(IdentityError::Unusable("the certificate is for another key".to_owned()));
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()));
        Identity::assemble(peer, vec![certified.certificate], certified.roots, key)
    }
}

impl Certified {
    /// The hash of the certificate, by which it alone can be revoked.
    pub fn hash(&self) -> CertificateHash {
        CertificateHash::of(&self.certificate)
    }

    /// Whom it names, if an authority that is trusted has issued it and endorsed the authorities beside it.
    fn verify(
        &self,
        is_trusted: impl Fn(&CertificateDer<'_>) -> bool,
    ) -> Result<PeerIdentity, IdentityError> {
        let issuer =
            self.roots.first().filter(|root| is_trusted(root)).ok_or(IdentityError::NotVouchedFor)?;
        tls::verify_issued(&self.certificate, issuer)?;
        if !verify(&public_key_of(issuer)?, &endorsed(&self.certificate, &self.roots), &self.endorsement) {
            return Err(IdentityError::NotVouchedFor);
        }
        let peer = peer_identity(&self.certificate)?;
        for root in &self.roots {
            if named_cluster(root)? != peer.cluster {
                return Err(IdentityError::Unusable("the authority is another cluster's".to_owned()));
            }
        }
        Ok(peer)
    }

    /// Its bytes, for the way to the node: the authority's signature (64 bytes), and each certificate behind its length (two
    /// bytes, little endian).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.endorsement.to_vec();
        for der in std::iter::once(&self.certificate).chain(&self.roots) {
            let len = u16::try_from(der.len()).expect("an authority issues certificates of some 400 bytes");
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(der);
        }
        bytes
    }

    /// Reads what [`Certified::to_bytes`] wrote: the certificate and one to four authorities. Nothing is believed yet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        const DAMAGED: IdentityError = IdentityError::Pem { what: "an issued certificate" };
        let (endorsement, mut bytes) = bytes.split_first_chunk().ok_or(DAMAGED)?;
        let mut found = Vec::new();
        while let Some((len, rest)) = bytes.split_first_chunk() {
            let len = usize::from(u16::from_le_bytes(*len));
            if len > MAX_CERTIFICATE || found.len() > MAX_ROOTS {
                return Err(DAMAGED);
            }
            let (der, rest) = rest.split_at_checked(len).ok_or(DAMAGED)?;
            found.push(CertificateDer::from(der.to_vec()));
            bytes = rest;
        }
        if found.len() < 2 || !bytes.is_empty() {
            return Err(DAMAGED);
        }
        let certificate = found.remove(0);
        Ok(Self { endorsement: *endorsement, certificate, roots: found })
    }
}

/// What a new key signs: who asks. Passed on by another node, it holds for nobody.
pub(super) fn renewal(peer: &PeerIdentity, public_key: &[u8; 32]) -> Vec<u8> {
    let head = b"octopii renew 1".as_slice();
    let (cluster, node) = (peer.cluster.to_bytes(), peer.node_id.to_le_bytes());
    [head, &cluster, &node, &[peer.role.byte()], public_key].concat()
}

/// What an authority signs beside a certificate: it, and whom its holder is to trust. Bound to the one certificate, so that no
/// list of an earlier day can be passed off as today's.
pub(super) fn endorsed(certificate: &CertificateDer<'_>, roots: &[CertificateDer<'_>]) -> Vec<u8> {
    let mut statement = b"octopii certified 1".to_vec();
    for der in std::iter::once(certificate).chain(roots) {
        statement.extend_from_slice(&sha256(der));
    }
    statement
}

/// Whether `signature` of `message` was made with the private half of `key`.
pub(crate) fn verify(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key).verify(message, signature).is_ok()
}

pub(super) fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(signing)
}

pub(super) fn signing(e: rcgen::Error) -> IdentityError {
    IdentityError::Signing(e.to_string())
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterAuthority, PeerRole};

    #[test]
    fn a_certificate_survives_its_bytes_and_no_other_bytes_are_taken() {
        let authority = ClusterAuthority::generate().unwrap().successor().unwrap();
        let key = NodeKey::generate().unwrap();
        let certified = authority.certify(5, PeerRole::Operator, &key.public()).unwrap();
        let bytes = certified.to_bytes();
        assert_eq!(Certified::from_bytes(&bytes).unwrap(), certified);
        for cut in 0..bytes.len() {
            if let Ok(short) = Certified::from_bytes(&bytes[..cut]) {
                assert_eq!(short.roots.len(), 1, "cut at {cut}, in the middle of a certificate");
            }
        }
        assert!(Certified::from_bytes(&[&bytes[..], &[0]].concat()).is_err());
        let identity = key.into_identity(certified, &authority.hash()).unwrap();
        assert_eq!((identity.node_id(), identity.role()), (5, PeerRole::Operator));
    }

    #[test]
    fn a_key_survives_its_text() {
        let key = NodeKey::generate().unwrap();
        let text = key.to_pem();
        assert_eq!(NodeKey::from_pem(&text).unwrap().public(), key.public());
        assert_eq!(NodeKey::from_pem(&format!("# a line before it\n{text}")).unwrap().public(), key.public());
        let other_kind = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        for wrong in ["", "text", &text[..text.len() / 2], &text.replace("PRIVATE", "PUBLIC"), &other_kind] {
            assert!(NodeKey::from_pem(wrong).is_err(), "{wrong}");
        }
    }

    /// Who has lost the answer to its request gets the same one again: one certificate to revoke, not two.
    #[test]
    fn a_key_is_certified_in_the_same_way_each_time() {
        let (authority, key) = (ClusterAuthority::generate().unwrap(), NodeKey::generate().unwrap());
        let certify = || authority.certify(5, PeerRole::Member, &key.public()).unwrap();
        assert_eq!(certify(), certify());
    }

    #[test]
    fn key_and_certificate_must_belong_together() {
        let ours = ClusterAuthority::generate().unwrap();
        let for_another = ours.certify(1, PeerRole::Member, &NodeKey::generate().unwrap().public()).unwrap();
        assert!(NodeKey::generate().unwrap().into_identity(for_another, &ours.hash()).is_err());
    }

    /// A node that passes certificates on, and has an authority of its own with the cluster's name.
    #[test]
    fn only_the_authority_says_whom_to_trust() {
        let ours = ClusterAuthority::generate().unwrap();
        let forged = ours.successor().unwrap().without_predecessors();
        let current = ours.issue(1).unwrap();
        let key = || NodeKey(KeyPair::try_from(current.key_bytes()).unwrap());
        let by = |authority: &ClusterAuthority, node, role| {
            authority.certify(node, role, &key().public()).unwrap()
        };
        let honest = by(&ours, 1, PeerRole::Member);
        let lie = |change: &dyn Fn(&mut Certified)| {
            let mut lie = honest.clone();
            change(&mut lie);
            lie
        };
        let foreign = by(&forged, 1, PeerRole::Member);
        let announced = ClusterAuthority::from_pem(&ours.to_pem()).unwrap().announcing(&forged).unwrap();
        let earlier = announced.certify(1, PeerRole::Member, &NodeKey::generate().unwrap().public()).unwrap();
        let lies = [
            foreign.clone(),
            // The leaf of one, the name of the other: in both orders.
            lie(&|c| c.roots.insert(0, forged.roots()[0].clone())),
            lie(&|c| c.roots.extend(forged.roots())),
            Certified { roots: [ours.roots(), forged.roots()].concat(), ..foreign.clone() },
            Certified { roots: [forged.roots(), ours.roots()].concat(), ..foreign.clone() },
            Certified { certificate: foreign.certificate.clone(), ..honest.clone() },
            // A list that the authority has signed, but for another certificate.
            Certified { roots: earlier.roots.clone(), endorsement: earlier.endorsement, ..honest.clone() },
            lie(&|c| c.endorsement[0] ^= 1),
        ];
        for (i, lie) in lies.into_iter().enumerate() {
            for told in [
                current.renewed(key(), lie.clone()).unwrap_err(),
                key().into_identity(lie, &ours.hash()).unwrap_err(),
            ] {
                assert_eq!(told, IdentityError::NotVouchedFor, "lie {i}");
            }
        }
        // Genuine, but somebody else's.
        let another = current.renewed(key(), by(&ours, 2, PeerRole::Member));
        assert!(matches!(another, Err(IdentityError::AnotherNode { found: 2, expected: 1 })));
        let role = current.renewed(key(), by(&ours, 1, PeerRole::Operator));
        assert!(matches!(role, Err(IdentityError::AnotherRole { .. })));
        current.renewed(key(), honest).unwrap();

        // A change of authorities: each step is vouched for by one that the step before has made trusted.
        let next = ours.successor().unwrap();
        assert!(current.renewed(key(), by(&next, 1, PeerRole::Member)).is_err(), "a step was left out");
        let announcing = ClusterAuthority::from_pem(&ours.to_pem()).unwrap().announcing(&next).unwrap();
        let first = current.renewed(key(), by(&announcing, 1, PeerRole::Member)).unwrap();
        let second = first.renewed(key(), by(&next, 1, PeerRole::Member)).unwrap();
        let alone = next.without_predecessors();
        let third = second.renewed(key(), by(&alone, 1, PeerRole::Member)).unwrap();
        assert_eq!(third.roots(), alone.roots());
        assert!(third.renewed(key(), by(&ours, 1, PeerRole::Member)).is_err());
    }

    #[test]
    fn a_certificate_is_renewed_for_its_own_node_and_key_only() {
        let (ours, key) = (ClusterAuthority::generate().unwrap(), NodeKey::generate().unwrap());
        let peer = ours.issue(1).unwrap().peer();
        let proof = key.renewal_proof(&peer).unwrap();
        let renewed = ours.renew(&peer, &key.public(), &proof).unwrap();
        assert_eq!(
            renewed.certificate,
            ours.certify(1, PeerRole::Member, &key.public()).unwrap().certificate
        );
        let refused = |peer: &PeerIdentity, key: &[u8; 32], proof: &[u8]| {
            assert_eq!(ours.renew(peer, key, proof).unwrap_err(), IdentityError::NotProven);
        };
        // Passed on by another node, or by this one in another role.
        refused(&PeerIdentity { node_id: 2, ..peer }, &key.public(), &proof);
        refused(&PeerIdentity { role: PeerRole::Operator, ..peer }, &key.public(), &proof);
        refused(&ClusterAuthority::generate().unwrap().issue(1).unwrap().peer(), &key.public(), &proof);
        // Somebody else's key.
        refused(&peer, &NodeKey::generate().unwrap().public(), &proof);
        refused(&peer, &key.public(), &NodeKey::generate().unwrap().renewal_proof(&peer).unwrap());
        refused(&peer, &key.public(), &proof[1..]);
        refused(&peer, &key.public(), &[]);
    }
}
