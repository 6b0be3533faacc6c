//! Checking blocks and putting them where they belong, in steps on blocking threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::TransferError;
use crate::activity::Activity;
use crate::relay::shelf::Shelved;
use crate::service::{AbortOnDrop, Shared};
use crate::sink::{IncomingBlock, Sink};

/// Blocks that are checked, or written, in one step on a blocking thread: a hand-over between threads is paid for by several
/// blocks. With the queue and the one that is arriving, a transfer holds up to 13 blocks.
const STEP: usize = 4;

/// Written bytes after which they are pushed to the disk in the background, so that the final sync finds little to do.
const EARLY_SYNC: u64 = 32 << 20;

/// Checks and stores blocks until there are no more, or one is not what it should be; the next ones are checked while the
/// ones before are written. On an error the sink is dropped, on a blocking thread: its file is gone when this returns.
pub(crate) async fn store_blocks(
    shared: Arc<Shared>,
    sink: Sink,
    mut blocks: mpsc::Receiver<IncomingBlock>,
    verified: Arc<AtomicU64>,
    activity: Arc<Activity>,
    shelved: Option<Arc<Shelved>>,
) -> Result<(Sink, Option<TransferError>), TransferError> {
    let executor = &shared.executor;
    let Sink { mut checker, mut store } = sink;
    let mut checked: Vec<IncomingBlock> = Vec::new();
    let mut written = 0;
    let mut synced = 0;
    let mut syncing: Option<AbortOnDrop<Result<(), TransferError>>> = None;
    let mut mismatch = None;
    loop {
        let mut arrived = Vec::new();
        let open = match checked.is_empty() && mismatch.is_none() {
            true => blocks.recv_many(&mut arrived, STEP).await > 0,
            false if mismatch.is_some() => !checked.is_empty(),
            // What was checked is not kept waiting for more.
            false => {
                arrived.extend(std::iter::from_fn(|| blocks.try_recv().ok()).take(STEP));
                true
            }
        };
        let writing = {
            let blocks = std::mem::take(&mut checked);
            async move {
                if blocks.is_empty() {
                    return Ok(store);
                }
                executor.blocking(move || store.write(blocks).map(|()| store)).await
            }
        };
        let checking = async move {
            if arrived.is_empty() {
                return (checker, arrived, None);
            }
            let checking = executor.blocking(move || {
                let failed = checker.check(&mut arrived).err();
                (checker, arrived, failed)
            });
            checking.await
        };
        let (stored, newly) = tokio::join!(writing, checking);
        store = stored?;
        let failed;
        (checker, checked, failed) = newly;
        // What came before the wrong block is good and is stored.
        mismatch = mismatch.or(failed);
        if store.written() != written {
            written = store.written();
            verified.store(written, Ordering::Relaxed);
            shelved.iter().for_each(|shelved| shelved.advance(written));
            activity.tick();
        }
        if open && written - synced < EARLY_SYNC {
            continue;
        }
        // At most one early sync runs at a time. One that failed dooms the file: what it left unwritten, a later sync
        // would no longer report.
        if let Some(mut earlier) = syncing.take() {
            let result = (&mut earlier.0).await.map_err(|_| TransferError::ShuttingDown).flatten();
            if let Err(error) = result {
                executor.blocking(move || drop(store)).await;
                return Err(error);
            }
        }
        if !open {
            return Ok((Sink { checker, store }, mismatch));
        }
        synced = written;
        if let Some((file, path)) = store.file() {
            let on = executor.clone();
            syncing = Some(AbortOnDrop(executor.spawn(async move {
                on.blocking(move || file.sync_data().map_err(|e| TransferError::store("syncing", path, e)))
                    .await
            })));
        }
    }
}
