//! What several peers want of one tree, sent once.
//!
//! Each peer has a walk and a list of its own. What they ask for is gathered here, large files one by one and small ones in chunks
//! of packs, until it is known of every peer whether it wants them; then it goes in a chain, as chunks do, and each peer's tree hears
//! what came of it. What only one peer wants, and what did not get there, its own tree sends.

mod large;
mod packs;
mod small;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use octopii_vfs::DirHandle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::large::{Asking, Gathering, Large, Shipped};
use self::small::{Batch, Small};
use super::content::{Job, Sent};
use crate::shared::Shared;
use crate::source::Beneath;
use crate::{SendOptions, TransferId};

/// What some peers want waits this long, at most, and not longer than anything may be idle, until it is known whether the others want it, too. Who is behind then is not
/// waited for until it has caught up.
const GATHER: Duration = Duration::from_secs(10);

/// Who was behind this often is waited for no more.
const LATE: u32 = 3;

/// Nobody has asked for anything for this long: what is there is sent, be it ever so little.
const QUIET: Duration = Duration::from_millis(100);

/// How often it is looked at what has waited long enough.
const TICK: Duration = Duration::from_millis(50);

/// The peers to which a tree is being sent.
#[derive(Debug)]
pub(crate) struct Group {
    shared: Arc<Shared>,
    /// The same for all.
    id: TransferId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Peers that are sent to, or soon will be.
    members: usize,
    /// By number.
    attempts: BTreeMap<u64, Attempt>,
    /// Attempts so far.
    begun: u64,
    /// Entries below were not waited for any longer.
    forced: u64,
    /// When anybody last asked for anything.
    stirred: Option<Instant>,
    large: Large,
    small: Small,
    ticking: bool,
    /// Chains, and the clock; they end with the group.
    tasks: JoinSet<()>,
}

/// An attempt at one peer's tree.
#[derive(Debug)]
struct Attempt {
    terms: Terms,
    /// What it wants of entries below, it has asked for.
    told: u64,
    /// It kept others waiting: its small files go to it directly.
    alone: bool,
    /// How often others stopped waiting to hear what it wants.
    late: u32,
    deliveries: mpsc::UnboundedSender<Delivery>,
}

/// How an attempt is made.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) addr: SocketAddr,
    pub(crate) root: DirHandle,
    /// The level, if the peer takes compressed packs.
    pub(crate) compress: Option<i32>,
    pub(crate) rate_limit: Option<NonZeroU64>,
    pub(crate) idle_timeout: Duration,
}

/// What came of small files that were asked for.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// The peer has them in a chunk, and must be told what to do with it.
    Packs(Packs),
    /// They are to be sent to it directly.
    Direct {
        jobs: Vec<Job>,
        /// Bytes that left here for this peer in vain.
        travelled: u64,
    },
}

/// What to tell a peer that has got a chunk of packs.
#[derive(Debug)]
pub(crate) struct Packs {
    pub(crate) messages: Vec<Bytes>,
    /// Files in it that the peer has asked for.
    pub(crate) files: usize,
    /// Bytes of it that left here for this peer.
    pub(crate) travelled: u64,
    /// Dropped when the peer has been told.
    pub(crate) told: mpsc::Sender<()>,
}

/// What is known when it is decided what goes.
#[derive(Debug, Clone, Copy)]
struct Outlook {
    now: Instant,
    /// Of entries below it is known who wants them.
    low: u64,
    quiet: bool,
    /// How long a file waits.
    patience: Duration,
}

impl Outlook {
    /// Whether a file is not waited with any longer.
    fn is_due(&self, entry: u64, since: Instant) -> bool {
        entry < self.low || self.now >= since + self.patience
    }
}

impl State {
    fn outlook(&self) -> Outlook {
        let now = Instant::now();
        // The last one waits for nobody.
        let quiet = self.members < 2 || self.stirred.is_none_or(|at| now >= at + QUIET);
        // Who has yet to be reached may want everything.
        let all_here = self.forced > 0 || self.attempts.len() >= self.members;
        let in_time = |attempt: &&Attempt| attempt.told >= self.forced && attempt.late < LATE;
        let low =
            self.attempts.values().filter(in_time).map(|attempt| attempt.told).min().unwrap_or(u64::MAX);
        let idle = self.attempts.values().map(|attempt| attempt.terms.idle_timeout);
        let patience = idle.fold(GATHER, Duration::min);
        Outlook { now, low: if all_here { low } else { 0 }, quiet, patience }
    }

    /// Entries below go although somebody has not told whether it wants them.
    fn force(&mut self, entry: u64) {
        if entry > self.forced {
            let before = std::mem::replace(&mut self.forced, entry);
            let late = |attempt: &&mut Attempt| attempt.told >= before && attempt.told < entry;
            self.attempts.values_mut().filter(late).for_each(|attempt| attempt.late += 1);
        }
    }

    fn stir(&mut self) {
        self.stirred = Some(Instant::now());
    }
}

