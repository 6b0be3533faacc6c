//! Taking certificates back: what a node answers, and what it keeps.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use octopii_rpc::{Code, Context, Router, Status};
use octopii_transport::{Endpoint, KeepRevocations, Revocation, RevokeError, Revoked};
use octopii_vfs::{Vfs, read_file, write_file_durable};
use serde::{Deserialize, Serialize};

use crate::data_dir::{DataDirError, Hold, io_error};
use crate::issuing::Issuer;
use crate::service::{administering, operating};

pub(crate) const REVOKE: &str = "octopii.revoke";
pub(crate) const LIST_REVOKED: &str = "octopii.revoked";

/// What is to be revoked, and who signs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevokeRequest {
    /// Every certificate of a node, for ever; the issuing node signs. For operators.
    Node(u64),
    /// The certificate with this hash; the issuing node signs. For operators.
    Certificate(String),
    /// Signed already ([`Revocation::to_bytes`]): any node takes it, from members too.
    Signed(Vec<u8>),
}

/// A revocation in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedSummary {
    /// The node, if all its certificates are revoked.
    pub node_id: Option<u64>,
    /// The hash of the certificate, if it alone is revoked.
    pub certificate: Option<String>,
    /// When it was signed, in seconds since 1970.
    pub at: u64,
}

/// `revocations` in the data directory: [`Revocation::LEN`] bytes each, each with its own signature.
#[derive(Debug)]
pub(crate) struct Keeper {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    hold: Hold,
}

/// Far more than a list of revocations can have.
const MAX_FILE: u64 = 1 << 20;

impl Keeper {
    pub(crate) fn open(
        vfs: &Arc<dyn Vfs>,
        path: PathBuf,
        hold: Hold,
    ) -> Result<(Self, Vec<u8>), DataDirError> {
        let kept = match read_file(&**vfs, &path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(io_error(&path, source)),
        };
        Ok((Self { vfs: Arc::clone(vfs), path, hold }, kept))
    }
}

impl KeepRevocations for Keeper {
    fn keep(&self, revocations: &[u8]) -> io::Result<()> {
        let _held = self.hold.take()?;
        write_file_durable(&*self.vfs, &self.path, revocations)
    }
}

pub(crate) fn register(router: &mut Router, endpoint: &Endpoint, issuer: Option<&Arc<Issuer>>) {
    let (own, issuer) = (endpoint.clone(), issuer.cloned());
    router.register(REVOKE, move |context: Context, request: RevokeRequest| {
        let (endpoint, issuer) = (own.clone(), issuer.clone());
        async move {
            match request {
                // The authority has signed it: it does not matter who brings it.
                RevokeRequest::Signed(_) => administering(&context)?,
                RevokeRequest::Node(_) | RevokeRequest::Certificate(_) => operating(&context)?,
            }
            let revocation = signed(request, issuer.as_deref())?;
            endpoint.revoke(&revocation).await.map_err(revoke_status)
        }
    });
    let own = endpoint.clone();
    router.register(LIST_REVOKED, move |context: Context, (): ()| {
        let revoked = own.revocations();
        async move {
            administering(&context)?;
            Ok(revoked.iter().map(RevokedSummary::from).collect::<Vec<_>>())
        }
    });
    router.describe_response::<()>(REVOKE).describe_response::<Vec<RevokedSummary>>(LIST_REVOKED);
}

fn signed(request: RevokeRequest, issuer: Option<&Issuer>) -> Result<Revocation, Status> {
    let invalid = |e: octopii_transport::IdentityError| Status::new(Code::InvalidArgument, e.to_string());
    let what = match request {
        RevokeRequest::Signed(bytes) => return Revocation::from_bytes(&bytes).map_err(invalid),
        RevokeRequest::Node(id) => Revoked::Node(id),
        RevokeRequest::Certificate(hash) => Revoked::Certificate(hash.parse().map_err(invalid)?),
    };
    // `Unavailable`, so that a client goes on to the next node: surely nothing was done here.
    let issuer = issuer.ok_or_else(|| {
        Status::new(
            Code::Unavailable,
            "this node cannot sign revocations: ask the one that runs with the authority's key, or sign with its file \
             (--authority)",
        )
    })?;
    issuer.revoke(what, now()).map_err(|e| Status::new(Code::Internal, e.to_string()))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn revoke_status(e: RevokeError) -> Status {
    let code = match &e {
        RevokeError::NotSigned => Code::PermissionDenied,
        RevokeError::Full => Code::FailedPrecondition,
        RevokeError::EndpointClosed => Code::Unknown,
        _ => Code::Internal,
    };
    Status::new(code, e.to_string())
}

impl From<&Revocation> for RevokedSummary {
    fn from(revocation: &Revocation) -> Self {
        let (node_id, certificate) = match revocation.what() {
            Revoked::Node(id) => (Some(id), None),
            Revoked::Certificate(hash) => (None, Some(hash.to_string())),
        };
        Self { node_id, certificate, at: revocation.at() }
    }
}
