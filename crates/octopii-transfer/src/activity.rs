//! Noticing that nothing moves any more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts signs of life of one transfer.
#[derive(Debug, Default)]
pub(crate) struct Activity(AtomicU64);

/// The idle time is watched in this many steps: a stall is noticed at most one step late.
const STEPS: u32 = 4;

impl Activity {
    /// Something moved.
    pub(crate) fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns once nothing has moved for `idle`. Cheaper than a timer per read: one wake-up per quarter of `idle`.
    pub(crate) async fn stalled(&self, idle: Duration) {
        let mut quiet = 0;
        let mut seen = self.0.load(Ordering::Relaxed);
        while quiet < STEPS {
            tokio::time::sleep(idle / STEPS).await;
            let now = self.0.load(Ordering::Relaxed);
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
    }
}