impl Group {
    pub(crate) fn new(shared: Arc<Shared>, id: TransferId) -> Arc<Self> {
        Arc::new(Self { shared, id, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a peer: the others wait for it from now on.
    pub(crate) fn join(self: &Arc<Self>) -> Seat {
        self.lock().members += 1;
        Seat { group: Arc::clone(self) }
    }

    /// Sends what can be sent by now.
    fn review(self: &Arc<Self>) {
        // Until there is nothing more to send at once.
        while self.review_once() {}
    }

    fn review_once(self: &Arc<Self>) -> bool {
        let (large, small, must_tick) = {
            let mut guard = self.lock();
            let state = &mut *guard;
            let outlook = state.outlook();
            let members = state.members;
            let (large, small) =
                (state.large.ready(&outlook, members), state.small.ready(&outlook, &state.attempts));
            // Of files for which somebody was not waited for any longer.
            let late = large.iter().filter(|file| file.is_late(&outlook)).map(Gathering::entry);
            let late = late.chain(small.iter().filter_map(Batch::last).filter(|entry| *entry >= outlook.low));
            state.force(late.map(|entry| entry + 1).max().unwrap_or(0));
            let waiting = !state.large.is_empty() || !state.small.is_empty();
            (large, small, waiting && !std::mem::replace(&mut state.ticking, waiting))
        };
        if must_tick {
            self.spawn(tick(Arc::downgrade(self)));
        }
        large.into_iter().for_each(|file| self.ship_large(file));
        let more = small.is_some();
        small.into_iter().for_each(|batch| self.ship_small(batch));
        more
    }

    fn deliver(&self, attempt: u64, delivery: Delivery) {
        let deliveries = self.lock().attempts.get(&attempt).map(|attempt| attempt.deliveries.clone());
        // Without it, the peer's tree has ended meanwhile.
        if let Some(deliveries) = deliveries {
            let _ = deliveries.send(delivery);
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.lock();
        while state.tasks.try_join_next().is_some() {}
        state.tasks.spawn_on(task, self.shared.executor.handle());
    }
}

/// Looks at the group as long as anything waits.
async fn tick(group: Weak<Group>) {
    loop {
        sleep(TICK).await;
        let Some(group) = group.upgrade() else { return };
        {
            let mut state = group.lock();
            if state.large.is_empty() && state.small.is_empty() {
                state.ticking = false;
                return;
            }
        }
        group.review();
    }
}

/// One peer's place in a group; the others wait for it no more when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    group: Arc<Group>,
}

impl Seat {
    /// Begins an attempt.
    pub(crate) fn enter(&self, terms: Terms) -> (Ticket, mpsc::UnboundedReceiver<Delivery>) {
        // Bounded by the window of the tree: each entry is delivered once.
        let (deliveries, delivered) = mpsc::unbounded_channel();
        let addr = terms.addr;
        let attempt = Attempt { terms, told: 0, alone: false, late: 0, deliveries };
        let number = {
            let mut state = self.group.lock();
            state.begun += 1;
            let number = state.begun;
            state.attempts.insert(number, attempt);
            number
        };
        (Ticket { group: Arc::clone(&self.group), addr, number }, delivered)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.group.lock().members -= 1;
        self.group.review();
    }
}

/// An attempt's part in a group. What it has asked for is forgotten when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    group: Arc<Group>,
    addr: SocketAddr,
    number: u64,
}

impl Ticket {
    /// Asks for small files.
    pub(crate) fn ask(&self, jobs: Vec<Job>) {
        {
            let mut state = self.group.lock();
            state.stir();
            state.small.ask(self.number, jobs);
        }
        self.group.review();
    }

    /// What is wanted of entries below has been asked for.
    pub(crate) fn told(&self, entry: u64) {
        {
            let mut state = self.group.lock();
            let Some(attempt) = state.attempts.get_mut(&self.number) else { return };
            if std::mem::replace(&mut attempt.told, entry) == entry {
                return;
            }
            state.stir();
        }
        self.group.review();
    }

    /// Asks for a large file. What is given back tells what was sent of it; or that it is to be sent to this peer alone, and how many
    /// bytes left here in vain.
    pub(crate) fn ask_large(
        &self,
        entry: u64,
        file: Beneath,
        options: SendOptions,
    ) -> impl Future<Output = Result<Sent, u64>> + Send + use<> {
        let (asked, shipped) = oneshot::channel();
        {
            let mut state = self.group.lock();
            state.stir();
            let asking = Asking { attempt: self.number, addr: self.addr, options, asked };
            state.large.ask(entry, file, asking);
        }
        self.group.review();
        async move {
            match shipped.await {
                Ok(Shipped::Arrived(sent)) => Ok(sent),
                Ok(Shipped::Alone { travelled }) => Err(travelled),
                Err(_) => Err(0),
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let gone = {
            let mut state = self.group.lock();
            state.small.forget(self.number);
            (state.large.forget(self.number), state.attempts.remove(&self.number))
        };
        drop(gone);
        self.group.review();
    }
}
