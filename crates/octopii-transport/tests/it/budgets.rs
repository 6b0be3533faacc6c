//! What one peer, or a flood of strangers, can take: each bound reached by somebody who tries to go beyond it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use octopii_transport::{ClusterAuthority, ConnectError, Endpoint, EndpointOptions, Limits, StreamKind};

use crate::limits::{bare_client, dial};
use crate::{endpoint, endpoint_with};

const SOON: Duration = Duration::from_secs(20);

fn limited(authority: &ClusterAuthority, limits: Limits) -> Endpoint {
    endpoint_with(authority, 1, EndpointOptions { limits, ..EndpointOptions::default() })
}

#[tokio::test]
async fn one_node_id_has_so_many_connections_and_others_still_get_in() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = limited(&authority, Limits { connections_per_peer: 2, ..Limits::default() });
    let greedy: Vec<_> = (0..3).map(|_| endpoint(&authority, 9)).collect();
    let first = greedy[0].connect(a.local_addr()).await.unwrap();
    greedy[1].connect(a.local_addr()).await.unwrap();
    let error = greedy[2].connect(a.local_addr()).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Refused { reason, .. } if reason.contains("of this node")),
        "{error}"
    );
    endpoint(&authority, 10).connect(a.local_addr()).await.unwrap();
    first.close("makes room");
    tokio::time::timeout(SOON, async { while greedy[2].connect(a.local_addr()).await.is_err() {} })
        .await
        .expect("a freed place is given away");
}

#[tokio::test]
async fn streams_beyond_the_budget_wait_and_unread_bytes_stay_within_the_windows() {
    let authority = ClusterAuthority::generate().unwrap();
    let limits = Limits {
        streams_per_connection: 4,
        stream_window: 64 << 10,
        connection_window: 128 << 10,
        ..Limits::default()
    };
    let a = limited(&authority, limits);
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    let client = bare_client(&authority.issue(2).unwrap());
    let connection = dial(&client, a.local_addr(), &authority).await;
    let (mut unread, mut open) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&[StreamKind::Rpc as u8]).await.unwrap();
        // Taken, and never read.
        unread.push(acceptor.accept().await.unwrap());
        open.push((send, recv));
    }
    let fifth = tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await;
    assert!(fifth.is_err(), "a fifth stream could be opened");
    let writers: Vec<_> = open
        .into_iter()
        .map(|(mut send, recv)| {
            tokio::spawn(async move {
                let _ = send.write_all(&vec![7; 4 << 20]).await;
                drop(recv);
            })
        })
        .collect();
    let begun = Instant::now();
    while a.connections()[0].bytes_received < 128 << 10 && begun.elapsed() < SOON {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let received = a.connections()[0].bytes_received;
    assert!(received > 128 << 10, "nothing was sent: {received}");
    assert!(received < 512 << 10, "16 MiB were offered, 128 KiB may be unread, and {received} bytes came");
    // The rest comes as it is read.
    drop(unread);
    for writer in writers {
        tokio::time::timeout(SOON, writer).await.expect("ends").unwrap();
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Genuine first packets of connections that their senders will never go on with.
async fn first_packets(authority: &ClusterAuthority, count: usize) -> Vec<Vec<u8>> {
    let recorder = UdpSocket::bind("127.0.0.1:0").unwrap();
    recorder.set_nonblocking(true).unwrap();
    let client = bare_client(&authority.issue(66).unwrap());
    let name = format!("{}.octopii.internal", authority.cluster());
    let (mut packets, mut attempts) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while packets.len() < count {
        assert!(begun.elapsed() < SOON, "only {} first packets", packets.len());
        attempts.push(client.connect(recorder.local_addr().unwrap(), &name).unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut buf = [0; 2048];
        while let Ok(len) = recorder.recv(&mut buf) {
            packets.push(buf[..len].to_vec());
        }
    }
    packets
}

/// Calls for so long; the 50th and 99th percentile.
async fn call(from: &Endpoint, to: SocketAddr, time: Duration) -> (Duration, Duration) {
    let begun = Instant::now();
    let mut took = Vec::new();
    while begun.elapsed() < time || took.len() < 200 {
        let at = Instant::now();
        let (mut send, mut recv) = from.connect(to).await.unwrap().open(StreamKind::Rpc).await.unwrap();
        send.write_frame(b"ping").await.unwrap();
        recv.read_frame(10).await.unwrap().unwrap();
        took.push(at.elapsed());
    }
    took.sort();
    (took[took.len() / 2], took[took.len() * 99 / 100])
}

/// Genuine first packets, over and over, from many addresses, none of which ever answers; and bytes that mean nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_from_forged_addresses_leaves_memory_flat_and_peers_at_work() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    let answering = tokio::spawn(async move {
        while let Some(mut incoming) = acceptor.accept().await {
            let frame = incoming.recv.read_frame(10).await.unwrap().unwrap();
            incoming.send.write_frame(&frame).await.unwrap();
            incoming.send.finish().unwrap();
        }
    });
    let packets = first_packets(&authority, 400).await;
    let to = a.local_addr();
    let idle = call(&b, to, Duration::from_millis(500)).await;
    let before = resident_kib();
    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let forged: Vec<_> = (0..64).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let packet = &packets[sent as usize % packets.len()];
                let _ = forged[sent as usize % forged.len()].send_to(packet, to);
                let _ = forged[0].send_to(&packet[600..], to);
                sent += 1;
                if sent.is_multiple_of(16) {
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
            sent
        })
    };
    let flooded = call(&b, to, Duration::from_secs(2)).await;
    // Newcomers get in beside it: their addresses can be proven.
    endpoint(&authority, 3).connect(to).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let sent = flood.join().unwrap();
    let after = resident_kib();
    println!(
        "{sent} forged handshakes: resident {before} KiB before, {after} KiB after; calls p50/p99 {idle:?} before, {flooded:?} during"
    );
    assert!(sent > 500, "the flood was none");
    // Other tests run beside this one, so the bound is generous; without one, each attempt would cost some 10 KiB.
    assert!(after < before + (96 << 10), "memory grew from {before} to {after} KiB");
    assert!(a.open_connections() < 600, "{} handshakes are held", a.open_connections());
    answering.abort();
}

