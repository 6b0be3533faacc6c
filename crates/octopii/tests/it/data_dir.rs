//! One directory, one node, one identity.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use octopii::wal::OpenError;
use octopii::{
    BindError, ClusterAuthority, Config, Context, DataDirError, IdentitySource, OctopiiNode, OctopiiRuntime,
    Router, StartError,
};
use tempfile::tempdir;

use crate::config;

fn start(runtime: &OctopiiRuntime, config: Config) -> Result<OctopiiNode, StartError> {
    runtime.block_on(OctopiiNode::start(config, runtime))
}

/// Tasks let go of their handles a moment after a node is dropped.
fn until_unlocked<T>(mut start: impl FnMut() -> Result<T, StartError>) -> Result<T, StartError> {
    for _ in 0..1_000 {
        match start() {
            Err(StartError::DataDir(DataDirError::Locked { .. })) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
    start()
}

#[test]
fn a_second_node_on_one_directory_is_refused_however_the_path_is_spelt() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let first = start(&runtime, config(home.path(), "node")).unwrap();
    let link = home.path().join("link");
    std::os::unix::fs::symlink(home.path().join("node"), &link).unwrap();
    for dir in [home.path().join("node"), home.path().join("./node/../node"), link] {
        let again = Config { data_dir: dir, ..config(home.path(), "node") };
        let error = start(&runtime, again).unwrap_err();
        assert!(matches!(error, StartError::DataDir(DataDirError::Locked { .. })), "{error}");
    }
    let id = first.node_id();
    runtime.block_on(first.shutdown());
    drop(first);
    // Tasks let go of their handles a moment after the node is dropped.
    let again = (0..200).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        start(&runtime, config(home.path(), "node")).ok()
    });
    assert_eq!(again.expect("the directory is free again").node_id(), id);
}

/// A peer's call that never ends keeps the handlers alive, and some of them have handles of everything.
#[test]
fn a_dropped_node_is_gone_although_a_peer_is_being_served() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(2);
    let peer = start(&runtime, config(home.path(), "peer")).unwrap();
    for consensus in [false, true] {
        let dir = format!("node-{consensus}");
        let with = |bind| Config { consensus, bind, ..config(home.path(), &dir) };
        let mut router = Router::new();
        router.register_server_stream("watch", |_: Context, (): ()| async {
            Ok(stream::once(async { Ok(7u64) }).chain(stream::pending()))
        });
        let builder = OctopiiNode::builder(with(SocketAddr::from(([127, 0, 0, 1], 0)))).router(router);
        let node = runtime.block_on(builder.start(&runtime)).unwrap();
        let (id, addr) = (node.node_id(), node.local_addr());
        let mut watched = runtime
            .block_on(peer.rpc().server_stream::<_, u64>(addr, "watch", &(), Duration::from_secs(600)))
            .unwrap();
        assert_eq!(runtime.block_on(watched.next()).unwrap().unwrap(), 7);
        drop(node);
        let again = (0..2000).find_map(|_| match start(&runtime, with(addr)) {
            Ok(node) => Some(node),
            Err(
                StartError::Bind(BindError::AddressInUse(_))
                | StartError::DataDir(DataDirError::Locked { .. })
                | StartError::Wal(OpenError::Locked { .. }),
            ) => {
                std::thread::sleep(Duration::from_millis(10));
                None
            }
            Err(e) => panic!("{e}"),
        });
        let again = again.expect("port, directory and log are free again");
        assert_eq!((again.node_id(), again.local_addr()), (id, addr));
        runtime.block_on(watched.next()).expect("an answer").expect_err("the call has ended with its node");
    }
}

