//! The tokens that have been made, on disk: what is spent stays spent.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use octopii_transport::{JoinRefusal, NodeId, PeerRole, TokenError, TokenVerifier};
use octopii_vfs::{Vfs, write_file_durable};
use serde::{Deserialize, Serialize};

use super::{TokenState, TokenSummary};
use crate::data_dir::{DataDirError, Hold, read_text};

/// Tokens kept at once. Those that have expired make room for new ones.
const MAX_TOKENS: usize = 1024;
/// Ids given out over the cluster's life.
const MAX_IDS: usize = 50_000;
/// Expired tokens are still listed for so long.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

/// A short random number: ids are typed and read by people.
const IDS: std::ops::Range<NodeId> = 1_000..1_000_000;

/// Why a token was not made or withdrawn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenStoreError {
    #[error(
        "{MAX_TOKENS} tokens are waiting to be used: revoke some (`octopii token list`), or let them expire"
    )]
    Full,
    #[error("a token lives between a second and a year")]
    Lifetime,
    #[error("node id {0} has been given out, or was revoked: choose another, or let the issuing node choose")]
    IdTaken(NodeId),
    #[error("all ids that this node chooses from have been given out: choose one (--id)")]
    NoId,
    #[error(
        "this node listens on every address, so it does not know its own: say with --address where joiners find it"
    )]
    NoAddress,
    #[error(
        "this node's own certificate is not yet of the authority that it issues with, and a token can pin only one: have it replaced \
         first (`octopii cluster rotate`, with this node's address)"
    )]
    Changing,
    #[error("a role is \"member\", \"operator\" or \"client\"")]
    Role,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the tokens cannot be kept, so nothing was changed: {0}")]
    Io(std::io::Error),
}

#[derive(Debug)]
pub(crate) struct TokenStore {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    hold: Hold,
    kept: Kept,
}

/// `tokens.toml`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    /// Never given out again.
    #[serde(default)]
    ids: Vec<NodeId>,
    #[serde(default)]
    token: Vec<Record>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// A public key: neither the secret nor a proof can be made from it.
    verifier: String,
    role: String,
    created: u64,
    expires: u64,
    node_id: NodeId,
    /// The public key that the token was spent for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used_by: Option<String>,
}

pub(super) struct NewToken {
    pub(super) verifier: TokenVerifier,
    pub(super) role: PeerRole,
    pub(super) node_id: NodeId,
}

const FORMAT: u32 = 1;

impl TokenStore {
    pub(crate) fn open(vfs: &Arc<dyn Vfs>, path: PathBuf) -> Result<Self, DataDirError> {
        let damaged = |reason: String| DataDirError::Damaged { path: path.clone(), reason };
        let kept = match read_text(&**vfs, &path)? {
            Some(text) => toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?,
            None => Kept { format: FORMAT, ..Kept::default() },
        };
        if kept.format != FORMAT {
            return Err(damaged(format!("format {}, this program knows {FORMAT}", kept.format)));
        }
        if kept.token.iter().any(|t| t.role.parse::<PeerRole>().is_err() || t.verifier.len() != 64) {
            return Err(damaged("a token without role or verifier".to_owned()));
        }
        Ok(Self { vfs: Arc::clone(vfs), path, hold: Hold::default(), kept })
    }

    /// Writes only while that holds.
    pub(crate) fn held_by(self, hold: Hold) -> Self {
        Self { hold, ..self }
    }

    pub(super) fn is_given_out(&self, id: NodeId) -> bool {
        self.kept.ids.contains(&id) || self.kept.token.iter().any(|t| t.node_id == id)
    }

    pub(super) fn add(
        &mut self,
        new: NewToken,
        now: SystemTime,
        expires: SystemTime,
    ) -> Result<(), TokenStoreError> {
        let mut next = self.kept.clone();
        let now = seconds(now);
        next.token.retain(|t| t.expires.saturating_add(REMEMBERED.as_secs()) > now);
        if next.token.len() >= MAX_TOKENS {
            next.token.retain(|t| t.expires > now);
        }
        if next.token.len() >= MAX_TOKENS {
            // Only then one of those that have been used, the oldest: its joiner may still be coming back for its certificate.
            let used = next.token.iter().enumerate().filter(|(_, t)| t.used_by.is_some());
            if let Some(oldest) = used.min_by_key(|(_, t)| t.created).map(|(at, _)| at) {
                next.token.remove(oldest);
            }
        }
        if next.token.len() >= MAX_TOKENS {
            return Err(TokenStoreError::Full);
        }
        next.token.push(Record {
            verifier: new.verifier.to_string(),
            role: new.role.to_string(),
            created: now,
            expires: seconds(expires),
            node_id: new.node_id,
            used_by: None,
        });
        self.replace(next).map_err(TokenStoreError::Io)
    }

