//! One directory to many peers.
//!
//! Each peer has its own walk and its own packs of small files. What most bytes are in is sent once: large files that several peers
//! ask for go in a chain, as chunks do, and each peer's tree hears when its file is there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::options::TreeOptions;
use super::outcome::TreeReport;
use super::send::send;
use super::sending::Sent;
use crate::distribute::{WORTH_A_CHAIN, chain};
use crate::shared::Shared;
use crate::source::Beneath;
use crate::supply::Outgoing;
use crate::{SendOptions, TransferError, TransferId};

/// Peers to which a directory is sent at the same time; each may take as much memory as a tree of its own.
const AT_ONCE: usize = 32;

/// A large file waits this long, at most, for the others to ask for it, too.
const GATHER: Duration = Duration::from_secs(2);

/// Sends the tree at `path` to every peer, as `options` say for each. One result per peer, in their order.
pub(crate) async fn send_to_all(
    shared: Arc<Shared>,
    path: PathBuf,
    peers: Vec<(SocketAddr, TreeOptions)>,
) -> Vec<Result<TreeReport, TransferError>> {
    // What goes in a chain is announced to all in the same words, the tree's id among them.
    let id = TransferId::random();
    let group = Arc::new(Group { shared: Arc::clone(&shared), state: Mutex::default() });
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let mut results: Vec<_> = peers.iter().map(|_| Err(TransferError::ShuttingDown)).collect();
    let mut known = Vec::new();
    for (at, (addr, mut options)) in peers.into_iter().enumerate() {
        // Whoever is named twice, or is to have an id of the caller's, is sent to alone.
        let joins = options.id.is_none() && !known.contains(&addr);
        known.push(addr);
        if joins {
            options.id = Some(id);
        }
        let (shared, path) = (Arc::clone(&shared), path.clone());
        let (group, places) = (Arc::clone(&group), Arc::clone(&places));
        let handle = shared.executor.handle().clone();
        tasks.spawn_on(
            async move {
                let _place = places.acquire_owned().await;
                let seat = joins.then(|| group.join(addr));
                (at, Box::pin(send(shared, addr, path, options, seat)).await)
            },
            &handle,
        );
    }
    while let Some(joined) = tasks.join_next().await {
        if let Ok((at, result)) = joined {
            results[at] = result;
        }
    }
    results
}

/// The peers to which a tree is being sent.
#[derive(Debug)]
pub(crate) struct Group {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: usize,
    gathering: BTreeMap<Key, Gathering>,
    /// Chains, and clocks of files that wait; they end with the group.
    tasks: JoinSet<()>,
}

/// A file as the peers were told of it.
type Key = (u64, PathBuf, u64, i128);

#[derive(Debug)]
struct Gathering {
    file: Beneath,
    options: SendOptions,
    asking: Vec<(SocketAddr, oneshot::Sender<Shipped>)>,
}

/// What came of a file that goes to several.
#[derive(Debug, Clone, Copy)]
enum Shipped {
    /// The peer has it.
    Arrived(Sent),
    /// Nobody else wants it, or it did not get there.
    Alone,
}

impl Group {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>, addr: SocketAddr) -> Seat {
        self.lock().members += 1;
        Seat { group: Arc::clone(self), addr }
    }

    /// Sends what everybody has asked for by now.
    fn review(self: &Arc<Self>) {
        let ready: Vec<_> = {
            let mut state = self.lock();
            let members = state.members;
            state.gathering.extract_if(.., |_, file| file.asking.len() >= members).collect()
        };
        ready.into_iter().for_each(|(_, file)| self.ship(file));
    }

    fn ship(&self, Gathering { file, options, asking }: Gathering) {
        if asking.len() < 2 {
            asking.into_iter().for_each(|(_, asked)| tell(asked, Shipped::Alone));
            return;
        }
        tracing::debug!(path = %file.path.display(), peers = asking.len(), "a large file goes in a chain");
        let shared = Arc::clone(&self.shared);
        self.spawn(async move {
            let (addrs, mut asked): (Vec<_>, Vec<_>) =
                asking.into_iter().map(|(addr, asked)| (addr, Some(asked))).unzip();
            let resumed: Arc<Vec<_>> = Arc::new(addrs.iter().map(|_| AtomicU64::new(0)).collect());
            let (noted, order, others) = (Arc::clone(&resumed), addrs.clone(), options.progress);
            let progress = move |now: crate::Progress| {
                if let Some(at) = order.iter().position(|addr| *addr == now.peer) {
                    noted[at].store(now.resumed, Ordering::Relaxed);
                }
                others.iter().for_each(|progress| progress(now));
            };
            let options = SendOptions { progress: Some(Arc::new(progress)), ..options };
            let (tx, mut results) = mpsc::channel(addrs.len());
            let sending = chain(shared, Outgoing::Beneath(file), addrs, options, tx);
            let telling = async {
                while let Some((at, result)) = results.recv().await {
                    let resumed = resumed[at].load(Ordering::Relaxed);
                    let sent = Sent { resumed, travelled: result.travelled };
                    let shipped = if result.success { Shipped::Arrived(sent) } else { Shipped::Alone };
                    asked[at].take().into_iter().for_each(|asked| tell(asked, shipped));
                }
            };
            tokio::join!(sending, telling);
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.lock();
        while state.tasks.try_join_next().is_some() {}
        state.tasks.spawn_on(task, self.shared.executor.handle());
    }
}

fn tell(asked: oneshot::Sender<Shipped>, shipped: Shipped) {
    // An error means that the peer's tree has ended meanwhile.
    let _ = asked.send(shipped);
}

/// One peer's place in a group; the others wait for it no more when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    group: Arc<Group>,
    addr: SocketAddr,
}

impl Seat {
    /// Sends a large file together with the others who ask for it; `None` if it is to be sent to this peer alone, or once more.
    /// Cancel-safe.
    pub(crate) async fn send(&self, entry: u64, file: Beneath, options: SendOptions) -> Option<Sent> {
        if file.len < WORTH_A_CHAIN {
            return None;
        }
        let key = (entry, file.path.clone(), file.len, file.modified_ns);
        let (asked, shipped) = oneshot::channel();
        let is_first = {
            let mut state = self.group.lock();
            let is_first = !state.gathering.contains_key(&key);
            let fresh = || Gathering { file, options, asking: Vec::new() };
            let asking = &mut state.gathering.entry(key.clone()).or_insert_with(fresh).asking;
            // Who asks again has begun its tree again.
            asking.retain(|(addr, _)| *addr != self.addr);
            asking.push((self.addr, asked));
            is_first
        };
        self.group.review();
        if is_first {
            let group = Arc::downgrade(&self.group);
            self.group.spawn(async move {
                sleep(GATHER).await;
                let Some(group) = group.upgrade() else { return };
                let waiting = group.lock().gathering.remove(&key);
                waiting.into_iter().for_each(|file| group.ship(file));
            });
        }
        match shipped.await {
            Ok(Shipped::Arrived(sent)) => Some(sent),
            Ok(Shipped::Alone) | Err(_) => None,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.group.lock().members -= 1;
        self.group.review();
    }
}