#[test]
fn a_directory_of_another_node_or_cluster_is_refused_and_left_alone() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let dir = home.path().join("node");
    let authority = ClusterAuthority::generate().unwrap();
    let with = |identity| Config { identity: IdentitySource::Given(identity), ..Config::new(&dir) };
    let node = start(&runtime, with(authority.issue(7).unwrap())).unwrap();
    runtime.block_on(node.shutdown());
    drop(node);
    let before = std::fs::read(dir.join("node.toml")).unwrap();
    let others = [authority.issue(8).unwrap(), ClusterAuthority::generate().unwrap().issue(7).unwrap()];
    for identity in others {
        let error = loop {
            match start(&runtime, with(identity.clone())).unwrap_err() {
                StartError::DataDir(DataDirError::Locked { .. }) => std::thread::yield_now(),
                error => break error,
            }
        };
        assert!(matches!(error, StartError::DataDir(DataDirError::NotOurs { .. })), "{error}");
    }
    assert_eq!(std::fs::read(dir.join("node.toml")).unwrap(), before);
}

#[test]
fn a_node_that_others_can_reach_needs_an_identity() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let open = Config { bind: SocketAddr::from(([0, 0, 0, 0], 0)), ..config(home.path(), "node") };
    let error = start(&runtime, open).unwrap_err();
    assert!(matches!(error, StartError::DataDir(DataDirError::NoIdentity(_))), "{error}");
    assert!(error.to_string().contains("octopii cluster issue"), "{error}");
}

#[test]
fn secrets_are_for_their_owner_only() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let node = start(&runtime, config(home.path(), "node")).unwrap();
    for secret in [
        node.data_dir().join("identity.pem"),
        node.data_dir().join("reset.key"),
        home.path().join("authority/local-authority.pem"),
    ] {
        let mode = std::fs::metadata(&secret).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", secret.display());
    }
}

#[test]
fn a_taken_port_is_told_and_leaves_the_directory_usable() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let first = start(&runtime, config(home.path(), "first")).unwrap();
    let second = Config { bind: first.local_addr(), ..config(home.path(), "second") };
    let error = start(&runtime, second).unwrap_err();
    assert!(matches!(error, StartError::Bind(BindError::AddressInUse(_))), "{error}");
    start(&runtime, config(home.path(), "second")).unwrap();
}

/// Once the refusal had already given the directory to a node of a random id, and the corrected start was refused too.
#[test]
fn a_refused_start_leaves_the_directory_to_whoever_comes_next() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let addr = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nameless = Config { bind: addr, members: [(1, addr.into())].into(), ..config(home.path(), "node") };
    let error = start(&runtime, nameless.clone()).unwrap_err();
    assert!(matches!(error, StartError::NotAMember(_)), "{error}");
    start(&runtime, Config { node_id: Some(1), ..nameless }).unwrap();
}

#[test]
fn an_identity_of_another_node_is_named_as_such() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let identity = ClusterAuthority::generate().unwrap().issue(1).unwrap();
    let other = Config {
        node_id: Some(2),
        identity: IdentitySource::Given(identity),
        ..Config::new(home.path().join("node"))
    };
    let error = start(&runtime, other).unwrap_err();
    let expected = DataDirError::OtherIdentity { found: 1, expected: 2 };
    assert_eq!(error.to_string(), expected.to_string());
}

/// The identity was lost, and the user's authority is another one by now: once the directory was left with a foreign identity.
#[test]
fn a_refused_directory_gets_no_identity_of_another_cluster() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(1);
    let node = start(&runtime, config(home.path(), "node")).unwrap();
    let id = node.node_id();
    runtime.block_on(node.shutdown());
    drop(node);
    let identity = home.path().join("node/identity.pem");
    let before = std::fs::read(&identity).unwrap();
    std::fs::remove_file(&identity).unwrap();
    let elsewhere = Config {
        identity: IdentitySource::LocalAuthority(home.path().join("another")),
        ..config(home.path(), "node")
    };
    let error = until_unlocked(|| start(&runtime, elsewhere.clone())).unwrap_err();
    assert!(matches!(error, StartError::DataDir(DataDirError::NotOurs { .. })), "{error}");
    assert!(!identity.exists());
    std::fs::write(&identity, before).unwrap();
    assert_eq!(start(&runtime, config(home.path(), "node")).unwrap().node_id(), id);
}
