//! The node that holds the authority's key: tokens, and the certificates they are exchanged for.

mod service;
mod tokens;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use octopii_transport::{
    Admission, Applicant, CertificateHash, Certified, ClusterAuthority, Identity, IdentityError, JoinRefusal,
    JoinToken, NodeId, PeerIdentity, PeerRole, Revocation, Revoked, TokenVerifier,
};

pub(crate) use service::{CREATE_TOKEN, LIST_TOKENS, RENEW, REVOKE_TOKEN, Renewal, register};
pub use service::{TokenRequest, TokenState, TokenSummary};
pub(crate) use tokens::TokenStore;
use tokens::{NewToken, TokenStoreError};

/// Issues certificates. Calls block on the disk: nothing is given out before it is durable that it was.
#[derive(Debug)]
pub(crate) struct Issuer {
    authority: ClusterAuthority,
    /// The authority that has signed this node's own certificate, which joiners are shown. While authorities change it may still
    /// be another than the one that issues: tokens pin one, so there are none then.
    shown: Mutex<CertificateHash>,
    store: Mutex<TokenStore>,
    /// Ids that are taken whatever the store says.
    reserved: Vec<NodeId>,
    /// Where joiners find this node, unless a token says otherwise.
    addresses: Vec<String>,
}

/// A token lives this long at the most.
const MAX_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

impl Issuer {
    pub(crate) fn new(
        authority: ClusterAuthority,
        shown: CertificateHash,
        store: TokenStore,
        reserved: Vec<NodeId>,
        addresses: Vec<String>,
    ) -> Arc<Self> {
        let (shown, store) = (Mutex::new(shown), Mutex::new(store));
        Arc::new(Self { authority, shown, store, reserved, addresses })
    }

    /// This node's own certificate is another one from now on.
    pub(crate) fn shows(&self, identity: &Identity) {
        *self.shown.lock().expect("no panic while held") = identity.authority_hash();
    }

    /// Whether joiners are shown the authority that issues: with any other, a token's pin fails them at one place or the other.
    fn is_consistent(&self) -> bool {
        *self.shown.lock().expect("no panic while held") == self.authority.hash()
    }

    /// `elsewhere` tells of ids that are another node's, or were, though not by a token of this one's.
    pub(crate) fn create(
        &self,
        request: &TokenRequest,
        elsewhere: impl Fn(NodeId) -> bool,
        now: SystemTime,
    ) -> Result<JoinToken, TokenStoreError> {
        let lifetime = Duration::from_secs(request.lifetime_secs);
        if lifetime.is_zero() || lifetime > MAX_LIFETIME {
            return Err(TokenStoreError::Lifetime);
        }
        let addresses =
            if request.addresses.is_empty() { self.addresses.clone() } else { request.addresses.clone() };
        if addresses.is_empty() {
            return Err(TokenStoreError::NoAddress);
        }
        if !self.is_consistent() {
            return Err(TokenStoreError::Changing);
        }
        let token = JoinToken::generate(
            self.authority.cluster(),
            self.authority.hash(),
            request.role()?,
            now + lifetime,
            addresses,
        )?;
        let mut store = self.store.lock().expect("no panic while held");
        let is_taken = |id| self.reserved.contains(&id) || elsewhere(id);
        let node_id = match request.node_id {
            Some(id) if is_taken(id) || store.is_given_out(id) => return Err(TokenStoreError::IdTaken(id)),
            Some(id) => id,
            None => store.fresh_id(is_taken).ok_or(TokenStoreError::NoId)?,
        };
        let new = NewToken { verifier: token.verifier(), role: token.role(), node_id };
        store.add(new, now, token.expires())?;
        Ok(token)
    }

    fn list(&self, now: SystemTime) -> Vec<TokenSummary> {
        self.store.lock().expect("no panic while held").list(now)
    }

    fn revoke_token(&self, id: &str) -> Result<bool, TokenStoreError> {
        self.store.lock().expect("no panic while held").revoke(id)
    }

