//! What happened, in order, and its digest.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::world;

/// Something that happened at an edge of the simulated system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Simulated time since the start.
    pub at: Duration,
    /// The machine concerned.
    pub host: String,
    /// What happened, in words.
    pub what: String,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3}s {} {}", self.at.as_secs_f64(), self.host, self.what)
    }
}

/// A shared record of events: a running SHA-256 over all of them with their payloads, and the last ones in words.
#[derive(Debug, Clone)]
pub struct Trace {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    hasher: Sha256,
    count: u64,
    kept: VecDeque<(Event, [u8; 8])>,
    keep: usize,
}

impl Trace {
    /// An empty trace that keeps the last `keep` events readable. The digest covers all of them.
    pub fn new(keep: usize) -> Self {
        let inner = Inner { hasher: Sha256::new(), count: 0, kept: VecDeque::new(), keep };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Records that `what` happened on `host` now, carrying `payload`.
    pub fn record(&self, host: &str, what: fmt::Arguments<'_>, payload: &[u8]) {
        let event = Event { at: world::elapsed(), host: host.to_owned(), what: what.to_string() };
        let mut inner = self.lock();
        // Lengths first, so that no two different sequences of events feed the hasher the same bytes.
        let lengths = [event.at.as_nanos() as u64, event.host.len() as u64, event.what.len() as u64];
        for number in lengths.into_iter().chain([payload.len() as u64]) {
            inner.hasher.update(number.to_le_bytes());
        }
        inner.hasher.update(event.host.as_bytes());
        inner.hasher.update(event.what.as_bytes());
        inner.hasher.update(payload);
        inner.count += 1;
        if inner.keep == 0 {
            return;
        }
        if inner.kept.len() == inner.keep {
            inner.kept.pop_front();
        }
        let mut mark = [0; 8];
        mark.copy_from_slice(&inner.hasher.clone().finalize()[..8]);
        inner.kept.push_back((event, mark));
    }

    /// How many events were recorded.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// The digest of every event so far, in hexadecimal.
    pub fn digest(&self) -> String {
        hex(&self.lock().hasher.clone().finalize())
    }

    /// The last events, oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.lock().kept.iter().map(|(event, _)| event.clone()).collect()
    }

    /// The last events as lines, each led by the digest up to it: two runs part where their lines begin to differ.
    pub fn lines(&self) -> Vec<String> {
        self.lock().kept.iter().map(|(event, mark)| format!("{} {event}", hex(mark))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(events: &[(&str, &str, &[u8])]) -> String {
        let trace = Trace::new(0);
        for (host, what, payload) in events {
            trace.record(host, format_args!("{what}"), payload);
        }
        trace.digest()
    }

    #[test]
    fn every_part_of_an_event_counts() {
        let base = digest_of(&[("a", "sync", b"x"), ("b", "sync", b"")]);
        assert_eq!(base, digest_of(&[("a", "sync", b"x"), ("b", "sync", b"")]));
        for other in [
            digest_of(&[("b", "sync", b""), ("a", "sync", b"x")]),
            digest_of(&[("a", "sync", b"y"), ("b", "sync", b"")]),
            digest_of(&[("a", "sync", b""), ("b", "sync", b"x")]),
            digest_of(&[("as", "ync", b"x"), ("b", "sync", b"")]),
            digest_of(&[("a", "sync", b"x")]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn keeps_the_last_events_only() {
        let trace = Trace::new(2);
        for n in 0..5 {
            trace.record("a", format_args!("{n}"), &[]);
        }
        let kept: Vec<_> = trace.events().into_iter().map(|event| event.what).collect();
        assert_eq!(kept, ["3", "4"]);
        assert_eq!(trace.count(), 5);
    }
}
