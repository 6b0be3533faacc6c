//! Which identity a command speaks with.

use std::net::SocketAddr;
use std::path::Path;

use octopii::{
    Address, Config, DataDirError, Identity, IdentitySource, NodeId, OctopiiNode, OctopiiRuntime, PeerRole,
    RealVfs, TransferOptions,
};

use crate::exit::Failure;

/// The identity in `file`, or one of this moment from the authority that the user's local nodes share.
pub(crate) fn load(file: Option<&Path>, authority_dir: Option<&Path>) -> Result<Identity, Failure> {
    if let Some(path) = file {
        return octopii::read_identity(&RealVfs, path)
            .map_err(Failure::failed)?
            .ok_or_else(|| Failure::failed(format!("{}: no such file", path.display())));
    }
    let dir = authority_dir.map_or_else(octopii::state_dir, Path::to_owned);
    let authority = octopii::local_authority(&RealVfs, &dir).map_err(Failure::failed)?;
    authority.issue_as(client_id(), PeerRole::Operator).map_err(Failure::failed)
}

/// Refuses to speak with another machine without an identity that its authority has issued.
pub(crate) fn required<A: Clone + Into<Address>>(
    addresses: &[A],
    identity: Option<&Path>,
) -> Result<(), Failure> {
    match addresses.iter().cloned().map(Into::into).find(|addr| !addr.is_loopback()) {
        Some(addr) if identity.is_none() => Err(Failure::failed(DataDirError::NoIdentity(addr))),
        _ => Ok(()),
    }
}

/// Ids of clients lie far above those that people give to nodes.
fn client_id() -> NodeId {
    (1 << 62) | u64::from(std::process::id())
}

/// A node without consensus that keeps nothing, for commands that only ship or receive.
pub(crate) async fn passing_node(
    runtime: &OctopiiRuntime,
    bind: SocketAddr,
    identity: Option<&Path>,
    policies: Option<(octopii::InboxPolicy, octopii::TreeInbox)>,
) -> Result<(OctopiiNode, tempfile::TempDir), Failure> {
    let dir = tempfile::tempdir()
        .map_err(|e| Failure::failed(format!("cannot make a temporary directory: {e}")))?;
    let config = Config {
        bind,
        identity: IdentitySource::Given(load(identity, None)?),
        consensus: false,
        transfer: TransferOptions {
            // Where another process of this user finds what lets it go on.
            state_dir: Some(octopii::state_dir().join("transfers")),
            ..TransferOptions::default()
        },
        ..Config::new(dir.path())
    };
    let mut builder = OctopiiNode::builder(config);
    if let Some((files, trees)) = policies {
        builder = builder.receive(octopii::INBOX, files).receive_trees(octopii::INBOX, trees);
    }
    let node = builder.start(runtime).await.map_err(Failure::failed)?;
    Ok((node, dir))
}
