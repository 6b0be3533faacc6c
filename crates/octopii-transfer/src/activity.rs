//! Noticing that nothing moves any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Counts signs of life of one transfer.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    count: AtomicU64,
    /// How many things under way count as movement as long as they last.
    busy: AtomicUsize,
}

/// Something that nobody is to be blamed for while it lasts.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Activity>);

/// The idle time is watched in this many steps: a stall is noticed at most one step late.
const STEPS: u32 = 4;

impl Activity {
    /// Something moved.
    pub(crate) fn tick(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Nothing is stalled until what is returned is dropped.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Returns once nothing has moved for `idle`. Cheaper than a timer per read: one wake-up per quarter of `idle`.
    pub(crate) async fn stalled(&self, idle: Duration) {
        let mut quiet = 0;
        let mut seen = self.count.load(Ordering::Relaxed);
        while quiet < STEPS {
            tokio::time::sleep(idle / STEPS).await;
            let now = self.count.load(Ordering::Relaxed);
            quiet = if now == seen && !self.is_busy() { quiet + 1 } else { 0 };
            seen = now;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.tick();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, timeout};

    #[tokio::test(start_paused = true)]
    async fn what_is_busy_is_not_stalled() {
        let activity = Arc::new(Activity::default());
        let idle = Duration::from_secs(8);
        let begun = Instant::now();
        activity.stalled(idle).await;
        assert_eq!(begun.elapsed(), idle);
        let busy = (activity.busy(), activity.busy());
        timeout(100 * idle, activity.stalled(idle)).await.expect_err("it is busy");
        drop(busy.0);
        timeout(100 * idle, activity.stalled(idle)).await.expect_err("it still is");
        drop(busy.1);
        timeout(2 * idle, activity.stalled(idle)).await.expect("not any more");
    }
}
