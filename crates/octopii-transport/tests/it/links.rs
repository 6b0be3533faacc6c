//! Connections: made once, made again, told from each other by certificate.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use octopii_transport::{
    BindError, ClusterAuthority, ConnectError, Endpoint, EndpointOptions, Executor, StreamKind,
};

use crate::{endpoint, endpoint_with};

#[tokio::test]
async fn many_callers_share_one_dial_and_the_peer_calls_back_on_it() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut at_a = a.acceptor(StreamKind::Rpc).unwrap();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (a, to) = (a.clone(), b.local_addr());
            tokio::spawn(async move { a.connect(to).await.unwrap() })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(a.open_connections(), 1);

    // b has no connection of its own making, yet reaches a at a's listening address.
    while b.open_connections() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let back = b.connect(a.local_addr()).await.unwrap();
    let (_send, _recv) = back.open(StreamKind::Rpc).await.unwrap();
    assert_eq!(at_a.accept().await.unwrap().connection.peer().node_id, 2);
}

#[tokio::test]
async fn a_restarted_peer_is_found_again_at_once() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let b = endpoint(&authority, 2);
    let addr = b.local_addr();
    let first = a.connect(addr).await.unwrap();
    b.close(Duration::from_secs(1)).await;
    drop(b);
    first.closed().await;
    // The socket is released when the endpoint's driver ends, a moment after the close.
    let again = loop {
        let options = EndpointOptions { bind: addr, ..EndpointOptions::default() };
        let identity = authority.issue(2).unwrap();
        match Endpoint::bind(a.executor(), &identity, options) {
            Ok(endpoint) => break endpoint,
            Err(BindError::AddressInUse(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(e) => panic!("{e}"),
        }
    };
    let second = a.connect(addr).await.unwrap();
    assert!(!second.is_closed() && again.local_addr() == addr);
}

/// Ends a peer's tasks before anything can be sent: returns when its threads have stopped.
fn kill(threads: tokio::runtime::Runtime) {
    std::thread::spawn(move || drop(threads)).join().unwrap();
}

/// A peer that is killed tells nobody. When it comes back and dials, calls to it must go by the new connection at once and
/// not by the old one, which stays silent until its idle timeout.
#[tokio::test]
async fn a_peer_that_died_without_a_word_is_reached_on_the_connection_it_makes_next() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let old_threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let b = Endpoint::bind(
        &Executor::new(old_threads.handle().clone()),
        &authority.issue(2).unwrap(),
        EndpointOptions::default(),
    )
    .unwrap();
    let addr = b.local_addr();
    b.connect(a.local_addr()).await.unwrap();
    let old = a.connect(addr).await.unwrap();
    kill(old_threads);
    drop(b);
    let again = loop {
        let options = EndpointOptions { bind: addr, ..EndpointOptions::default() };
        match Endpoint::bind(a.executor(), &authority.issue(2).unwrap(), options) {
            Ok(endpoint) => break endpoint,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let mut acceptor = again.acceptor(StreamKind::Rpc).unwrap();
    again.connect(a.local_addr()).await.unwrap();
    assert!(!old.is_closed(), "the old connection ended by itself, so this test shows nothing");
    let (_send, _recv) = a.connect(addr).await.unwrap().open(StreamKind::Rpc).await.unwrap();
    let reached = tokio::time::timeout(Duration::from_secs(3), acceptor.accept()).await;
    assert!(reached.expect("the new connection is used").is_some());
}

/// A killed peer that is back but has no reason to dial (a client's server) answers what still comes on an old connection
/// with a reset: whoever waits for an answer there learns at once that none will come, not after the idle timeout.
#[tokio::test]
async fn a_peer_that_died_without_a_word_disowns_the_old_connection_when_it_is_back() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let identity = authority.issue(2).unwrap();
    // Whichever side dialled.
    for peer_dials in [false, true] {
        let old_threads =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let executor = Executor::new(old_threads.handle().clone());
        let b = Endpoint::bind(&executor, &identity, EndpointOptions::default()).unwrap();
        let addr = b.local_addr();
        let _acceptor = b.acceptor(StreamKind::Rpc).unwrap();
        if peer_dials {
            b.connect(a.local_addr()).await.unwrap();
        }
        let old = a.connect(addr).await.unwrap();
        let (mut send, mut recv) = old.open(StreamKind::Rpc).await.unwrap();
        kill(old_threads);
        drop(b);
        while UdpSocket::bind(addr).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!old.is_closed(), "the old connection ended by itself, so this test shows nothing");
        let options = EndpointOptions { bind: addr, ..EndpointOptions::default() };
        let _again = Endpoint::bind(a.executor(), &identity, options).unwrap();
        // Fails if a retransmission has met the restarted peer already.
        let _ = send.write_frame(b"are you there?").await;
        let answer = tokio::time::timeout(Duration::from_secs(3), recv.read_frame(100)).await;
        answer.expect("the old connection still looks alive").expect_err("nobody can answer on it");
        assert!(!a.connect(addr).await.unwrap().is_closed());
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_within_the_deadline() {
    let authority = ClusterAuthority::generate().unwrap();
    let options =
        EndpointOptions { connect_timeout: Duration::from_millis(300), ..EndpointOptions::default() };
    let a = endpoint_with(&authority, 1, options);
    // A bound socket that never answers.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let error = a.connect(addr).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable(at) if at == addr), "{error}");
    let error = a.connect(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap_err();
    assert!(matches!(error, ConnectError::InvalidAddress { .. }), "{error}");
}

#[tokio::test]
async fn the_certificate_tells_the_node_not_the_address() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let error = a.connect_to(3, b.local_addr()).await.unwrap_err();
    assert!(matches!(error, ConnectError::WrongNode { expected: 3, found: 2, .. }), "{error}");
    a.connect_to(2, b.local_addr()).await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named_in_the_error() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let options = EndpointOptions { bind: a.local_addr(), ..EndpointOptions::default() };
    let identity = authority.issue(2).unwrap();
    let error = Endpoint::bind(a.executor(), &identity, options).unwrap_err();
    assert!(matches!(error, BindError::AddressInUse(addr) if addr == a.local_addr()), "{error}");
}

#[tokio::test]
async fn a_closed_endpoint_says_so() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    a.close(Duration::from_secs(1)).await;
    a.close(Duration::from_secs(1)).await;
    assert!(matches!(a.connect(b.local_addr()).await, Err(ConnectError::EndpointClosed)));
}

#[tokio::test]
async fn acceptors_end_with_the_endpoint() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    let waiting = tokio::spawn(async move { acceptor.accept().await.is_none() });
    b.connect(a.local_addr()).await.unwrap();
    a.close(Duration::from_secs(1)).await;
    let ended = tokio::time::timeout(Duration::from_secs(3), waiting).await;
    assert!(ended.expect("waits for streams on a closed endpoint").unwrap());
}

