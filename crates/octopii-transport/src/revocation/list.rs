//! Every revocation that an endpoint knows. It only grows, as long as the authorities that signed it are trusted.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::{Revocation, Revoked};
use crate::identity::{public_key_of, verify};
use crate::{CertificateHash, ClusterId, Identity, IdentityError, PeerIdentity};

/// Whose signatures count: the authorities of a node's identity, the one of its own certificate first.
#[derive(Debug, Clone)]
pub(crate) struct Authorities {
    keys: Vec<[u8; 32]>,
    cluster: ClusterId,
}

/// A revocation whose signature holds, and the key it holds with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    revocation: Revocation,
    signer: [u8; 32],
}

impl Authorities {
    /// Signatures that do not hold are tolerated in what a peer tells while authorities change, but they cost time.
    pub(crate) const MAX_UNSIGNED: usize = 16;

    pub(crate) fn of(identity: &Identity) -> Self {
        // Authorities of another kind of key sign no revocations.
        let keys = identity.roots().iter().filter_map(|root| public_key_of(root).ok()).collect();
        Self { keys, cluster: identity.cluster() }
    }

    pub(super) fn trust(&self, key: &[u8; 32]) -> bool {
        self.keys.contains(key)
    }

    /// The key of the authority that has signed it.
    pub(super) fn signer(&self, entry: &Revocation) -> Option<[u8; 32]> {
        let statement = super::statement(self.cluster, &entry.what, entry.at);
        self.keys.iter().find(|key| verify(key, &statement, &entry.signature)).copied()
    }

    /// Those that an authority has signed, and how many of the others were seen: beyond `max_unsigned` no more are looked at.
    pub(crate) fn verify(&self, entries: Vec<Revocation>, max_unsigned: usize) -> (Vec<Verified>, usize) {
        let (mut signed, mut unsigned) = (Vec::new(), 0);
        for revocation in entries {
            match self.signer(&revocation) {
                Some(signer) => signed.push(Verified { revocation, signer }),
                None if unsigned >= max_unsigned => return (signed, unsigned + 1),
                None => unsigned += 1,
            }
        }
        (signed, unsigned)
    }
}

#[derive(Debug)]
pub(crate) struct RevocationList {
    entries: BTreeMap<Revoked, Verified>,
    authorities: Authorities,
    /// Grows with every change of the entries.
    generation: u64,
}

/// What has come of adding to a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Added {
    /// What was not covered before.
    pub(crate) new: Vec<Revoked>,
    /// Those that took the place of an earlier word about the same.
    pub(crate) renewed: usize,
    /// Those for which there was no room: they are not in force.
    pub(crate) refused: usize,
}

impl Added {
    pub(crate) fn is_nothing(&self) -> bool {
        self.new.is_empty() && self.renewed == 0
    }
}

impl RevocationList {
    /// Nodes and certificates taken back over a cluster's life, at the most.
    pub(crate) const MAX: usize = 4096;

    pub(crate) fn new(authorities: Authorities) -> Self {
        Self { entries: BTreeMap::new(), authorities, generation: 0 }
    }

    pub(crate) fn covers(&self, peer: &PeerIdentity, certificate: &CertificateHash) -> bool {
        self.entries.contains_key(&Revoked::Node(peer.node_id))
            || self.entries.contains_key(&Revoked::Certificate(*certificate))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Tells one state of the entries from another.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn entries(&self) -> Vec<Revocation> {
        self.entries.values().map(|entry| entry.revocation.clone()).collect()
    }

    pub(crate) fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// Those of the first authority first: a peer that trusts fewer than this node does reads no further than a few that it
    /// cannot verify.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut entries: Vec<_> = self.entries.values().collect();
        entries.sort_by_key(|entry| self.authorities.keys.iter().position(|key| *key == entry.signer));
        entries.into_iter().flat_map(|entry| entry.revocation.to_bytes()).collect()
    }

    /// Those of `bytes` that are not known yet or are later than what is, whoever has made them.
    pub(crate) fn unknown(&self, bytes: &[u8]) -> Result<Vec<Revocation>, IdentityError> {
        let is_known = |entry: &Revocation| {
            self.entries.get(&entry.what).is_some_and(|known| known.revocation.at >= entry.at)
        };
        let entries = parse(bytes)?.into_iter();
        Ok(entries.filter(|entry| !is_known(entry)).collect())
    }

    /// Takes verified entries, as far as there is room; one about what is known already needs none. Of two about the same the later one counts, so that all nodes end up with
    /// the same one.
    pub(crate) fn add(&mut self, entries: Vec<Verified>) -> Added {
        let mut added = Added::default();
        for entry in entries {
            // Verified before the authorities changed.
            if !self.authorities.trust(&entry.signer) {
                continue;
            }
            let has_room = self.entries.len() < Self::MAX;
            match self.entries.entry(entry.revocation.what) {
                Entry::Occupied(known) if known.get().revocation.at >= entry.revocation.at => {}
                Entry::Occupied(mut known) => {
                    known.insert(entry);
                    added.renewed += 1;
                }
                Entry::Vacant(place) if has_room => {
                    added.new.push(*place.key());
                    place.insert(entry);
                }
                Entry::Vacant(_) => added.refused += 1,
            }
        }
        self.generation += u64::from(!added.is_nothing());
        added
    }

    /// From now on these authorities count. Gives how many revocations end with others.
    pub(crate) fn trust(&mut self, authorities: Authorities) -> usize {
        self.authorities = authorities;
        let before = self.entries.len();
        self.entries.retain(|_, entry| self.authorities.trust(&entry.signer));
        let ended = before - self.entries.len();
        self.generation += u64::from(ended > 0);
        ended
    }
}

