//! A running node's identity, replaced without a restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use octopii_rpc::{Bincode, Client as RpcClient, Code, Codec, CodecError, Context, Router, Status};
use octopii_transport::{
    Address, CertificateHash, Certified, Endpoint, Identity, IdentityError, NodeKey, RevokeError,
};
use octopii_vfs::Vfs;
use tokio::sync::Mutex;

use crate::ExternalIdentity;
use crate::data_dir::{DataDirError, Hold, io_error, read_external, read_identity};
use crate::issuing::{Issuer, RENEW, RenewError, Renewal, renew_status};
use crate::joining::keep;
use crate::revocation::now;
use crate::service::{administering, member_at};

/// Why an identity was not replaced. The old one goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    /// The identity was given in code or by a file that somebody else looks after.
    #[error(
        "this node's identity comes from {0}: replace it there, and have it read again (`OctopiiNode::reload_identity`, SIGHUP)"
    )]
    NotOurs(String),
    /// There is no file to read.
    #[error("this node's identity was given in code: there is no file to read it from")]
    NoFile,
    /// Nobody was named to ask, and this node issues no certificates.
    #[error("this node issues no certificates: say which node to ask (--issuer)")]
    NoIssuer,
    /// The issuing node did not issue.
    #[error("no new certificate: {0}")]
    NotIssued(Status),
    /// Nodes are revoked by an authority alone that would be trusted no longer.
    #[error("revocations that would end with the old authority could not be said again by the new one: {0}")]
    NotSaidAgain(#[from] RevokeError),
    /// The runtime ended under the change: the next start uses the identity that is on disk by then.
    #[error("the runtime is shutting down: the next start uses the key that is on disk by then")]
    ShuttingDown,
    /// The new identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It cannot be read or kept.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
}

/// Where a node's identity lies.
#[derive(Debug, Clone)]
pub(crate) enum Home {
    /// In the data directory.
    Own(PathBuf),
    /// In a file that the user looks after.
    Users(PathBuf),
    /// In files that an authority of somebody else's looks after.
    External(ExternalIdentity),
    /// Given in code.
    Nowhere,
}

impl Home {
    fn read(&self, vfs: &dyn Vfs) -> Result<Identity, RotateError> {
        match self {
            Self::Own(path) | Self::Users(path) => {
                let missing =
                    || DataDirError::Io { path: path.clone(), source: std::io::ErrorKind::NotFound.into() };
                Ok(read_identity(vfs, path)?.ok_or_else(missing)?)
            }
            Self::External(files) => Ok(read_external(vfs, files)?),
            Self::Nowhere => Err(RotateError::NoFile),
        }
    }
}

/// Replaces a node's identity, one change at a time.
#[derive(Debug, Clone)]
pub(crate) struct Rotation(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    rpc: RpcClient,
    vfs: Arc<dyn Vfs>,
    home: Home,
    hold: Hold,
    issuer: Option<Arc<Issuer>>,
    changing: Arc<Mutex<()>>,
}

pub(crate) const ROTATE: &str = "octopii.rotate";

const RENEW_TRIES: usize = 3;

/// The issuing node has this long to answer.
const RENEW_TIMEOUT: Duration = Duration::from_secs(10);

impl Rotation {
    pub(crate) fn new(
        endpoint: Endpoint,
        rpc: RpcClient,
        vfs: Arc<dyn Vfs>,
        (home, hold): (Home, Hold),
        issuer: Option<Arc<Issuer>>,
    ) -> Self {
        Self(Arc::new(Inner { endpoint, rpc, vfs, home, hold, issuer, changing: Arc::default() }))
    }

    /// A fresh key and a certificate for it: kept first, then used. Dropping the future while the issuing node is asked leaves the
    /// old key; after that the change is carried through.
    pub(crate) async fn rotate(&self, issuer: Option<Address>) -> Result<CertificateHash, RotateError> {
        let inner = &*self.0;
        let path = match &inner.home {
            Home::Own(path) => path.clone(),
            Home::Users(path) => return Err(RotateError::NotOurs(path.display().to_string())),
            Home::External(files) => {
                return Err(RotateError::NotOurs(files.certificate.display().to_string()));
            }
            Home::Nowhere => return Err(RotateError::NotOurs("the program that runs it".to_owned())),
        };
        let one_at_a_time = Arc::clone(&inner.changing).lock_owned().await;
        let key = NodeKey::generate()?;
        let certified = inner.certified(&key, issuer).await?;
        // Before the old key is given up: whoever has answered, only a successor that an authority of this node's vouches for.
        let identity = inner.endpoint.identity().renewed(key, certified)?;
        inner.say_again().await?;
        let (rotation, vfs) = (Arc::clone(&self.0), Arc::clone(&inner.vfs));
        // A task of its own, with the lock: half a change would be a key on disk that is not in use, and a second change that
        // begins meanwhile would write to the same file.
        let changing = async move {
            let (path, kept) = (path, identity.clone());
            let hold = rotation.hold.clone();
            let writing = move || {
                let _held = hold.take().map_err(|source| io_error(&path, source))?;
                keep(&vfs, &path, &kept)
            };
            rotation.endpoint.executor().blocking(writing).await?;
            rotation.use_from_now_on(&identity)?;
            drop(one_at_a_time);
            Ok(identity.hash())
        };
        match inner.endpoint.executor().spawn(changing).await {
            Ok(outcome) => outcome,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => Err(RotateError::ShuttingDown),
        }
    }

