//! How a node's directory gets its identity from a join token.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use octopii_transport::{Executor, Identity, JoinError, JoinToken, NodeKey, PeerRole};
use octopii_vfs::{LockGuard, Vfs, create_dir_all_durable, write_file_durable};

use crate::data_dir::{DataDirError, io_error, lock_dir, nobodys, read_identity, read_text};

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinClusterError {
    /// The data directory cannot be used. The token has not been spent.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// No certificate.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The token is for one who takes no part in consensus. It has not been spent.
    #[error(
        "the token is {role}'s: only a member takes part in consensus. Get a member's (`octopii token create --role member`), or \
         run without consensus (`consensus = false` in the configuration)"
    )]
    NoMember {
        /// The token's role.
        role: PeerRole,
    },
    /// The directory's node belongs to another cluster already.
    #[error("{dir} belongs to another cluster than the token: join into a directory of its own")]
    OtherCluster {
        /// The directory.
        dir: String,
    },
}

/// The nodes that a token names have this long to answer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Makes sure that `identity.pem` is in the directory: the one that is there already, so that a node can be started again with
/// the same command, or one for the token. The directory is locked meanwhile, before the token is spent.
///
/// The key is kept before the token is spent for it: whoever is killed in between asks again with the same key, and the issuing
/// node, which remembers whose key a token was spent for, answers the same again until the token expires.
pub(crate) async fn join_into(
    executor: &Executor,
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    token: &JoinToken,
) -> Result<(), JoinClusterError> {
    let (own_vfs, own_dir, own_token) = (Arc::clone(vfs), dir.to_owned(), token.clone());
    let prepared = executor.blocking(move || prepare(&*own_vfs, &own_dir, &own_token)).await?;
    let Some(Prepared { key, _lock }) = prepared else { return Ok(()) };
    let identity = octopii_transport::join(executor, token, key, TIMEOUT).await?;
    let (vfs, dir) = (Arc::clone(vfs), dir.to_owned());
    // Under the lock to its end, also when nobody waits any more: the next start writes to the same file.
    let finishing = move || {
        let _lock = _lock;
        finish(&vfs, &dir, &identity)
    };
    executor.blocking(finishing).await?;
    Ok(())
}

/// What a joiner has before it asks.
struct Prepared {
    key: NodeKey,
    _lock: Box<dyn LockGuard>,
}

/// `None`: the directory has its identity.
fn prepare(vfs: &dyn Vfs, dir: &Path, token: &JoinToken) -> Result<Option<Prepared>, JoinClusterError> {
    create_dir_all_durable(vfs, dir).map_err(|source| io_error(dir, source))?;
    let lock = lock_dir(vfs, dir)?;
    match read_identity(vfs, &dir.join("identity.pem"))? {
        Some(identity) if identity.cluster() == token.cluster() => {
            forget_key(vfs, dir)?;
            return Ok(None);
        }
        Some(_) => return Err(JoinClusterError::OtherCluster { dir: dir.display().to_string() }),
        None => nobodys(vfs, dir)?,
    }
    let key = match kept_key(vfs, dir, token)? {
        Some(key) => key,
        None => make_key(vfs, dir, token)?,
    };
    Ok(Some(Prepared { key, _lock: lock }))
}

fn finish(vfs: &Arc<dyn Vfs>, dir: &Path, identity: &Identity) -> Result<(), DataDirError> {
    keep(vfs, &dir.join("identity.pem"), identity)?;
    forget_key(&**vfs, dir)
}

/// The key that waits for its certificate, behind a line that says which token it asks with.
const JOINING: &str = "joining.pem";

fn first_line(token: &JoinToken) -> String {
    format!("# for the join token {}\n", token.verifier())
}

/// The key with which this token was asked for before, if it was; one of another token is of no use.
fn kept_key(vfs: &dyn Vfs, dir: &Path, token: &JoinToken) -> Result<Option<NodeKey>, DataDirError> {
    let path = dir.join(JOINING);
    let Some(text) = read_text(vfs, &path)? else { return Ok(None) };
    let Some(pem) = text.strip_prefix(&first_line(token)) else { return Ok(None) };
    // Written whole or not at all, so damage is not ours: another key would be refused, and nobody would know why.
    NodeKey::from_pem(pem).map(Some).map_err(|source| DataDirError::Identity { path, source })
}

