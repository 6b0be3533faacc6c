//! Who belongs to the group.

use octopii_transport::Address;
use serde::{Deserialize, Serialize};

/// What the membership knows of a node, beside its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Where its endpoint is found: as it was written, a host name is looked up for each connection.
    pub(crate) addr: Address,
    /// The data directory behind the node id. A node that lost its directory comes back with another incarnation and is
    /// refused: it has forgotten its votes and its acknowledged log.
    pub(crate) incarnation: u64,
}

#[cfg(test)]
impl Default for Member {
    fn default() -> Self {
        Self { addr: std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into(), incarnation: 0 }
    }
}