    /// Spends a token: durable when this returns. The same key may ask again until the token expires.
    pub(super) fn redeem(
        &mut self,
        verifier: &TokenVerifier,
        public_key: &[u8; 32],
        now: SystemTime,
    ) -> Result<(NodeId, PeerRole), JoinRefusal> {
        let (verifier, key) = (verifier.to_string(), hex(public_key));
        let found = self.kept.token.iter().position(|t| t.verifier == verifier);
        let at = found.ok_or(JoinRefusal::Unknown)?;
        let token = &self.kept.token[at];
        let role = token.role.parse().map_err(|_| JoinRefusal::Failed)?;
        if token.used_by.as_ref().is_some_and(|used_by| *used_by != key) {
            return Err(JoinRefusal::Used);
        }
        if token.expires <= seconds(now) {
            return Err(JoinRefusal::Expired);
        }
        let id = token.node_id;
        if token.used_by.is_some() {
            return Ok((id, role));
        }
        let mut next = self.kept.clone();
        next.token[at].used_by = Some(key);
        if next.ids.len() >= MAX_IDS {
            return Err(failed("all ids have been given out"));
        }
        next.ids.push(id);
        self.replace(next).map_err(|e| failed(&format!("{}: {e}", self.path.display())))?;
        Ok((id, role))
    }

    pub(super) fn list(&self, now: SystemTime) -> Vec<TokenSummary> {
        let now = seconds(now);
        let summary = |t: &Record| TokenSummary {
            id: short(&t.verifier).to_owned(),
            role: t.role.clone(),
            node_id: t.node_id,
            created: t.created,
            expires: t.expires,
            state: match &t.used_by {
                Some(_) => TokenState::Used,
                None if t.expires <= now => TokenState::Expired,
                None => TokenState::Waiting,
            },
        };
        self.kept.token.iter().map(summary).collect()
    }

    /// Forgets a token by the short name that [`list`](Self::list) gives; whether there was one. Durable when this returns.
    pub(super) fn revoke(&mut self, id: &str) -> Result<bool, TokenStoreError> {
        let mut next = self.kept.clone();
        next.token.retain(|t| short(&t.verifier) != id);
        if next.token.len() == self.kept.token.len() {
            return Ok(false);
        }
        self.replace(next).map_err(TokenStoreError::Io)?;
        Ok(true)
    }

    /// An id that is free, as far as this store and the caller know.
    pub(super) fn fresh_id(&self, is_taken: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let free = |id: &NodeId| !is_taken(*id) && !self.is_given_out(*id);
        (0..1_000).map(|_| rand::random_range(IDS)).find(free)
    }

    /// What cannot be kept has not happened.
    fn replace(&mut self, next: Kept) -> std::io::Result<()> {
        let text = toml::to_string(&next).map_err(std::io::Error::other)?;
        let _held = self.hold.take()?;
        write_file_durable(&*self.vfs, &self.path, text.as_bytes())?;
        self.kept = next;
        Ok(())
    }
}

