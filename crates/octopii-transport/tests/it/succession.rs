//! Revocations through a change of authorities: what the new one has signed holds, and the old one's do no harm.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use octopii_transport::{
    ClusterAuthority, Endpoint, EndpointOptions, KeepRevocations, PeerRole, Revocation, RevokeError, Revoked,
};

use crate::revoking::{TRUST, until};
use crate::{endpoint, endpoint_with};

/// More than the bad signatures that a node checks of one peer.
const MANY: u64 = 40;

/// The steps of `octopii cluster succeed`: announcing, carrying, alone.
fn steps() -> [ClusterAuthority; 3] {
    let old = ClusterAuthority::generate().unwrap();
    let new = old.successor().unwrap();
    let alone = ClusterAuthority::from_pem(&new.to_pem()).unwrap().without_predecessors();
    [old.announcing(&new).unwrap(), new, alone]
}

fn nodes(by: &ClusterAuthority, ids: impl IntoIterator<Item = u64>) -> Vec<Revocation> {
    ids.into_iter().map(|id| by.revoke(Revoked::Node(id), 1).unwrap()).collect()
}

fn bytes<'a>(revocations: impl IntoIterator<Item = &'a Revocation>) -> Vec<u8> {
    revocations.into_iter().flat_map(Revocation::to_bytes).collect()
}

fn holding(authority: &ClusterAuthority, node: u64, revocations: &[Revocation]) -> Endpoint {
    let options = EndpointOptions { revocations: bytes(revocations), ..EndpointOptions::default() };
    endpoint_with(authority, node, options)
}

fn revoked(endpoint: &Endpoint) -> BTreeSet<Revoked> {
    endpoint.revocations().iter().map(Revocation::what).collect()
}

/// A node is started again after the change, with what it kept before.
#[tokio::test]
async fn a_node_starts_with_any_number_of_an_old_authoritys_revocations() {
    let [announcing, carrying, alone] = steps();
    let mut kept = nodes(&announcing, 100..100 + MANY);
    kept.extend(nodes(&carrying, [7]));
    assert_eq!(holding(&announcing, 1, &kept).revocations().len(), kept.len());
    assert_eq!(revoked(&holding(&alone, 1, &kept)), BTreeSet::from([Revoked::Node(7)]));
}

/// Whoever still trusts both authorities tells what it has to one that trusts the new one only.
#[tokio::test]
async fn a_newcomer_learns_what_the_new_authority_has_signed() {
    let [announcing, carrying, alone] = steps();
    let hash = carrying.issue(9).unwrap().hash();
    let mut told = nodes(&announcing, 100..100 + MANY);
    told.push(carrying.revoke(Revoked::Certificate(hash), 1).unwrap());
    let veteran = holding(&carrying, 1, &told);
    let newcomer = endpoint(&alone, 2);
    newcomer.connect(veteran.local_addr()).await.unwrap();
    until(|| revoked(&newcomer) == BTreeSet::from([Revoked::Certificate(hash)])).await;
}

/// A running node lets the old authority go, and its revocations with it: a full list has room again.
#[tokio::test]
async fn an_authority_that_goes_frees_a_full_list() {
    const FULL: u64 = 4096;
    let [announcing, carrying, alone] = steps();
    let mut all = nodes(&announcing, 100..100 + FULL - 1);
    all.extend(nodes(&carrying, [7]));
    let node = holding(&announcing, 1, &all);
    assert_eq!(node.revocations().len() as u64, FULL);
    let another = alone.revoke(Revoked::Node(8), 1).unwrap();
    assert_eq!(node.revoke(&another).await, Err(RevokeError::Full));
    node.set_identity(&carrying.issue(1).unwrap()).unwrap();
    assert_eq!(node.revocations().len() as u64, FULL);
    node.set_identity(&alone.issue(1).unwrap()).unwrap();
    assert_eq!(node.revocations().len(), 1);
    assert_eq!(revoked(&node), BTreeSet::from([Revoked::Node(7)]));
    node.revoke(&another).await.unwrap();
    assert_eq!(revoked(&node), BTreeSet::from([Revoked::Node(7), Revoked::Node(8)]));
}

