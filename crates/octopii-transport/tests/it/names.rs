//! Peers by host name: looked up again, never by everybody at once, and never another node than the one meant.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use octopii_transport::{Address, ClusterAuthority, ConnectError, Endpoint, EndpointOptions, Resolve};
use tokio::time::{Instant, sleep};

use crate::{endpoint, endpoint_with};

/// Names that lead where the test says.
#[derive(Debug, Default)]
struct Hosts {
    known: Mutex<BTreeMap<String, Vec<SocketAddr>>>,
    asked: AtomicUsize,
    /// Whoever asks for `slow` waits until this is set.
    open: Mutex<bool>,
    opened: Condvar,
}

impl Hosts {
    fn set(&self, host: &str, addresses: &[SocketAddr]) {
        self.known.lock().unwrap().insert(host.to_owned(), addresses.to_vec());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl Resolve for Hosts {
    fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        assert_eq!(port, 4400);
        if host == "slow" {
            drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
        }
        let known = self.known.lock().unwrap().get(host).cloned();
        known.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "nobody has that name"))
    }
}

/// An endpoint that knows these names, and gives up waiting for an answer after this long.
fn with_names(authority: &ClusterAuthority, hosts: &Arc<Hosts>, connect_timeout: Duration) -> Endpoint {
    let resolver: Arc<dyn Resolve> = Arc::<Hosts>::clone(hosts);
    let options = EndpointOptions { resolver: Some(resolver), connect_timeout, ..EndpointOptions::default() };
    endpoint_with(authority, 1, options)
}

