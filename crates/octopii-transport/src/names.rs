//! Peers by host name: looked up anew for each new connection, their addresses tried one after the other without long waits.
//!
//! Names may be somebody's configuration on every node, asked for again at every heartbeat: however many callers there are, a name
//! has one look-up under way, few names at once have, and after a failure the next one waits.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::Rng;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::address::split;
use crate::endpoint::Shared;
use crate::pool::{Pool, backoff};
use crate::socket::canonical;
use crate::{ConnectError, Connection, Executor, NodeId};

/// Finds the addresses of a host name.
///
/// Called on a thread for blocking work, for at most four names at once; an answer that takes longer than
/// [`connect_timeout`](crate::EndpointOptions::connect_timeout) is not waited for.
pub trait Resolve: fmt::Debug + Send + Sync + 'static {
    /// The addresses of `host`, each with `port`, the best first. At most 64 are looked at.
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// As the system's configuration says (`/etc/hosts`, DNS).
#[derive(Debug)]
pub(crate) struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((host, port).to_socket_addrs()?.take(MAX_ANSWER).collect())
    }
}

/// What is known of names.
#[derive(Debug)]
pub(crate) struct Names {
    resolver: Arc<dyn Resolve>,
    /// Look-ups at once: some resolvers take many seconds to find nothing, each on a thread of its own.
    places: Arc<Semaphore>,
    known: Mutex<BTreeMap<String, Name>>,
}

