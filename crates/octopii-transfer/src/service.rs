//! The transfer service of a node: what it shares, how it starts and ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use octopii_transport::{Acceptor, Endpoint, Executor, StreamKind};
use octopii_vfs::Vfs;
use tokio::io::AsyncRead;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::budget::MemoryBudget;
use crate::checkpoints;
use crate::claims::Claims;
use crate::outcomes::Outcomes;
use crate::registry::Registry;
use crate::relay::shelf::Shelf;
use crate::send::{self, Receipt, SendOptions};
use crate::sink::Resources;
use crate::supply::Outgoing;
use crate::temporary::{Keeping, sweep};
use crate::tree::{self, LargeFiles, TreeOptions, TreePolicy, TreeReport, Trees};
use crate::{ChunkSource, ReceivePolicy, StartError, TransferError, TransferId, TransferStatus, receive};

/// Options of [`Transfer::start`].
#[derive(Debug, Clone)]
pub struct TransferOptions {
    /// Chunks received at once; further offers are refused as busy. Each costs up to 13 MiB beside the transport's
    /// windows. Default 32.
    pub max_incoming: usize,
    /// Bytes of all chunks being received into memory together. Default 256 MiB. A chunk handed to its policy no longer
    /// counts.
    pub max_memory: u64,
    /// Offers that would leave less than this free on the destination's file system are refused, so that transfers
    /// never starve the log beside them. Default 64 MiB.
    pub leave_free: u64,
    /// A sender from which nothing arrives for this long is given up. Default 30 s.
    pub idle_timeout: Duration,
    /// A new stream must make its offer within this. Default 5 s.
    pub offer_timeout: Duration,
    /// How many ended transfers are remembered for [`Transfer::status`]. Default 1,024. With a `state_dir`, the latest 1,024 that
    /// were acknowledged as durable are remembered over a restart.
    pub remembered: usize,
    /// Where this node keeps what lets another process go on with an interrupted transfer. Without it only this process can.
    /// Default: none.
    pub state_dir: Option<PathBuf>,
    /// How long a file that was cut off is kept, to be gone on with. Default 24 h.
    pub keep_partial: Duration,
    /// How many such files are kept in one directory, at the most. Default 16.
    pub max_partial_files: usize,
    /// How many bytes they may have together. Default 64 GiB.
    pub max_partial_bytes: u64,
}

impl Default for TransferOptions {
    fn default() -> Self {
        Self {
            max_incoming: 32,
            max_memory: 256 << 20,
            leave_free: 64 << 20,
            idle_timeout: Duration::from_secs(30),
            offer_timeout: Duration::from_secs(5),
            remembered: 1024,
            state_dir: None,
            keep_partial: Duration::from_secs(24 * 3600),
            max_partial_files: 16,
            max_partial_bytes: 64 << 30,
        }
    }
}

/// Sends chunks and receives them, over one endpoint. Cloning gives another handle to the same service; it ends with its
/// last handle, or with the endpoint: transfers then under way fail, and nothing of them is left.
#[derive(Debug, Clone)]
pub struct Transfer {
    service: Arc<Service>,
}

#[derive(Debug)]
struct Service {
    shared: Arc<Shared>,
    accepting: AbortOnDrop<()>,
}

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
    /// What other receivers may fetch from here.
    pub(crate) shelf: Arc<Shelf>,
    phase: watch::Sender<Phase>,
    policies: RwLock<BTreeMap<String, Arc<dyn ReceivePolicy>>>,
    swept: Mutex<BTreeSet<PathBuf>>,
    pub(crate) trees: Trees,
}

/// How far the service is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// Nothing new is taken; what is being received goes on.
    Draining,
    Ended,
}

/// Streams that have not made their offer yet, or ask a status: this many per slot.
const PENDING_PER_SLOT: usize = 8;

