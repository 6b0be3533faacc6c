//! Not faster than asked.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{SendStream, StreamError};
use tokio::time::{Instant, sleep_until};

/// What may be caught up on after a pause.
const BURST: Duration = Duration::from_millis(50);

/// What is written at once.
const WRITE_STEP: usize = 256 << 10;

/// Spreads bytes over time.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<NonZeroU64>,
    /// When the next byte is due.
    next: Instant,
}

impl Pace {
    pub(crate) fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, next: Instant::now() }
    }

    /// How much to send between two waits, `most` at the most.
    pub(crate) fn step(&self, most: usize) -> usize {
        let tick = |rate: NonZeroU64| usize::try_from(rate.get() / 50).unwrap_or(most);
        self.rate.map_or(most, |rate| tick(rate).clamp(1, most))
    }

    /// Writes content as fast as it may go, and tells of each piece how long it was.
    pub(crate) async fn write(
        &mut self,
        send: &mut SendStream,
        mut content: Bytes,
        mut written: impl FnMut(u64),
    ) -> Result<(), StreamError> {
        while !content.is_empty() {
            let step = content.split_to(content.len().min(self.step(WRITE_STEP)));
            let len = step.len();
            self.take(len).await;
            send.write_chunk(step).await?;
            written(len as u64);
        }
        Ok(())
    }

    /// Waits until `bytes` more may go. Cancel-safe: what was not waited for is not counted.
    pub(crate) async fn take(&mut self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        self.next = self.next.max(Instant::now() - BURST);
        let takes = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        sleep_until(self.next + takes).await;
        self.next += takes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_are_spread_over_time() {
        for rate in [1000, 1 << 20, 10 << 30] {
            let mut pace = Pace::new(NonZeroU64::new(rate));
            let begun = Instant::now();
            let (mut sent, total) = (0, 10 * rate);
            while sent < total {
                let step = pace.step(256 << 10).min((total - sent) as usize);
                pace.take(step).await;
                sent += step as u64;
            }
            let seconds = begun.elapsed().as_secs_f64();
            assert!((9.99..10.05).contains(&seconds), "{rate}: {seconds}");
            // A pause is not made up for.
            tokio::time::sleep(Duration::from_secs(100)).await;
            let begun = Instant::now();
            pace.take(rate as usize).await;
            assert!(begun.elapsed() >= Duration::from_millis(940));
        }
        let mut free = Pace::new(None);
        free.take(usize::MAX).await;
        assert_eq!(free.step(7), 7);
    }
}
