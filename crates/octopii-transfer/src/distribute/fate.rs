//! What became of a receiver's transfer whose end the sender did not hear.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::asking::{STATUS_PERIOD, status};
use crate::distribute::origin::Origin;
use crate::wire::{Acknowledgement, TransferStatus};

/// How long a receiver that does not answer is asked.
const ASK: Duration = Duration::from_secs(1);

/// What a receiver says of the latest attempt.
#[derive(Debug)]
pub(super) enum Fate {
    /// It has all of it.
    Arrived(Acknowledgement),
    /// It has nothing of it under its name, and will not.
    Failed,
    /// It does not know of it, any more: it has restarted since.
    Forgotten,
    /// It does not answer, or nothing more arrives there and it has not given up.
    Open,
}

/// Whether receiver `i` had everything when it was last heard of.
pub(super) fn is_whole(origin: &Origin, i: usize) -> bool {
    origin.members[i].verified.load(Ordering::Relaxed) == origin.content.ledger.size()
}

/// Asks receiver `i`, until it has an answer that is final. One that still receives is waited for as long as more arrives there:
/// it gets its content from others.
pub(super) async fn ask(origin: &Origin, i: usize) -> Fate {
    let (idle, member) = (origin.options.idle_timeout, &origin.members[i]);
    let mut until = Instant::now() + if is_whole(origin, i) { idle } else { ASK.min(idle) };
    let mut arrived = None;
    while Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        match status(&origin.shared, (member.addr, None), member.id(), left).await {
            Ok(TransferStatus::Finished(ack)) => return Fate::Arrived(ack),
            Ok(TransferStatus::Failed(_)) => return Fate::Failed,
            Ok(TransferStatus::Unknown) => return Fate::Forgotten,
            Ok(TransferStatus::Receiving { verified }) => {
                let verified = verified.min(origin.content.ledger.size());
                if arrived.is_none_or(|before| verified > before) {
                    arrived = Some(verified);
                    until = Instant::now() + idle;
                }
            }
            Err(_) => {}
        }
        sleep(STATUS_PERIOD).await;
    }
    Fate::Open
}