fn named(text: &str) -> Address {
    text.parse().unwrap()
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Until a connection to the node is one to that address.
async fn reaches(from: &Endpoint, name: &Address, to: SocketAddr) {
    let start = Instant::now();
    loop {
        match from.connect_to(2, name).await {
            Ok(connection) if connection.remote_addr() == to => return,
            other => assert!(start.elapsed() < PATIENCE, "still not there: {other:?}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_node_that_comes_back_elsewhere_is_found_by_its_name() {
    let (authority, hosts) = (ClusterAuthority::generate().unwrap(), Arc::new(Hosts::default()));
    let (a, b) = (with_names(&authority, &hosts, PATIENCE), endpoint(&authority, 2));
    let name = named("node-2.test:4400");
    let error = a.connect_to(2, &name).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::UnknownHost { host, reason } if host == "node-2.test:4400" && reason.contains("nobody")),
        "{error}"
    );
    hosts.set("node-2.test", &[b.local_addr()]);
    let first = a.connect_to(2, &name).await.unwrap();
    let asked = hosts.asked();
    for _ in 0..100 {
        assert_eq!(a.connect(&name).await.unwrap().remote_addr(), b.local_addr());
    }
    assert_eq!(hosts.asked(), asked, "a live connection needs no look-up");

    let moved = endpoint(&authority, 2);
    hosts.set("node-2.test", &[moved.local_addr()]);
    first.close("gone");
    first.closed().await;
    drop(b);
    reaches(&a, &name, moved.local_addr()).await;
}

/// The old connection is silent, and not given up yet: the new life of the node says by dialling that it is elsewhere.
#[tokio::test]
async fn a_node_that_dials_from_elsewhere_is_looked_up_again() {
    let (authority, hosts) = (ClusterAuthority::generate().unwrap(), Arc::new(Hosts::default()));
    let (a, former) = (with_names(&authority, &hosts, PATIENCE), endpoint(&authority, 2));
    let name = named("node-2.test:4400");
    hosts.set("node-2.test", &[former.local_addr()]);
    let old = a.connect_to(2, &name).await.unwrap();
    let now = endpoint(&authority, 2);
    hosts.set("node-2.test", &[now.local_addr()]);
    now.connect(a.local_addr()).await.unwrap();
    reaches(&a, &name, now.local_addr()).await;
    assert!(!old.is_closed());
}

/// A node with several addresses dials from another one than its name led to, and the name is not found at this moment.
#[tokio::test]
async fn a_live_connection_serves_as_long_as_its_name_is_not_found() {
    let (authority, hosts) = (ClusterAuthority::generate().unwrap(), Arc::new(Hosts::default()));
    let (a, two) = (with_names(&authority, &hosts, PATIENCE), endpoint(&authority, 2));
    let name = named("node-2.test:4400");
    hosts.set("node-2.test", &[two.local_addr()]);
    let first = a.connect_to(2, &name).await.unwrap();
    hosts.known.lock().unwrap().clear();
    let elsewhere = endpoint(&authority, 2);
    elsewhere.connect(a.local_addr()).await.unwrap();
    // It has been noticed when the name is asked for again.
    let (asked, start) = (hosts.asked(), Instant::now());
    while hosts.asked() == asked {
        assert_eq!(a.connect_to(2, &name).await.unwrap().remote_addr(), two.local_addr());
        assert!(start.elapsed() < PATIENCE, "the name is not asked for again");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(a.connect_to(2, &name).await.unwrap().remote_addr(), two.local_addr());
    assert!(a.connect_to(3, &name).await.is_err(), "not for another node");
    first.close("gone");
    first.closed().await;
    assert!(matches!(a.connect_to(2, &name).await, Err(ConnectError::UnknownHost { .. })));
}

/// Addresses are given to others: what a name led to a moment ago may be another node.
#[tokio::test]
async fn another_node_behind_the_name_is_not_the_one_meant() {
    let (authority, hosts) = (ClusterAuthority::generate().unwrap(), Arc::new(Hosts::default()));
    let a = with_names(&authority, &hosts, PATIENCE);
    let (two, three) = (endpoint(&authority, 2), endpoint(&authority, 3));
    let name = named("node-2.test:4400");
    hosts.set("node-2.test", &[three.local_addr()]);
    // Who asks for nobody in particular gets whoever is there, and it does not stand in the way of who does.
    assert_eq!(a.connect(&name).await.unwrap().peer().node_id, 3);
    let error = a.connect_to(2, &name).await.unwrap_err();
    assert!(matches!(error, ConnectError::WrongNode { expected: 2, found: 3, .. }), "{error}");
    hosts.set("node-2.test", &[three.local_addr(), two.local_addr()]);
    reaches(&a, &name, two.local_addr()).await;
    assert_eq!(a.connect_to(2, &name).await.unwrap().peer().node_id, 2);
}

#[tokio::test]
async fn everybody_waits_for_one_look_up_and_failures_are_not_repeated_at_once() {
    let (authority, hosts) = (ClusterAuthority::generate().unwrap(), Arc::new(Hosts::default()));
    let (a, b) = (with_names(&authority, &hosts, PATIENCE), endpoint(&authority, 2));
    hosts.set("slow", &[b.local_addr()]);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let a = a.clone();
        calls.spawn(async move { a.connect(named("slow:4400")).await.map(|_| ()) });
    }
    let start = Instant::now();
    while hosts.asked() == 0 {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(5)).await;
    }
    hosts.open();
    while let Some(outcome) = calls.join_next().await {
        outcome.unwrap().unwrap();
    }
    assert_eq!(hosts.asked(), 1);

    // As a heartbeat would, again and again.
    let end = Instant::now() + Duration::from_millis(500);
    for _ in 0..50 {
        let a = a.clone();
        calls.spawn(async move {
            while Instant::now() < end {
                a.connect(named("nobody.test:4400")).await.unwrap_err();
            }
            Ok(())
        });
    }
    while let Some(outcome) = calls.join_next().await {
        outcome.unwrap().unwrap();
    }
    // At most 25, 50, 100 and 200 ms after one another, and once more when the time is over.
    assert!((2..=12).contains(&(hosts.asked() - 1)), "{}", hosts.asked());
}

#[tokio::test]
async fn a_resolver_that_hangs_holds_up_nobody_else() {
    let (authority, hosts) = (ClusterAuthority::generate().unwrap(), Arc::new(Hosts::default()));
    let (a, b) = (with_names(&authority, &hosts, Duration::from_millis(500)), endpoint(&authority, 2));
    hosts.set("node-2.test", &[b.local_addr()]);
    let error = a.connect(named("slow:4400")).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::UnknownHost { reason, .. } if reason.contains("in time")),
        "{error}"
    );
    a.connect(named("node-2.test:4400")).await.unwrap();
    // Neither an empty answer nor one without end does any harm.
    hosts.set("empty.test", &[]);
    let error = a.connect(named("empty.test:4400")).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::UnknownHost { reason, .. } if reason.contains("no address")),
        "{error}"
    );
    hosts.set("many.test", &vec![b.local_addr(); 100_000]);
    a.connect(named("many.test:4400")).await.unwrap();
    hosts.open();
}
