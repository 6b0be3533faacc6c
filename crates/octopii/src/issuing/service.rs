//! What an issuing node answers over RPC.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use octopii_raft::Consensus;
use octopii_rpc::{Code, Context, Router, Status};
use octopii_transport::{
    CertificateHash, Endpoint, IdentityError, NodeId, NodeKey, PeerIdentity, Revocation, Revoked,
};
use serde::{Deserialize, Serialize};

use super::tokens::TokenStoreError;
use super::{Issuer, RenewError};
use crate::service::{administering, operating};

pub(crate) const CREATE_TOKEN: &str = "octopii.token.create";
pub(crate) const LIST_TOKENS: &str = "octopii.token.list";
pub(crate) const REVOKE_TOKEN: &str = "octopii.token.revoke";
pub(crate) const RENEW: &str = "octopii.renew";
pub(crate) const LIST_ISSUED: &str = "octopii.issued";

/// What a join token is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRequest {
    /// `member`, `operator` or `client`.
    pub role: String,
    /// Seconds until it expires: at most a year.
    pub lifetime_secs: u64,
    /// The id that its bearer gets; none: the issuing node chooses one.
    pub node_id: Option<NodeId>,
    /// Where joiners find the issuing node, `IP:PORT` or `HOST:PORT`; empty: the address that it listens on.
    pub addresses: Vec<String>,
}

/// What an issuing node tells of a token. There is no way to get the token itself again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenSummary {
    /// Its short name.
    pub id: String,
    /// The role that its bearer gets.
    pub role: String,
    /// The id that its bearer gets or got.
    pub node_id: NodeId,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
    /// What has become of it.
    pub state: TokenState,
}

/// What has become of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// It can be used.
    Waiting,
    /// A node has joined with it.
    Used,
    /// Its time was over before anybody used it.
    Expired,
}

/// What an issuing node has issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedList {
    /// The certificates on its record, in the order in which they were issued.
    pub entries: Vec<IssuedSummary>,
    /// Certificates that are on it no longer, since others of the same node's needed their places.
    pub forgotten: u64,
}

/// One certificate on an issuing node's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedSummary {
    /// When it was issued, in seconds since 1970.
    pub at: u64,
    /// The node that it names.
    pub node_id: NodeId,
    /// The role that it gives.
    pub role: String,
    /// By which way it was had.
    pub by: IssuedBy,
    /// From which address it was asked for; none: the issuing node's own.
    pub from: Option<String>,
    /// Its hash.
    pub certificate: String,
    /// Whether it is revoked, by its hash or with its node.
    pub revoked: bool,
}

/// By which way a certificate was had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IssuedBy {
    /// For a join token.
    Token,
    /// In exchange for another one of the same node.
    Renewal,
    /// It is the issuing node's own.
    Own,
}

impl IssuedBy {
    const ALL: [Self; 3] = [Self::Token, Self::Renewal, Self::Own];

    /// As it is kept and shown.
    pub fn word(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Renewal => "renewal",
            Self::Own => "own",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|by| by.word() == word)
    }
}

/// A node with a certificate asks for one for another key.
#[derive(Serialize, Deserialize)]
pub(crate) struct Renewal {
    pub(crate) public_key: [u8; 32],
    /// The new key's signature of who asks: 64 bytes.
    pub(crate) proof: Vec<u8>,
}

impl Renewal {
    pub(crate) fn new(key: &NodeKey, peer: &PeerIdentity) -> Result<Self, IdentityError> {
        Ok(Self { public_key: key.public(), proof: key.renewal_proof(peer)?.to_vec() })
    }
}

