//! Calls into the consensus core that survive its end.
//!
//! When the core stops (shutdown, failed disk, panicked machine), the first caller that notices waits for its task in order to
//! learn why. If that caller is cancelled then, as any of ours may be, the next one panics in the library
//! (openraft 0.10.0-alpha.37, `RaftInner::get_core_stop_error`). Here such a panic is what it means: the core has stopped.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use openraft::errors::Fatal;

use crate::group::{Group, Raft};

/// Awaits a call into the core.
pub(crate) async fn guarded<T, E>(call: impl Future<Output = Result<T, E>>) -> Result<T, E>
where
    E: From<Fatal<Group>>,
{
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| Err(Fatal::Stopped.into()))
}

/// Stops the core and waits until it has stopped. Idempotent.
pub(crate) async fn shutdown(raft: &Raft) {
    // Cancelled, panicked, or stopped before: it is as stopped as it can be.
    let _ = AssertUnwindSafe(raft.shutdown()).catch_unwind().await;
}
