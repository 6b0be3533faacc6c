//! When what was cut off is tried again.

use std::time::Duration;

use crate::{FailureCode, TransferError};

/// The pause before the first retry; it doubles from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Counts the attempts of one transfer.
#[derive(Debug)]
pub(crate) struct Retry {
    allowed: u32,
    /// In a row, without anything new having arrived.
    failures: u32,
}

impl Retry {
    pub(crate) fn new(allowed: u32) -> Self {
        Self { allowed, failures: 0 }
    }

    /// How long to wait before the next attempt; `None` if there is to be none. `advanced`: something new has arrived.
    pub(crate) fn pause(&mut self, error: &TransferError, advanced: bool) -> Option<Duration> {
        if advanced {
            self.failures = 0;
        }
        // An attempt that was cut off may still be under way there, under the same id if that is the caller's.
        let meets_itself = self.failures > 0 && code(error) == Some(FailureCode::DuplicateId);
        if self.failures >= self.allowed || !(is_interruption(error) || meets_itself) {
            return None;
        }
        self.failures += 1;
        Some(jittered(self.failures))
    }
}

/// Whether the way to the receiver, or its moment, was bad, and not the content.
fn is_interruption(error: &TransferError) -> bool {
    match error {
        TransferError::Lost(_) | TransferError::Stalled { .. } => true,
        TransferError::Connect(_) => error.is_retryable(),
        _ => {
            matches!(code(error), Some(FailureCode::Busy | FailureCode::Stalled | FailureCode::ShuttingDown))
        }
    }
}

/// What the receiver said, if it did.
fn code(error: &TransferError) -> Option<FailureCode> {
    match error {
        TransferError::Refused { refusal, .. } | TransferError::PeerFailed { refusal, .. } => {
            Some(refusal.code)
        }
        _ => None,
    }
}

/// So that many senders do not come back at the same moment.
fn jittered(failures: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << failures.min(10).saturating_sub(1)).min(LONGEST_PAUSE);
    longest.mul_f64(rand::random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_and_begin_anew_with_what_arrives() {
        let error = TransferError::Stalled { idle: Duration::ZERO };
        let mut retry = Retry::new(8);
        for (n, longest) in [100, 200, 400, 800, 1600, 3200, 5000, 5000].into_iter().enumerate() {
            let pause = retry.pause(&error, false).unwrap();
            let longest = Duration::from_millis(longest);
            assert!((longest / 2..=longest).contains(&pause), "{n}: {pause:?}");
        }
        assert_eq!(retry.pause(&error, false), None);
        assert!(retry.pause(&error, true).unwrap() <= FIRST_PAUSE);
        assert_eq!(retry.pause(&TransferError::Cancelled, true), None);
        assert_eq!(Retry::new(0).pause(&error, true), None);
    }
}
