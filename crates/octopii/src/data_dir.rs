//! A node's data directory: its lock, its identity, and the record of whose directory it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use octopii_transport::{Address, ClusterAuthority, Identity, IdentityError, NodeId, PeerRole};
use octopii_vfs::{LockGuard, Vfs, create_dir_all_durable, read_file, write_file_durable};
use serde::{Deserialize, Serialize};

use crate::joining::forget_key;
use crate::{Config, ExternalIdentity, IdentitySource};

/// Why a node's data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// Another node has it open.
    #[error("{} is in use by another node: stop that one first, or give this one a directory of its own", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// It belongs to another node or cluster.
    #[error("{} belongs to {found}, not to {expected}: point data_dir at this node's own directory", dir.display())]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// A node's directory without that node's key.
    #[error(
        "{} belongs to {node}, but its identity.pem is missing: restore it from a backup, or let another node join, in a \
         directory of its own", dir.display()
    )]
    IdentityLost {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        node: String,
    },
    /// The identity is another node's.
    #[error(
        "the identity is that of node {found}, not of node {expected}: give node {expected} its own, or leave the id out"
    )]
    OtherIdentity {
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// The record of whose directory it is cannot be understood.
    #[error("{} is damaged ({reason}): restore it from a backup; without it the data cannot be trusted", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No identity for an address that others can reach.
    #[error(
        "no identity for {0}: only nodes on a loopback address get one by themselves. Join a cluster with a token of \
         `octopii token create` (--join), or make an authority with `octopii cluster init` and an identity with \
         `octopii cluster issue` (--identity)"
    )]
    NoIdentity(Address),
    /// An identity or authority cannot be used.
    #[error("{}: {source}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// The authority is another cluster's.
    #[error("{} is the authority of another cluster than this node's: give this node's own, or leave it out", path.display())]
    OtherAuthority {
        /// The authority's file.
        path: PathBuf,
    },
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// A node's own data directory. The lock is held as long as it lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) incarnation: u64,
    lock: Arc<Box<dyn LockGuard>>,
}

/// The directory's lock, for whoever writes into the directory in the background: what is written goes on to its end under the lock,
/// and when the node is gone, and another life of it may be there, nothing is begun.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hold(Option<Weak<Box<dyn LockGuard>>>);

impl Hold {
    /// Keep what it gives until the writing is done.
    pub(crate) fn take(&self) -> io::Result<Option<Arc<Box<dyn LockGuard>>>> {
        let Some(lock) = &self.0 else { return Ok(None) };
        lock.upgrade().map(Some).ok_or_else(|| io::Error::other("the node has been stopped"))
    }
}

/// `node.toml`: whose directory this is.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    node_id: NodeId,
    cluster: String,
    /// Hexadecimal, since TOML's integers are signed.
    incarnation: String,
}

/// A directory that is locked and understood, and in which nothing has been written yet.
pub(crate) struct Unclaimed {
    path: PathBuf,
    identity: Identity,
    // Whether the identity has just been issued, and is to be kept.
    issued: bool,
    record: Option<Record>,
    lock: Box<dyn LockGuard>,
}

const FORMAT: u32 = 1;
const MAX_FILE: u64 = 1 << 20;

impl DataDir {
    pub(crate) fn open(vfs: &Arc<dyn Vfs>, config: &Config) -> Result<Unclaimed, DataDirError> {
        let vfs = &**vfs;
        let dir = config.data_dir.clone();
        create_dir_all_durable(vfs, &dir).map_err(|source| io_error(&dir, source))?;
        // A relative path would follow the application's working directory.
        let dir = vfs.canonicalize(&dir).map_err(|source| io_error(&dir, source))?;
        let lock = lock_dir(vfs, &dir)?;
        let record = read_record(vfs, &dir)?;
        if let (Some(record), Some(id)) = (&record, config.node_id)
            && record.node_id != id
        {
            let (found, expected) =
                (describe(record.node_id, &record.cluster), describe(id, &record.cluster));
            return Err(DataDirError::NotOurs { dir, found, expected });
        }
        let (identity, issued) = find_identity(vfs, config, record.as_ref())?;
        if let Some(expected) = config.node_id.filter(|id| *id != identity.node_id()) {
            return Err(DataDirError::OtherIdentity { found: identity.node_id(), expected });
        }
        Ok(Unclaimed { path: dir, identity, issued, record, lock })
    }
}