const DAMAGED: IdentityError = IdentityError::Pem { what: "a list of revocations" };

/// Reads what [`RevocationList::to_bytes`] wrote.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Revocation>, IdentityError> {
    let (entries, rest) = bytes.as_chunks::<{ Revocation::LEN }>();
    if !rest.is_empty() || entries.len() > RevocationList::MAX {
        return Err(DAMAGED);
    }
    entries.iter().map(|entry| Revocation::from_bytes(entry)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterAuthority;

    fn empty(identity: &Identity) -> RevocationList {
        RevocationList::new(Authorities::of(identity))
    }

    #[test]
    fn only_what_the_authority_has_signed_is_taken() {
        let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
        let identity = ours.issue(1).unwrap();
        let hash = ours.issue(9).unwrap().hash();
        let good =
            [ours.revoke(Revoked::Node(7), 5).unwrap(), ours.revoke(Revoked::Certificate(hash), 6).unwrap()];
        let taken = |list: &RevocationList, bytes: &[u8]| {
            Ok::<_, IdentityError>(list.authorities().verify(list.unknown(bytes)?, Authorities::MAX_UNSIGNED))
        };
        let mut list = empty(&identity);
        let bytes: Vec<u8> = good.iter().flat_map(Revocation::to_bytes).collect();
        let (verified, unsigned) = taken(&list, &bytes).unwrap();
        assert_eq!(verified.iter().map(|v| v.revocation.clone()).collect::<Vec<_>>(), good);
        assert_eq!(unsigned, 0);
        for i in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[i] ^= 1;
            let taken = taken(&list, &forged).map_or(0, |taken| taken.0.len());
            assert!(taken <= 1, "changed at {i}");
        }
        assert!(list.unknown(&bytes[1..]).is_err());
        let foreign = theirs.revoke(Revoked::Node(7), 5).unwrap().to_bytes();
        assert_eq!(taken(&list, &foreign).unwrap(), (vec![], 1));
        let (none, seen) = taken(&list, &foreign.repeat(100)).unwrap();
        assert!(none.is_empty() && seen == Authorities::MAX_UNSIGNED + 1, "checked {seen} bad signatures");

        assert_eq!(list.add(verified.clone()).new.len(), 2);
        assert!(list.add(verified).is_nothing());
        assert_eq!(list.to_bytes(), bytes);
        assert_eq!(list.unknown(&bytes).unwrap(), []);
        let covered = |id, hash| {
            let peer = PeerIdentity { node_id: id, ..identity.peer() };
            list.covers(&peer, &hash)
        };
        assert!(covered(7, identity.hash()) && covered(9, hash) && !covered(9, identity.hash()));
        // Nodes move to a new authority; what the old one took back stays taken back.
        let moved = ours.successor().unwrap().issue(1).unwrap();
        assert_eq!(taken(&empty(&moved), &bytes).unwrap().0.len(), 2);
    }

    #[test]
    fn the_authority_of_the_own_certificate_comes_first() {
        let old = ClusterAuthority::generate().unwrap();
        let new = old.successor().unwrap();
        let mut list = empty(&old.issue(1).unwrap().trusting(&new).unwrap());
        let by = |authority: &ClusterAuthority, id| authority.revoke(Revoked::Node(id), 1).unwrap();
        let entries = vec![by(&old, 1), by(&new, 2), by(&old, 3)];
        let (verified, _) = list.authorities().verify(entries, 0);
        list.add(verified.clone());
        let order = |list: &RevocationList| -> Vec<Revoked> {
            parse(&list.to_bytes()).unwrap().iter().map(Revocation::what).collect()
        };
        assert_eq!(order(&list), [1, 3, 2].map(Revoked::Node));
        assert_eq!(list.trust(Authorities::of(&new.issue(1).unwrap())), 0);
        assert_eq!(order(&list), [2, 1, 3].map(Revoked::Node));
        assert_eq!(list.trust(Authorities::of(&new.without_predecessors().issue(1).unwrap())), 2);
        assert_eq!(order(&list), [Revoked::Node(2)]);
        // What was verified before the change comes too late.
        assert!(list.add(verified).is_nothing());
    }

    #[test]
    fn it_has_an_end() {
        let authority = ClusterAuthority::generate().unwrap();
        let mut list = empty(&authority.issue(1).unwrap());
        let one = authority.revoke(Revoked::Node(0), 0).unwrap();
        let signer = list.authorities().signer(&one).unwrap();
        let many = (0..RevocationList::MAX as u64 + 10)
            .map(|id| Verified { revocation: Revocation { what: Revoked::Node(id), ..one.clone() }, signer });
        let added = list.add(many.collect());
        assert_eq!((added.new.len(), added.refused), (RevocationList::MAX, 10));
        let generation = list.generation();
        let late = |id, at| Verified {
            revocation: Revocation { what: Revoked::Node(id), at, ..one.clone() },
            signer,
        };
        assert_eq!(list.add(vec![late(1 << 40, 1)]), Added { refused: 1, ..Added::default() });
        assert_eq!(list.add(vec![late(3, 0)]), Added::default());
        assert_eq!(list.generation(), generation);
        assert_eq!(list.add(vec![late(3, 1)]), Added { renewed: 1, ..Added::default() });
        assert!(list.generation() > generation);
        assert_eq!(list.entries().len(), RevocationList::MAX);
        let bytes = vec![0; (RevocationList::MAX + 1) * Revocation::LEN];
        assert!(list.unknown(&bytes).is_err());
    }
}