#[derive(Debug, Default)]
struct Name {
    /// Where it was reached last: asked again only when there is no live connection.
    reached: Option<Reached>,
    answer: Answer,
    /// Look-ups that failed since the last one that did not.
    failures: u32,
    told_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Reached {
    addr: SocketAddr,
    node: NodeId,
    /// The node has turned up elsewhere since: the name is asked again, and this serves only as long as it is not found.
    doubtful: bool,
}

#[derive(Debug, Default)]
enum Answer {
    #[default]
    None,
    LookingUp(watch::Receiver<Outcome>),
    Found(Instant, Vec<SocketAddr>),
    Failed(Instant, ConnectError),
}

type Outcome = Option<Result<Vec<SocketAddr>, ConnectError>>;

/// Names remembered at the most; beyond it all are forgotten, which costs a look-up each.
const MAX_NAMES: usize = 4096;

/// Names that are looked up at once.
const LOOK_UPS: usize = 4;

/// Addresses of one name that are tried, and that are looked at.
const MAX_ADDRESSES: usize = 8;
const MAX_ANSWER: usize = 64;

/// The next address is tried when the one before has not answered for so long (RFC 8305 advises 250 ms).
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// An answer serves whoever asks within this time: one who dials again and again does not ask again and again.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// A name that is still not found is told of again after so long.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// A live connection to whoever the name belongs to: to `node`, if one is expected, whoever else answers there.
pub(crate) async fn connect(
    shared: &Arc<Shared>,
    host: &str,
    node: Option<NodeId>,
) -> Result<Connection, ConnectError> {
    if let Some(connection) = live(shared, host, node) {
        return Ok(connection);
    }
    if let Some(addr) = shared.names.last(host).filter(|addr| shared.pool.live(*addr).is_none()) {
        shared.names.lost(host, addr);
    }
    let former = shared.names.former(host).and_then(|addr| shared.pool.live(addr));
    let found = async {
        let addresses = look_up(shared, host).await?;
        let open = addresses.iter().filter_map(|addr| Some((*addr, shared.pool.live(*addr)?)));
        match open.into_iter().find(|(_, connection)| is_expected(connection, node)) {
            Some(open) => Ok(open),
            None => first_of(shared, addresses, node).await,
        }
    };
    match (found.await, former) {
        (Ok((addr, connection)), _) => {
            shared.names.reached(host, addr, &connection);
            Ok(connection)
        }
        // A node may have several addresses: that it has dialled from another one does not make this one wrong.
        (Err(_), Some(former)) if !former.is_closed() && is_expected(&former, node) => Ok(former),
        (Err(e), _) => Err(e),
    }
}

/// The connection to where the name was found last, if it lives.
pub(crate) fn live(shared: &Shared, host: &str, node: Option<NodeId>) -> Option<Connection> {
    let connection = shared.pool.live(shared.names.last(host)?)?;
    is_expected(&connection, node).then_some(connection)
}

fn is_expected(connection: &Connection, node: Option<NodeId>) -> bool {
    node.is_none_or(|node| node == connection.peer().node_id)
}

/// A connection to the first of some addresses that answers, and which it was; otherwise why the last one did not.
async fn first_of(
    shared: &Arc<Shared>,
    addresses: Vec<SocketAddr>,
    node: Option<NodeId>,
) -> Result<(SocketAddr, Connection), ConnectError> {
    let mut last = ConnectError::EndpointClosed;
    let (mut dials, mut waiting) = (JoinSet::new(), addresses.into_iter());
    let mut next = waiting.next();
    while next.is_some() || !dials.is_empty() {
        if let Some(addr) = next.take() {
            let own = Arc::clone(shared);
            // The dial itself belongs to the pool: it goes on for others when this wait for it is dropped.
            dials.spawn_on(async move { (addr, Pool::connect(&own, addr).await) }, shared.executor.handle());
        }
        match timeout(NEXT_AFTER, dials.join_next()).await {
            Ok(Some(Ok((addr, Ok(connection))))) => match node {
                Some(expected) if connection.peer().node_id != expected => {
                    let found = connection.peer().node_id;
                    last = ConnectError::WrongNode { addr: addr.into(), expected, found };
                    next = waiting.next();
                }
                _ => return Ok((addr, connection)),
            },
            Ok(Some(Ok((_, Err(e))))) => {
                last = e;
                next = waiting.next();
            }
            Ok(Some(Err(_))) => return Err(ConnectError::EndpointClosed),
            Ok(None) | Err(_) => next = waiting.next(),
        }
    }
    Err(last)
}

/// The addresses of `HOST:PORT`, at most eight, the two families in turn. Cancel-safe: the look-up goes on for others.
async fn look_up(shared: &Shared, host: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let patience = Instant::now() + NEXT_AFTER;
    loop {
        match shared.names.ask(&shared.executor, host, shared.connect_timeout) {
            Step::Found(addresses) => return Ok(addresses),
            Step::Wait(mut outcome) => {
                return match outcome.wait_for(Option::is_some).await {
                    Ok(outcome) => outcome.clone().expect("waited for some"),
                    // The task was dropped with its runtime.
                    Err(_) => Err(ConnectError::EndpointClosed),
                };
            }
            // Waiting out a short backoff serves the caller better than an old error, which says why there is a long one.
            Step::Sleep(until, error) if until > patience => return Err(error),
            Step::Sleep(until, _) => sleep_until(until).await,
        }
    }
}

enum Step {
    Found(Vec<SocketAddr>),
    Wait(watch::Receiver<Outcome>),
    Sleep(Instant, ConnectError),
}

impl Names {
    pub(crate) fn new(resolver: Option<Arc<dyn Resolve>>) -> Arc<Self> {
        Arc::new(Self {
            resolver: resolver.unwrap_or_else(|| Arc::new(SystemResolver)),
            places: Arc::new(Semaphore::new(LOOK_UPS)),
            known: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Name>> {
        self.known.lock().expect("no panic while held")
    }

    pub(crate) fn last(&self, host: &str) -> Option<SocketAddr> {
        let reached = self.known().get(host)?.reached?;
        (!reached.doubtful).then_some(reached.addr)
    }

    /// The same, though the node has turned up elsewhere since.
    fn former(&self, host: &str) -> Option<SocketAddr> {
        Some(self.known().get(host)?.reached?.addr)
    }

    fn reached(&self, host: &str, addr: SocketAddr, connection: &Connection) {
        if let Some(name) = self.known().get_mut(host) {
            let node = connection.peer().node_id;
            name.reached = Some(Reached { addr, node, doubtful: false });
        }
    }

    /// A node has turned up at another address than before, as one does that was moved and started again: where its name leads is
    /// asked again, before the old connection is given up by itself.
    pub(crate) fn moved(&self, node: NodeId, to: SocketAddr) {
        for name in self.known().values_mut() {
            if let Some(reached) = &mut name.reached
                && reached.node == node
                && reached.addr != to
            {
                reached.doubtful = true;
                name.ask_again();
            }
        }
    }

    /// The connection to where the name was found is gone: an answer from before that counts no longer.
    fn lost(&self, host: &str, addr: SocketAddr) {
        if let Some(name) = self.known().get_mut(host)
            && name.reached.is_some_and(|reached| reached.addr == addr)
        {
            name.reached = None;
            name.ask_again();
        }
    }

    fn ask(self: &Arc<Self>, executor: &Executor, host: &str, limit: Duration) -> Step {
        let mut known = self.known();
        if known.len() >= MAX_NAMES && !known.contains_key(host) {
            known.clear();
        }
        let name = known.entry(host.to_owned()).or_default();
        match &name.answer {
            Answer::Found(at, addresses) if at.elapsed() < GOOD_FOR => return Step::Found(addresses.clone()),
            Answer::Failed(until, error) if *until > Instant::now() => {
                return Step::Sleep(*until, error.clone());
            }
            // Who looks up may have been dropped with its runtime, and then nobody must wait for it.
            Answer::LookingUp(outcome) if outcome.has_changed().is_ok() => {
                return Step::Wait(outcome.clone());
            }
            _ => {}
        }
        let (done, outcome) = watch::channel(None);
        name.answer = Answer::LookingUp(outcome.clone());
        let (names, blocking, host) = (Arc::clone(self), executor.clone(), host.to_owned());
        executor.spawn(async move {
            let looking = names.look_up(&blocking, &host);
            let found = timeout(limit, looking).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            let found = found.map_err(|reason| ConnectError::UnknownHost {
                host: host.escape_debug().take(MAX_SHOWN).collect(),
                reason,
            });
            names.answered(&host, &found);
            done.send_replace(Some(found));
        });
        Step::Wait(outcome)
    }

    async fn look_up(&self, executor: &Executor, address: &str) -> Result<Vec<SocketAddr>, String> {
        let (host, port) = split(address).ok_or("it does not look like host.example.com:4701")?;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|e| e.to_string())?;
        let (resolver, host) = (Arc::clone(&self.resolver), host.to_owned());
        let found = executor.blocking(move || {
            // Until the thread is done, also when nobody waits any more.
            let _place = place;
            resolver.resolve(&host, port)
        });
        let found = in_turn(found.await.map_err(|e| e.to_string())?.into_iter().map(canonical));
        if found.is_empty() { Err("it has no address".to_owned()) } else { Ok(found) }
    }

    fn answered(&self, host: &str, found: &Result<Vec<SocketAddr>, ConnectError>) {
        let mut known = self.known();
        let name = known.entry(host.to_owned()).or_default();
        match found {
            Ok(addresses) => {
                if name.told_at.take().is_some() {
                    tracing::info!(host, ?addresses, "the host name is found again");
                }
                name.failures = 0;
                name.answer = Answer::Found(Instant::now(), addresses.clone());
            }
            Err(error) => {
                let now = Instant::now();
                name.failures = name.failures.saturating_add(1);
                let wait = backoff(name.failures).mul_f64(rand::rng().random_range(0.5..=1.0));
                name.answer = Answer::Failed(now + wait, error.clone());
                // The first failure is told to who asked; who asks again and again is not there to hear it.
                if name.failures > 1 && name.told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
                    name.told_at = Some(now);
                    tracing::warn!("{error}; it is looked up again as long as it is needed");
                }
            }
        }
    }
}

impl Name {
    /// Where it leads is to be asked again.
    fn ask_again(&mut self) {
        if matches!(self.answer, Answer::Found(..)) {
            self.answer = Answer::None;
        }
    }
}

/// Characters of a name that are shown in an error.
const MAX_SHOWN: usize = 255;

/// As the resolver ordered them, but never one family after the other: a whole one may be unreachable.
fn in_turn(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut ordered: Vec<SocketAddr> = Vec::new();
    let (mut first, mut other) = (VecDeque::new(), VecDeque::new());
    let mut leading = None;
    for addr in found.take(MAX_ANSWER) {
        if *leading.get_or_insert(addr.is_ipv6()) == addr.is_ipv6() {
            first.push_back(addr);
        } else {
            other.push_back(addr);
        }
    }
    while ordered.len() < MAX_ADDRESSES && !(first.is_empty() && other.is_empty()) {
        for queue in [&mut first, &mut other] {
            if let Some(addr) = queue.pop_front().filter(|addr| !ordered.contains(addr)) {
                ordered.push(addr);
            }
        }
    }
    ordered.truncate(MAX_ADDRESSES);
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first address is silent, the second of a family that cannot be dialled from here, at the third sits a stranger, at the
    /// fourth another node than the one looked for.
    #[tokio::test]
    async fn addresses_are_tried_until_the_right_one_answers() {
        use crate::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
        let executor = Executor::new(tokio::runtime::Handle::current());
        let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
        let on = |authority: &ClusterAuthority, node| {
            let options =
                EndpointOptions { connect_timeout: Duration::from_secs(1), ..EndpointOptions::default() };
            Endpoint::bind(&executor, &authority.issue(node).unwrap(), options).unwrap()
        };
        let (a, b, c, stranger) = (on(&ours, 1), on(&ours, 2), on(&ours, 3), on(&theirs, 2));
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let wrong = vec![silent.local_addr().unwrap(), "[::1]:4701".parse().unwrap(), stranger.local_addr()];
        let all = [wrong.clone(), vec![c.local_addr(), b.local_addr()]].concat();
        let (addr, connection) = first_of(a.shared(), all.clone(), Some(2)).await.unwrap();
        assert_eq!((addr, connection.peer().node_id), (b.local_addr(), 2));
        let (_, connection) = first_of(a.shared(), all.clone(), None).await.unwrap();
        assert_eq!(connection.peer().node_id, 3);
        let error = first_of(a.shared(), all, Some(9)).await.unwrap_err();
        assert!(!matches!(error, ConnectError::EndpointClosed), "{error}");
        let error = first_of(a.shared(), wrong, None).await.unwrap_err();
        assert!(!matches!(error, ConnectError::EndpointClosed), "{error}");
    }

    #[test]
    fn families_take_turns_and_there_is_an_end() {
        let v4 = |n: u16| SocketAddr::from(([10, 0, 0, 1], n));
        let v6 = |n: u16| SocketAddr::from(([1, 0, 0, 0, 0, 0, 0, 1], n));
        let found = [v6(1), v6(2), v6(2), v6(3), v4(1), v4(2)];
        assert_eq!(in_turn(found.into_iter()), [v6(1), v4(1), v6(2), v4(2), v6(3)]);
        assert_eq!(in_turn((0..100).map(v4)).len(), MAX_ADDRESSES);
        assert!(in_turn(std::iter::empty()).is_empty());
    }
}