impl DataDir {
    pub(crate) fn hold(&self) -> Hold {
        Hold(Some(Arc::downgrade(&self.lock)))
    }

    /// `reset.key`: by it the node's peers know that connections of its former lives are gone. Made when it is first needed.
    pub(crate) fn reset_secret(&self, vfs: &dyn Vfs) -> Result<[u8; 32], DataDirError> {
        let path = self.path.join("reset.key");
        match read_file(vfs, &path, MAX_FILE) {
            Ok(bytes) => match bytes.try_into() {
                Ok(secret) => return Ok(secret),
                // Nothing is lost by a new one but that peers wait for old connections to time out.
                Err(_) => tracing::warn!("{} is damaged, and replaced", path.display()),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error(&path, source)),
        }
        let secret: [u8; 32] = rand::random();
        write_file_durable(vfs, &path, &secret).map_err(|source| io_error(&path, source))?;
        Ok(secret)
    }
}

impl Unclaimed {
    pub(crate) fn node_id(&self) -> NodeId {
        self.identity.node_id()
    }

    pub(crate) fn role(&self) -> PeerRole {
        self.identity.role()
    }

    /// Makes it this node's, for ever.
    pub(crate) fn claim(self, vfs: &Arc<dyn Vfs>) -> Result<DataDir, DataDirError> {
        let Self { path: dir, identity, issued, record, lock } = self;
        let cluster = identity.cluster().to_string();
        // Compared before anything is written: an identity that is not this directory's must not be left in it.
        let known = match &record {
            Some(record) if (record.node_id, &record.cluster) != (identity.node_id(), &cluster) => {
                let found = describe(record.node_id, &record.cluster);
                return Err(DataDirError::NotOurs {
                    dir,
                    found,
                    expected: describe(identity.node_id(), &cluster),
                });
            }
            Some(record) => Some(u64::from_str_radix(&record.incarnation, 16).map_err(|e| {
                DataDirError::Damaged { path: dir.join("node.toml"), reason: format!("incarnation: {e}") }
            })?),
            None => {
                no_log(&**vfs, &dir)?;
                None
            }
        };
        if issued {
            let own = dir.join("identity.pem");
            write_file_durable(&**vfs, &own, identity.to_pem().as_bytes())
                .map_err(|source| io_error(&own, source))?;
        }
        let incarnation = match known {
            Some(incarnation) => incarnation,
            None => write_record(&**vfs, &dir, &identity)?,
        };
        if vfs.metadata(&dir.join("identity.pem")).is_ok() {
            // Of a joiner that was killed just before it did so itself: the same key lies in both.
            forget_key(&**vfs, &dir)?;
        }
        Ok(DataDir { path: dir, identity, incarnation, lock: Arc::new(lock) })
    }
}

pub(crate) fn lock_dir(vfs: &dyn Vfs, dir: &Path) -> Result<Box<dyn LockGuard>, DataDirError> {
    vfs.lock(&dir.join("lock")).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => DataDirError::Locked { dir: dir.to_owned() },
        _ => io_error(&dir.join("lock"), source),
    })
}

