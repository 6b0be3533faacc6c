//! The node that holds the authority's key: tokens, and the certificates they are exchanged for.

mod record;
mod service;
mod tokens;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use octopii_transport::{
    Admission, Applicant, CertificateHash, Certified, ClusterAuthority, Identity, IdentityError, JoinRefusal,
    JoinToken, NodeId, PeerIdentity, PeerRole, Revocation, Revoked, TokenVerifier,
};

use record::Issued;
pub(crate) use record::IssuedRecord;
pub(crate) use service::{
    CREATE_TOKEN, LIST_ISSUED, LIST_TOKENS, RENEW, REVOKE_TOKEN, Renewal, register, renew_status,
};
pub use service::{IssuedBy, IssuedList, IssuedSummary, TokenRequest, TokenState, TokenSummary};
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
    /// What has been issued. Never locked together with `store`.
    issued: Mutex<IssuedRecord>,
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
        issued: IssuedRecord,
        reserved: Vec<NodeId>,
        addresses: Vec<String>,
    ) -> Arc<Self> {
        let (shown, store, issued) = (Mutex::new(shown), Mutex::new(store), Mutex::new(issued));
        Arc::new(Self { authority, shown, store, issued, reserved, addresses })
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

    /// A new certificate for a key of a node that has one already, with the same id and role: for the one that asks from there, or
    /// this node itself. On the record when this returns.
    pub(crate) fn renew(
        &self,
        peer: &PeerIdentity,
        request: &Renewal,
        from: Option<SocketAddr>,
        now: SystemTime,
    ) -> Result<Certified, RenewError> {
        let certified = self.authority.renew(peer, &request.public_key, &request.proof)?;
        let at = seconds(now);
        let mut record = self.issued.lock().expect("no panic while held");
        if record.is_too_often(peer.node_id, at) {
            return Err(RenewError::TooOften(peer.node_id));
        }
        let by = if from.is_some() { IssuedBy::Renewal } else { IssuedBy::Own };
        let (node_id, role, certificate) = (peer.node_id, peer.role, certified.hash());
        record.add(Issued { at, node_id, role, by, from, certificate }).map_err(RenewError::NotKept)?;
        Ok(certified)
    }

    /// Puts this node's own certificate on the record, however it was made.
    pub(crate) fn record_own(&self, identity: &Identity, now: SystemTime) -> std::io::Result<()> {
        let (peer, certificate) = (identity.peer(), identity.hash());
        let (node_id, role, by) = (peer.node_id, peer.role, IssuedBy::Own);
        let own = Issued { at: seconds(now), node_id, role, by, from: None, certificate };
        self.issued.lock().expect("no panic while held").add(own)
    }

    /// Everything on the record, or what is there of one node; which of it is revoked is for the caller to say.
    fn issued(
        &self,
        node_id: Option<NodeId>,
        is_revoked: impl Fn(NodeId, &CertificateHash) -> bool,
    ) -> IssuedList {
        let record = self.issued.lock().expect("no panic while held");
        let of = record.all().iter().filter(|issued| node_id.is_none_or(|id| id == issued.node_id));
        let entries = of.map(|issued| IssuedSummary {
            at: issued.at,
            node_id: issued.node_id,
            role: issued.role.to_string(),
            by: issued.by,
            from: issued.from.map(|from| from.to_string()),
            certificate: issued.certificate.to_string(),
            revoked: is_revoked(issued.node_id, &issued.certificate),
        });
        IssuedList { entries: entries.collect(), forgotten: record.forgotten() }
    }

    pub(crate) fn revoke(&self, what: Revoked, at: u64) -> Result<Revocation, IdentityError> {
        self.authority.revoke(what, at)
    }

    pub(crate) fn authority(&self) -> &ClusterAuthority {
        &self.authority
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
        let (at, by, certificate) = (seconds(now), IssuedBy::Token, certified.hash());
        let issued = Issued { at, node_id, role, by, from: Some(remote), certificate };
        // The same key may ask again: it gets the same certificate.
        self.issued.lock().expect("no panic while held").add(issued).map_err(|e| {
            tracing::error!("no certificate for node {node_id}, since it cannot be put on the record: {e}");
            JoinRefusal::Failed
        })?;
        tracing::info!(node_id, %role, %remote, %certificate, "a certificate is issued for a token");
        Ok(certified)
    }
}

