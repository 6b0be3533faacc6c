//! A node's key before it has a certificate: made where it is used, and never sent.

use std::fmt;

use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::authority::{MAX_ROOTS, public_key_of};
use super::certificate::private_key;
use super::names::named_cluster;
use super::{Identity, peer_identity};
use crate::IdentityError;

/// A node's private key that waits for its certificate.
pub struct NodeKey(KeyPair);

/// A certificate that an authority has issued, with the authorities that its holder is to trust.
///
/// Not secret: without the private key it is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
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

    /// Puts key and certificate together, if they belong together.
    pub fn into_identity(self, certified: Certified) -> Result<Identity, IdentityError> {
        if public_key_of(&certified.certificate)? != self.public() {
            return Err(IdentityError::Unusable("the certificate is for another key".to_owned()));
        }
        let peer = peer_identity(&certified.certificate)?;
        for root in &certified.roots {
            if named_cluster(root)? != peer.cluster {
                return Err(IdentityError::Unusable("the authority is another cluster's".to_owned()));
            }
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()));
        Identity::assemble(peer, vec![certified.certificate], certified.roots, key)
    }
}

impl Certified {
    /// Its bytes, for the way to the node: each certificate behind its length (two bytes, little endian).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for der in std::iter::once(&self.certificate).chain(&self.roots) {
            let len = u16::try_from(der.len()).expect("an authority issues certificates of some 400 bytes");
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(der);
        }
        bytes
    }

    /// Reads what [`Certified::to_bytes`] wrote: the certificate and one to four authorities.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, IdentityError> {
        const DAMAGED: IdentityError = IdentityError::Pem { what: "an issued certificate" };
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
        Ok(Self { certificate, roots: found })
    }
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
        let identity = key.into_identity(certified).unwrap();
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
        let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
        let key = NodeKey::generate().unwrap();
        let for_another = ours.certify(1, PeerRole::Member, &NodeKey::generate().unwrap().public()).unwrap();
        assert!(NodeKey::generate().unwrap().into_identity(for_another).is_err());
        let mut mixed = ours.certify(1, PeerRole::Member, &key.public()).unwrap();
        mixed.roots = theirs.roots();
        assert!(key.into_identity(mixed).is_err());
    }
}
