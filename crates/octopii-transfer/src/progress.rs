//! How far a transfer has got.

use std::net::SocketAddr;
use std::sync::Arc;

/// How far a transfer to one peer has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The receiver.
    pub peer: SocketAddr,
    /// Content bytes handed to the network; some of them may still be under way.
    pub sent: u64,
    /// Content bytes that the receiver has verified and written, as of its last report (five a second).
    pub verified: u64,
    /// Content bytes in all, if known.
    pub total: Option<u64>,
}

/// Called as a transfer advances.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;
