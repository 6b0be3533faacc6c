//! Certificates taken back: everywhere, at once, for good, and by nobody but the authority.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octopii_transport::{
    ClusterAuthority, ConnectError, Endpoint, EndpointOptions, KeepRevocations, PeerRole, Revocation,
    RevokeError, Revoked, StreamKind,
};

use crate::{endpoint, endpoint_with};

const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Keeper(Mutex<Vec<u8>>);

impl KeepRevocations for Keeper {
    fn keep(&self, revocations: &[u8]) -> io::Result<()> {
        *self.0.lock().unwrap() = revocations.to_vec();
        Ok(())
    }
}

fn kept_by(authority: &ClusterAuthority, node: u64, keeper: &Arc<Keeper>) -> Endpoint {
    let options = EndpointOptions {
        revocations: keeper.0.lock().unwrap().clone(),
        keep_revocations: Some(Arc::<Keeper>::clone(keeper)),
        ..EndpointOptions::default()
    };
    endpoint_with(authority, node, options)
}

pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.expect("it happens within 20 s");
}

/// Five nodes in a row, each knowing its neighbours only; the victim is connected to all of them.
#[tokio::test]
async fn a_revoked_node_is_cut_off_everywhere_within_a_second() {
    let authority = ClusterAuthority::generate().unwrap();
    let keepers: Vec<_> = (0..5).map(|_| Arc::new(Keeper::default())).collect();
    let nodes: Vec<_> = (1..).zip(&keepers).map(|(id, keeper)| kept_by(&authority, id, keeper)).collect();
    for pair in nodes.windows(2) {
        pair[0].connect(pair[1].local_addr()).await.unwrap();
    }
    let victim = endpoint(&authority, 66);
    let mut cut = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        // Whichever side dialled.
        let connection = if i % 2 == 0 {
            victim.connect(node.local_addr()).await.unwrap()
        } else {
            node.connect(victim.local_addr()).await.unwrap();
            victim.connect(node.local_addr()).await.unwrap()
        };
        cut.push(connection);
    }
    let begun = Instant::now();
    nodes[0].revoke(&authority.revoke(Revoked::Node(66), 1).unwrap()).await.unwrap();
    for connection in &cut {
        tokio::time::timeout(SOON, connection.closed()).await.expect("cut off");
    }
    println!("cut off by five nodes in a row after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10));
    for (node, keeper) in nodes.iter().zip(&keepers) {
        until(|| !keeper.0.lock().unwrap().is_empty()).await;
        // Refused in both directions, also by an endpoint that was started again.
        assert_refused(&victim, node).await;
        let again = kept_by(&authority, 40, keeper);
        assert_refused(&victim, &again).await;
        assert_eq!(again.revocations().len(), 1);
    }
    // Those who were not meant work on.
    nodes[0].connect(nodes[4].local_addr()).await.unwrap();
    // A node that comes later is told by whomever it meets.
    let late = endpoint(&authority, 50);
    let connection = victim.connect(late.local_addr()).await.unwrap();
    late.connect(nodes[3].local_addr()).await.unwrap();
    tokio::time::timeout(SOON, connection.closed()).await.expect("cut off by the newcomer");
}

async fn assert_refused(victim: &Endpoint, node: &Endpoint) {
    let error = victim.connect(node.local_addr()).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::NotTrusted { reason, .. } if reason.contains("revoked")),
        "{error}"
    );
    let error = node.connect(victim.local_addr()).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::NotTrusted { reason, .. } if reason.contains("revoked")),
        "{error}"
    );
}

#[tokio::test]
async fn one_certificate_is_taken_back_and_the_node_goes_on_with_another() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let old = b.connect(a.local_addr()).await.unwrap();
    let stolen = b.identity();
    b.set_identity(&authority.issue(2).unwrap()).unwrap();
    a.revoke(&authority.revoke(Revoked::Certificate(stolen.hash()), 1).unwrap()).await.unwrap();
    tokio::time::timeout(SOON, old.closed()).await.expect("the old connection is cut off");
    let again = b.connect(a.local_addr()).await.unwrap();
    let _acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    again.open(StreamKind::Rpc).await.unwrap();
    let thief = Endpoint::bind(a.executor(), &stolen, EndpointOptions::default()).unwrap();
    assert_refused(&thief, &a).await;
}

/// The kind of stream on which revocations travel.
pub(crate) const TRUST: u8 = 0xff;

#[tokio::test]
async fn nobody_but_the_authority_can_revoke() {
    let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
    let (a, b) = (endpoint(&ours, 1), endpoint(&ours, 2));
    let connection = b.connect(a.local_addr()).await.unwrap();
    let forged = theirs.revoke(Revoked::Node(2), 1).unwrap();
    assert_eq!(a.revoke(&forged).await, Err(RevokeError::NotSigned));
    let mut bytes = ours.revoke(Revoked::Node(3), 1).unwrap().to_bytes();
    bytes[1] = 2;
    assert_eq!(a.revoke(&Revocation::from_bytes(&bytes).unwrap()).await, Err(RevokeError::NotSigned));
    assert!(!connection.is_closed() && a.revocations().is_empty());
    let options = EndpointOptions { revocations: vec![1; 104], ..EndpointOptions::default() };
    assert!(
        Endpoint::bind(a.executor(), &ours.issue(1).unwrap(), options).is_err(),
        "a damaged list was taken for none"
    );
}

