//! A revocation that is said to be in force and kept is in force and kept, whatever disks do and whoever came first.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_transport::{
    ClusterAuthority, Endpoint, EndpointOptions, KeepRevocations, Revocation, RevokeError, Revoked,
};

use crate::revoking::until;
use crate::{endpoint, endpoint_with};

/// A disk that can be full, and slow.
#[derive(Debug, Default)]
struct Disk {
    kept: Mutex<Vec<u8>>,
    is_full: Mutex<bool>,
    tries: Mutex<u32>,
    slow: Mutex<()>,
}

impl KeepRevocations for Disk {
    fn keep(&self, revocations: &[u8]) -> io::Result<()> {
        *self.tries.lock().unwrap() += 1;
        let _slow = self.slow.lock().unwrap();
        if *self.is_full.lock().unwrap() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *self.kept.lock().unwrap() = revocations.to_vec();
        Ok(())
    }
}

impl Disk {
    fn set_full(&self, full: bool) {
        *self.is_full.lock().unwrap() = full;
    }

    fn kept(&self) -> Vec<u8> {
        self.kept.lock().unwrap().clone()
    }

    fn tries(&self) -> u32 {
        *self.tries.lock().unwrap()
    }
}

fn on(disk: &Arc<Disk>, authority: &ClusterAuthority, node: u64) -> Endpoint {
    let options = EndpointOptions {
        revocations: disk.kept(),
        keep_revocations: Some(Arc::<Disk>::clone(disk)),
        ..EndpointOptions::default()
    };
    endpoint_with(authority, node, options)
}

fn is_not_kept(outcome: &Result<(), RevokeError>) -> bool {
    matches!(outcome, Err(RevokeError::NotKept(_)))
}

/// The operator's second attempt finds nothing new, but must not be told that all is well before it is.
#[tokio::test]
async fn what_could_not_be_kept_is_kept_when_it_is_revoked_again() {
    let authority = ClusterAuthority::generate().unwrap();
    let disk = Arc::new(Disk::default());
    let node = on(&disk, &authority, 1);
    let word = authority.revoke(Revoked::Node(7), 1).unwrap();
    disk.set_full(true);
    for _ in 0..2 {
        let outcome = node.revoke(&word).await;
        assert!(is_not_kept(&outcome), "{outcome:?}");
        // It is in force all the same.
        assert_eq!(node.revocations(), std::slice::from_ref(&word));
    }
    disk.set_full(false);
    node.revoke(&word).await.unwrap();
    assert_eq!(disk.kept(), word.to_bytes());
    // And once only.
    let tries = disk.tries();
    node.revoke(&word).await.unwrap();
    assert_eq!(disk.tries(), tries);
    // Nor is what was kept before kept again.
    on(&disk, &authority, 2).revoke(&word).await.unwrap();
    assert_eq!(disk.tries(), tries);
}

/// A peer was first to tell, and its word could not be kept.
#[tokio::test]
async fn what_a_peer_told_in_vain_is_kept_when_it_is_revoked_here() {
    let authority = ClusterAuthority::generate().unwrap();
    let disk = Arc::new(Disk::default());
    let (teller, node) = (endpoint(&authority, 1), on(&disk, &authority, 2));
    teller.connect(node.local_addr()).await.unwrap();
    disk.set_full(true);
    let word = authority.revoke(Revoked::Node(7), 1).unwrap();
    teller.revoke(&word).await.unwrap();
    until(|| disk.tries() > 0).await;
    let outcome = node.revoke(&word).await;
    assert!(is_not_kept(&outcome), "{outcome:?}");
    disk.set_full(false);
    node.revoke(&word).await.unwrap();
    assert_eq!(disk.kept(), word.to_bytes());
}

