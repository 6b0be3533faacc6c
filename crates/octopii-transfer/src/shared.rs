//! What every transfer of a service uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use octopii_transport::{Endpoint, Executor};
use octopii_vfs::Vfs;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::ReceivePolicy;
use crate::budget::MemoryBudget;
use crate::claims::Claims;
use crate::outcomes::Outcomes;
use crate::registry::Registry;
use crate::relay::shelf::Shelf;
use crate::store::Resources;
use crate::temporary::{Keeping, Swept, sweep};
use crate::tree::Trees;

/// Options of [`Transfer::start`](crate::Transfer::start).
#[derive(Debug, Clone)]
pub struct TransferOptions {
    /// Chunks and trees received at once; further offers are refused as busy. Each chunk costs up to 13 MiB beside the
    /// transport's windows, and up to 9 MiB more if its blocks come compressed; up to two large files of each tree are received
    /// beside it, as chunks of its own. Default 32.
    pub max_incoming: usize,
    /// Bytes of all chunks being received into memory together. Default 256 MiB. A chunk handed to its policy no longer
    /// counts.
    pub max_memory: u64,
    /// Offers that would leave less than this free on the destination's file system are refused, so that transfers
    /// never starve the log beside them. Default 64 MiB.
    pub leave_free: u64,
    /// How long a file with holes may be that has no room here but for its holes. They cost the sender next to nothing, and both sides
    /// the time to hash them: about 10 minutes for 1 TiB. Default 16 TiB, which is as long as most file systems let a file be.
    pub max_sparse: u64,
    /// A sender from which nothing arrives for this long is given up; that of a tree also if it only gives signs of life, and
    /// nothing is done, for ten times as long. Default 30 s.
    pub idle_timeout: Duration,
    /// A new stream must make its offer within this. Default 5 s.
    pub offer_timeout: Duration,
    /// How many ended transfers are remembered for [`Transfer::status`](crate::Transfer::status); beyond that, those of the sender that
    /// has most are forgotten first. Default 1,024. With a `state_dir`, the latest 1,024 that
    /// were acknowledged as durable are remembered over a restart.
    pub remembered: usize,
    /// Whether blocks and packs of small files may come compressed, if their sender wishes; otherwise they are asked for as they are.
    /// Default: yes.
    pub decompress: bool,
    /// Where this node keeps what lets another process go on with an interrupted transfer. Without it only this process can.
    /// Default: none.
    pub state_dir: Option<PathBuf>,
    /// How long a file that was cut off is kept, to be gone on with. Default 24 h.
    pub keep_partial: Duration,
    /// How many such files are kept in one directory, at the most. Default 16.
    pub max_partial_files: usize,
    /// How many bytes of disk they may take together. Default 64 GiB.
    pub max_partial_bytes: u64,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            max_incoming: 32,
            max_memory: 256 << 20,
            leave_free: 64 << 20,
            max_sparse: 16 << 40,
            idle_timeout: Duration::from_secs(30),
            offer_timeout: Duration::from_secs(5),
            remembered: 1024,
            decompress: true,
            state_dir: None,
            keep_partial: Duration::from_secs(24 * 3600),
            max_partial_files: 16,
            max_partial_bytes: 64 << 30,
        }
    }
}

/// How often unfinished files are looked after: eight times in the time that they are kept, between these.
const SHORTEST_SWEEP: Duration = Duration::from_millis(200);
const LONGEST_SWEEP: Duration = Duration::from_secs(3600);

/// Directories of which it is remembered that they were swept.
const MAX_SWEPT: usize = 1024;

/// For each transfer that can be received at once, others may have this much handed on to them.
const LENT_PER_SLOT: usize = 3;

/// What every transfer of a service uses.
pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) executor: Executor,
    pub(crate) options: TransferOptions,
    pub(crate) resources: Arc<Resources>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) claims: Arc<Claims>,
    /// What outlives this process, if anything does.
    pub(crate) outcomes: Option<Outcomes>,
    pub(crate) slots: Arc<Semaphore>,
    /// For content that is handed on, or kept at hand for that. Whoever fetches slowly is in nobody else's way.
    pub(crate) lending: Semaphore,
    /// What other receivers may fetch from here.
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) phase: watch::Sender<Phase>,
    policies: RwLock<BTreeMap<String, Arc<dyn ReceivePolicy>>>,
    /// Directories that were looked after once.
    swept: Mutex<BTreeSet<PathBuf>>,
    /// Those in which something is left that is to go when its time has come.
    keeping: Mutex<BTreeSet<PathBuf>>,
    pub(crate) trees: Trees,
}

