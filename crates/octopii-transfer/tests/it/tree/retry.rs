//! Trees that are cut off and begun again.

use std::fs;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use octopii_transfer::{EntryOutcome, SourceError, TransferError, TreeOptions};

use super::hand::{Hand, content, end, file, opening};
use super::{picture, put};
use crate::nodes::{Node, content as bytes, names};

const MIB: u64 = 1 << 20;

/// Options that do something as soon as the receiver has stored a first file, while a large one is still under way.
fn once_stored(retries: u32, act: impl Fn() + Send + Sync + 'static) -> TreeOptions {
    let done = AtomicBool::new(false);
    TreeOptions {
        retries,
        rate_limit: NonZeroU64::new(12 * MIB),
        on_entry: Some(Arc::new(move |_, outcome| {
            if matches!(outcome, EntryOutcome::Stored { .. }) && !done.swap(true, Ordering::Relaxed) {
                act();
            }
        })),
        ..TreeOptions::new("tree")
    }
}

/// Closes the sender's connection to `to`.
fn cut(from: &Node, to: &Node) -> impl Fn() + Send + Sync + 'static {
    let (endpoint, to) = (from.endpoint.clone(), to.addr());
    move || {
        let endpoint = endpoint.clone();
        tokio::spawn(async move { endpoint.connect(to).await.unwrap().close("cut") });
    }
}

fn source(a: &Node) {
    for n in 0..20 {
        put(&a.tree(), &format!("small/{n}"), &bytes(1000 + n));
    }
    put(&a.tree(), "large", &bytes(12 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_is_made_again_and_the_tree_goes_on() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    source(&a);
    let error = a.transfer.send_tree(b.addr(), a.tree(), once_stored(0, cut(&a, &b))).await.unwrap_err();
    assert!(matches!(error, TransferError::Lost(_)), "{error}");
    // To another name, so that all of it travels again.
    let options = TreeOptions { name: Some("second".to_owned()), ..once_stored(3, cut(&a, &b)) };
    let report = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap();
    assert!(report.is_complete() && report.retries >= 1, "{report:?}");
    assert_eq!((report.stored + report.unchanged, report.directories), (21, 2), "{report:?}");
    assert!(report.stored_before >= 1 && report.unchanged >= report.stored_before, "{report:?}");
    assert!(report.bytes_before >= 1000 * report.stored_before, "{report:?}");
    assert_eq!(picture(&b.inbox().join("second")), picture(&a.tree()));
    assert_eq!(names(&b.inbox()), [".octopii-trees", "second", "tree"], "no second directory was begun");
}

/// What is held open of a directory that was removed looks empty: told so by the next attempt, it would empty the receiver.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_made_anew_between_attempts_empties_nothing() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox.delete(true));
    source(&a);
    a.send_tree(&b).await.unwrap();
    let before = picture(&b.inbox().join("tree")).into_keys().collect::<Vec<_>>();
    // One after the other, since the rate is limited.
    put(&a.tree(), "large", &bytes(3 << 20));
    put(&a.tree(), "larger", &bytes(12 << 20));
    let (tree, cut) = (a.tree(), cut(&a, &b));
    let make_anew = move || {
        fs::remove_dir_all(&tree).unwrap();
        fs::create_dir(&tree).unwrap();
        cut();
    };
    let options = TreeOptions { delete: true, ..once_stored(3, make_anew) };
    let error = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap_err();
    assert!(matches!(error, TransferError::Source(SourceError::Replaced(_))), "{error}");
    let mut left = picture(&b.inbox().join("tree"));
    left.retain(|path, _| before.contains(path));
    assert_eq!(left.into_keys().collect::<Vec<_>>(), before);
}

/// The time limit is for all attempts together.
#[tokio::test(flavor = "multi_thread")]
async fn attempts_end_with_the_time_for_the_tree() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    source(&a);
    let endpoint = b.endpoint.clone();
    let leave = move || {
        let endpoint = endpoint.clone();
        tokio::spawn(async move { endpoint.close(Duration::from_secs(1)).await });
    };
    let options = TreeOptions { timeout: Some(Duration::from_secs(3)), ..once_stored(u32::MAX, leave) };
    let error = a.transfer.send_tree(b.addr(), a.tree(), options).await.unwrap_err();
    assert!(matches!(error, TransferError::Timeout { .. }), "{error}");
}

/// A sender that comes back before the loss of its connection is noticed takes its own place, and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_takes_the_place_of_the_one_before() {
    let (a, b, c) = (Node::new(1), Node::new(2), Node::new(3));
    b.open_trees(|inbox| inbox);
    let mut first = Hand::open(&a, &b).await;
    first.page(&[file(b"1", 3), file(b"2", 3)]).await;
    first.pack(&[content(0, b"one")]).await;
    assert_eq!(first.results().await, [(0, (0, 0))]);
    // The id is another node's, too.
    let mut other = Hand::open_as(&c, &b, 7, "other").await;
    let mut second = Hand::open(&a, &b).await;
    first.expect_fail(14).await;
    assert_eq!(second.page(&[file(b"1", 3), file(b"2", 3), end()]).await, [(1, 0), (2, 0), (2, 0)]);
    second.pack(&[content(1, b"two")]).await;
    second.finish_manifest().await;
    assert_eq!(second.expect_done().await, [1, 3, 1, 1, 0]);
    assert_eq!(other.page(&[end()]).await, [(2, 0)]);
    other.finish_manifest().await;
    assert_eq!(other.expect_done().await, [0, 0, 0, 1, 0]);
    // Another id of the same node is another tree, and does not.
    let mut third = Hand::open_as(&a, &b, 8, "tree").await;
    let mut fourth = Hand::silent(&a.endpoint, &b).await;
    fourth.write(&opening(9, b"tree")).await;
    fourth.expect_fail(6).await;
    third.page(&[end()]).await;
    third.finish_manifest().await;
    assert_eq!(third.expect_done().await, [0, 0, 0, 1, 0]);
}
