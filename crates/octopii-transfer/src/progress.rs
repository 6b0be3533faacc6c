//! How far a transfer has got.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How far a transfer to one peer has got.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The receiver.
    pub peer: SocketAddr,
    /// What is being done.
    pub phase: Phase,
    /// Content bytes handed to the network, or there before; some of them may still be under way.
    pub sent: u64,
    /// Content bytes that the receiver has verified and written, as of its last report (five a second).
    pub verified: u64,
    /// Content bytes that the receiver had from an earlier attempt.
    pub resumed: u64,
    /// Content bytes in all, if known.
    pub total: Option<u64>,
    /// How fast content is handed to the network, over about the last second.
    pub bytes_per_second: f64,
}

/// What a transfer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Reaching the peer and agreeing on the transfer.
    Connecting,
    /// Sending content.
    Sending,
    /// Everything was sent; the receiver checks and stores the rest.
    Finishing,
    /// Cut off; trying again after a pause.
    Waiting,
}

/// Called as a transfer advances.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// Progress as something to wait for. Ends with the transfer.
#[derive(Debug)]
pub struct ProgressStream(watch::Receiver<Option<Progress>>);

impl ProgressStream {
    /// A stream, and what to put into [`SendOptions::progress`](crate::SendOptions::progress) to feed it.
    pub fn new() -> (ProgressFn, Self) {
        let (tx, rx) = watch::channel(None);
        let progress = Arc::new(move |progress| {
            tx.send_replace(Some(progress));
        });
        (progress, Self(rx))
    }

    /// The latest progress that has not been seen yet; `None` when the transfer has ended. Slow readers miss what was
    /// overtaken, never the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            self.0.changed().await.ok()?;
            let latest = *self.0.borrow_and_update();
            if latest.is_some() {
                return latest;
            }
        }
    }
}

/// Measures the rate of one transfer.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Option<Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    bytes: u64,
    rate: f64,
}

/// A sample covers at least this.
const SAMPLE: Duration = Duration::from_millis(500);

impl Meter {
    /// Bytes per second, when `bytes` have been sent by now.
    pub(crate) fn rate(&self, bytes: u64) -> f64 {
        let now = Instant::now();
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *place {
            // A new attempt may begin further back.
            Some(last) if bytes >= last.bytes => {
                let elapsed = now - last.at;
                let measured = (bytes - last.bytes) as f64 / elapsed.as_secs_f64().max(0.001);
                if elapsed >= SAMPLE {
                    let rate = if last.rate == 0.0 { measured } else { (last.rate + measured) / 2.0 };
                    *place = Some(Sample { at: now, bytes, rate });
                    return rate;
                }
                if last.rate == 0.0 { measured } else { last.rate }
            }
            _ => {
                *place = Some(Sample { at: now, bytes, rate: 0.0 });
                0.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_meter_follows_the_rate() {
        let meter = Meter::default();
        let mut bytes = 1_000_000;
        assert_eq!(meter.rate(bytes), 0.0);
        for rate in [1_000, 5_000] {
            let mut measured = 0.0;
            for _ in 0..100 {
                tokio::time::advance(Duration::from_millis(100)).await;
                bytes += rate / 10;
                measured = meter.rate(bytes);
            }
            let expected = rate as f64;
            assert!((expected * 0.99..expected * 1.01).contains(&measured), "{measured} of {rate}");
        }
        assert_eq!(meter.rate(0), 0.0, "it begins anew");
    }
}
