//! The pool: one connection for two who dial each other, none that nobody needs, names, and what is told of each peer.

use std::collections::BTreeSet;
use std::time::Duration;

use octopii_transport::{
    Address, ClusterAuthority, ConnectError, Connection, Endpoint, EndpointOptions, Health, Limits, Profile,
    StreamKind,
};

use crate::{endpoint, endpoint_with};

const SOON: Duration = Duration::from_secs(30);

/// Answers every stream with what it says, as long as it is open.
fn echo(endpoint: &Endpoint) {
    let mut acceptor = endpoint.acceptor(StreamKind::Rpc).unwrap();
    tokio::spawn(async move {
        while let Some(mut incoming) = acceptor.accept().await {
            tokio::spawn(async move {
                while let Ok(Some(frame)) = incoming.recv.read_frame(1 << 20).await {
                    if incoming.send.write_frame(&frame).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, waiting).await.is_ok(), "{what}: not within 30 s");
}

/// Both dial at the same moment, over and over; each begins to speak on what it got, and speaks on while the two settle.
async fn cross(a: &Endpoint, b: &Endpoint) -> usize {
    let (from_a, from_b) = tokio::join!(a.connect(b.local_addr()), b.connect(a.local_addr()));
    let connections: [Connection; 2] = [from_a.unwrap(), from_b.unwrap()];
    let crossed = a.open_connections().max(b.open_connections());
    let mut streams = Vec::new();
    for connection in &connections {
        streams.push(connection.open(StreamKind::Rpc).await.unwrap());
    }
    for round in 0..40u32 {
        for (send, recv) in &mut streams {
            send.write_frame(&round.to_le_bytes()).await.expect("what is under way goes on");
            assert_eq!(recv.read_frame(10).await.unwrap().as_deref(), Some(&round.to_le_bytes()[..]));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(streams);
    until("one connection", || a.open_connections() == 1 && b.open_connections() == 1).await;
    // Both use the one that is left.
    let (from_a, from_b) =
        (a.connect(b.local_addr()).await.unwrap(), b.connect(a.local_addr()).await.unwrap());
    assert!(!from_a.is_closed() && !from_b.is_closed());
    assert_eq!((a.open_connections(), b.open_connections()), (1, 1));
    if crossed == 2 {
        // The node with the lower id has dialled it.
        assert!(a.connections()[0].dialled && !b.connections()[0].dialled);
    }
    crossed
}

#[tokio::test]
async fn two_who_dial_each_other_end_up_with_one_connection_and_no_broken_stream() {
    let authority = ClusterAuthority::generate().unwrap();
    let pairs: Vec<_> = (0..8).map(|_| (endpoint(&authority, 1), endpoint(&authority, 2))).collect();
    let mut crossing = tokio::task::JoinSet::new();
    for (a, b) in pairs {
        echo(&a);
        echo(&b);
        crossing.spawn(async move { cross(&a, &b).await });
    }
    let seen: BTreeSet<usize> = crossing.join_all().await.into_iter().collect();
    assert!(seen.contains(&2), "no two dials crossed, so this test shows nothing");
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed_and_made_again() {
    let authority = ClusterAuthority::generate().unwrap();
    let options =
        EndpointOptions { close_unused: Some(Duration::from_millis(300)), ..EndpointOptions::default() };
    let (a, b) = (endpoint_with(&authority, 1, options), endpoint(&authority, 2));
    echo(&b);
    let connection = a.connect(b.local_addr()).await.unwrap();
    let (mut send, mut recv) = connection.open(StreamKind::Rpc).await.unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    send.write_frame(b"still").await.expect("a stream is open, however quiet");
    assert!(recv.read_frame(10).await.unwrap().is_some());
    assert_eq!(connection.streams_open(), 1);
    drop((send, recv));
    tokio::time::timeout(SOON, connection.closed()).await.expect("closed when nobody uses it");
    assert!(!a.connect(b.local_addr()).await.unwrap().is_closed());
}

/// Larger datagrams than the network's are found where both sides look for them, with batches that the kernel still takes.
#[tokio::test]
async fn profiles_and_sizes_of_datagrams_work_together() {
    let authority = ClusterAuthority::generate().unwrap();
    let with = |node, profile: Profile, mtu| {
        let options = EndpointOptions { mtu, ..profile.options() };
        endpoint_with(&authority, node, options)
    };
    for (a, b, expected) in [
        ((Profile::Lan, None), (Profile::Loopback, None), 1_452),
        ((Profile::Loopback, None), (Profile::Loopback, None), 6_500),
        ((Profile::Wan, None), (Profile::Wan, None), 1_452),
        ((Profile::Lan, Some(8_952)), (Profile::Wan, Some(u16::MAX)), 8_952),
    ] {
        let (a, b) = (with(1, a.0, a.1), with(2, b.0, b.1));
        echo(&b);
        let connection = a.connect(b.local_addr()).await.unwrap();
        let (mut send, mut recv) = connection.open(StreamKind::Rpc).await.unwrap();
        let frame = vec![7; 1 << 20];
        let growing = async {
            while connection.stats().mtu < expected {
                send.write_frame(&frame).await.unwrap();
                assert_eq!(recv.read_frame(1 << 20).await.unwrap().unwrap().len(), frame.len());
            }
        };
        tokio::time::timeout(SOON, growing).await.expect("the larger datagrams are found");
        assert_eq!(connection.stats().mtu, expected);
    }
    let (wan, lan) = (Profile::Wan.limits(), Profile::Lan.limits());
    assert!(wan.stream_window > lan.stream_window && wan.connection_window >= wan.stream_window * 8);
    assert_eq!(lan, Limits::default());
}

#[tokio::test]
async fn each_peers_figures_are_told() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    echo(&b);
    assert!(a.connections().is_empty());
    let connection = a.connect(b.local_addr()).await.unwrap();
    let (mut send, mut recv) = connection.open(StreamKind::Rpc).await.unwrap();
    until("rates", || {
        let _ = (&mut send, &mut recv);
        a.connections()[0].open_for > Duration::from_millis(1)
    })
    .await;
    let frame = vec![7; 1 << 20];
    let mut sent = 0u64;
    // Until a second has been sampled in the middle of it.
    while a.connections()[0].send_rate < 1000 {
        send.write_frame(&frame).await.unwrap();
        recv.read_frame(1 << 20).await.unwrap().unwrap();
        sent += 1 << 20;
        assert!(sent < 1 << 36, "no rate is ever told");
    }
    let told = &a.connections()[0];
    assert_eq!((told.peer.node_id, told.remote, told.dialled), (2, b.local_addr(), true));
    assert_eq!(told.certificate, b.identity().hash());
    assert!(told.rtt > Duration::ZERO && told.bytes_sent >= sent && told.bytes_received >= sent, "{told:?}");
    assert!(told.packets_sent > 0 && told.receive_rate > 0 && told.mtu >= 1200, "{told:?}");
    assert_eq!((told.streams_open, told.streams_total), (1, 1));
    assert!((0.0..=1.0).contains(&told.loss) && told.health != Health::Silent, "{told:?}");
    drop((send, recv));
    until("no stream open", || a.connections()[0].streams_open == 0).await;
    connection.close("done");
    until("no connection", || a.connections().is_empty()).await;
}

#[tokio::test]
async fn a_peer_is_found_by_name_and_looked_up_again() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let port = b.local_addr().port();
    let name: Address = format!("localhost:{port}").parse().unwrap();
    let first = a.connect(&name).await.unwrap();
    assert_eq!(first.peer().node_id, 2);
    a.connect(&name).await.unwrap();
    a.connect(format!("127.0.0.1:{port}").parse::<Address>().unwrap()).await.unwrap();
    assert_eq!(a.open_connections(), 1);
    first.close("gone");
    first.closed().await;
    assert!(!a.connect(&name).await.unwrap().is_closed());
    let unknown: Address = "host.invalid:4701".parse().unwrap();
    let error = a.connect(&unknown).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::UnknownHost { host, .. } if host == "host.invalid:4701"),
        "{error}"
    );
    assert!(error.to_string().contains("host.invalid:4701"), "{error}");
}

#[tokio::test]
async fn a_peer_on_ipv6_alone_is_reached_by_address_and_by_name() {
    let v6: std::net::SocketAddr = "[::1]:0".parse().unwrap();
    if let Err(e) = std::net::UdpSocket::bind(v6) {
        return eprintln!("skipped: this machine has no IPv6 loopback: {e}");
    }
    let authority = ClusterAuthority::generate().unwrap();
    let on = |node, bind: &str| {
        let options = EndpointOptions { bind: bind.parse().unwrap(), ..EndpointOptions::default() };
        endpoint_with(&authority, node, options)
    };
    let b = on(2, "[::1]:0");
    let to = b.local_addr();
    for (node, bind) in [(3, "[::1]:0"), (4, "[::]:0")] {
        let a = on(node, bind);
        let connection = a.connect(to).await.unwrap();
        assert_eq!((connection.peer().node_id, connection.remote_addr()), (2, to), "{bind}");
    }
    // Where only IPv4 is, it is said at once, and another address of the same name would be tried.
    let a = on(5, "127.0.0.1:0");
    assert!(matches!(a.connect(to).await, Err(ConnectError::InvalidAddress { .. })));
    // By a name that has both families nobody listens on the IPv4 one.
    let name = format!("localhost:{}", to.port());
    let found: Vec<_> = tokio::net::lookup_host(&name).await.unwrap().collect();
    if !found.contains(&to) {
        return eprintln!("skipped the name: localhost is no IPv6 address here");
    }
    let a = on(6, "[::]:0");
    let connection = a.connect(name.parse::<Address>().unwrap()).await.unwrap();
    assert_eq!(connection.remote_addr(), to);
}

/// Peers may name addresses to dial: that must neither have dials without end under way, nor keep this node from dialling others.
#[tokio::test]
async fn dials_under_way_are_bounded_and_those_in_demand_come_first() {
    let authority = ClusterAuthority::generate().unwrap();
    let patient = EndpointOptions { connect_timeout: Duration::from_secs(300), ..EndpointOptions::default() };
    let a = endpoint_with(&authority, 1, patient);
    let (b, c) = (endpoint(&authority, 2), endpoint(&authority, 3));
    // Nobody answers at any of its addresses.
    let silent = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let address = move |n: u16| std::net::SocketAddr::from(([127, 1, (n >> 8) as u8, n as u8], port));
    a.connect(b.local_addr()).await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..1025 {
        let a = a.clone();
        waiting.spawn(async move { a.connect(address(n)).await.unwrap_err() });
    }
    let refused = tokio::time::timeout(SOON, waiting.join_next()).await;
    let error = refused.expect("one is too many").unwrap().unwrap();
    assert!(matches!(error, ConnectError::TooManyDials { limit: 1024, .. }), "{error}");
    let error = a.connect(c.local_addr()).await.expect_err("none is given up that somebody waits for");
    assert!(matches!(error, ConnectError::TooManyDials { .. }), "{error}");
    assert!(!a.connect(b.local_addr()).await.unwrap().is_closed(), "that takes no dial");
    waiting.shutdown().await;
    let connecting = tokio::time::timeout(SOON, a.connect(c.local_addr())).await;
    connecting.expect("an answer").expect("a dial that nobody waits for gives way");
}