impl Transfer {
    /// Starts the service on an endpoint. Files are read and written through `vfs`. Nothing is received before
    /// [`receive`](Self::receive) has been called.
    pub fn start(
        endpoint: &Endpoint,
        vfs: Arc<dyn Vfs>,
        options: TransferOptions,
    ) -> Result<Self, StartError> {
        let chunks = endpoint.acceptor(StreamKind::Transfer)?;
        let trees = endpoint.acceptor(StreamKind::Tree)?;
        let executor = endpoint.executor().clone();
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
        let shared = Arc::new(Shared {
            endpoint: endpoint.clone(),
            executor: executor.clone(),
            resources: Arc::new(Resources { vfs, memory, leave_free: options.leave_free }),
            registry,
            claims: Arc::default(),
            outcomes,
            slots: Arc::new(Semaphore::new(options.max_incoming)),
            shelf: Arc::default(),
            phase: watch::Sender::new(Phase::Serving),
            policies: RwLock::default(),
            swept: Mutex::default(),
            trees: Trees::default(),
            options,
        });
        if let Some(dir) = shared.options.state_dir.clone() {
            let (on, vfs) = (executor.clone(), Arc::clone(&shared.resources.vfs));
            executor.spawn(async move {
                let tidying = on.blocking(move || checkpoints::tidy(&*vfs, &dir, SystemTime::now()));
                if let Err(e) = tidying.await {
                    tracing::warn!("cannot tidy up the state of earlier transfers: {e}");
                }
            });
        }
        let accepting = AbortOnDrop(executor.spawn(accept_streams(Arc::clone(&shared), chunks, trees)));
        let large = LargeFiles(Arc::clone(&shared.trees.sessions));
        let transfer = Self { service: Arc::new(Service { shared, accepting }) };
        transfer.receive(tree::LARGE, large);
        Ok(transfer)
    }

    /// Lets `policy` decide about offers of this purpose; it takes the place of an earlier one. Offers of a purpose without
    /// a policy are refused. Temporary files of a crashed process in the policy's directories are removed in the
    /// background.
    pub fn receive(&self, purpose: &str, policy: impl ReceivePolicy) {
        let shared = &self.service.shared;
        let policy: Arc<dyn ReceivePolicy> = Arc::new(policy);
        let installed = Arc::clone(&policy);
        shared.policies.write().unwrap_or_else(PoisonError::into_inner).insert(purpose.to_owned(), installed);
        let sweeper = Arc::clone(shared);
        shared.executor.spawn(async move {
            let executor = sweeper.executor.clone();
            executor
                .blocking(move || policy.directories().iter().for_each(|dir| sweeper.sweep_once(dir)))
                .await;
        });
    }

    /// Sends a chunk to the node at `addr` and waits for its acknowledgement: when this returns `Ok`, the receiver has
    /// the whole chunk with this digest, at the level of the receipt.
    ///
    /// If the connection is lost after everything was sent, the receiver is asked what became of it. Dropping the future
    /// cancels the transfer: both sides free everything, unless the receiver already has all of it. May be awaited from any
    /// executor.
    pub async fn send(
        &self,
        addr: SocketAddr,
        source: &ChunkSource,
        options: SendOptions,
    ) -> Result<Receipt, TransferError> {
        let shared = Arc::clone(&self.service.shared);
        let executor = shared.executor.clone();
        let sending = send::send(shared, addr, Outgoing::Chunk(source.clone()), options);
        executor.run(sending).await.unwrap_or(Err(TransferError::ShuttingDown))
    }

    /// As [`send`](Self::send), of whatever `bytes` gives until its end, of unknown length: standard input, a decoder, another
    /// connection. It is read once, on Octopii's threads; so it cannot be tried again, or gone on with, once it was cut off.
    /// The latest 32 MiB are held, to send a damaged block again.
    pub async fn send_stream(
        &self,
        addr: SocketAddr,
        bytes: impl AsyncRead + Send + 'static,
        options: SendOptions,
    ) -> Result<Receipt, TransferError> {
        let shared = Arc::clone(&self.service.shared);
        let executor = shared.executor.clone();
        let sending = send::send(shared, addr, Outgoing::Stream(Box::pin(bytes)), options);
        executor.run(sending).await.unwrap_or(Err(TransferError::ShuttingDown))
    }

    /// Lets `policy` decide about trees of this purpose; it takes the place of an earlier one. Trees of a purpose without a
    /// policy are refused. What a crashed process has left in the policy's directories is removed in the background.
    pub fn receive_trees(&self, purpose: &str, policy: impl TreePolicy) {
        let shared = Arc::clone(&self.service.shared);
        let policy: Arc<dyn TreePolicy> = Arc::new(policy);
        shared.trees.install(purpose, Arc::clone(&policy));
        self.executor().spawn(async move {
            let sweeper = Arc::clone(&shared);
            let sweeping = move || {
                let (vfs, opening) = (&sweeper.resources.vfs, &sweeper.trees.opening);
                policy.directories().iter().for_each(|dir| tree::sweep(vfs, dir, opening));
            };
            shared.executor.blocking(sweeping).await;
        });
    }

    /// Sends the directory at `path`, with all that is in it, to the node at `addr`. When this returns `Ok`, everything that
    /// the report counts as stored or unchanged is durable there, and the report names all that was not done: look at
    /// [`TreeReport::is_complete`].
    ///
    /// An error means that the tree ended early. What is complete of it stays at the receiver: send it again, and only the rest
    /// travels. Dropping the future cancels it in the same way. May be awaited from any executor.
    pub async fn send_tree(
        &self,
        addr: SocketAddr,
        path: impl Into<PathBuf>,
        options: TreeOptions,
    ) -> Result<TreeReport, TransferError> {
        let shared = Arc::clone(&self.service.shared);
        let executor = shared.executor.clone();
        let sending = Box::pin(tree::send(shared, addr, path.into(), options));
        executor.run(sending).await.unwrap_or(Err(TransferError::ShuttingDown))
    }

