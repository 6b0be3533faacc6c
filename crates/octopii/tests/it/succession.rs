//! A cluster's authority changes, in the three steps of `octopii cluster succeed`.

use std::path::Path;
use std::time::Duration;

use octopii::{ClusterAuthority, Config, DataDirError, OctopiiNode, OctopiiRuntime, Revoked, StartError};
use tempfile::tempdir;

/// The issuing node, started with this authority.
fn issuing(runtime: &OctopiiRuntime, home: &Path, authority: &ClusterAuthority) -> OctopiiNode {
    use std::os::unix::fs::PermissionsExt;
    let file = home.join("authority.pem");
    std::fs::write(&file, authority.to_pem()).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    // Tasks let go of the directory a moment after the node before was dropped.
    for _ in 0..1000 {
        let config = Config {
            authority: Some(file.clone()),
            node_id: Some(1),
            consensus: false,
            ..Config::new(home.join("node"))
        };
        match runtime.block_on(OctopiiNode::start(config, runtime)) {
            Ok(node) => return node,
            Err(StartError::DataDir(DataDirError::Locked { .. })) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) => panic!("{e}"),
        }
    }
    panic!("the directory stays locked");
}

/// The old authority has said that a node is no longer good. When nobody trusts it any more, its word counts for nothing, but the
/// node's id must still not be good.
#[test]
fn a_revoked_node_stays_revoked_when_the_authority_that_said_so_is_gone() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let old = ClusterAuthority::generate().unwrap();
    let new = old.successor().unwrap();
    let node = issuing(&runtime, home.path(), &old);
    let word = old.revoke(Revoked::Node(9), 1).unwrap();
    runtime.block_on(node.revoke(&word)).unwrap();
    let revoked = |node: &OctopiiNode| node.revocations().iter().map(|r| r.what()).collect::<Vec<_>>();
    let old_hash = old.hash();
    let announcing = old.announcing(&new).unwrap();
    let alone = ClusterAuthority::from_pem(&new.to_pem()).unwrap().without_predecessors();
    runtime.block_on(node.shutdown());
    drop(node);
    let mut gone = vec![Revoked::Node(9)];
    for (authority, late) in [(&announcing, 10), (&new, 11), (&alone, 12), (&alone, 13)] {
        let node = issuing(&runtime, home.path(), authority);
        // Somebody still uses the old authority's file, while its word counts here.
        let word = announcing.revoke(Revoked::Node(late), 1).unwrap();
        if runtime.block_on(node.revoke(&word)).is_ok() {
            gone.push(Revoked::Node(late));
        }
        runtime.block_on(node.rotate_identity(None)).unwrap();
        assert_eq!(revoked(&node), gone);
        assert_eq!(node.identity().authority_hash(), authority.hash());
        runtime.block_on(node.shutdown());
    }
    assert_ne!(alone.hash(), old_hash);
    assert_eq!(gone, [9, 10, 11, 12].map(Revoked::Node), "its word counts until nobody trusts it any more");
}
