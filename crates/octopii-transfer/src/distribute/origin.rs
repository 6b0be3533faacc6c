//! The sender of one chunk to many receivers that hand it on to one another.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};

use crate::activity::Activity;
use crate::distribute::ledger::{Content, Ledger};
use crate::distribute::member::{Ended, Member, converse};
use crate::distribute::plan::{Plan, Supply};
use crate::distribute::{TransferResult, failed, succeeded};
use crate::send::{Receipt, SendOptions};
use crate::service::{AbortOnDrop, Shared};
use crate::source::{BlockReader, OpenSource};
use crate::wire::relay::RelayKey;
use crate::wire::{Acknowledgement, MAX_BLOCK};
use crate::{ChunkSource, TransferError, TransferId};

/// A chain delivers a block per receiver late: smaller blocks than usual, unless there would be very many.
const BLOCK: u32 = 256 << 10;
const MANY_BLOCKS: u64 = 64 << 10;

/// How often it is looked at who supplies whom.
const REVIEW: Duration = Duration::from_millis(500);

/// What the conversations of a distribution share.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) shared: Arc<Shared>,
    pub(super) options: SendOptions,
    pub(super) key: RelayKey,
    pub(super) block_size: u32,
    pub(super) content: Content,
    pub(super) members: Vec<Member>,
    plan: Mutex<Plan>,
    activities: Vec<Activity>,
    started: Instant,
}

impl Origin {
    pub(super) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the beginning.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Receiver `i` shows signs of life.
    pub(super) fn activity(&self, i: usize) {
        self.activities[i].tick();
    }

    /// The acknowledgement of another content than was sent would be worse than none.
    pub(super) fn check(&self, ack: &Acknowledgement) -> Result<(), TransferError> {
        match self.content.ledger.digest()? {
            Some(own) if own == ack.digest && ack.size == self.content.ledger.size() => Ok(()),
            Some(own) => Err(TransferError::DigestMismatch(format!(
                "the sender's SHA-256 is {own}, the receiver acknowledged {}",
                ack.digest
            ))),
            None => Err(TransferError::Protocol("acknowledged before everything was sent")),
        }
    }

    fn tell(&self, moves: Vec<(usize, Supply)>) {
        for (i, supply) in moves {
            let from = match supply {
                Supply::Sender => "the sender".to_owned(),
                Supply::Receiver(from) => self.members[from].addr.to_string(),
            };
            tracing::info!(peer = %self.members[i].addr, "is supplied by {from} from now on");
            self.members[i].supply(supply);
        }
    }
}

/// Sends `source` to all peers, each of which hands it on to others. Tells each one's result with its number as soon as it
/// is known; ends when all are.
pub(super) async fn distribute(
    shared: Arc<Shared>,
    source: ChunkSource,
    peers: Vec<SocketAddr>,
    mut options: SendOptions,
    results: mpsc::Sender<(usize, TransferResult)>,
) {
    let started = Instant::now();
    options.name = options.name.take().or_else(|| source.file_name().map(str::to_owned));
    let opened = match options.check() {
        Ok(()) => open(&shared, source).await,
        Err(error) => Err(error),
    };
    let source = match opened {
        Ok(source) => source,
        Err(error) => {
            for (i, peer) in peers.into_iter().enumerate() {
                // An error means that nobody wants to know.
                let _ = results.send((i, failed(peer, 0, started.elapsed(), error.clone()))).await;
            }
            return;
        }
    };
    let size = source.size();
    let block_size = if size / u64::from(BLOCK) > MANY_BLOCKS { MAX_BLOCK } else { BLOCK };
    let ledger = Arc::new(Ledger::new(size, block_size));
    let first = options.id.take();
    let ids = first.into_iter().chain(std::iter::repeat_with(TransferId::random));
    let origin = Arc::new(Origin {
        plan: Mutex::new(Plan::new(peers.len(), block_size)),
        activities: peers.iter().map(|_| Activity::default()).collect(),
        members: peers.into_iter().zip(ids).map(|(addr, id)| Member::new(addr, id)).collect(),
        content: Content { ledger: Arc::clone(&ledger), source: Arc::clone(&source) },
        key: RelayKey::random(),
        shared: Arc::clone(&shared),
        options,
        block_size,
        started,
    });
    let executor = shared.executor.clone();
    let filling = async move { ledger.fill(&executor, BlockReader::new(source)).await };
    let _filling = AbortOnDrop(shared.executor.spawn(filling));
    let reviewing = Arc::clone(&origin);
    let _reviewing = AbortOnDrop(shared.executor.spawn(async move {
        let mut ticks = interval(REVIEW);
        loop {
            ticks.tick().await;
            let moves = reviewing.plan().review(reviewing.now());
            reviewing.tell(moves);
        }
    }));
    // Tasks of the set end with it.
    let mut tasks = JoinSet::new();
    for i in 0..origin.members.len() {
        let origin = Arc::clone(&origin);
        tasks.spawn_on(async move { (i, settle(&origin, i).await) }, shared.executor.handle());
    }
    // Streams of those who have finished stay open until all have: others may fetch from them.
    let mut ended = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        let Ok((i, outcome)) = joined else { continue };
        let peer = origin.members[i].addr;
        let verified = origin.members[i].verified.load(Ordering::Relaxed);
        let result = match outcome {
            Ok(end) => {
                let Acknowledgement { level, size, digest } = end.ack;
                let id = origin.members[i].id;
                ended.push(end);
                let duration = started.elapsed();
                succeeded(peer, &Receipt { id, digest, bytes: size, resumed: 0, level, duration })
            }
            Err(error) => failed(peer, verified, started.elapsed(), error),
        };
        let _ = results.send((i, result)).await;
    }
}

async fn open(shared: &Arc<Shared>, source: ChunkSource) -> Result<Arc<OpenSource>, TransferError> {
    let vfs = Arc::clone(&shared.resources.vfs);
    Ok(Arc::new(shared.executor.blocking(move || OpenSource::open(&source, &vfs)).await?))
}

/// Everything about receiver `i`, from the offer to its result. Those it supplied are moved if it is lost.
async fn settle(origin: &Origin, i: usize) -> Result<Ended, TransferError> {
    let idle = origin.options.idle_timeout;
    let talking = async {
        tokio::select! {
            biased;
            ended = converse(origin, i) => ended,
            () = origin.activities[i].stalled(idle) => Err(TransferError::Stalled { idle }),
        }
    };
    let outcome = match origin.options.timeout {
        None => talking.await,
        Some(after) => timeout(after, talking).await.unwrap_or_else(|_| {
            Err(TransferError::Timeout { after, bytes: origin.members[i].verified.load(Ordering::Relaxed) })
        }),
    };
    match &outcome {
        Ok(end) => origin.plan().finished(i, end.ack.size),
        Err(_) => {
            let moves = origin.plan().gone(i, origin.now());
            origin.tell(moves);
        }
    }
    outcome
}
