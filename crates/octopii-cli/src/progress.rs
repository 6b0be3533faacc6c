//! Progress bars, on a terminal only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use octopii::{Phase, ProgressFn};

use crate::output::Output;

/// One bar per peer; none where nobody watches.
pub(crate) struct Bars {
    bars: BTreeMap<SocketAddr, ProgressBar>,
    /// What each peer had from before.
    resumed: Arc<Mutex<BTreeMap<SocketAddr, u64>>>,
}

impl Bars {
    pub(crate) fn new(output: Output, peers: &[SocketAddr], total: Option<u64>) -> Self {
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
                        .with_prefix(peer.to_string()),
                );
                (*peer, bar)
            })
            .collect();
        Self { bars, resumed: Arc::default() }
    }

    /// What a transfer reports to. The bar shows what the receiver has verified.
    pub(crate) fn callback(&self) -> ProgressFn {
        let (bars, resumed) = (self.bars.clone(), Arc::clone(&self.resumed));
        Arc::new(move |progress| {
            if let Some(bar) = bars.get(&progress.peer) {
                bar.set_position(progress.verified);
                bar.set_message(match progress.phase {
                    Phase::Waiting => "cut off, trying again",
                    Phase::Finishing => "syncing",
                    _ => "",
                });
            }
            let mut resumed = resumed.lock().unwrap_or_else(PoisonError::into_inner);
            // What was sent before a reconnect is not from before this command.
            if progress.phase != Phase::Connecting {
                resumed.entry(progress.peer).or_insert(progress.resumed);
            }
        })
    }

    /// Bytes that this peer had when the transfer began.
    pub(crate) fn resumed(&self, peer: SocketAddr) -> u64 {
        self.resumed.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).copied().unwrap_or(0)
    }

    /// Leaves the bars as they are: whoever did not get everything must not look as if they had.
    pub(crate) fn finish(&self) {
        for bar in self.bars.values() {
            bar.abandon();
        }
    }
}
