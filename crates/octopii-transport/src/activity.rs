//! How much a connection is used: what decides when it may go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Connection;

/// Counts streams. Each half of one holds a reference.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    total: AtomicU64,
}

/// Held by each half of a stream.
#[derive(Debug)]
pub(crate) struct InUse {
    _counted: Arc<Activity>,
}

impl Activity {
    /// For a stream that is opened now: one for each half.
    pub(crate) fn stream(self: &Arc<Self>) -> (InUse, InUse) {
        self.total.fetch_add(1, Ordering::Relaxed);
        (InUse { _counted: Arc::clone(self) }, InUse { _counted: Arc::clone(self) })
    }

    /// Streams opened so far.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Streams in somebody's hands, of which one with a half gone counts as whole. The connection holds a reference of its own.
    pub(crate) fn open(self: &Arc<Self>) -> usize {
        Arc::strong_count(self).saturating_sub(1).div_ceil(2)
    }
}

/// Closes a connection once no stream has been open on it for `quiet`, however long that takes. What is under way ends first.
pub(crate) async fn close_when_unused(connection: Connection, quiet: Duration, reason: &'static [u8]) {
    let activity = &connection.state().activity;
    loop {
        let before = activity.total();
        tokio::select! {
            () = connection.closed() => return,
            () = tokio::time::sleep(quiet) => {}
        }
        if (before, 0) == (activity.total(), activity.open()) {
            return connection.quic().close(0u32.into(), reason);
        }
    }
}
