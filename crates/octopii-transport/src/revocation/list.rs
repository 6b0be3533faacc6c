//! Every revocation that an endpoint knows.

use std::collections::BTreeMap;

use super::{Revocation, Revoked};
use crate::identity::{public_key_of, verify};
use crate::{CertificateHash, ClusterId, Identity, IdentityError, PeerIdentity};

/// An authority's public key.
pub(crate) type Signer = [u8; 32];

/// Whose signatures count: the authorities of a node's identity, the one of its own certificate first.
#[derive(Debug, Clone)]
pub(crate) struct Authorities {
    keys: Vec<Signer>,
    cluster: ClusterId,
}

/// A revocation whose signature holds, and the key it holds with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    revocation: Revocation,
    signer: Signer,
}

impl Authorities {
    /// Signatures that do not hold are tolerated in what a peer tells while authorities change, but they cost time.
    pub(crate) const MAX_UNSIGNED: usize = 16;

    pub(crate) fn of(identity: &Identity) -> Self {
        // Authorities of another kind of key sign no revocations.
        let keys = identity.roots().iter().filter_map(|root| public_key_of(root).ok()).collect();
        Self { keys, cluster: identity.cluster() }
    }

    pub(crate) fn trust(&self, key: &Signer) -> bool {
        self.keys.contains(key)
    }

    fn place(&self, key: &Signer) -> Option<usize> {
        self.keys.iter().position(|own| own == key)
    }

    /// The key of the authority that has signed it.
    pub(super) fn signer(&self, entry: &Revocation) -> Option<Signer> {
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

/// A set that grows until an authority goes: of each authority its latest word about each thing that it has taken back. So it does
/// not matter in which order a node hears what, and what one authority says hides nothing that another does.
#[derive(Debug)]
pub(crate) struct RevocationList {
    words: BTreeMap<Revoked, BTreeMap<Signer, Revocation>>,
    authorities: Authorities,
    /// Grows with every change of the words.
    generation: u64,
}

/// What has come of adding to a list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Added {
    /// What was not covered before.
    pub(crate) new: Vec<Revoked>,
    /// Words about what was covered before.
    pub(crate) renewed: usize,
    /// Those for which there was no room: they are not in force, or not when the authority goes that says the same.
    pub(crate) refused: usize,
    /// Those whose authority has gone since they were verified: they are not in force.
    pub(crate) ended: usize,
}

impl Added {
    pub(crate) fn is_nothing(&self) -> bool {
        self.new.is_empty() && self.renewed == 0
    }
}

impl RevocationList {
    /// Nodes and certificates taken back over a cluster's life, at the most.
    pub(crate) const MAX: usize = 4096;

    /// Words about them: two authorities may say the same while one follows the other.
    pub(crate) const MAX_WORDS: usize = 2 * Self::MAX;

    pub(crate) fn new(authorities: Authorities) -> Self {
        Self { words: BTreeMap::new(), authorities, generation: 0 }
    }

    pub(crate) fn covers(&self, peer: &PeerIdentity, certificate: &CertificateHash) -> bool {
        self.words.contains_key(&Revoked::Node(peer.node_id))
            || self.words.contains_key(&Revoked::Certificate(*certificate))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Tells one state of the words from another.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// One word about each thing: the one of the authority that comes first.
    pub(crate) fn entries(&self) -> Vec<Revocation> {
        let first = |by: &BTreeMap<Signer, Revocation>| {
            by.iter().min_by_key(|(signer, _)| self.authorities.place(signer)).map(|(_, word)| word.clone())
        };
        self.words.values().filter_map(first).collect()
    }

    /// The nodes that this authority has not taken back itself, though others have.
    pub(crate) fn unsaid(&self, signer: &Signer) -> Vec<Revoked> {
        let unsaid = |(what, by): &(&Revoked, &BTreeMap<Signer, Revocation>)| {
            matches!(what, Revoked::Node(_)) && !by.contains_key(signer)
        };
        self.words.iter().filter(unsaid).map(|(what, _)| *what).collect()
    }

    pub(crate) fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// Those of the first authority first: a peer that trusts fewer than this node does reads no further than a few that it
    /// cannot verify.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut words: Vec<_> = self.words.values().flatten().collect();
        words.sort_by_key(|(signer, _)| self.authorities.place(signer));
        words.into_iter().flat_map(|(_, word)| word.to_bytes()).collect()
    }

    /// Those of `bytes` that may say something new, whoever has made them.
    pub(crate) fn unknown(&self, bytes: &[u8]) -> Result<Vec<Revocation>, IdentityError> {
        // With one authority an earlier word about the same is the same authority's, or nobody's that counts.
        let only_one = self.authorities.keys.len() == 1;
        let is_known = |word: &Revocation| {
            self.words.get(&word.what).is_some_and(|known| {
                known.values().any(|known| known == word || only_one && known.at >= word.at)
            })
        };
        Ok(parse(bytes)?.into_iter().filter(|word| !is_known(word)).collect())
    }

    /// Takes verified words, as far as there is room. Of two of one authority about the same the later one counts, so that all
    /// nodes end up with the same.
    pub(crate) fn add(&mut self, verified: Vec<Verified>) -> Added {
        let mut added = Added::default();
        let mut count: usize = self.words.values().map(BTreeMap::len).sum();
        for Verified { revocation, signer } in verified {
            if !self.authorities.trust(&signer) {
                added.ended += 1;
                continue;
            }
            let what = revocation.what;
            let has_room =
                count < Self::MAX_WORDS && (self.words.len() < Self::MAX || self.words.contains_key(&what));
            match self.words.get_mut(&what) {
                Some(known) => match known.get(&signer) {
                    Some(known) if known.at >= revocation.at => {}
                    None if !has_room => added.refused += 1,
                    earlier => {
                        count += usize::from(earlier.is_none());
                        known.insert(signer, revocation);
                        added.renewed += 1;
                    }
                },
                None if !has_room => added.refused += 1,
                None => {
                    count += 1;
                    added.new.push(what);
                    self.words.insert(what, BTreeMap::from([(signer, revocation)]));
                }
            }
        }
        self.generation += u64::from(!added.is_nothing());
        added
    }

    /// From now on these authorities count. Gives how many revocations end with others.
    pub(crate) fn trust(&mut self, authorities: Authorities) -> usize {
        self.authorities = authorities;
        let count =
            |words: &BTreeMap<_, BTreeMap<_, _>>| -> usize { words.values().map(BTreeMap::len).sum() };
        let (before, words_before) = (self.words.len(), count(&self.words));
        self.words.retain(|_, by| {
            by.retain(|signer, _| self.authorities.trust(signer));
            !by.is_empty()
        });
        self.generation += u64::from(count(&self.words) < words_before);
        before - self.words.len()
    }
}

const DAMAGED: IdentityError = IdentityError::Pem { what: "a list of revocations" };

/// Reads what [`RevocationList::to_bytes`] wrote.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Revocation>, IdentityError> {
    let (entries, rest) = bytes.as_chunks::<{ Revocation::LEN }>();
    if !rest.is_empty() || entries.len() > RevocationList::MAX_WORDS {
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
        assert_eq!(list.add(verified), Added { ended: 2, ..Added::default() });
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
        let bytes = vec![0; (RevocationList::MAX_WORDS + 1) * Revocation::LEN];
        assert!(list.unknown(&bytes).is_err());
    }
}
