//! Trying idempotent calls again: when, how soon, and how often altogether.

use std::sync::Mutex;
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::{Begun, Client, RetryPolicy};
use crate::{Advice, Code, Status};

/// A token bucket that all calls of a client share.
#[derive(Debug)]
pub(super) struct Budget {
    state: Mutex<State>,
    capacity: f64,
    deposit: f64,
    refill_per_second: f64,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(policy: &RetryPolicy, now: Instant) -> Self {
        let capacity = f64::from(policy.budget);
        Self {
            state: Mutex::new(State { tokens: capacity, at: now }),
            capacity,
            deposit: policy.deposit.max(0.0),
            refill_per_second: policy.refill_per_second.max(0.0),
        }
    }

    /// A call succeeded.
    fn deposit(&self) {
        let mut state = self.state.lock().expect("no panic while held");
        state.tokens = (state.tokens + self.deposit).min(self.capacity);
    }

    /// Takes a token for a retry, if there is one.
    fn take(&self, now: Instant) -> bool {
        let mut state = self.state.lock().expect("no panic while held");
        let since = now.saturating_duration_since(state.at).as_secs_f64();
        state.at = now;
        state.tokens = (state.tokens + since * self.refill_per_second).min(self.capacity);
        if state.tokens < 1.0 {
            return false;
        }
        state.tokens -= 1.0;
        true
    }
}

impl Client {
    /// A call that may be tried again had an answer.
    pub(super) fn answered(&self, begun: &Begun) {
        if begun.options.idempotent {
            self.shared.budget.deposit();
        }
    }

    /// How long to wait before the next attempt; `None` if there is to be none.
    pub(super) fn wait_before_retry(
        &self,
        begun: &Begun,
        status: &Status,
        attempts: u32,
    ) -> Option<Duration> {
        let policy = &self.shared.options.retry;
        if !begun.options.idempotent || attempts >= policy.max_attempts || !may_help(status) {
            return None;
        }
        let wait = wait(policy, status, attempts);
        let now = self.endpoint.executor().now();
        // What cannot be done in time is told at once.
        (now + wait < begun.end && self.shared.budget.take(now)).then_some(wait)
    }
}

fn may_help(status: &Status) -> bool {
    let code = matches!(status.code, Code::Unavailable | Code::ResourceExhausted | Code::Unknown);
    code && !matches!(status.advice, Advice::Never | Advice::Elsewhere)
}

fn wait(policy: &RetryPolicy, status: &Status, attempts: u32) -> Duration {
    let doubled = 1u32 << attempts.saturating_sub(1).min(20);
    let backoff = policy.initial_backoff.saturating_mul(doubled).min(policy.max_backoff);
    let jittered = backoff.mul_f64(rand::rng().random_range(0.5..=1.0));
    match status.advice {
        // Others were told the same moment.
        Advice::After(time) => time.saturating_add(jittered),
        _ => jittered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_part_of_the_calls_that_succeed() {
        let now = Instant::now();
        let policy =
            RetryPolicy { budget: 3, deposit: 0.5, refill_per_second: 0.0, ..RetryPolicy::default() };
        let budget = Budget::new(&policy, now);
        assert_eq!((0..10).filter(|_| budget.take(now)).count(), 3);
        budget.deposit();
        assert!(!budget.take(now), "half a token is none");
        budget.deposit();
        assert!(budget.take(now) && !budget.take(now));
        (0..100).for_each(|_| budget.deposit());
        assert_eq!((0..10).filter(|_| budget.take(now)).count(), 3, "no more than it holds");
    }

    #[test]
    fn tokens_come_back_with_time() {
        let now = Instant::now();
        let policy = RetryPolicy { budget: 1, refill_per_second: 2.0, ..RetryPolicy::default() };
        let budget = Budget::new(&policy, now);
        assert!(budget.take(now) && !budget.take(now));
        assert!(!budget.take(now + Duration::from_millis(400)));
        assert!(budget.take(now + Duration::from_millis(600)));
    }

    #[test]
    fn waits_double_within_bounds_and_heed_the_status() {
        let policy = RetryPolicy::default();
        let plain = Status::new(Code::Unavailable, "");
        for (attempts, most) in [(1, 25), (2, 50), (3, 100), (10, 1000), (40, 1000)] {
            let wait = wait(&policy, &plain, attempts).as_millis();
            assert!(wait <= most && wait >= most / 2 - 1, "{attempts}: {wait} ms");
        }
        let later = plain.with_advice(Advice::After(Duration::from_secs(2)));
        assert!(wait(&policy, &later, 1) >= Duration::from_secs(2));
    }

    #[test]
    fn what_would_fail_again_or_should_go_elsewhere_is_not_tried_again() {
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Unknown] {
            assert!(may_help(&Status::new(code, "")));
            assert!(!may_help(&Status::new(code, "").with_advice(Advice::Never)));
            assert!(!may_help(&Status::new(code, "").with_advice(Advice::Elsewhere)));
        }
        for code in [Code::DeadlineExceeded, Code::Internal, Code::NotFound, Code::Cancelled] {
            assert!(!may_help(&Status::new(code, "")), "{code}");
        }
    }
}
