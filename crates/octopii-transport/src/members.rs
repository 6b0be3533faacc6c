//! Every verified connection that is open, and who may not have one.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::revocation::{Added, Authorities, Revocation, RevocationList, Revoked, Signer, Verified};
use crate::{Connection, IdentityError};

/// One lock for both, so that nobody slips in between the check and a revocation.
#[derive(Debug)]
pub(crate) struct Members {
    inner: Mutex<Inner>,
    per_peer: usize,
}

#[derive(Debug)]
struct Inner {
    live: BTreeMap<usize, Connection>,
    revoked: RevocationList,
}

/// Why a verified peer is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwelcome {
    Revoked,
    TooMany,
}

/// The code with which the connection of a revoked peer is closed.
pub(crate) const REVOKED: u32 = 3;

impl Members {
    pub(crate) fn new(revoked: RevocationList, per_peer: usize) -> Self {
        Self { inner: Mutex::new(Inner { live: BTreeMap::new(), revoked }), per_peer }
    }

    /// Lets a verified peer in, until [`leave`](Self::leave).
    pub(crate) fn enter(&self, connection: &Connection) -> Result<(), Unwelcome> {
        let mut inner = self.inner.lock().expect("no panic while held");
        if inner.revoked.covers(connection.peer(), connection.certificate()) {
            return Err(Unwelcome::Revoked);
        }
        let same = |other: &&Connection| other.peer().node_id == connection.peer().node_id;
        if inner.live.values().filter(same).count() >= self.per_peer {
            return Err(Unwelcome::TooMany);
        }
        inner.live.insert(connection.quic().stable_id(), connection.clone());
        Ok(())
    }

    pub(crate) fn leave(&self, connection: &Connection) {
        self.inner.lock().expect("no panic while held").live.remove(&connection.quic().stable_id());
    }

    /// Every open connection.
    pub(crate) fn live(&self) -> Vec<Connection> {
        self.inner.lock().expect("no panic while held").live.values().cloned().collect()
    }

    /// The bytes of every revocation, and their generation.
    pub(crate) fn revocations(&self) -> (Vec<u8>, u64) {
        let inner = self.inner.lock().expect("no panic while held");
        (inner.revoked.to_bytes(), inner.revoked.generation())
    }

    pub(crate) fn revoked(&self) -> Vec<Revocation> {
        self.inner.lock().expect("no panic while held").revoked.entries()
    }

    pub(crate) fn is_anyone_revoked(&self) -> bool {
        !self.inner.lock().expect("no panic while held").revoked.is_empty()
    }

    pub(crate) fn unknown(&self, bytes: &[u8]) -> Result<Vec<Revocation>, IdentityError> {
        self.inner.lock().expect("no panic while held").revoked.unknown(bytes)
    }

    pub(crate) fn unsaid(&self, signer: &Signer) -> Vec<Revoked> {
        self.inner.lock().expect("no panic while held").revoked.unsaid(signer)
    }

    pub(crate) fn authorities(&self) -> Authorities {
        self.inner.lock().expect("no panic while held").revoked.authorities().clone()
    }

    /// From now on these authorities' revocations count; how many end with others.
    pub(crate) fn trust(&self, authorities: Authorities) -> usize {
        self.inner.lock().expect("no panic while held").revoked.trust(authorities)
    }

    /// Puts revocations in force and closes what they cover. Gives what was new, and the connections that remain, to tell on.
    pub(crate) fn revoke(&self, entries: Vec<Verified>) -> (Added, Vec<Connection>) {
        let mut inner = self.inner.lock().expect("no panic while held");
        let Inner { live, revoked } = &mut *inner;
        let added = revoked.add(entries);
        live.retain(|_, connection| {
            let covered = revoked.covers(connection.peer(), connection.certificate());
            if covered {
                connection.quic().close(REVOKED.into(), b"revoked by the cluster's authority");
            }
            !covered
        });
        (added, live.values().cloned().collect())
    }
}
