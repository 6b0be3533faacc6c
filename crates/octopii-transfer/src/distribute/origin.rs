//! The sender of one chunk to many receivers that hand it on to one another.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use octopii_transport::NodeId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::activity::Activity;
use crate::asking::may_have_arrived;
use crate::checkpoints::Checkpoints;
use crate::distribute::fate::{Fate, ask, is_whole};
use crate::distribute::ledger::{Content, Ledger};
use crate::distribute::member::{Ended, Member, converse};
use crate::distribute::plan::{Plan, Upstream};
use crate::distribute::{TransferResult, failed, succeeded};
use crate::options::SendOptions;
use crate::retry::Retry;
use crate::send::Receipt;
use crate::sending::TOO_LITTLE;
use crate::shared::{AbortOnDrop, Shared};
use crate::source::{BlockReader, OpenSource};
use crate::supply::{Outgoing, Supply};
use crate::wire::relay::RelayKey;
use crate::wire::{Acknowledgement, Have, MAX_BLOCK, ResumeKey};
use crate::{TransferError, TransferId};

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
    /// The secret of the keys under which receivers may keep what they have if they are cut off, and where hashing stood at times.
    checkpoints: Arc<Checkpoints>,
    resumes: bool,
    hashing: Mutex<Vec<AbortOnDrop<()>>>,
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

    /// Under what a receiver may keep what it has if it is cut off.
    pub(super) fn key_at(&self, receiver: NodeId) -> Option<ResumeKey> {
        self.resumes.then(|| self.checkpoints.key_at(receiver))
    }

    /// Sees to it that the content is hashed from where a receiver goes on. Says whether it begins with what the receiver has.
    pub(super) async fn hash_behind(&self, have: Have) -> Result<bool, TransferError> {
        let (source, checkpoints) = (Arc::clone(&self.content.source), Arc::clone(&self.checkpoints));
        let reading = move || BlockReader::at(source, checkpoints, have.bytes);
        let reader = self.shared.executor.blocking(reading).await?;
        if reader.digest() != have.prefix {
            return Ok(false);
        }
        let (executor, ledger) = (self.shared.executor.clone(), Arc::clone(&self.content.ledger));
        let filling = self.shared.executor.spawn(async move { ledger.fill(&executor, reader).await });
        let mut hashing = self.hashing.lock().unwrap_or_else(PoisonError::into_inner);
        hashing.retain(|task| !task.0.is_finished());
        hashing.push(AbortOnDrop(filling));
        Ok(true)
    }

    /// Receiver `i` shows signs of life.
    pub(super) fn activity(&self, i: usize) {
        self.activities[i].tick();
    }

    /// The acknowledgement of another content than was sent would be worse than none.
    pub(super) fn check(&self, ack: &Acknowledgement) -> Result<(), TransferError> {
        match self.content.ledger.digest()? {
            Some(own) if own == ack.digest && ack.size == self.content.ledger.size() => {
                match self.options.accepts(ack.level) {
                    true => Ok(()),
                    false => Err(TransferError::Protocol(TOO_LITTLE)),
                }
            }
            Some(own) => Err(TransferError::DigestMismatch(format!(
                "the sender's SHA-256 is {own}, the receiver acknowledged {}",
                ack.digest
            ))),
            None => Err(TransferError::Protocol("acknowledged before everything was sent")),
        }
    }

    /// Receiver `i` is gone, for now at least: those it supplied are moved.
    fn lose(&self, i: usize) {
        let moves = self.plan().gone(i, self.now());
        self.tell(moves);
    }

    fn unknown_if_done(&self, i: usize, error: TransferError) -> TransferError {
        let member = &self.members[i];
        if member.done.load(Ordering::Relaxed) {
            TransferError::OutcomeUnknown { peer: member.addr, error: Arc::new(error) }
        } else {
            error
        }
    }

    /// For people.
    pub(super) fn name(&self, supply: Upstream) -> String {
        match supply {
            Upstream::Sender => "the sender".to_owned(),
            Upstream::Receiver(from) => self.members[from].addr.to_string(),
        }
    }

    fn tell(&self, moves: Vec<(usize, Upstream)>) {
        for (i, supply) in moves {
            tracing::info!(peer = %self.members[i].addr, "is supplied by {} from now on", self.name(supply));
            self.members[i].supply(supply);
        }
    }
}

