//! Progress bars, on a terminal only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use octopii::{Phase, ProgressFn};

use crate::output::Output;
use crate::peers::Peer;

/// One bar per peer; none where nobody watches.
pub(crate) struct Bars {
    bars: BTreeMap<SocketAddr, ProgressBar>,
    tallies: Arc<Mutex<BTreeMap<SocketAddr, Tally>>>,
}

/// What was spared and what was not, for one peer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Bytes that it had when the transfer began.
    pub(crate) resumed: u64,
    /// Bytes that went to it before and had to go again after a lost connection.
    pub(crate) resent: u64,
    /// How far the latest attempt is.
    sent: u64,
}

impl Tally {
    fn note(&mut self, resumed: u64, sent: u64) {
        // Falling back is how an attempt begins.
        if sent < self.sent {
            self.resent += self.sent.saturating_sub(resumed);
        }
        self.sent = sent;
    }
}

impl Bars {
    pub(crate) fn new(output: Output, peers: &[Peer], total: Option<u64>) -> Self {
        let target =
            if output.interactive() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let style = ProgressStyle::with_template(match total {
            Some(_) => {
                "{prefix:>21} [{bar:30}] {bytes:>11}/{total_bytes} {binary_bytes_per_sec:>13} {eta:>4} {msg}"
            }
            None => "{prefix:>21} {bytes:>11} {binary_bytes_per_sec:>13} {msg}",
        })
        .expect("the template is well formed")
        .progress_chars("=> ");
        let bars = peers
            .iter()
            .map(|peer| {
                let bar = all.add(
                    ProgressBar::with_draw_target(total, ProgressDrawTarget::hidden())
                        .with_style(style.clone())
                        .with_prefix(peer.name.to_string()),
                );
                (peer.addr, bar)
            })
            .collect();
        Self { bars, tallies: Arc::default() }
    }

    /// What a transfer reports to. The bar shows what the receiver has verified.
    pub(crate) fn callback(&self) -> ProgressFn {
        let (bars, tallies) = (self.bars.clone(), Arc::clone(&self.tallies));
        Arc::new(move |progress| {
            if let Some(bar) = bars.get(&progress.peer) {
                bar.set_position(progress.verified);
                bar.set_message(match progress.phase {
                    Phase::Waiting => "cut off, trying again",
                    Phase::Finishing => "syncing",
                    _ => "",
                });
            }
            let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
            // What was sent before a reconnect is not from before this command.
            if progress.phase != Phase::Connecting {
                let first = || Tally { resumed: progress.resumed, ..Tally::default() };
                tallies.entry(progress.peer).or_insert_with(first).note(progress.resumed, progress.sent);
            }
        })
    }

    /// Nothing of a peer that was never sent to.
    pub(crate) fn tally(&self, peer: SocketAddr) -> Tally {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).copied().unwrap_or_default()
    }

    /// Leaves the bars as they are: whoever did not get everything must not look as if they had.
    pub(crate) fn finish(&self) {
        for bar in self.bars.values() {
            bar.abandon();
        }
    }
}