    /// A new certificate for a key of a node that has one already, with the same id and role.
    pub(crate) fn renew(&self, peer: &PeerIdentity, request: &Renewal) -> Result<Certified, IdentityError> {
        self.authority.renew(peer, &request.public_key, &request.proof)
    }

    pub(crate) fn revoke(&self, what: Revoked, at: u64) -> Result<Revocation, IdentityError> {
        self.authority.revoke(what, at)
    }

    /// See [`ClusterAuthority::sign_again`].
    pub(crate) fn sign_again(
        &self,
        kept: &[u8],
        identity: &Identity,
        now: u64,
    ) -> Result<Option<Vec<u8>>, IdentityError> {
        self.authority.sign_again(kept, identity, now)
    }

    fn redeem(
        &self,
        token: &TokenVerifier,
        public_key: &[u8; 32],
        remote: SocketAddr,
        now: SystemTime,
    ) -> Result<Certified, JoinRefusal> {
        if !self.is_consistent() {
            tracing::error!("a join failed, its token is not spent: {}", TokenStoreError::Changing);
            return Err(JoinRefusal::Failed);
        }
        let (node_id, role) = {
            let mut store = self.store.lock().expect("no panic while held");
            store.redeem(token, public_key, now)?
        };
        let certified = self.authority.certify(node_id, role, public_key).map_err(|e| {
            tracing::error!("no certificate for node {node_id}: {e}");
            JoinRefusal::Failed
        })?;
        tracing::info!(node_id, %role, %remote, certificate = %certified.hash(), "a certificate is issued for a token");
        Ok(certified)
    }
}

impl Admission for Issuer {
    fn admit(&self, applicant: &Applicant) -> Result<Certified, JoinRefusal> {
        self.redeem(&applicant.token, &applicant.public_key, applicant.remote, SystemTime::now())
    }
}

impl TokenRequest {
    fn role(&self) -> Result<PeerRole, TokenStoreError> {
        self.role.parse().map_err(|_| TokenStoreError::Role)
    }
}

#[cfg(test)]
mod tests {
    use octopii_transport::NodeKey;
    use octopii_vfs::RealVfs;

    use super::*;

    /// The second step of a change of authorities: the new one's key, and still a certificate of the old one.
    #[test]
    fn a_token_that_nobody_could_use_is_neither_made_nor_spent() {
        let dir = tempfile::tempdir().unwrap();
        let old = ClusterAuthority::generate().unwrap();
        let new = old.successor().unwrap();
        let open = |authority: ClusterAuthority, shown: CertificateHash| {
            let store = TokenStore::open(&RealVfs::shared(), dir.path().join("tokens.toml")).unwrap();
            Issuer::new(authority, shown, store, vec![1], vec!["127.0.0.1:1".to_owned()])
        };
        let request = TokenRequest {
            role: "member".to_owned(),
            lifetime_secs: 600,
            node_id: None,
            addresses: Vec::new(),
        };
        let (now, old_hash, new_hash) = (SystemTime::now(), old.hash(), new.hash());
        let carried = new.issue(1).unwrap();
        let earlier = open(old, old_hash).create(&request, |_| false, now).unwrap();

        let changing = open(new, old_hash);
        let refused = changing.create(&request, |_| false, now);
        assert!(matches!(refused, Err(TokenStoreError::Changing)));
        let key = NodeKey::generate().unwrap();
        let ask =
            |token: TokenVerifier| changing.redeem(&token, &key.public(), ([127, 0, 0, 1], 9).into(), now);
        assert_eq!(ask(earlier.verifier()), Err(JoinRefusal::Failed));
        assert_eq!(changing.list(now)[0].state, TokenState::Waiting);

        changing.shows(&carried);
        let token = changing.create(&request, |_| false, now).unwrap();
        assert_eq!(token.authority(), new_hash);
        let certified = ask(token.verifier()).unwrap();
        key.into_identity(certified, &token.authority()).unwrap();
    }
}
