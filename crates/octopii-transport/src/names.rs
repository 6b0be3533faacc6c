//! Peers by host name: looked up anew for each new connection, their addresses tried one after the other without long waits.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::endpoint::Shared;
use crate::join::is_address;
use crate::pool::Pool;
use crate::socket::canonical;
use crate::{ConnectError, Connection};

/// Where each name was last found: asked again only when there is no live connection.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<BTreeMap<String, SocketAddr>>);

/// Names remembered at the most; beyond it all are forgotten, which costs a look-up each.
const MAX_NAMES: usize = 4096;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// The next address is tried when the one before has not answered for so long (RFC 8305 advises 250 ms).
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// A live connection to whoever the name belongs to.
pub(crate) async fn connect(shared: &Arc<Shared>, host: &str) -> Result<Connection, ConnectError> {
    if let Some(connection) = shared.names.last(host).and_then(|addr| shared.pool.live(addr)) {
        return Ok(connection);
    }
    let addresses = resolve(host, shared.connect_timeout).await?;
    if let Some(connection) = addresses.iter().find_map(|addr| shared.pool.live(*addr)) {
        return Ok(connection);
    }
    if addresses.is_empty() {
        let reason = "it has no address".to_owned();
        return Err(ConnectError::UnknownHost { host: host.to_owned(), reason });
    }
    let (addr, connection) = first_of(shared, addresses).await?;
    shared.names.found(host, addr);
    Ok(connection)
}

/// A connection to the first of some addresses that answers, and which it was; otherwise why the last one did not.
async fn first_of(
    shared: &Arc<Shared>,
    addresses: Vec<SocketAddr>,
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
            Ok(Some(Ok((addr, Ok(connection))))) => return Ok((addr, connection)),
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

/// The addresses of `HOST:PORT` or `IP:PORT`, at most eight, the two families in turn.
async fn resolve(host: &str, limit: Duration) -> Result<Vec<SocketAddr>, ConnectError> {
    let unknown =
        |reason: String| ConnectError::UnknownHost { host: host.escape_debug().take(80).collect(), reason };
    if let Ok(addr) = host.parse() {
        return Ok(vec![addr]);
    }
    if !is_address(host) {
        return Err(unknown("it does not look like host.example.com:4701".to_owned()));
    }
    let looked_up = timeout(limit, tokio::net::lookup_host(host)).await;
    let found = looked_up
        .map_err(|_| unknown("no answer in time".to_owned()))?
        .map_err(|e| unknown(e.to_string()))?;
    Ok(in_turn(found.map(canonical)))
}

/// As the resolver ordered them, but never one family after the other: a whole one may be unreachable.
fn in_turn(found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut ordered: Vec<SocketAddr> = Vec::new();
    let (mut first, mut other) = (std::collections::VecDeque::new(), std::collections::VecDeque::new());
    let mut leading = None;
    for addr in found.take(64) {
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

impl Names {
    fn last(&self, host: &str) -> Option<SocketAddr> {
        self.0.lock().expect("no panic while held").get(host).copied()
    }

    fn found(&self, host: &str, addr: SocketAddr) {
        let mut names = self.0.lock().expect("no panic while held");
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(host.to_owned(), addr);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first address is silent, the second of a family that cannot be dialled from here, at the third sits a stranger.
    #[tokio::test]
    async fn addresses_are_tried_until_one_answers() {
        use crate::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
        let executor = Executor::new(tokio::runtime::Handle::current());
        let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
        let on = |authority: &ClusterAuthority, node| {
            Endpoint::bind(&executor, &authority.issue(node).unwrap(), EndpointOptions::default()).unwrap()
        };
        let (a, b, stranger) = (on(&ours, 1), on(&ours, 2), on(&theirs, 2));
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let wrong = vec![silent.local_addr().unwrap(), "[::1]:4701".parse().unwrap(), stranger.local_addr()];
        let all = [wrong.clone(), vec![b.local_addr()]].concat();
        let (addr, connection) = first_of(a.shared(), all).await.unwrap();
        assert_eq!((addr, connection.peer().node_id), (b.local_addr(), 2));
        let error = first_of(a.shared(), wrong).await.unwrap_err();
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