/// Acceptors and the endpoint's own tasks are no handles: none of them keeps the port.
#[tokio::test]
async fn the_last_handle_frees_the_port() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let addr = a.local_addr();
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    a.connect(b.local_addr()).await.unwrap();
    let _stream = b.connect(addr).await.unwrap().open(StreamKind::Rpc).await.unwrap();
    drop(acceptor.accept().await.unwrap());
    drop(a);
    for _ in 0..200 {
        if UdpSocket::bind(addr).is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the port is still taken");
}

/// A socket for both families reports an IPv4 peer by its mapped IPv6 address.
#[tokio::test]
async fn an_ipv4_peer_of_a_dual_stack_endpoint_is_one_peer() {
    let authority = ClusterAuthority::generate().unwrap();
    let options = EndpointOptions { bind: SocketAddr::from(([0u16; 8], 0)), ..EndpointOptions::default() };
    let (a, b) = (endpoint_with(&authority, 1, options), endpoint(&authority, 2));
    b.connect(SocketAddr::from(([127, 0, 0, 1], a.local_addr().port()))).await.unwrap();
    while a.open_connections() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let back = a.connect(b.local_addr()).await.unwrap();
    assert_eq!(a.open_connections(), 1, "the peer's own connection was not recognised");
    assert_eq!(back.remote_addr(), b.local_addr());
}

