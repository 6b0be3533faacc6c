//! Taking a certificate back: signed by the authority, told from node to node, checked at every handshake.

mod list;
mod spread;

use std::fmt;
use std::io;

use crate::{CertificateHash, ClusterAuthority, ClusterId, IdentityError, NodeId};

pub(crate) use list::{Added, Authorities, RevocationList, Signer, Verified};
pub(crate) use spread::{TRUST, apply, keep, receive, tell};

/// What is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revoked {
    /// Every certificate of a node, those of the future included: its id is never good again. When the cluster's authority
    /// changes, the new one must say it again ([`Endpoint::sign_again`](crate::Endpoint::sign_again); an issuing node does so when it starts,
    /// and before it lets the old one go).
    Node(NodeId),
    /// One certificate, such as one that has been replaced. Not enough after a theft: who has had the key may have had it renewed.
    Certificate(CertificateHash),
}

/// The authority's word that a node or a certificate is no longer good. Not secret, and good as long as the authority is trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct Revocation {
    what: Revoked,
    at: u64,
    signature: [u8; 64],
}

/// Keeps an endpoint's revocations where they survive a restart.
pub trait KeepRevocations: Send + Sync + fmt::Debug + 'static {
    /// Replaces what is kept by these bytes, durably. Called off the async threads, one call at a time; after an error it is called
    /// again when the next revocation comes, be it the same one.
    fn keep(&self, revocations: &[u8]) -> io::Result<()>;
}

impl Revocation {
    /// Length of one in bytes: kind (1), node id or hash (32), time (8), signature (64).
    pub const LEN: usize = 1 + 32 + 8 + 64;

    /// What it takes back.
    pub fn what(&self) -> Revoked {
        self.what
    }

    /// When it was signed, in seconds since 1970.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..33].copy_from_slice(&subject(&self.what));
        bytes[33..41].copy_from_slice(&self.at.to_le_bytes());
        bytes[41..].copy_from_slice(&self.signature);
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. Whether the authority has signed it is seen where it is used.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        const DAMAGED: IdentityError = IdentityError::Pem { what: "a revocation" };
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| DAMAGED)?;
        let (kind, rest) = bytes.split_first().ok_or(DAMAGED)?;
        let (value, rest) = rest.split_first_chunk::<32>().ok_or(DAMAGED)?;
        let (at, signature) = rest.split_first_chunk().ok_or(DAMAGED)?;
        let (id, padding) = value.split_first_chunk().ok_or(DAMAGED)?;
        let what = match kind {
            1 if padding.iter().all(|b| *b == 0) => Revoked::Node(u64::from_le_bytes(*id)),
            2 => Revoked::Certificate(CertificateHash(*value)),
            _ => return Err(DAMAGED),
        };
        let signature = signature.try_into().map_err(|_| DAMAGED)?;
        Ok(Self { what, at: u64::from_le_bytes(*at), signature })
    }
}

impl ClusterAuthority {
    /// Takes back a node's certificates, or one certificate; `at` in seconds since 1970. It takes effect where an endpoint is told
    /// ([`Endpoint::revoke`](crate::Endpoint::revoke)), and from there everywhere.
    pub fn revoke(&self, what: Revoked, at: u64) -> Result<Revocation, IdentityError> {
        let signature = self.sign(&statement(self.cluster(), &what, at))?;
        Ok(Revocation { what, at, signature })
    }
}

fn statement(cluster: ClusterId, what: &Revoked, at: u64) -> Vec<u8> {
    [b"octopii revoke 1".as_slice(), &cluster.to_bytes(), &subject(what), &at.to_le_bytes()].concat()
}

fn subject(what: &Revoked) -> [u8; 33] {
    let mut bytes = [0; 33];
    match what {
        Revoked::Node(id) => {
            bytes[0] = 1;
            bytes[1..9].copy_from_slice(&id.to_le_bytes());
        }
        Revoked::Certificate(hash) => {
            bytes[0] = 2;
            bytes[1..].copy_from_slice(&hash.0);
        }
    }
    bytes
}

impl fmt::Debug for Revocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocation").field("what", &self.what).field("at", &self.at).finish_non_exhaustive()
    }
}
