//! Which identity a command speaks with.

use std::net::{IpAddr, SocketAddr};
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
    of_this_moment(authority_dir, client_id())
}

fn of_this_moment(authority_dir: Option<&Path>, id: NodeId) -> Result<Identity, Failure> {
    let dir = authority_dir.map_or_else(octopii::state_dir, Path::to_owned);
    let authority = octopii::local_authority(&RealVfs, &dir).map_err(Failure::failed)?;
    authority.issue_as(id, PeerRole::Operator).map_err(Failure::failed)
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

/// Who listens at an address of this machine is the same node as who listened there before: it goes on with what that one had begun
/// to receive. Ids of this kind are none of [`client_id`]'s.
fn listener_id(bind: SocketAddr) -> NodeId {
    let ip = match bind.ip() {
        IpAddr::V4(ip) => ip.to_bits(),
        // There is one address of IPv6 for this machine, and none of IPv4 that is this number.
        IpAddr::V6(_) => 1,
    };
    (1 << 62) | (1 << 48) | (u64::from(ip) << 16) | u64::from(bind.port())
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
    let own = match identity {
        None if bind.port() != 0 => of_this_moment(None, listener_id(bind))?,
        _ => load(identity, None)?,
    };
    let config = Config {
        bind,
        identity: IdentitySource::Given(own),
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