fn read_record(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Record>, DataDirError> {
    let path = dir.join("node.toml");
    let Some(text) = read_text(vfs, &path)? else { return Ok(None) };
    let record: Record = toml::from_str(&text)
        .map_err(|e| DataDirError::Damaged { path: path.clone(), reason: e.message().to_owned() })?;
    if record.format != FORMAT {
        let reason = format!("format {}, this program knows {FORMAT}", record.format);
        return Err(DataDirError::Damaged { path, reason });
    }
    Ok(Some(record))
}

/// Refuses a directory with a log but without its record: it has lost a file that was synced before the log was made.
fn no_log(vfs: &dyn Vfs, dir: &Path) -> Result<(), DataDirError> {
    if vfs.metadata(&dir.join("wal")).is_err() {
        return Ok(());
    }
    let reason = "the file is missing although there is a log".to_owned();
    Err(DataDirError::Damaged { path: dir.join("node.toml"), reason })
}

/// Refuses a directory without an identity that has been a node's all the same: no other node may move in.
pub(crate) fn nobodys(vfs: &dyn Vfs, dir: &Path) -> Result<(), DataDirError> {
    match read_record(vfs, dir)? {
        Some(record) => Err(DataDirError::IdentityLost {
            dir: dir.to_owned(),
            node: describe(record.node_id, &record.cluster),
        }),
        None => no_log(vfs, dir),
    }
}

fn write_record(vfs: &dyn Vfs, dir: &Path, identity: &Identity) -> Result<u64, DataDirError> {
    let path = dir.join("node.toml");
    let incarnation: u64 = rand::random();
    let record = Record {
        format: FORMAT,
        node_id: identity.node_id(),
        cluster: identity.cluster().to_string(),
        incarnation: format!("{incarnation:016x}"),
    };
    let text = toml::to_string(&record).expect("plain fields always encode");
    write_file_durable(vfs, &path, text.as_bytes()).map_err(|source| io_error(&path, source))?;
    Ok(incarnation)
}

/// The identity, and whether it has just been issued.
fn find_identity(
    vfs: &dyn Vfs,
    config: &Config,
    record: Option<&Record>,
) -> Result<(Identity, bool), DataDirError> {
    let authority_dir = match &config.identity {
        IdentitySource::Given(identity) => return Ok((identity.clone(), false)),
        IdentitySource::External(external) => return Ok((read_external(vfs, external)?, false)),
        IdentitySource::File(path) => {
            let missing = || io_error(path, io::Error::new(io::ErrorKind::NotFound, "no such file"));
            return Ok((read_identity(vfs, path)?.ok_or_else(missing)?, false));
        }
        // A token has been exchanged for `identity.pem` by now.
        IdentitySource::Auto | IdentitySource::Token(_) => None,
        IdentitySource::LocalAuthority(dir) => Some(dir.clone()),
    };
    let own = config.data_dir.join("identity.pem");
    if let Some(identity) = read_identity(vfs, &own)? {
        return Ok((identity, false));
    }
    let authority = match &config.authority {
        Some(path) => authority_at(vfs, path)?,
        None if !config.bind.ip().is_loopback() => return Err(DataDirError::NoIdentity(config.bind.into())),
        None => local_authority(vfs, &authority_dir.unwrap_or_else(state_dir))?,
    };
    // A short random number: ids are typed and read by people.
    let id =
        record.map(|r| r.node_id).or(config.node_id).unwrap_or_else(|| rand::random_range(1_000..1_000_000));
    let identity = authority.issue(id).map_err(|source| DataDirError::Identity { path: own, source })?;
    Ok((identity, true))
}

/// The authority that a user's local nodes share: read from `dir`, or made there (files of mode 0600) if there is none.
pub fn local_authority(vfs: &dyn Vfs, dir: &Path) -> Result<ClusterAuthority, DataDirError> {
    let path = dir.join("local-authority.pem");
    create_dir_all_durable(vfs, dir).map_err(|source| io_error(dir, source))?;
    if let Some(authority) = read_authority(vfs, &path)? {
        return Ok(authority);
    }
    // Several nodes may start for the first time at once: whoever gets the lock makes it, and the others wait a moment.
    let lock_path = dir.join("lock");
    for _ in 0..AUTHORITY_TRIES {
        match vfs.lock(&lock_path) {
            Ok(_lock) => {
                if let Some(authority) = read_authority(vfs, &path)? {
                    return Ok(authority);
                }
                let authority = ClusterAuthority::generate()
                    .map_err(|source| DataDirError::Identity { path: path.clone(), source })?;
                write_file_durable(vfs, &path, authority.to_pem().as_bytes())
                    .map_err(|source| io_error(&path, source))?;
                return Ok(authority);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                std::thread::yield_now();
                if let Some(authority) = read_authority(vfs, &path)? {
                    return Ok(authority);
                }
            }
            Err(source) => return Err(io_error(&lock_path, source)),
        }
    }
    Err(io_error(&lock_path, io::ErrorKind::WouldBlock.into()))
}

/// The holder needs a few milliseconds; this many polls take seconds.
const AUTHORITY_TRIES: usize = 200_000;

/// Where a user's local nodes share their authority: `$OCTOPII_STATE_DIR`, or `octopii` in `$XDG_STATE_HOME`, or
/// `~/.local/state/octopii`.
pub fn state_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = var("OCTOPII_STATE_DIR") {
        return dir;
    }
    let base = var("XDG_STATE_HOME")
        .unwrap_or_else(|| var("HOME").unwrap_or_else(std::env::temp_dir).join(".local").join("state"));
    base.join("octopii")
}