/// Sends `source` to all peers, each of which hands it on to others. Tells each one's result with its number as soon as it
/// is known; ends when all are.
pub(crate) async fn distribute(
    shared: Arc<Shared>,
    source: Outgoing,
    peers: Vec<SocketAddr>,
    mut options: SendOptions,
    results: mpsc::Sender<(usize, TransferResult)>,
) {
    let started = Instant::now();
    options.name = options.name.take().or_else(|| source.file_name().map(str::to_owned));
    let opened = match options.check() {
        Ok(()) if options.node.is_some() => Err(TransferError::InvalidOptions(
            "one node alone cannot be sent to by way of others: send it directly",
        )),
        Ok(()) if options.compress.is_some() => Err(TransferError::InvalidOptions(
            "what peers hand on is not compressed: send it directly, or as it is",
        )),
        Ok(()) => open(&shared, source, &options).await,
        Err(error) => Err(error),
    };
    let (source, checkpoints, resumes) = match opened {
        Ok(opened) => opened,
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
    let first = options.id.take();
    let ids = first.into_iter().chain(std::iter::repeat_with(TransferId::random));
    let origin = Arc::new(Origin {
        plan: Mutex::new(Plan::new(peers.len(), block_size)),
        activities: peers.iter().map(|_| Activity::default()).collect(),
        members: peers.into_iter().zip(ids).map(|(addr, id)| Member::new(addr, id)).collect(),
        checkpoints,
        resumes,
        hashing: Mutex::default(),
        content: Content { ledger: Arc::new(Ledger::new(size, block_size)), source },
        key: RelayKey::random(),
        shared: Arc::clone(&shared),
        options,
        block_size,
        started,
    });
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
                let (id, duration) = (origin.members[i].id(), started.elapsed());
                let resumed = origin.members[i].resumed.load(Ordering::Relaxed);
                let travelled = origin.members[i].travelled.load(Ordering::Relaxed);
                ended.extend(end.open);
                succeeded(peer, &Receipt { id, digest, bytes: size, resumed, travelled, level, duration })
            }
            Err(error) => {
                let travelled = origin.members[i].travelled.load(Ordering::Relaxed);
                TransferResult { travelled, ..failed(peer, verified, started.elapsed(), error) }
            }
        };
        let _ = results.send((i, result)).await;
    }
}

async fn open(
    shared: &Arc<Shared>,
    source: Outgoing,
    options: &SendOptions,
) -> Result<(Arc<OpenSource>, Arc<Checkpoints>, bool), TransferError> {
    match Supply::open(shared, source, options).await? {
        Supply::Stored { source, checkpoints, resume } => Ok((source, checkpoints, resume)),
        Supply::Stream { .. } => Err(TransferError::Protocol("a stream goes to one receiver")),
    }
}

/// Everything about receiver `i`, from the offer to its result.
async fn settle(origin: &Origin, i: usize) -> Result<Settled, TransferError> {
    let trying = persist(origin, i);
    match origin.options.timeout {
        None => trying.await,
        Some(after) => timeout(after, trying).await.unwrap_or_else(|_| {
            let bytes = origin.members[i].verified.load(Ordering::Relaxed);
            origin.lose(i);
            Err(origin.unknown_if_done(i, TransferError::Timeout { after, bytes }))
        }),
    }
}

/// Tries until the receiver has acknowledged everything, or until trying again is of no use or not wanted.
async fn persist(origin: &Origin, i: usize) -> Result<Settled, TransferError> {
    let (idle, member) = (origin.options.idle_timeout, &origin.members[i]);
    let mut retry = Retry::new(origin.options.retries);
    loop {
        let before = member.verified.load(Ordering::Relaxed);
        let outcome = tokio::select! {
            biased;
            ended = converse(origin, i) => ended,
            () = origin.activities[i].stalled(idle) => Err(TransferError::Stalled { idle }),
        };
        let error = match outcome {
            Ok(end) => {
                origin.plan().finished(i, end.ack.size);
                return Ok(Settled { ack: end.ack, open: Some(end) });
            }
            Err(error) => error,
        };
        // Those it supplied go elsewhere.
        origin.lose(i);
        let mut advanced = member.verified.load(Ordering::Relaxed) > before;
        // Others may have supplied it with the rest since it was last heard of. Offered again while it has that, or is about to,
        // it would end up with two.
        let (mut is_open, mut may_begin) =
            (member.done.load(Ordering::Relaxed) && may_have_arrived(&error), false);
        loop {
            match if is_open { ask(origin, i).await } else { Fate::Failed } {
                Fate::Arrived(ack) => {
                    origin.check(&ack)?;
                    return Ok(Settled { ack, open: None });
                }
                Fate::Failed => (is_open, may_begin) = (false, true),
                // It had all of it when it was last heard of: that it is nowhere else is not known.
                Fate::Forgotten if is_whole(origin, i) => return Err(origin.unknown_if_done(i, error)),
                Fate::Forgotten => may_begin = true,
                Fate::Open => {}
            }
            let Some(pause) = retry.pause(&error, advanced) else {
                return Err(if is_open { origin.unknown_if_done(i, error) } else { error });
            };
            sleep(pause).await;
            if may_begin {
                break;
            }
            advanced = false;
        }
        tracing::info!(peer = %member.addr, "the transfer is tried again: {error}");
        member.begin_anew();
    }
}

/// What came of one receiver, and its stream if that is still open.
#[derive(Debug)]
struct Settled {
    ack: Acknowledgement,
    open: Option<Ended>,
}