/// A peer's word is in force and still on its way to the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_second_waits_for_the_disk_too() {
    let authority = ClusterAuthority::generate().unwrap();
    let disk = Arc::new(Disk::default());
    let node = on(&disk, &authority, 1);
    let word = authority.revoke(Revoked::Node(7), 1).unwrap();
    let revoke = || {
        let (node, word) = (node.clone(), word.clone());
        tokio::spawn(async move { node.revoke(&word).await })
    };
    // Held on a thread of its own: a lock must not be held across an await.
    let (hold, held) = (Arc::clone(&disk), Arc::new(Mutex::new(false)));
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let is_held = Arc::clone(&held);
    let holding = std::thread::spawn(move || {
        let _slow = hold.slow.lock().unwrap();
        *is_held.lock().unwrap() = true;
        wait.recv().unwrap();
    });
    until(|| *held.lock().unwrap()).await;
    let first = revoke();
    until(|| disk.tries() == 1).await;
    let mut second = revoke();
    let early = tokio::time::timeout(Duration::from_millis(300), &mut second).await;
    assert!(early.is_err(), "said to be kept while it was not: {early:?}");
    release.send(()).unwrap();
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert_eq!((disk.kept(), disk.tries()), (word.to_bytes().to_vec(), 1));
    holding.join().unwrap();
}

/// Many at once for the last place: one is in force, and the others are told that they are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_a_full_list_nobody_is_told_what_is_not_so() {
    const FULL: u64 = 4096;
    let authority = ClusterAuthority::generate().unwrap();
    let word = |id, at| authority.revoke(Revoked::Node(id), at).unwrap();
    let known: Vec<u8> = (1..FULL).flat_map(|id| word(id, 5).to_bytes()).collect();
    let options = EndpointOptions { revocations: known, ..EndpointOptions::default() };
    let node = endpoint_with(&authority, 1, options);
    let words: Vec<Revocation> = (0..16).map(|i| word(FULL + 10 + i, 5)).collect();
    let (go, ready) = tokio::sync::watch::channel(false);
    let revoking: Vec<_> = words
        .iter()
        .cloned()
        .map(|word| {
            let (node, mut ready) = (node.clone(), ready.clone());
            tokio::spawn(async move {
                ready.wait_for(|go| *go).await.unwrap();
                (node.revoke(&word).await, word)
            })
        })
        .collect();
    go.send(true).unwrap();
    let mut said = 0;
    for task in revoking {
        let (outcome, word) = task.await.unwrap();
        assert_eq!(outcome.is_ok(), node.revocations().contains(&word), "{outcome:?}");
        assert!(outcome.is_ok() || outcome == Err(RevokeError::Full), "{outcome:?}");
        said += u32::from(outcome.is_ok());
    }
    assert_eq!(said, 1);
    // What is covered needs no room, whenever it is said again.
    for at in [4, 5, 6] {
        node.revoke(&word(3, at)).await.unwrap();
    }
    assert_eq!(node.revoke(&word(1 << 40, 7)).await, Err(RevokeError::Full));
}

/// What has ended with an authority does not come back from the disk as something to warn of.
#[tokio::test]
async fn what_has_ended_with_an_authority_is_kept_no_longer() {
    let old = ClusterAuthority::generate().unwrap();
    let new = old.successor().unwrap();
    let disk = Arc::new(Disk::default());
    let node = on(&disk, &old.announcing(&new).unwrap(), 1);
    let lasting = new.revoke(Revoked::Node(7), 1).unwrap();
    let hash = new.issue(9).unwrap().hash();
    node.revoke(&lasting).await.unwrap();
    let ended = new.successor().unwrap();
    node.set_identity(&new.issue(1).unwrap().trusting(&ended).unwrap()).unwrap();
    node.revoke(&ended.revoke(Revoked::Certificate(hash), 1).unwrap()).await.unwrap();
    assert_eq!(disk.kept().len(), 2 * Revocation::LEN);
    node.set_identity(&new.without_predecessors().issue(1).unwrap()).unwrap();
    until(|| disk.kept() == lasting.to_bytes()).await;
}
