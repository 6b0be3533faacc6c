//! Every revocation that an endpoint knows: it only grows.

use std::collections::BTreeMap;

use super::{Revocation, Revoked};
use crate::identity::public_key_of;
use crate::{CertificateHash, Identity, IdentityError, PeerIdentity};

#[derive(Debug, Default)]
pub(crate) struct RevocationList {
    entries: BTreeMap<Revoked, Revocation>,
}

impl RevocationList {
    /// Nodes and certificates taken back over a cluster's life, at the most.
    pub(crate) const MAX: usize = 4096;

    pub(crate) fn covers(&self, peer: &PeerIdentity, certificate: &CertificateHash) -> bool {
        self.entries.contains_key(&Revoked::Node(peer.node_id))
            || self.entries.contains_key(&Revoked::Certificate(*certificate))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= Self::MAX
    }

    pub(crate) fn entries(&self) -> Vec<Revocation> {
        self.entries.values().cloned().collect()
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.entries.values().flat_map(Revocation::to_bytes).collect()
    }

    /// Those of `bytes` that are not known yet, whoever has made them.
    pub(crate) fn unknown(&self, bytes: &[u8]) -> Result<Vec<Revocation>, IdentityError> {
        let (entries, rest) = bytes.as_chunks::<{ Revocation::LEN }>();
        if !rest.is_empty() || entries.len() > Self::MAX {
            return Err(DAMAGED);
        }
        let entries = entries.iter().map(|entry| Revocation::from_bytes(entry));
        entries.filter(|entry| !matches!(entry, Ok(e) if self.entries.contains_key(&e.what))).collect()
    }

    /// Takes verified entries, as far as there is room; whether any was new.
    pub(crate) fn add(&mut self, entries: Vec<Revocation>) -> bool {
        let before = self.entries.len();
        for entry in entries {
            if !self.is_full() {
                self.entries.entry(entry.what).or_insert(entry);
            }
        }
        self.entries.len() > before
    }
}

const DAMAGED: IdentityError = IdentityError::Pem { what: "a list of revocations" };

/// Signatures that do not hold are tolerated while authorities change, but they cost time.
const MAX_UNSIGNED: usize = 16;

/// Those that an authority of `identity`'s has signed.
pub(crate) fn signed(
    entries: Vec<Revocation>,
    identity: &Identity,
) -> Result<Vec<Revocation>, IdentityError> {
    // Authorities of another kind of key sign no revocations.
    let keys: Vec<_> = identity.roots().iter().filter_map(|root| public_key_of(root).ok()).collect();
    let (mut signed, mut unsigned) = (Vec::new(), 0);
    for entry in entries {
        if entry.is_signed_by(&keys, identity.cluster()) {
            signed.push(entry);
            continue;
        }
        unsigned += 1;
        if unsigned > MAX_UNSIGNED {
            return Err(DAMAGED);
        }
    }
    Ok(signed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterAuthority;

    #[test]
    fn only_what_the_authority_has_signed_is_taken() {
        let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
        let identity = ours.issue(1).unwrap();
        let hash = ours.issue(9).unwrap().hash();
        let good =
            [ours.revoke(Revoked::Node(7), 5).unwrap(), ours.revoke(Revoked::Certificate(hash), 6).unwrap()];
        let mut list = RevocationList::default();
        let taken = |list: &RevocationList, bytes: &[u8], by: &Identity| signed(list.unknown(bytes)?, by);
        let bytes: Vec<u8> = good.iter().flat_map(Revocation::to_bytes).collect();
        assert_eq!(taken(&list, &bytes, &identity).unwrap(), good);
        for i in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[i] ^= 1;
            let taken = taken(&list, &forged, &identity).map_or(0, |taken| taken.len());
            assert!(taken <= 1, "changed at {i}");
        }
        assert!(list.unknown(&bytes[1..]).is_err());
        let foreign = theirs.revoke(Revoked::Node(7), 5).unwrap().to_bytes();
        assert_eq!(taken(&list, &foreign, &identity).unwrap(), []);
        assert!(taken(&list, &foreign.repeat(100), &identity).is_err(), "checked a hundred bad signatures");

        assert!(list.add(good.to_vec()) && !list.add(good.to_vec()));
        assert_eq!(list.to_bytes(), bytes);
        assert_eq!(list.unknown(&bytes).unwrap(), []);
        let covered = |id, hash| {
            let peer = PeerIdentity { node_id: id, ..identity.peer() };
            list.covers(&peer, &hash)
        };
        assert!(covered(7, identity.hash()) && covered(9, hash) && !covered(9, identity.hash()));
        // Nodes move to a new authority; what the old one took back stays taken back.
        let moved = ours.successor().unwrap().issue(1).unwrap();
        assert_eq!(taken(&RevocationList::default(), &bytes, &moved).unwrap().len(), 2);
    }

    #[test]
    fn it_has_an_end() {
        let authority = ClusterAuthority::generate().unwrap();
        let one = authority.revoke(Revoked::Node(0), 0).unwrap();
        let many = (0..RevocationList::MAX as u64 + 10)
            .map(|id| Revocation { what: Revoked::Node(id), ..one.clone() });
        let mut list = RevocationList::default();
        assert!(list.add(many.collect()));
        assert_eq!(list.entries().len(), RevocationList::MAX);
        let bytes = vec![0; (RevocationList::MAX + 1) * Revocation::LEN];
        assert!(list.unknown(&bytes).is_err());
    }
}