/// A peer whose address changes, as behind a router that was restarted, keeps its connection and what is open on it.
#[tokio::test]
async fn a_connection_follows_a_peer_that_moves() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    let client = crate::limits::bare_client(&authority.issue(2).unwrap());
    let connection = crate::limits::dial(&client, a.local_addr(), &authority).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&[StreamKind::Rpc as u8, 1, 0, 0, 0, 7]).await.unwrap();
    let mut incoming = acceptor.accept().await.unwrap();
    assert_eq!(incoming.recv.read_frame(10).await.unwrap().unwrap(), &[7][..]);
    let before = incoming.connection.remote_addr();
    client.rebind(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    send.write_all(&[1, 0, 0, 0, 8]).await.unwrap();
    assert_eq!(incoming.recv.read_frame(10).await.unwrap().unwrap(), &[8][..]);
    assert_ne!(incoming.connection.remote_addr(), before);
    incoming.send.write_frame(&[9]).await.unwrap();
    let mut answer = [0; 5];
    recv.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [1, 0, 0, 0, 9]);
    // What is told of it and what is revoked of it goes by the certificate, wherever it is.
    assert_eq!(a.connections()[0].remote, incoming.connection.remote_addr());
}

/// A dial that began before the peer was there waits for its next retransmission; the peer's own dial comes first.
#[tokio::test]
async fn a_connection_that_the_peer_makes_ends_the_wait_for_a_dial() {
    let authority = ClusterAuthority::generate().unwrap();
    let options = EndpointOptions { connect_timeout: Duration::from_secs(2), ..EndpointOptions::default() };
    let a = endpoint_with(&authority, 1, options);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap();
    let waiting = {
        let a = a.clone();
        tokio::spawn(async move { a.connect(addr).await })
    };
    // First packets go at 0, 0.3, 0.9 and 2.1 s: nothing of the dial reaches whoever listens from now on.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    drop(silent);
    let options = EndpointOptions { bind: addr, ..EndpointOptions::default() };
    let b = endpoint_with(&authority, 2, options);
    b.connect(a.local_addr()).await.unwrap();
    assert_eq!(waiting.await.unwrap().expect("there is a connection").peer().node_id, 2);
    // And the dial's failure does not take it away.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let at_once = tokio::time::timeout(Duration::ZERO, a.connect(addr)).await;
    at_once.expect("the connection is still known").unwrap();
}

#[tokio::test]
async fn a_connection_that_the_peer_makes_ends_the_wait_for_the_next_dial() {
    let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
    let (a, stranger) = (endpoint(&ours, 1), endpoint(&theirs, 2));
    let addr = stranger.local_addr();
    // Failures that come at once, until the next dial is at least 0.8 s away.
    for _ in 0..6 {
        a.connect(addr).await.unwrap_err();
    }
    let waiting = {
        let a = a.clone();
        tokio::spawn(async move {
            let begun = std::time::Instant::now();
            a.connect(addr).await.map(|_| begun.elapsed())
        })
    };
    tokio::time::sleep(Duration::from_millis(10)).await;
    stranger.close(Duration::ZERO).await;
    drop(stranger);
    let b = loop {
        let options = EndpointOptions { bind: addr, ..EndpointOptions::default() };
        match Endpoint::bind(a.executor(), &ours.issue(2).unwrap(), options) {
            Ok(endpoint) => break endpoint,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    b.connect(a.local_addr()).await.unwrap();
    let waited = waiting.await.unwrap().unwrap();
    assert!(waited < Duration::from_millis(700), "waited for {waited:?}");
    assert_eq!(a.open_connections(), 1, "dialled although there was a connection");
}

/// On a new connection a probe for a larger datagram once filled the congestion window, and a close was held back with
/// everything else: the peer waited for its idle timeout.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_peer_hears_of_the_end_however_young_the_connection() {
    let authority = ClusterAuthority::generate().unwrap();
    for pause in 0..100 {
        let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
        let mut acceptor = b.acceptor(StreamKind::Message).unwrap();
        let connection = a.connect(b.local_addr()).await.unwrap();
        let (mut send, _recv) = connection.open(StreamKind::Message).await.unwrap();
        send.write_frame(b"question").await.unwrap();
        let mut incoming = acceptor.accept().await.unwrap();
        incoming.recv.read_frame(100).await.unwrap();
        // Somewhere among the probes; the answer is still to be sent when the endpoint goes.
        tokio::time::sleep(Duration::from_micros(20 * pause)).await;
        incoming.send.write_frame(b"answer").await.unwrap();
        drop((incoming, acceptor, b));
        tokio::time::timeout(Duration::from_secs(3), connection.closed()).await.expect("told of the end");
    }
}
