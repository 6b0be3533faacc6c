//! How long a method computes before it first waits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// What a handler may compute where others wait behind it.
const BRIEF: Duration = Duration::from_micros(50);
/// What counts at the most of one call, in multiples of [`BRIEF`].
const MOST: u32 = 64;
/// With so much to its account a method is long.
const LONG: u32 = 32;
/// More is not kept.
const KEPT: u32 = 128;

/// An account of a method's calls: each is put down with the time that it has taken, in multiples of [`BRIEF`], and each that was brief takes
/// one off. So a method that computes for long is found out at once, one that the system has taken from its processor in between is
/// pardoned soon.
#[derive(Debug, Default)]
pub(crate) struct Effort(AtomicU32);

impl Effort {
    /// Whether the method had better be begun by itself.
    pub(crate) fn is_long(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= LONG
    }

    /// A call has taken so long before it first waited. Calls at the same time may overwrite each other's accounts: it is a guess.
    pub(crate) fn took(&self, time: Duration) {
        let before = self.0.load(Ordering::Relaxed);
        if time > BRIEF {
            let times = u32::try_from(time.as_micros() / BRIEF.as_micros()).unwrap_or(MOST).min(MOST);
            self.0.store((before + times).min(KEPT), Ordering::Relaxed);
        } else if before > 0 {
            self.0.store(before - 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_computes_for_long_is_found_out_and_what_was_held_up_is_pardoned() {
        let (brief, held_up) = (Duration::from_micros(2), Duration::from_millis(10));
        let effort = Effort::default();
        effort.took(held_up);
        assert!(effort.is_long());
        (0..=MOST - LONG).for_each(|_| effort.took(brief));
        assert!(!effort.is_long());
        // A little too long each time.
        let effort = Effort::default();
        (0..LONG).for_each(|_| effort.took(Duration::from_micros(60)));
        assert!(effort.is_long());
        // However long it was long, it is not so for ever.
        (0..1000).for_each(|_| effort.took(held_up));
        (0..KEPT).for_each(|_| effort.took(brief));
        assert!(!effort.is_long());
    }
}