/// Heavy, so only with OCTOPII_HEAVY=1: a thousand verified connections to one endpoint, and what each costs both ends together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_are_held_and_answered() {
    if std::env::var_os("OCTOPII_HEAVY").is_none() {
        return;
    }
    const COUNT: usize = 1000;
    let authority = ClusterAuthority::generate().unwrap();
    let a = limited(&authority, Limits { connections_per_peer: COUNT, ..Limits::default() });
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    let client = bare_client(&authority.issue(2).unwrap());
    // What the first ones cost is shared by all.
    let mut connections = vec![dial(&client, a.local_addr(), &authority).await];
    let before = resident_kib();
    while connections.len() < COUNT {
        connections.push(dial(&client, a.local_addr(), &authority).await);
    }
    let held = resident_kib();
    for connection in &connections {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&[StreamKind::Rpc as u8, 1, 0, 0, 0, 7]).await.unwrap();
        let mut incoming = acceptor.accept().await.unwrap();
        assert_eq!(incoming.recv.read_frame(10).await.unwrap().unwrap(), &[7][..]);
        incoming.send.write_frame(&[8]).await.unwrap();
        incoming.send.finish().unwrap();
        assert_eq!(recv.read_to_end(10).await.unwrap(), [1, 0, 0, 0, 8]);
    }
    let used = resident_kib();
    assert_eq!(a.connections().len(), COUNT);
    let each = |now: u64| (now - before) * 1024 / (COUNT as u64 - 1);
    println!(
        "{COUNT} connections: {} bytes each held, {} bytes each after a call, both ends together",
        each(held),
        each(used)
    );
    assert!(each(used) < 256 << 10, "{} bytes for each connection", each(used));
}
