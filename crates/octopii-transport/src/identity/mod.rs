//! Who a node is: its id, its role and its cluster, as a verified certificate states them.

mod authority;
mod certificate;
mod external;
mod key;
mod names;

use std::fmt;
use std::str::FromStr;

use rustls::pki_types::CertificateDer;

use crate::IdentityError;

pub use authority::ClusterAuthority;
pub(crate) use authority::public_key_of;
pub use certificate::Identity;
pub use external::NameRules;
pub(crate) use key::verify;
pub use key::{Certified, NodeKey};
pub(crate) use names::{cluster_name, peer_identity};

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
    /// What it may do.
    pub role: PeerRole,
}

/// What a certificate allows its holder. Handlers may ask for more; this is what the layers below them enforce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PeerRole {
    /// A node of the cluster: everything, consensus and the spreading of revocations included.
    Member,
    /// A person or program that looks after the cluster: everything that can be called, but no part in consensus.
    Operator,
    /// A user of the cluster's services: calls, messages and transfers, but nothing that changes who belongs to it.
    Client,
}

/// SHA-256 of a certificate in DER: names one certificate exactly. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CertificateHash(pub(crate) [u8; 32]);

impl PeerRole {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Member, Self::Operator, Self::Client];

    /// Whether the holder may change who belongs to the cluster: members and operators.
    pub fn may_administer(self) -> bool {
        matches!(self, Self::Member | Self::Operator)
    }

    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Member => 1,
            Self::Operator => 2,
            Self::Client => 3,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.byte() == byte)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Operator => "operator",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for PeerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for PeerRole {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or(IdentityError::UnknownRole)
    }
}

impl ClusterId {
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
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
        // from_str_radix takes a sign and upper case; a cluster has one spelling.
        if text.len() != 32 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(IdentityError::NotANode);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| IdentityError::NotANode)
    }
}

impl CertificateHash {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(sha256(certificate))
    }
}

impl fmt::Display for CertificateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CertificateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CertificateHash {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let digit = |b: u8| (b as char).to_digit(16).filter(|_| !b.is_ascii_uppercase());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut hash = [0; 32];
        if pairs.len() != hash.len() || !rest.is_empty() {
            return Err(IdentityError::NotAHash);
        }
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                return Err(IdentityError::NotAHash);
            };
            *byte = (high * 16 + low) as u8;
        }
        Ok(Self(hash))
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    *ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        let hash = CertificateHash(sha256(b"x"));
        assert_eq!(hash.to_string().parse::<CertificateHash>(), Ok(hash));
        assert!(hash.to_string().to_uppercase().parse::<CertificateHash>().is_err());
        assert!(hash.to_string()[2..].parse::<CertificateHash>().is_err());
        let cluster = ClusterId(7);
        assert_eq!(cluster.to_string().parse::<ClusterId>(), Ok(cluster));
        for wrong in ["", "+0000000000000000000000000000007", "0000000000000000000000000000000A"] {
            assert!(wrong.parse::<ClusterId>().is_err(), "{wrong}");
        }
        for role in PeerRole::ALL {
            assert_eq!(role.to_string().parse::<PeerRole>(), Ok(role));
            assert_eq!(PeerRole::from_byte(role.byte()), Some(role));
        }
        assert!("admin".parse::<PeerRole>().is_err());
    }
}
