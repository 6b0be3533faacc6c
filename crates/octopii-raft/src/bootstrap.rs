//! How a cluster comes into being, once.
//!
//! Every initial member asks every other who it is. When all have answered and none has ever voted or stored anything, the
//! one with the lowest id writes the first membership, with the incarnation of each; the others receive it as their first
//! log entry. A node that comes back without its data is recognized by its incarnation and refused.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use octopii_transport::{Address, NodeId};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use tokio::time::{Instant, timeout_at};

use crate::core::guarded;
use crate::error::{BootstrapError, Missing};
use crate::log::store::LogStore;
use crate::member::Member;
use crate::network::message::Hello;
use crate::request::leader::{HELLO_TIMEOUT, Leadership, NoHello};

/// Between rounds of asking.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn bootstrap(
    node: &Leadership,
    log: &LogStore,
    members: &BTreeMap<NodeId, Address>,
) -> Result<(), BootstrapError> {
    let me = node.gate.node_id;
    let start = Instant::now();
    let deadline = start + node.config.bootstrap_timeout;
    if !members.contains_key(&me) {
        return Err(BootstrapError::NotAMember { node: me });
    }
    loop {
        if belongs(node)? {
            return Ok(());
        }
        // Answers of earlier rounds do not count: a node that was blank then need not be now.
        let (heard, missing) = ask_all(node, members).await?;
        for hello in heard.values().filter(|hello| hello.formed) {
            match hello.known {
                None => return Err(BootstrapError::NotInCluster { node: me }),
                Some(false) => return Err(BootstrapError::Wiped { node: me }),
                Some(true) => {}
            }
        }
        if missing.is_empty()
            && members.keys().next() == Some(&me)
            && log.is_blank()
            && heard.values().all(|hello| hello.blank)
        {
            initialize(node, members, &heard).await?;
        }
        if Instant::now() >= deadline {
            let waited = start.elapsed();
            return Err(match missing.is_empty() {
                true => BootstrapError::NotFormed { waited },
                false => BootstrapError::Unreachable { waited, missing },
            });
        }
        let mut metrics = node.gate.raft.server_metrics();
        let pause = deadline.min(Instant::now() + PAUSE);
        if let Ok(Err(_)) = timeout_at(pause, metrics.changed()).await {
            return Err(BootstrapError::Stopped("it was shut down".to_owned()));
        }
    }
}

/// Whether this node is a member of a cluster, with the data it has now.
fn belongs(node: &Leadership) -> Result<bool, BootstrapError> {
    let membership = node.gate.membership();
    if membership.nodes().next().is_none() {
        return Ok(false);
    }
    match membership.get_node(&node.gate.node_id) {
        None => Err(BootstrapError::NotInCluster { node: node.gate.node_id }),
        Some(member) if member.incarnation != node.gate.incarnation => {
            Err(BootstrapError::Wiped { node: node.gate.node_id })
        }
        Some(_) => Ok(true),
    }
}

async fn ask_all(
    node: &Leadership,
    members: &BTreeMap<NodeId, Address>,
) -> Result<(BTreeMap<NodeId, Hello>, Vec<Missing>), BootstrapError> {
    let others = members.iter().filter(|(id, _)| **id != node.gate.node_id);
    let answers = join_all(
        others.map(|(id, addr)| async move { (*id, addr, node.hello(*id, addr, HELLO_TIMEOUT).await) }),
    );
    let (mut heard, mut missing) = (BTreeMap::new(), Vec::new());
    let mut silent = |id: NodeId, addr: &Address, reason: String| {
        tracing::debug!(node = id, %addr, reason, "an initial member does not answer yet");
        missing.push(Missing { id, addr: addr.clone(), reason });
    };
    for (expected, addr, answer) in answers.await {
        match answer {
            Ok(hello) => {
                heard.insert(expected, hello);
            }
            // Where a name leads may be what it was before the nodes were moved.
            Err(NoHello::Another(found)) if addr.host().is_some() => {
                silent(expected, addr, format!("node {found} answers there"));
            }
            Err(NoHello::Another(found)) => {
                return Err(BootstrapError::WrongNode { addr: addr.clone(), expected, found });
            }
            Err(NoHello::Silent(why)) => silent(expected, addr, why),
        }
    }
    Ok((heard, missing))
}

async fn initialize(
    node: &Leadership,
    members: &BTreeMap<NodeId, Address>,
    heard: &BTreeMap<NodeId, Hello>,
) -> Result<(), BootstrapError> {
    let incarnation = |id: &NodeId| heard.get(id).map_or(node.gate.incarnation, |hello| hello.incarnation);
    let members: BTreeMap<NodeId, Member> = members
        .iter()
        .map(|(id, addr)| (*id, Member { addr: addr.clone(), incarnation: incarnation(id) }))
        .collect();
    match guarded(node.gate.raft.initialize(members)).await {
        // Not allowed: another member was faster to make us part of a cluster.
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(BootstrapError::Stopped(error.to_string())),
    }
}
