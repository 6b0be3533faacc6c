//! Signs of life of the two sides of a tree.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::TransferError;
use crate::activity::{Activity, Busy};

/// Signs of life without anything being done are enough for this many times the idle time.
const PATIENCE: u32 = 10;

/// What one side knows: when the other was heard, and when anything was done by either of them.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    heard: Arc<Activity>,
    moved: Arc<Activity>,
    /// Steps of this side's own work.
    own: AtomicU64,
}

impl Pulse {
    /// The other side is there, and says whether it is doing anything.
    pub(crate) fn heard(&self, works: bool) {
        self.heard.tick();
        if works {
            self.moved.tick();
        }
    }

    /// This side has done something.
    pub(crate) fn work(&self) {
        self.own.fetch_add(1, Ordering::Relaxed);
        self.moved.tick();
    }

    /// This side does something, until what is returned is dropped, that is bounded by something else.
    pub(crate) fn working(&self) -> Busy {
        self.own.fetch_add(1, Ordering::Relaxed);
        self.moved.busy()
    }

    /// This side does not listen until what is returned is dropped: that is no silence of the other one.
    pub(crate) fn deaf(&self) -> (Busy, Busy) {
        (self.heard.busy(), self.moved.busy())
    }

    /// Whether this side has done anything since it was asked with the same `since`, or is doing so.
    pub(crate) fn has_worked(&self, since: &mut u64) -> bool {
        let own = self.own.load(Ordering::Relaxed);
        let before = std::mem::replace(since, own);
        own != before || self.moved.is_busy()
    }

    /// Returns once nothing was heard for `idle`, or nothing was done for ten times that.
    pub(crate) async fn stalled(&self, idle: Duration) -> TransferError {
        let patience = idle.saturating_mul(PATIENCE);
        tokio::select! {
            () = self.heard.stalled(idle) => TransferError::Stalled { idle },
            () = self.moved.stalled(patience) => TransferError::Stalled { idle: patience },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep, timeout};

    const IDLE: Duration = Duration::from_secs(8);

    /// Says something every second; whether it works, and does so, as told.
    async fn stall(pulse: &Pulse, theirs: bool, own: bool) -> Option<Duration> {
        let begun = Instant::now();
        let saying = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                pulse.heard(theirs);
                if own {
                    pulse.work();
                }
            }
        };
        tokio::select! {
            error = timeout(100 * IDLE, pulse.stalled(IDLE)) => error.ok().map(|_| begun.elapsed()),
            () = saying => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn life_without_work_is_not_enough() {
        let pulse = Pulse::default();
        let begun = Instant::now();
        pulse.stalled(IDLE).await;
        assert_eq!(begun.elapsed(), IDLE);
        let patience = IDLE * PATIENCE;
        let waited = stall(&pulse, false, false).await.unwrap();
        assert!((patience..=patience * 2).contains(&waited), "{waited:?}");
        assert_eq!(stall(&pulse, true, false).await, None);
        assert_eq!(stall(&pulse, false, true).await, None);
        let busy = pulse.working();
        assert_eq!(stall(&pulse, false, false).await, None);
        drop(busy);
        assert!(stall(&pulse, false, false).await.is_some());
    }

    #[test]
    fn it_says_that_it_works_when_it_does() {
        let (pulse, mut since) = (Pulse::default(), 0);
        assert!(!pulse.has_worked(&mut since));
        pulse.work();
        assert!(pulse.has_worked(&mut since) && !pulse.has_worked(&mut since));
        pulse.heard(true);
        assert!(!pulse.has_worked(&mut since), "the other side's work is not its own");
        let busy = pulse.working();
        assert!(pulse.has_worked(&mut since) && pulse.has_worked(&mut since));
        drop(busy);
        assert!(!pulse.has_worked(&mut since));
    }
}
