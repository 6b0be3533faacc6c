//! Progress bars, on a terminal only.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use octopii::ProgressFn;

use crate::output::Output;

/// One bar per peer; none where nobody watches.
pub(crate) struct Bars {
    bars: BTreeMap<SocketAddr, ProgressBar>,
}

impl Bars {
    pub(crate) fn new(output: Output, peers: &[SocketAddr], total: u64) -> Self {
        let target =
            if output.interactive() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let style = ProgressStyle::with_template(
            "{prefix:>21} [{bar:30}] {bytes:>11}/{total_bytes} {binary_bytes_per_sec:>13} {eta:>4}",
        )
        .expect("the template is well formed")
        .progress_chars("=> ");
        let bars = peers
            .iter()
            .map(|peer| {
                let bar =
                    all.add(ProgressBar::new(total).with_style(style.clone()).with_prefix(peer.to_string()));
                (*peer, bar)
            })
            .collect();
        Self { bars }
    }

    /// What a transfer reports to. The bar shows what the receiver has verified.
    pub(crate) fn callback(&self) -> ProgressFn {
        let bars = self.bars.clone();
        Arc::new(move |progress| {
            if let Some(bar) = bars.get(&progress.peer) {
                bar.set_position(progress.verified);
            }
        })
    }

    /// Leaves the bars as they are: whoever did not get everything must not look as if they had.
    pub(crate) fn finish(&self) {
        for bar in self.bars.values() {
            bar.abandon();
        }
    }
}
