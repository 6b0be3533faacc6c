//! Places for trees.

use octopii_transfer::TransferOptions;

use super::{counts, put};
use crate::nodes::{Node, quick};

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