    /// Asks the node at `addr` what it knows of a transfer that this node sent to it.
    pub async fn status(&self, addr: SocketAddr, id: TransferId) -> Result<TransferStatus, TransferError> {
        let shared = Arc::clone(&self.service.shared);
        let executor = shared.executor.clone();
        let asking = async move { send::status(&shared, addr, id, shared.options.idle_timeout).await };
        executor.run(asking).await.unwrap_or(Err(TransferError::ShuttingDown))
    }

    /// Takes no more offers and waits, at most `limit`, until what is being received has been received and its senders have
    /// their acknowledgements. Sending is not affected. Idempotent; cancel-safe.
    pub async fn drain(&self, limit: Duration) {
        let shared = Arc::clone(&self.service.shared);
        let draining = async move {
            shared.phase.send_if_modified(|phase| {
                let serving = *phase == Phase::Serving;
                if serving {
                    *phase = Phase::Draining;
                }
                serving
            });
            let mut phase = shared.phase.subscribe();
            // Running out of time cuts off what is left, as the end of the service would.
            let _ = timeout(limit, phase.wait_for(|phase| *phase == Phase::Ended)).await;
        };
        // `None`: the runtime is gone, and every transfer with it.
        self.executor().clone().run(draining).await.unwrap_or(());
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.service.shared)
    }

    pub(crate) fn vfs(&self) -> &Arc<dyn Vfs> {
        &self.service.shared.resources.vfs
    }

    /// Where the service's tasks run.
    pub fn executor(&self) -> &Executor {
        &self.service.shared.executor
    }

    /// Whether the service still accepts streams: it ends with its endpoint.
    pub fn is_closed(&self) -> bool {
        self.service.accepting.0.is_finished()
    }
}

impl Shared {
    pub(crate) fn policy(&self, purpose: &str) -> Option<Arc<dyn ReceivePolicy>> {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).get(purpose).cloned()
    }

    /// Removes what a crashed process left in `dir`, the first time that the directory is met. Blocks.
    pub(crate) fn sweep_once(&self, dir: &Path) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        // Policies may use a directory per chunk: what is remembered of them must not grow without end.
        if swept.len() >= 1024 || !swept.insert(dir.to_owned()) {
            return;
        }
        drop(swept);
        self.sweep(dir);
    }

    /// Removes unfinished files that nobody uses and that are not to be kept. Blocks.
    pub(crate) fn sweep(&self, dir: &Path) {
        let options = &self.options;
        let keeping = Keeping {
            time: options.keep_partial,
            count: options.max_partial_files,
            bytes: options.max_partial_bytes,
        };
        match sweep(&*self.resources.vfs, dir, keeping, SystemTime::now()) {
            Ok(0) => {}
            Ok(n) => {
                tracing::info!(dir = %dir.display(), "removed {n} unfinished files of earlier transfers");
            }
            Err(e) => tracing::warn!(dir = %dir.display(), "cannot clean up unfinished files: {e}"),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Serves every incoming stream in a task of its own. The tasks live in this one, so they end with it.
async fn accept_streams(shared: Arc<Shared>, mut chunks: Acceptor, mut trees: Acceptor) {
    let pending = shared.options.max_incoming.saturating_mul(PENDING_PER_SLOT);
    let mut phase = shared.phase.subscribe();
    let mut draining = false;
    let mut tasks = JoinSet::new();
    while !(draining && tasks.is_empty()) {
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Draining), if !draining => draining = true,
            Some(ended) = tasks.join_next() => {
                if let Err(e) = ended && e.is_panic() {
                    tracing::error!("a receive policy panicked; its transfer was given up");
                }
            }
            // Beyond this many, streams wait in the transport's bounded queue.
            incoming = chunks.accept(), if !draining && tasks.len() < pending => {
                let Some(incoming) = incoming else { break };
                tasks.spawn_on(receive::serve(Arc::clone(&shared), incoming), shared.executor.handle());
            }
            incoming = trees.accept(), if !draining && tasks.len() < pending => {
                let Some(incoming) = incoming else { break };
                tasks.spawn_on(tree::serve(Arc::clone(&shared), incoming), shared.executor.handle());
            }
        }
    }
    shared.phase.send_replace(Phase::Ended);
}

/// A task that ends with its handle.
#[derive(Debug)]
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