impl Admission for Issuer {
    fn admit(&self, applicant: &Applicant) -> Result<Certified, JoinRefusal> {
        self.redeem(&applicant.token, &applicant.public_key, applicant.remote, SystemTime::now())
    }
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(
        "node {0} has been certified too often within a minute: try again later, and look whether somebody else has its key"
    )]
    TooOften(NodeId),
    #[error("what is issued cannot be put on the record, so nothing is: {0}")]
    NotKept(std::io::Error),
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
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
            let issued = IssuedRecord::open(&RealVfs::shared(), dir.path().join("issued")).unwrap();
            Issuer::new(authority, shown, store, issued, vec![1], vec!["127.0.0.1:1".to_owned()])
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
        let hash = certified.hash().to_string();
        key.into_identity(certified, &token.authority()).unwrap();
        // What the token that nobody could use was asked for is not on the record, what was handed out is.
        let list = open(ClusterAuthority::generate().unwrap(), old_hash).issued(None, |_, _| false);
        let [entry] = &list.entries[..] else { panic!("{list:?}") };
        assert_eq!((&entry.certificate, entry.by), (&hash, IssuedBy::Token));
        assert_eq!(entry.from.as_deref(), Some("127.0.0.1:9"));
    }

    /// A certificate that is not on the record must not be in anybody's hands.
    #[test]
    fn nothing_is_handed_out_that_cannot_be_put_on_the_record() {
        let dir = tempfile::tempdir().unwrap();
        let authority = ClusterAuthority::generate().unwrap();
        let (hash, member) = (authority.hash(), authority.issue(7).unwrap());
        let store = TokenStore::open(&RealVfs::shared(), dir.path().join("tokens.toml")).unwrap();
        let gone = dir.path().join("gone");
        let issued = IssuedRecord::open(&RealVfs::shared(), gone.join("issued")).unwrap();
        let issuer = Issuer::new(authority, hash, store, issued, vec![1], vec!["127.0.0.1:1".to_owned()]);
        let (now, from) = (SystemTime::now(), SocketAddr::from(([127, 0, 0, 1], 9)));
        let request = TokenRequest {
            role: "client".to_owned(),
            lifetime_secs: 600,
            node_id: None,
            addresses: Vec::new(),
        };
        let token = issuer.create(&request, |_| false, now).unwrap();
        let key = NodeKey::generate().unwrap();
        let join = || issuer.redeem(&token.verifier(), &key.public(), from, now);
        let new_key = NodeKey::generate().unwrap();
        let renewal = Renewal::new(&new_key, &member.peer()).unwrap();
        let renew = || issuer.renew(&member.peer(), &renewal, Some(from), now);
        assert_eq!(join().unwrap_err(), JoinRefusal::Failed);
        assert!(matches!(renew().unwrap_err(), RenewError::NotKept(_)));
        assert!(issuer.issued(None, |_, _| false).entries.is_empty());
        // When it can be kept again, the same key asks again.
        std::fs::create_dir(&gone).unwrap();
        let (joined, renewed) = (join().unwrap().hash(), renew().unwrap().hash());
        let list = issuer.issued(None, |id, _| id == 7);
        let told: Vec<_> = list.entries.iter().map(|e| (e.certificate.clone(), e.by, e.revoked)).collect();
        assert_eq!(
            told,
            [(joined.to_string(), IssuedBy::Token, false), (renewed.to_string(), IssuedBy::Renewal, true)]
        );
        assert_eq!(issuer.issued(Some(7), |_, _| false).entries.len(), 1);
        for _ in 0..59 {
            let key = NodeKey::generate().unwrap();
            let request = Renewal::new(&key, &member.peer()).unwrap();
            issuer.renew(&member.peer(), &request, Some(from), now).unwrap();
        }
        assert!(matches!(renew().unwrap_err(), RenewError::TooOften(7)));
    }
}