    /// Reads the identity's file again; whether it has changed.
    pub(crate) async fn reload(&self) -> Result<bool, RotateError> {
        let inner = &*self.0;
        let _one_at_a_time = inner.changing.lock().await;
        let (home, vfs) = (inner.home.clone(), Arc::clone(&inner.vfs));
        let identity = inner.endpoint.executor().blocking(move || home.read(&*vfs)).await?;
        let changed = identity.to_pem() != inner.endpoint.identity().to_pem();
        if changed {
            inner.say_again().await?;
            inner.record(&identity).await?;
            inner.use_from_now_on(&identity)?;
        }
        Ok(changed)
    }

    pub(crate) fn register(&self, router: &mut Router) {
        let own = self.clone();
        router.register(ROTATE, move |context: Context, issuer: Option<Address>| {
            let rotation = own.clone();
            async move {
                administering(&context)?;
                let hash = rotation.rotate(issuer).await.map_err(status)?;
                Ok(hash.to_string())
            }
        });
        router.describe_response::<String>(ROTATE);
    }
}

impl Inner {
    /// What another authority has said since this issuing node started, of nodes: the next identity may trust that one no more.
    async fn say_again(&self) -> Result<(), RotateError> {
        match &self.issuer {
            Some(issuer) => Ok(self.endpoint.sign_again(issuer.authority(), now()).await?),
            None => Ok(()),
        }
    }

    /// Puts an identity that somebody else looks after on the record, if this node issues.
    async fn record(&self, identity: &Identity) -> Result<(), RotateError> {
        let Some(issuer) = self.issuer.clone() else { return Ok(()) };
        let identity = identity.clone();
        let recording = move || issuer.record_own(&identity, SystemTime::now());
        let recorded = self.endpoint.executor().blocking(recording).await;
        recorded.map_err(|e| RotateError::NotIssued(renew_status(&RenewError::NotKept(e))))
    }

    fn use_from_now_on(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.endpoint.set_identity(identity)?;
        if let Some(issuer) = &self.issuer {
            issuer.shows(identity);
        }
        Ok(())
    }

    async fn certified(&self, key: &NodeKey, issuer: Option<Address>) -> Result<Certified, RotateError> {
        let peer = self.endpoint.identity().peer();
        let request = Renewal::new(key, &peer)?;
        // Who issues has nobody to ask, whatever address it is known by.
        if let Some(own) = &self.issuer {
            let own = Arc::clone(own);
            let renewing = move || own.renew(&peer, &request, None, SystemTime::now());
            let renewed = self.endpoint.executor().blocking(renewing).await;
            let certified = renewed.map_err(|e| RotateError::NotIssued(renew_status(&e)))?;
            tracing::info!(node_id = peer.node_id, certificate = %certified.hash(), "this node's own certificate is renewed");
            return Ok(certified);
        }
        let addr = issuer.ok_or(RotateError::NoIssuer)?;
        let unreadable = |e: CodecError| RotateError::NotIssued(e.into());
        let request = Bytes::from(Bincode::encode(&request).map_err(unreadable)?);
        let mut tries = 0;
        // A certificate more does no harm, and the connection may have been to a former life of the issuing node.
        let answer = loop {
            tries += 1;
            let connection = member_at(&self.endpoint, &addr).await.map_err(RotateError::NotIssued)?;
            match self.rpc.call_on(&connection, RENEW, request.clone(), RENEW_TIMEOUT).await {
                Err(status) if tries < RENEW_TRIES && status.code.is_outcome_unknown() => {}
                answered => break answered.map_err(RotateError::NotIssued)?,
            }
        };
        let bytes: Vec<u8> = Bincode::decode(&answer).map_err(unreadable)?;
        Ok(Certified::from_bytes(&bytes)?)
    }
}

fn status(e: RotateError) -> Status {
    let code = match &e {
        RotateError::NotIssued(status) => status.code,
        RotateError::DataDir(_) | RotateError::Identity(_) | RotateError::NotSaidAgain(_) => Code::Internal,
        RotateError::ShuttingDown => Code::Unknown,
        _ => Code::FailedPrecondition,
    };
    Status::new(code, e.to_string())
}