/// Forged lists, sent by a member and true ones sent by a client, over the wire.
#[tokio::test]
async fn what_peers_say_counts_for_nothing_without_a_signature() {
    let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
    let a = endpoint(&ours, 1);
    let honest = endpoint(&ours, 2);
    let kept = honest.connect(a.local_addr()).await.unwrap();
    let forged = theirs.revoke(Revoked::Node(2), 1).unwrap().to_bytes();
    let genuine = ours.revoke(Revoked::Node(2), 1).unwrap().to_bytes();
    for (role, list) in [
        (PeerRole::Member, forged.to_vec()),
        (PeerRole::Member, forged.repeat(4096)),
        (PeerRole::Member, vec![7; 1000]),
        (PeerRole::Member, forged.repeat(5000)),
        (PeerRole::Client, genuine.to_vec()),
    ] {
        let client = crate::limits::bare_client(&ours.issue_as(9, role).unwrap());
        let connection = crate::limits::dial(&client, a.local_addr(), &ours).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let frame = [&[TRUST][..], &u32::try_from(list.len()).unwrap().to_le_bytes(), &list].concat();
        // Refused while it is written, or after.
        let _ = send.write_all(&frame).await;
        let _ = send.finish();
        let _ = tokio::time::timeout(SOON, recv.read_to_end(10)).await.expect("answered");
        assert!(a.revocations().is_empty(), "{role}: {} bytes", list.len());
    }
    assert!(!kept.is_closed());
    // The same words from the authority.
    let client = crate::limits::bare_client(&ours.issue(9).unwrap());
    let connection = crate::limits::dial(&client, a.local_addr(), &ours).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[&[TRUST][..], &105u32.to_le_bytes(), &genuine].concat()).await.unwrap();
    tokio::time::timeout(SOON, kept.closed()).await.expect("cut off");
}

/// Keys change on both sides, over and over, while calls go on and new peers come: none of them fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_rotate_under_load_without_a_failed_call() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut acceptor = a.acceptor(StreamKind::Rpc).unwrap();
    let answering = tokio::spawn(async move {
        while let Some(mut incoming) = acceptor.accept().await {
            tokio::spawn(async move {
                let frame = incoming.recv.read_frame(100).await.unwrap().unwrap();
                incoming.send.write_frame(&frame).await.unwrap();
                incoming.send.finish().unwrap();
            });
        }
    });
    async fn call(
        from: &Endpoint,
        to: std::net::SocketAddr,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (mut send, mut recv) = from.connect(to).await?.open(StreamKind::Rpc).await?;
        send.write_frame(b"ping").await?;
        send.finish()?;
        assert_eq!(recv.read_frame(100).await?.as_deref(), Some(&b"ping"[..]));
        Ok(())
    }
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (b, to, stop) = (b.clone(), a.local_addr(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    call(&b, to).await.unwrap();
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let mut hashes = std::collections::BTreeSet::new();
    for round in 0..20 {
        let (for_a, for_b) = (authority.issue(1).unwrap(), authority.issue(2).unwrap());
        hashes.insert(for_a.hash());
        a.set_identity(&for_a).unwrap();
        b.set_identity(&for_b).unwrap();
        let newcomer = endpoint(&authority, 100 + round);
        call(&newcomer, a.local_addr()).await.unwrap();
        // The new certificate is the one that is shown.
        let seen = newcomer.connect(a.local_addr()).await.unwrap();
        assert_eq!(*seen.certificate(), for_a.hash());
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut calls = 0;
    for task in load {
        calls += task.await.unwrap();
    }
    println!("{calls} calls through {} rotations of both sides, none failed", hashes.len());
    assert!(calls > 20);
    answering.abort();
}

/// A change of authorities, node by node, each step with its neighbours one step behind.
#[tokio::test]
async fn authorities_change_node_by_node_while_everybody_talks() {
    let old = ClusterAuthority::generate().unwrap();
    let new = old.successor().unwrap();
    let (a, b) = (endpoint(&old, 1), endpoint(&old, 2));
    let talk = async |a: &Endpoint, b: &Endpoint, step: &str| {
        for (from, to) in [(a, b), (b, a)] {
            if let Ok(known) = from.connect(to.local_addr()).await {
                known.close("anew");
                known.closed().await;
            }
            let fresh = from.connect(to.local_addr()).await;
            fresh.unwrap_or_else(|e| panic!("{step}: {e}"));
        }
    };
    talk(&a, &b, "before").await;
    // First everybody trusts the new one, then everybody carries its certificates, then the old one goes.
    for (step, authority, trusting) in [("trust", &old, true), ("carry", &new, false)] {
        for (node, endpoint) in [(1, &a), (2, &b)] {
            let identity = authority.issue(node).unwrap();
            let identity = if trusting { identity.trusting(&new).unwrap() } else { identity };
            endpoint.set_identity(&identity).unwrap();
            talk(&a, &b, step).await;
        }
    }
    let new = new.without_predecessors();
    for (node, endpoint) in [(1, &a), (2, &b)] {
        endpoint.set_identity(&new.issue(node).unwrap()).unwrap();
        talk(&a, &b, "leave").await;
    }
    let left_behind = endpoint(&old, 3);
    let error = left_behind.connect(a.local_addr()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotTrusted { .. }), "{error}");
}
