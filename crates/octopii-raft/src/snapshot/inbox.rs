//! Snapshots that arrived from a leader and wait for the request to install them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use octopii_transfer::{AckLevel, Destination, Location, Offer, ReceivePolicy, ReceivedChunk, Refusal};
use octopii_transport::NodeId;

use crate::machine::Shared;

/// Who may send us a snapshot: asked with the sender's node id.
pub(crate) type Admission = Box<dyn Fn(NodeId) -> bool + Send + Sync>;

/// The snapshots received, by digest. Each sender has one at most: a newer one replaces it.
pub(crate) struct Inbox {
    machine: Arc<Shared>,
    admission: Admission,
    received: Mutex<BTreeMap<NodeId, Received>>,
}

struct Received {
    digest: [u8; 32],
    path: PathBuf,
}

impl Inbox {
    pub(crate) fn new(machine: Arc<Shared>, admission: Admission) -> Arc<Self> {
        Arc::new(Self { machine, admission, received: Mutex::default() })
    }

    /// Takes out the snapshot `digest` that `from` sent.
    pub(crate) fn take(&self, from: NodeId, digest: &[u8; 32]) -> Option<PathBuf> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let found = received.get(&from).is_some_and(|r| r.digest == *digest);
        found.then(|| received.remove(&from)).flatten().map(|r| r.path)
    }
}

/// The inbox as a transfer's receiver.
pub(crate) struct Policy(pub(crate) Arc<Inbox>);

impl ReceivePolicy for Policy {
    fn accept(&self, offer: &Offer) -> Result<Destination, Refusal> {
        if !(self.0.admission)(offer.peer.node_id) {
            return Err(Refusal::rejected("only a member of the group sends snapshots"));
        }
        Ok(Destination::File {
            dir: self.0.machine.store().incoming(),
            name: format!("{}.snap", offer.id),
            replace: false,
        })
    }

    fn least_ack(&self) -> AckLevel {
        // What is installed from it is never sent again.
        AckLevel::Durable
    }

    fn received(&self, chunk: ReceivedChunk) {
        let Location::File(path) = chunk.location else { return };
        let new = Received { digest: chunk.digest.0, path };
        let mut received = self.0.received.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = received.insert(chunk.offer.peer.node_id, new)
            && let Err(error) = self.0.machine.store().vfs().remove_file(&old.path)
        {
            tracing::warn!(path = %old.path.display(), %error, "cannot remove a superseded snapshot");
        }
    }
}