/// The authority that the user has named.
pub(crate) fn authority_at(vfs: &dyn Vfs, path: &Path) -> Result<ClusterAuthority, DataDirError> {
    let missing = || {
        io_error(
            path,
            io::Error::new(io::ErrorKind::NotFound, "no such file; `octopii cluster init` makes one"),
        )
    };
    read_authority(vfs, path)?.ok_or_else(missing)
}

/// Reads an identity from a PEM file; `None` if there is no such file.
pub fn read_identity(vfs: &dyn Vfs, path: &Path) -> Result<Option<Identity>, DataDirError> {
    let Some(text) = read_text(vfs, path)? else { return Ok(None) };
    let identity = Identity::from_pem(&text)
        .map_err(|source| DataDirError::Identity { path: path.to_owned(), source })?;
    Ok(Some(identity))
}

/// Reads an identity of somebody else's making.
pub(crate) fn read_external(vfs: &dyn Vfs, files: &ExternalIdentity) -> Result<Identity, DataDirError> {
    let read = |path: &Path| {
        let missing = || io_error(path, io::Error::new(io::ErrorKind::NotFound, "no such file"));
        read_text(vfs, path)?.ok_or_else(missing)
    };
    let (chain, key, roots) = (read(&files.certificate)?, read(&files.key)?, read(&files.roots)?);
    Identity::external(&chain, &key, &roots, files.names.clone())
        .map_err(|source| DataDirError::Identity { path: files.certificate.clone(), source })
}

/// Reads an authority from a PEM file; `None` if there is no such file.
pub fn read_authority(vfs: &dyn Vfs, path: &Path) -> Result<Option<ClusterAuthority>, DataDirError> {
    let Some(text) = read_text(vfs, path)? else { return Ok(None) };
    let authority = ClusterAuthority::from_pem(&text)
        .map_err(|source| DataDirError::Identity { path: path.to_owned(), source })?;
    Ok(Some(authority))
}

pub(crate) fn read_text(vfs: &dyn Vfs, path: &Path) -> Result<Option<String>, DataDirError> {
    match read_file(vfs, path, MAX_FILE) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|_| DataDirError::Damaged {
            path: path.to_owned(),
            reason: "it is not text".to_owned(),
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io_error(path, source)),
    }
}

fn describe(node: NodeId, cluster: &str) -> String {
    format!("node {node} of cluster {}", &cluster[..cluster.len().min(8)])
}

pub(crate) fn io_error(path: &Path, source: io::Error) -> DataDirError {
    DataDirError::Io { path: path.to_owned(), source }
}