/// How far the service is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// Nothing new is taken; what is being received goes on.
    Draining,
    Ended,
}

impl Shared {
    pub(crate) fn new(endpoint: &Endpoint, vfs: Arc<dyn Vfs>, options: TransferOptions) -> Self {
        let memory = MemoryBudget::new(options.max_memory);
        let registry = Registry::new(options.remembered);
        let outcomes = options.state_dir.as_ref().and_then(|dir| match Outcomes::open(&*vfs, dir) {
            Ok((outcomes, found)) => {
                registry.restore(found);
                Some(outcomes)
            }
            Err(e) => {
                tracing::warn!(dir = %dir.display(), "outcomes of transfers are kept in memory only: {e}");
                None
            }
        });
        Self {
            endpoint: endpoint.clone(),
            executor: endpoint.executor().clone(),
            resources: Arc::new(Resources {
                vfs,
                memory,
                leave_free: options.leave_free,
                max_sparse: options.max_sparse,
            }),
            registry,
            claims: Arc::default(),
            outcomes,
            slots: Arc::new(Semaphore::new(options.max_incoming)),
            lending: Semaphore::new(options.max_incoming.saturating_mul(LENT_PER_SLOT)),
            shelf: Arc::default(),
            phase: watch::Sender::new(Phase::Serving),
            policies: RwLock::default(),
            swept: Mutex::default(),
            keeping: Mutex::default(),
            trees: Trees::default(),
            options,
        }
    }

    /// Lets `policy` decide about chunks of this purpose.
    pub(crate) fn install(&self, purpose: &str, policy: Arc<dyn ReceivePolicy>) {
        self.policies.write().unwrap_or_else(PoisonError::into_inner).insert(purpose.to_owned(), policy);
    }

    pub(crate) fn policy(&self, purpose: &str) -> Option<Arc<dyn ReceivePolicy>> {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).get(purpose).cloned()
    }

    /// Removes what a crashed process left in `dir`, the first time that the directory is met. Blocks.
    pub(crate) fn sweep_once(&self, dir: &Path) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        // Policies may use a directory per chunk: what is remembered of them must not grow without end. To sweep one twice does
        // no harm.
        if swept.len() >= MAX_SWEPT {
            swept.clear();
        }
        if !swept.insert(dir.to_owned()) {
            return;
        }
        drop(swept);
        self.sweep(dir);
    }

    /// Sweeps the directories in which something was left again and again, so that it goes when its time has come. Never ends.
    pub(crate) async fn keep_sweeping(self: Arc<Self>) {
        let period = (self.options.keep_partial / 8).clamp(SHORTEST_SWEEP, LONGEST_SWEEP);
        loop {
            sleep(period).await;
            let sweeper = Arc::clone(&self);
            let sweeping = self.executor.blocking(move || {
                let dirs = std::mem::take(&mut *sweeper.keeping());
                dirs.iter().for_each(|dir| sweeper.sweep(dir));
            });
            sweeping.await;
        }
    }

    /// Removes unfinished files that nobody uses and that are not to be kept. Blocks.
    pub(crate) fn sweep(&self, dir: &Path) {
        let options = &self.options;
        let keeping = Keeping {
            time: options.keep_partial,
            count: options.max_partial_files,
            bytes: options.max_partial_bytes,
        };
        let swept = sweep(&*self.resources.vfs, dir, keeping, SystemTime::now());
        // Only who sweeps all of them forgets them, before: what is kept meanwhile is not missed.
        if swept.as_ref().map_or(true, |swept| swept.left > 0) {
            self.look_after(dir);
        }
        match swept {
            Ok(Swept { removed: 0, .. }) => {}
            Ok(Swept { removed: n, .. }) => {
                tracing::info!(dir = %dir.display(), "removed {n} unfinished files of earlier transfers");
            }
            Err(e) => tracing::warn!(dir = %dir.display(), "cannot clean up unfinished files: {e}"),
        }
    }

    /// Something may be left in this directory that is to go when its time has come.
    pub(crate) fn look_after(&self, dir: &Path) {
        self.keeping().insert(dir.to_owned());
    }

    fn keeping(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

/// A task that ends with its handle.
#[derive(Debug)]
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
