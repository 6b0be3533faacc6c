//! Sending a tree until it is there.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::{Instant, sleep, timeout};

use super::options::TreeOptions;
use super::outcome::{Earlier, TreeReport};
use super::sending::{Receiver, Sending};
use super::source::{Opened, Source};
use super::together::Seat;
use crate::retry::Retry;
use crate::shared::Shared;
use crate::{TransferError, TransferId};

/// Sends the tree at `path` to `addr`, and waits until all of it is settled. Runs on the service's executor.
pub(crate) async fn send(
    shared: Arc<Shared>,
    addr: SocketAddr,
    path: PathBuf,
    options: TreeOptions,
) -> Result<TreeReport, TransferError> {
    options.check()?;
    let vfs = Arc::clone(&shared.resources.vfs);
    let opened = shared.executor.blocking(move || Opened::open(&vfs, path)).await?;
    send_opened(shared, addr, opened, options, None).await
}

/// Sends a tree to `addr`, perhaps as one of many.
pub(crate) async fn send_opened(
    shared: Arc<Shared>,
    addr: SocketAddr,
    opened: Opened,
    options: TreeOptions,
    seat: Option<Seat>,
) -> Result<TreeReport, TransferError> {
    let started = Instant::now();
    options.check()?;
    let options = Arc::new(options);
    let source = Source::new(opened, &options);
    let settled = Arc::new(AtomicU64::new(0));
    let to = Receiver { addr, seat: seat.map(Arc::new) };
    let persisting = persist(&shared, to, Arc::new(source), &options, started, &settled);
    match options.timeout {
        None => persisting.await,
        Some(after) => match timeout(after.saturating_sub(started.elapsed()), persisting).await {
            Ok(result) => result,
            Err(_) => Err(TransferError::Timeout { after, bytes: settled.load(Ordering::Relaxed) }),
        },
    }
}

/// Tries until all is settled, or until trying again is of no use or not wanted. What an attempt has brought, the next one finds
/// unchanged.
async fn persist(
    shared: &Arc<Shared>,
    to: Receiver,
    source: Arc<Source>,
    options: &Arc<TreeOptions>,
    started: Instant,
    settled: &Arc<AtomicU64>,
) -> Result<TreeReport, TransferError> {
    // The same for each attempt: at the receiver, the next one takes the place of one whose end has not been noticed there.
    let id = options.id.unwrap_or_else(TransferId::random);
    let mut retry = Retry::new(options.retries);
    let (mut earlier, mut connected) = (Earlier::default(), false);
    loop {
        let walking = Arc::clone(&source);
        let walk = shared.executor.blocking(move || walking.walk()).await?;
        let (source, settled) = (Arc::clone(&source), Arc::clone(settled));
        let sending = Sending::new(Arc::clone(shared), to.clone(), id, source, Arc::clone(options), settled);
        let error = match sending.run(walk).await {
            Ok((name, manifest)) => {
                sending.report_progress();
                return Ok(sending.take_ledger().report(id, name, manifest, started.elapsed(), earlier));
            }
            Err(error) => error,
        };
        connected |= sending.was_connected();
        let pause = retry.pause(&error, sending.has_advanced());
        // A peer that has never been there is told at once.
        let Some(pause) = pause.filter(|_| connected) else { return Err(error) };
        tracing::info!(peer = %to.addr, "the tree is tried again: {error}");
        earlier.add(&sending.take_ledger());
        drop(sending);
        sleep(pause).await;
    }
}