fn short(verifier: &str) -> &str {
    &verifier[..16]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn failed(reason: &str) -> JoinRefusal {
    tracing::error!("a join failed: {reason}");
    JoinRefusal::Failed
}

#[cfg(test)]
mod tests {
    use octopii_transport::{ClusterAuthority, JoinToken};
    use octopii_vfs::RealVfs;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn open(dir: &tempfile::TempDir) -> TokenStore {
        TokenStore::open(&RealVfs::shared(), dir.path().join("tokens.toml")).unwrap()
    }

    fn made(store: &mut TokenStore, role: PeerRole, node_id: Option<NodeId>) -> JoinToken {
        let authority = ClusterAuthority::generate().unwrap();
        let (cluster, hash, expires) = (authority.cluster(), authority.hash(), now() + HOUR);
        let token = JoinToken::generate(cluster, hash, role, expires, vec!["a:1".to_owned()]).unwrap();
        let node_id = node_id.or_else(|| store.fresh_id(|_| false)).unwrap();
        store.add(NewToken { verifier: token.verifier(), role, node_id }, now(), expires).unwrap();
        token
    }

    #[test]
    fn a_token_is_good_once_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(&dir);
        let token = made(&mut store, PeerRole::Client, None);
        let mut store = open(&dir);
        let (id, role) = store.redeem(&token.verifier(), &[1; 32], now()).unwrap();
        assert!(IDS.contains(&id));
        assert_eq!(role, PeerRole::Client);
        let mut again = open(&dir);
        for store in [&mut store, &mut again] {
            // The answer was lost: the same key gets the same.
            assert_eq!(store.redeem(&token.verifier(), &[1; 32], now()), Ok((id, role)));
            assert_eq!(store.redeem(&token.verifier(), &[2; 32], now()), Err(JoinRefusal::Used));
            assert_eq!(store.list(now())[0].state, TokenState::Used);
        }
    }

    #[test]
    fn it_expires_and_can_be_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(&dir);
        let (late, withdrawn) =
            (made(&mut store, PeerRole::Member, Some(5)), made(&mut store, PeerRole::Member, None));
        assert_eq!(store.redeem(&late.verifier(), &[1; 32], now() + HOUR), Err(JoinRefusal::Expired));
        assert_eq!(store.list(now() + HOUR)[0].state, TokenState::Expired);
        assert!(store.revoke(&withdrawn.verifier().short()).unwrap());
        assert!(!store.revoke("0000000000000000").unwrap());
        let mut store = open(&dir);
        assert_eq!(store.redeem(&withdrawn.verifier(), &[1; 32], now()), Err(JoinRefusal::Unknown));
        assert_eq!(store.redeem(&late.verifier(), &[1; 32], now()), Ok((5, PeerRole::Member)));
        assert!(store.is_given_out(5));
    }

    #[test]
    fn what_cannot_be_kept_has_not_happened() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(&dir);
        let token = made(&mut store, PeerRole::Member, None);
        let whole = std::mem::replace(&mut store.path, dir.path().join("absent/tokens.toml"));
        assert_eq!(store.redeem(&token.verifier(), &[1; 32], now()), Err(JoinRefusal::Failed));
        store.path = whole;
        assert!(store.redeem(&token.verifier(), &[2; 32], now()).is_ok());
    }

    #[test]
    fn the_file_tells_no_secret_and_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(&dir);
        let token = made(&mut store, PeerRole::Member, None);
        let text = std::fs::read_to_string(dir.path().join("tokens.toml")).unwrap();
        assert!(!text.contains(&token.expose()[13..40]), "{text}");
        // Far more tokens than are kept, all of them unused: refused, not forgotten.
        let record = store.kept.token[0].clone();
        store.kept.token = vec![record; MAX_TOKENS];
        let new = || NewToken { verifier: token.verifier(), role: PeerRole::Member, node_id: 1 };
        let refused = store.add(new(), now(), now() + HOUR);
        assert!(matches!(refused, Err(TokenStoreError::Full)));
        // One that has been used makes room for one; its joiner has had the most time of all.
        store.kept.token[7].used_by = Some("k".to_owned());
        store.kept.token[5].used_by = Some("k".to_owned());
        store.kept.token[5].created -= 1;
        store.add(new(), now(), now() + HOUR).unwrap();
        let used = store.kept.token.iter().filter(|t| t.used_by.is_some());
        assert_eq!(used.map(|t| t.created).collect::<Vec<_>>(), [seconds(now())]);
        // Once they have expired there is room.
        store.add(new(), now() + HOUR + HOUR, now() + HOUR * 3).unwrap();
        assert_eq!(store.kept.token.len(), 1);
    }

    #[test]
    fn a_damaged_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for text in [
            "format = 2",
            "format = 1\n[[token]]\nverifier = \"short\"\nrole = \"member\"\ncreated = 1\nexpires = 2\nnode_id = 3",
            "x",
        ] {
            write_file_durable(&RealVfs, &dir.path().join("tokens.toml"), text.as_bytes()).unwrap();
            let opened = TokenStore::open(&RealVfs::shared(), dir.path().join("tokens.toml"));
            assert!(matches!(opened, Err(DataDirError::Damaged { .. })), "{text}");
        }
    }
}
