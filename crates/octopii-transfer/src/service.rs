//! The transfer service of a node: how it starts, what it does, how it ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use octopii_transport::{Acceptor, Endpoint, Executor, StreamKind};
use octopii_vfs::Vfs;
use tokio::io::AsyncRead;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::options::SendOptions;
use crate::send::{self, Receipt};
use crate::shared::{AbortOnDrop, Phase, Shared, TransferOptions};
use crate::supply::Outgoing;
use crate::tree::{self, LargeFiles, SharedPacks, TreeOptions, TreePolicy, TreeReport};
use crate::{ChunkSource, ReceivePolicy, StartError, TransferError, TransferId, TransferStatus, receive};
use crate::{asking, checkpoints};

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
    _sweeping: AbortOnDrop<()>,
    /// What goes on although nobody waits for it.
    background: Mutex<Vec<AbortOnDrop<()>>>,
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
        let shared = Arc::new(Shared::new(endpoint, vfs, options));
        let executor = shared.executor.clone();
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
        let sweeping = AbortOnDrop(executor.spawn(Arc::clone(&shared).keep_sweeping()));
        let sessions = &shared.trees.sessions;
        let (large, packs) = (LargeFiles(Arc::clone(sessions)), SharedPacks(Arc::clone(sessions)));
        let transfer = Self {
            service: Arc::new(Service {
                shared,
                accepting,
                _sweeping: sweeping,
                background: Mutex::default(),
            }),
        };
        transfer.receive(tree::LARGE, large);
        transfer.receive(tree::PACKS, packs);
        Ok(transfer)
    }

    /// Lets `policy` decide about offers of this purpose; it takes the place of an earlier one. Offers of a purpose without
    /// a policy are refused. Temporary files of a crashed process in the policy's directories are removed in the
    /// background.
    pub fn receive(&self, purpose: &str, policy: impl ReceivePolicy) {
        let shared = &self.service.shared;
        let policy: Arc<dyn ReceivePolicy> = Arc::new(policy);
        let installed = Arc::clone(&policy);
        shared.install(purpose, installed);
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
                let large = |dir: &Path| sweeper.sweep(dir);
                policy.directories().iter().for_each(|dir| tree::sweep(vfs, dir, opening, &large));
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

    /// As [`send_tree`](Self::send_tree), to every peer at the same time (32 at once), each with options of its own. One result per
    /// peer, in their order; one peer's failure does not touch the others.
    ///
    /// Files that several peers ask for within 10 s of one another are uploaded about once: they go from peer to peer, as with
    /// [`Topology::Chain`](crate::Topology::Chain), those of up to 1 MiB together in chunks of up to 16 MiB, which are held in memory. The
    /// list of files goes to each, and so does what few of them lack.
    pub async fn send_tree_to_all(
        &self,
        path: impl Into<PathBuf>,
        peers: Vec<(SocketAddr, TreeOptions)>,
    ) -> Vec<Result<TreeReport, TransferError>> {
        let shared = Arc::clone(&self.service.shared);
        let (executor, count) = (shared.executor.clone(), peers.len());
        let sending = Box::pin(tree::send_to_all(shared, path.into(), peers));
        let ended = executor.run(sending).await;
        ended.unwrap_or_else(|| (0..count).map(|_| Err(TransferError::ShuttingDown)).collect())
    }

    /// Asks the node at `addr` what it knows of a transfer that this node sent to it.
    pub async fn status(&self, addr: SocketAddr, id: TransferId) -> Result<TransferStatus, TransferError> {
        let shared = Arc::clone(&self.service.shared);
        let executor = shared.executor.clone();
        let asking =
            async move { asking::status(&shared, (addr, None), id, shared.options.idle_timeout).await };
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

    /// Lets a task go on until it, or the service, ends.
    pub(crate) fn go_on_with(&self, task: AbortOnDrop<()>) {
        let mut background = self.service.background.lock().unwrap_or_else(PoisonError::into_inner);
        background.retain(|task| !task.0.is_finished());
        background.push(task);
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.service.shared)
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