/// What the new authority says of a node holds on after the old one has gone, whichever a node heard first, and however late the
/// old one says that it has said it: whoever changes authorities because a key was stolen must not be undone with that key.
#[tokio::test]
async fn no_word_of_an_old_authority_hides_the_new_ones() {
    let [announcing, carrying, alone] = steps();
    for old_at in [1, u64::MAX] {
        let old = announcing.revoke(Revoked::Node(7), old_at).unwrap();
        let again = carrying.revoke(Revoked::Node(7), 2).unwrap();
        let (a, b) = (
            holding(&announcing, 1, std::slice::from_ref(&old)),
            holding(&carrying, 2, std::slice::from_ref(&again)),
        );
        // Tells a node that has the other word already, and one that hears both at once.
        a.connect(b.local_addr()).await.unwrap();
        let c = holding(&announcing, 3, &[old, again.clone()]);
        a.revoke(&announcing.revoke(Revoked::Node(8), 1).unwrap()).await.unwrap();
        until(|| b.revocations().len() == 2).await;
        for node in [a, b, c] {
            let id = node.node_id();
            node.set_identity(&carrying.issue(id).unwrap()).unwrap();
            until(|| node.revocations().contains(&again)).await;
            node.set_identity(&alone.issue(id).unwrap()).unwrap();
            assert_eq!(node.revocations(), std::slice::from_ref(&again), "node {id}, {old_at}");
        }
    }
}

/// A member may tell what it likes: what is signed is taken, until too many bad signatures have been checked.
#[tokio::test]
async fn bad_signatures_beside_good_ones_cost_little() {
    let (ours, theirs) = (ClusterAuthority::generate().unwrap(), ClusterAuthority::generate().unwrap());
    let a = endpoint(&ours, 1);
    let (good, forged) = (|id: u64| nodes(&ours, [id]), |n: u64| nodes(&theirs, 1000..1000 + n));
    for (list, taken) in [
        (bytes(&[forged(10), good(20)].concat()), vec![20]),
        (bytes(&[good(21), forged(4000)].concat()), vec![20, 21]),
        (bytes(&[forged(4000), good(22)].concat()), vec![20, 21]),
    ] {
        let client = crate::limits::bare_client(&ours.issue_as(9, PeerRole::Member).unwrap());
        let connection = crate::limits::dial(&client, a.local_addr(), &ours).await;
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let frame = [&[TRUST][..], &u32::try_from(list.len()).unwrap().to_le_bytes(), &list].concat();
        send.write_all(&frame).await.unwrap();
        let answered = tokio::time::timeout(Duration::from_secs(20), recv.read_to_end(10)).await;
        answered.expect("answered").unwrap();
        until(|| revoked(&a) == taken.iter().map(|id| Revoked::Node(*id)).collect()).await;
    }
}

/// The new authority says again what must outlive the old one, and nothing else.
#[tokio::test]
async fn what_is_said_of_nodes_is_signed_again() {
    let [announcing, carrying, alone] = steps();
    let stranger = ClusterAuthority::generate().unwrap();
    let hash = announcing.issue(9).unwrap().hash();
    let mut kept = nodes(&announcing, 100..100 + MANY);
    kept.push(announcing.revoke(Revoked::Certificate(hash), 5).unwrap());
    let keeper = Arc::new(Keeping::default());
    let options = EndpointOptions {
        revocations: bytes(&kept),
        keep_revocations: Some(keeper.clone()),
        ..EndpointOptions::default()
    };
    let node = endpoint_with(&announcing, 1, options);
    node.sign_again(&announcing, 2).await.unwrap();
    node.sign_again(&stranger, 2).await.unwrap();
    assert_eq!(keeper.kept(), None, "there was nothing to say, or nobody who may");
    node.sign_again(&carrying, 3).await.unwrap();
    node.sign_again(&carrying, 4).await.unwrap();
    let told = keeper.kept().unwrap();
    assert_eq!(told.len(), bytes(&kept).len() + MANY as usize * Revocation::LEN, "said again once, and kept");
    node.set_identity(&alone.issue(1).unwrap()).unwrap();
    assert_eq!(revoked(&node), (100..100 + MANY).map(Revoked::Node).collect());
    assert!(node.revocations().iter().all(|entry| entry.at() == 3), "signed by the new one");
}

/// What was kept last.
#[derive(Debug, Default)]
struct Keeping(Mutex<Option<Vec<u8>>>);

impl Keeping {
    fn kept(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap().clone()
    }
}

impl KeepRevocations for Keeping {
    fn keep(&self, revocations: &[u8]) -> std::io::Result<()> {
        *self.0.lock().unwrap() = Some(revocations.to_vec());
        Ok(())
    }
}
