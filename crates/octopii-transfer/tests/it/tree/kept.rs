//! What is kept beside trees: whose they are, and what of them was cut off.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use octopii_transfer::TransferOptions;

use super::{counts, put};
use crate::nodes::{Node, eventually, names, quick};

fn hidden(b: &Node) -> PathBuf {
    fs::read_dir(b.inbox().join(".octopii-trees")).unwrap().next().unwrap().unwrap().path()
}

const PART: &str = ".octopii-00000000000000000000000000000007.part";

/// The number of a directory that was removed may be given to the next one that is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_somebody_else_has_made_since_is_left_alone() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "f", b"theirs");
    a.send_tree(&b).await.unwrap();
    let inode = |name: &str| fs::metadata(b.inbox().join(name)).unwrap().ino();
    let first = inode("tree");
    fs::remove_dir_all(b.inbox().join("tree")).unwrap();
    put(&b.inbox(), "tree/f", b"mine");
    let report = a.send_tree(&b).await.unwrap();
    assert_eq!(report.name, PathBuf::from("tree (1)"), "the numbers were {first} and {}", inode("tree"));
    assert_eq!(fs::read(b.inbox().join("tree/f")).unwrap(), b"mine");
}

/// The same on a file system that gives out no number twice in a row: what is remembered is changed instead.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_age_is_another() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "f", b"x");
    a.send_tree(&b).await.unwrap();
    assert_eq!(a.send_tree(&b).await.unwrap().name, PathBuf::from("tree"));
    let owner = hidden(&b).join("owner");
    let mut bytes = fs::read(&owner).unwrap();
    assert_eq!((bytes.len(), &bytes[..2]), (62, &[1, 1][..]));
    bytes[18] ^= 1;
    fs::write(&owner, bytes).unwrap();
    assert_eq!(a.send_tree(&b).await.unwrap().name, PathBuf::from("tree (1)"));
}

/// Large files that were cut off are looked after even if none of the same tree follows; and one thing that is in the way of
/// that is in the way of nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn large_files_that_nobody_goes_on_with_are_removed() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(|inbox| inbox);
    put(&a.tree(), "f", b"x");
    a.send_tree(&b).await.unwrap();
    let hidden = hidden(&b);
    // Its journal tells how old it is; without one it is of no use. At the end of a tree, …
    fs::write(hidden.join(PART), "half").unwrap();
    assert_eq!(counts(&a.send_tree(&b).await.unwrap()), (0, 1, 1, 0));
    assert_eq!(names(&hidden), ["lock", "owner"]);
    // … and at the start.
    fs::write(hidden.join(PART), "half").unwrap();
    fs::write(b.inbox().join(".octopii-trees/0"), "a file among the directories").unwrap();
    b.open_trees(|inbox| inbox);
    eventually("the cleaning", || names(&hidden) == ["lock", "owner"]).await;
}

/// A tree has a place for its own large files, however few there are.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_does_not_compete_with_its_own_files() {
    let options = TransferOptions { max_incoming: 1, ..quick() };
    let (a, b) = (Node::new(1), Node::with(2, octopii_vfs::RealVfs::shared(), options));
    b.open_trees(|inbox| inbox);
    for name in ["1", "2", "3"] {
        put(&a.tree(), name, &vec![7; 2 << 20]);
    }
    let report = a.send_tree(&b).await.unwrap();
    assert_eq!(counts(&report), (3, 0, 1, 0), "{report:?}");
}