/// Durable when it returns.
fn make_key(vfs: &dyn Vfs, dir: &Path, token: &JoinToken) -> Result<NodeKey, JoinClusterError> {
    let path = dir.join(JOINING);
    let key = NodeKey::generate().map_err(JoinError::Identity)?;
    let text = first_line(token) + &key.to_pem();
    write_file_durable(vfs, &path, text.as_bytes()).map_err(|source| io_error(&path, source))?;
    Ok(key)
}

/// Once the identity is kept: the same key lies in it.
pub(crate) fn forget_key(vfs: &dyn Vfs, dir: &Path) -> Result<(), DataDirError> {
    let path = dir.join(JOINING);
    match vfs.remove_file(&path) {
        Ok(()) => vfs.sync_dir(dir).map_err(|source| io_error(dir, source)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(io_error(&path, source)),
    }
}

/// Durable when it returns.
pub(crate) fn keep(vfs: &Arc<dyn Vfs>, path: &Path, identity: &Identity) -> Result<(), DataDirError> {
    write_file_durable(&**vfs, path, identity.to_pem().as_bytes()).map_err(|source| io_error(path, source))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::SystemTime;

    use octopii_transport::{
        Admission, Applicant, Certified, ClusterAuthority, Endpoint, EndpointOptions, JoinRefusal,
    };
    use octopii_vfs::RealVfs;

    use super::*;
    use crate::issuing::{IssuedRecord, Issuer, TokenRequest, TokenStore};

    /// An issuing node that comes up anew for each question: it knows what its directory knows.
    #[derive(Debug)]
    struct Issuing {
        authority: ClusterAuthority,
        dir: PathBuf,
    }

    impl Issuing {
        fn issuer(&self) -> Arc<Issuer> {
            let store = TokenStore::open(&RealVfs::shared(), self.dir.join("tokens.toml")).unwrap();
            let authority = ClusterAuthority::from_pem(&self.authority.to_pem()).unwrap();
            let issued = IssuedRecord::open(&RealVfs::shared(), self.dir.join("issued")).unwrap();
            Issuer::new(authority, self.authority.hash(), store, issued, vec![1], Vec::new())
        }

        fn token(&self, endpoint: &Endpoint) -> JoinToken {
            let request = TokenRequest {
                role: "member".to_owned(),
                lifetime_secs: 60,
                node_id: None,
                addresses: vec![endpoint.local_addr().to_string()],
            };
            self.issuer().create(&request, |_| false, SystemTime::now()).unwrap()
        }
    }

    impl Admission for Issuing {
        fn admit(&self, applicant: &Applicant) -> Result<Certified, JoinRefusal> {
            self.issuer().admit(applicant)
        }
    }

    #[tokio::test]
    async fn a_joiner_that_was_killed_half_way_joins_with_the_same_token() {
        let home = tempfile::tempdir().unwrap();
        let (vfs, executor) = (RealVfs::shared(), Executor::new(tokio::runtime::Handle::current()));
        let (mine, others) = (home.path().join("mine"), home.path().join("others"));
        let authority = ClusterAuthority::generate().unwrap();
        let identity = authority.issue(1).unwrap();
        let issuing = Arc::new(Issuing { authority, dir: home.path().to_owned() });
        let admission: Arc<dyn Admission> = Arc::<Issuing>::clone(&issuing);
        let options = EndpointOptions { admission: Some(admission), ..EndpointOptions::default() };
        let endpoint = Endpoint::bind(&executor, &identity, options).unwrap();
        let token = issuing.token(&endpoint);

        // Killed when the token had been spent and the identity not yet written.
        let prepared = prepare(&*vfs, &mine, &token).unwrap().unwrap();
        let Prepared { key, _lock } = prepared;
        let first = octopii_transport::join(&executor, &token, key, TIMEOUT).await.unwrap();
        drop(_lock);

        let refused = join_into(&executor, &vfs, &others, &token).await.unwrap_err();
        let used = matches!(refused, JoinClusterError::Join(JoinError::Refused(JoinRefusal::Used)));
        assert!(used, "the token is good for a second key: {refused}");
        join_into(&executor, &vfs, &mine, &token).await.unwrap();
        let kept = read_identity(&*vfs, &mine.join("identity.pem")).unwrap().unwrap();
        assert_eq!((kept.node_id(), kept.hash()), (first.node_id(), first.hash()), "the same certificate");
        assert!(!mine.join(JOINING).exists() && !others.join("identity.pem").exists());
        // Killed once more, between its certificate and the last word: a start without the token clears up.
        make_key(&*vfs, &mine, &token).unwrap();
        let config = crate::Config { bind: ([10, 0, 0, 1], 1).into(), ..crate::Config::new(&mine) };
        drop(crate::data_dir::DataDir::open(&vfs, &config).unwrap().claim(&vfs).unwrap());
        assert!(!mine.join(JOINING).exists());
        // The same command once more: the directory has what it needs.
        join_into(&executor, &vfs, &mine, &token).await.unwrap();
        // For another token there is another key.
        let before = kept_key(&*vfs, &others, &token).unwrap().expect("kept before it asked");
        let another = prepare(&*vfs, &others, &issuing.token(&endpoint)).unwrap().unwrap();
        assert_ne!(before.public(), another.key.public());
    }

    /// A disk on which no identity can be given its name.
    #[derive(Debug)]
    struct Unnamed(std::sync::atomic::AtomicBool);

    impl octopii_vfs::VfsLayer for Unnamed {
        fn beneath(&self) -> &dyn Vfs {
            &RealVfs
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            if to.ends_with("identity.pem") && self.0.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(io::Error::other("the disk is full"));
            }
            RealVfs.rename(from, to)
        }
    }

    /// The token is spent by then: the key that it was spent for must not be forgotten before the certificate is kept.
    #[tokio::test]
    async fn a_certificate_that_cannot_be_kept_can_be_asked_for_again() {
        let home = tempfile::tempdir().unwrap();
        let executor = Executor::new(tokio::runtime::Handle::current());
        let full = Arc::new(Unnamed(true.into()));
        let vfs: Arc<dyn Vfs> = Arc::<Unnamed>::clone(&full);
        let authority = ClusterAuthority::generate().unwrap();
        let identity = authority.issue(1).unwrap();
        let issuing = Arc::new(Issuing { authority, dir: home.path().to_owned() });
        let admission: Arc<dyn Admission> = Arc::<Issuing>::clone(&issuing);
        let options = EndpointOptions { admission: Some(admission), ..EndpointOptions::default() };
        let endpoint = Endpoint::bind(&executor, &identity, options).unwrap();
        let (token, dir) = (issuing.token(&endpoint), home.path().join("node"));
        let refused = join_into(&executor, &vfs, &dir, &token).await.unwrap_err();
        assert!(matches!(refused, JoinClusterError::DataDir(_)), "{refused}");
        assert!(dir.join(JOINING).exists() && !dir.join("identity.pem").exists());
        full.0.store(false, std::sync::atomic::Ordering::Relaxed);
        join_into(&executor, &vfs, &dir, &token).await.unwrap();
        assert!(!dir.join(JOINING).exists() && dir.join("identity.pem").exists());
    }

    #[test]
    fn only_a_whole_key_of_the_same_token_is_taken_and_others_cannot_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let (home, vfs) = (tempfile::tempdir().unwrap(), RealVfs::shared());
        let authority = ClusterAuthority::generate().unwrap();
        let token = || {
            let (cluster, hash, expires) = (authority.cluster(), authority.hash(), SystemTime::now());
            let role = PeerRole::Member;
            JoinToken::generate(cluster, hash, role, expires, vec!["a:1".to_owned()]).unwrap()
        };
        let (token, other) = (token(), token());
        let made = make_key(&*vfs, home.path(), &token).unwrap();
        let path = home.path().join(JOINING);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
        let kept = |token| kept_key(&*vfs, home.path(), token).map(|key| key.map(|key| key.public()));
        assert_eq!(kept(&token).unwrap(), Some(made.public()));
        assert_eq!(kept(&other).unwrap(), None);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&token.expose()), "the token itself is nobody's to read");
        write_file_durable(&*vfs, &path, &text.as_bytes()[..text.len() - 40]).unwrap();
        assert!(matches!(kept(&token), Err(DataDirError::Identity { .. })));
    }
}