pub(crate) fn register(
    router: &mut Router,
    endpoint: &Endpoint,
    consensus: Option<&Consensus>,
    issuer: Option<&Arc<Issuer>>,
) {
    let executor = endpoint.executor();
    let Some(issuer) = issuer else {
        for method in [CREATE_TOKEN, LIST_TOKENS, REVOKE_TOKEN, RENEW, LIST_ISSUED] {
            router.register_raw(method, |_: Context, _| async { Err(not_issuing()) });
        }
        return;
    };
    let (creating, on, consensus) = (Arc::clone(issuer), endpoint.clone(), consensus.cloned());
    router.register(CREATE_TOKEN, move |context: Context, request: TokenRequest| {
        let (issuer, executor) = (Arc::clone(&creating), on.executor().clone());
        let taken = taken(&on, consensus.as_ref());
        async move {
            operating(&context)?;
            let taken = move |id| taken.contains(&id);
            let made = executor.blocking(move || issuer.create(&request, taken, SystemTime::now())).await;
            Ok(made.map_err(store_status)?.expose())
        }
    });
    let (listing, on) = (Arc::clone(issuer), executor.clone());
    router.register(LIST_TOKENS, move |context: Context, (): ()| {
        let (issuer, executor) = (Arc::clone(&listing), on.clone());
        async move {
            administering(&context)?;
            Ok(executor.blocking(move || issuer.list(SystemTime::now())).await)
        }
    });
    let (revoking, on) = (Arc::clone(issuer), executor.clone());
    router.register(REVOKE_TOKEN, move |context: Context, id: String| {
        let (issuer, executor) = (Arc::clone(&revoking), on.clone());
        async move {
            operating(&context)?;
            executor.blocking(move || issuer.revoke_token(&id)).await.map_err(store_status)
        }
    });
    let (renewing, on) = (Arc::clone(issuer), executor.clone());
    router.register(RENEW, move |context: Context, request: Renewal| {
        let (issuer, executor) = (Arc::clone(&renewing), on.clone());
        async move {
            let (peer, remote) = (context.peer, context.remote_addr);
            // Whoever has a node's key can exchange it for another: what came of it must be found later.
            let renewing = move || issuer.renew(&peer, &request, Some(remote), SystemTime::now());
            let certified = executor.blocking(renewing).await.map_err(|e| renew_status(&e))?;
            let certificate = certified.hash();
            tracing::info!(node_id = peer.node_id, role = %peer.role, %remote, %certificate, "a certificate is renewed");
            Ok(certified.to_bytes())
        }
    });
    let (listing, on) = (Arc::clone(issuer), endpoint.clone());
    router.register(LIST_ISSUED, move |context: Context, node_id: Option<NodeId>| {
        let (issuer, endpoint) = (Arc::clone(&listing), on.clone());
        async move {
            administering(&context)?;
            let revoked: BTreeSet<Revoked> = endpoint.revocations().iter().map(Revocation::what).collect();
            let is_revoked = move |id, certificate: &CertificateHash| {
                revoked.contains(&Revoked::Node(id)) || revoked.contains(&Revoked::Certificate(*certificate))
            };
            // It may have to wait for a certificate that is being put on the record.
            Ok(endpoint.executor().blocking(move || issuer.issued(node_id, is_revoked)).await)
        }
    });
    router
        .describe_response::<String>(CREATE_TOKEN)
        .describe_response::<IssuedList>(LIST_ISSUED)
        .describe_response::<Vec<TokenSummary>>(LIST_TOKENS)
        .describe_response::<bool>(REVOKE_TOKEN);
}

/// The ids of members and of revoked nodes, however they have come by them.
fn taken(endpoint: &Endpoint, consensus: Option<&Consensus>) -> BTreeSet<NodeId> {
    let revoked = endpoint.revocations();
    let revoked = revoked.iter().filter_map(|revocation| match revocation.what() {
        Revoked::Node(id) => Some(id),
        Revoked::Certificate(_) => None,
    });
    let members = consensus.map(|consensus| consensus.status().members).unwrap_or_default();
    revoked.chain(members.iter().map(|member| member.id)).collect()
}

// `Unavailable`, so that a client goes on to the next node: surely nothing was done here.
fn not_issuing() -> Status {
    Status::new(
        Code::Unavailable,
        "this node issues no certificates: ask the one that runs with the authority's key (--authority)",
    )
}

pub(crate) fn renew_status(e: &RenewError) -> Status {
    let code = match e {
        RenewError::Identity(IdentityError::NotProven) => Code::PermissionDenied,
        RenewError::TooOften(_) => Code::ResourceExhausted,
        RenewError::Identity(_) | RenewError::NotKept(_) => Code::Internal,
    };
    Status::new(code, e.to_string())
}

fn store_status(e: TokenStoreError) -> Status {
    let code = match &e {
        TokenStoreError::Full | TokenStoreError::NoId => Code::ResourceExhausted,
        TokenStoreError::IdTaken(_) | TokenStoreError::NoAddress | TokenStoreError::Changing => {
            Code::FailedPrecondition
        }
        TokenStoreError::Io(_) => Code::Internal,
        _ => Code::InvalidArgument,
    };
    Status::new(code, e.to_string())
}
