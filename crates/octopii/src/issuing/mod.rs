//! The node that holds the authority's key: tokens, and the certificates they are exchanged for.

mod service;
mod tokens;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use octopii_transport::{
    Admission, Applicant, CertificateHash, Certified, ClusterAuthority, Identity, IdentityError, JoinRefusal,
    JoinToken, NodeId, PeerIdentity, PeerRole, Revocation, Revoked,
};

pub(crate) use service::{CREATE_TOKEN, LIST_TOKENS, RENEW, REVOKE_TOKEN, Renewal, register};
pub use service::{TokenRequest, TokenState, TokenSummary};
pub(crate) use tokens::TokenStore;
use tokens::{NewToken, TokenStoreError};

/// Issues certificates. Calls block on the disk: nothing is given out before it is durable that it was.
#[derive(Debug)]
pub(crate) struct Issuer {
    authority: ClusterAuthority,
    /// What tokens pin: the authority that has signed this node's own certificate, which joiners are shown.
    pinned: CertificateHash,
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
        pinned: CertificateHash,
        store: TokenStore,
        reserved: Vec<NodeId>,
        addresses: Vec<String>,
    ) -> Arc<Self> {
        Arc::new(Self { authority, pinned, store: Mutex::new(store), reserved, addresses })
    }

    pub(crate) fn create(
        &self,
        request: &TokenRequest,
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
        let token = JoinToken::generate(
            self.authority.cluster(),
            self.pinned,
            request.role()?,
            now + lifetime,
            addresses,
        )?;
        let new = NewToken { verifier: token.verifier(), role: token.role(), node_id: request.node_id };
        let mut store = self.store.lock().expect("no panic while held");
        if let Some(id) = request.node_id
            && (self.reserved.contains(&id) || store.is_given_out(id))
        {
            return Err(TokenStoreError::IdTaken(id));
        }
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

    fn admit_at(&self, applicant: &Applicant, now: SystemTime) -> Result<Certified, JoinRefusal> {
        let (node_id, role) = {
            let mut store = self.store.lock().expect("no panic while held");
            store.redeem(&applicant.token, &applicant.public_key, now, &self.reserved)?
        };
        tracing::info!(node_id, %role, remote = %applicant.remote, "a certificate is issued for a token");
        self.authority.certify(node_id, role, &applicant.public_key).map_err(|e| {
            tracing::error!("no certificate for node {node_id}: {e}");
            JoinRefusal::Failed
        })
    }
}

impl Admission for Issuer {
    fn admit(&self, applicant: &Applicant) -> Result<Certified, JoinRefusal> {
        self.admit_at(applicant, SystemTime::now())
    }
}

impl TokenRequest {
    fn role(&self) -> Result<PeerRole, TokenStoreError> {
        self.role.parse().map_err(|_| TokenStoreError::Role)
    }
}
