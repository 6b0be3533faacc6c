//! A running node's new key: who may answer when it asks for a certificate, and what is left of a change that fails.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use octopii::{
    Bincode, ClusterAuthority, Code, Codec, Config, Context, Executor, OctopiiNode, OctopiiRuntime, PeerRole,
    RealVfs, RotateError, Router, RpcClient, ServerOptions, Status, Vfs,
};
use octopii_rpc::{Server, StreamKind};
use octopii_transport::{Endpoint, EndpointOptions};
use octopii_vfs::VfsLayer;
use tempfile::tempdir;

const RENEW: &str = "octopii.renew";
const SOON: Duration = Duration::from_secs(20);

/// A node with an authority's file of the test's own: it issues.
fn issuing(home: &Path, file: &Path) -> Config {
    Config { authority: Some(file.to_owned()), consensus: false, ..Config::new(home.join("issuing")) }
}

fn authority(home: &Path) -> (ClusterAuthority, PathBuf) {
    let authority = ClusterAuthority::generate().unwrap();
    let file = home.join("authority.pem");
    std::fs::write(&file, authority.to_pem()).unwrap();
    (authority, file)
}

/// A node whose key lies in its directory, and that issues nothing.
async fn victim(home: &Path, authority: &ClusterAuthority, runtime: &OctopiiRuntime) -> OctopiiNode {
    let dir = home.join("victim");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("identity.pem"), authority.issue(7).unwrap().to_pem()).unwrap();
    OctopiiNode::start(Config { consensus: false, ..Config::new(dir) }, runtime).await.unwrap()
}

type Answer = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

/// Somebody with a certificate of the cluster, who answers requests for new ones as he likes.
struct Liar {
    endpoint: Endpoint,
    asked: Arc<AtomicUsize>,
    _server: Server,
}

impl Liar {
    fn new(
        executor: &Executor,
        authority: &ClusterAuthority,
        role: PeerRole,
        answer: impl Fn(Bytes, RpcClient) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let identity = authority.issue_as(66, role).unwrap();
        let endpoint = Endpoint::bind(executor, &identity, EndpointOptions::default()).unwrap();
        let (asked, rpc) = (Arc::new(AtomicUsize::new(0)), RpcClient::new(&endpoint, StreamKind::Rpc));
        let counting = Arc::clone(&asked);
        let mut router = Router::new();
        router.register_raw(RENEW, move |_: Context, request: Bytes| {
            counting.fetch_add(1, Ordering::Relaxed);
            answer(request, rpc.clone())
        });
        let server = Server::spawn(&endpoint, StreamKind::Rpc, router, ServerOptions::default()).unwrap();
        Self { endpoint, asked, _server: server }
    }

    /// Issues by this authority, to node 7, whatever it is asked for.
    fn forging(executor: &Executor, ours: &ClusterAuthority, role: PeerRole, by: ClusterAuthority) -> Self {
        Self::new(executor, ours, role, move |request, _| {
            let key = request[..32].try_into().unwrap();
            let certified = by.certify(7, PeerRole::Member, &key).unwrap();
            let answer = Bincode::encode(&certified.to_bytes()).unwrap();
            Box::pin(async move { Ok(answer.into()) })
        })
    }

    /// Passes on what it is asked to the issuing node, in its own name.
    fn relaying(
        executor: &Executor,
        ours: &ClusterAuthority,
        to: SocketAddr,
        answer: &Arc<Mutex<Option<Result<Bytes, Status>>>>,
    ) -> Self {
        let answer = Arc::clone(answer);
        Self::new(executor, ours, PeerRole::Member, move |request, rpc| {
            let answer = Arc::clone(&answer);
            Box::pin(async move {
                let told = rpc.call_raw(to, RENEW, request, SOON).await;
                answer.lock().unwrap().insert(told).clone()
            })
        })
    }
}

#[test]
fn whoever_answers_instead_of_the_issuing_node_gains_and_breaks_nothing() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let (ours, file) = authority(home.path());
        let issuing = OctopiiNode::start(issuing(home.path(), &file), &runtime).await.unwrap();
        let victim = victim(home.path(), &ours, &runtime).await;
        let on_disk = || std::fs::read(victim.data_dir().join("identity.pem")).unwrap();
        let (before, hash, executor) = (on_disk(), victim.identity().hash(), victim.executor().clone());
        let passed_on = Arc::new(Mutex::new(None));
        let own = || ours.successor().unwrap().without_predecessors();
        let liars = [
            Liar::forging(&executor, &ours, PeerRole::Member, own()),
            Liar::relaying(&executor, &ours, issuing.local_addr(), &passed_on),
        ];
        for liar in &liars {
            victim.rotate_identity(Some(liar.endpoint.local_addr().into())).await.unwrap_err();
            assert_eq!(liar.asked.load(Ordering::Relaxed), 1);
            assert!(on_disk() == before, "the old key is gone");
            assert_eq!(victim.identity().hash(), hash);
        }
        // The issuing node certifies no key for somebody else.
        let answer = passed_on.lock().unwrap().take().expect("the liar has asked");
        assert_eq!(answer.unwrap_err().code, Code::PermissionDenied);
        // Who is no member is not even asked.
        for role in [PeerRole::Client, PeerRole::Operator] {
            let authority = ClusterAuthority::from_pem(&ours.to_pem()).unwrap();
            let liar = Liar::forging(&executor, &ours, role, authority);
            let error = victim.rotate_identity(Some(liar.endpoint.local_addr().into())).await.unwrap_err();
            assert!(matches!(error, RotateError::NotIssued(_)), "{error}");
            assert!(error.to_string().contains("instead of a member"), "{error}");
            assert_eq!(liar.asked.load(Ordering::Relaxed), 0);
        }
        let renewed = victim.rotate_identity(Some(issuing.local_addr().into())).await.unwrap();
        assert_eq!(victim.identity().hash(), renewed);
        assert!(String::from_utf8(on_disk()).unwrap() == victim.identity().to_pem());
    });
}

/// The real file system, whose renames to `identity.pem` wait while the gate is shut.
#[derive(Debug)]
struct Gated(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    shut: bool,
    waiting: usize,
}

impl Gate {
    fn shut(&self, shut: bool) {
        self.state.lock().unwrap().shut = shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        while state.shut {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting -= 1;
    }

    fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting
    }
}

impl VfsLayer for Gated {
    fn beneath(&self) -> &dyn Vfs {
        &RealVfs
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.ends_with("identity.pem") {
            self.0.pass();
        }
        RealVfs.rename(from, to)
    }
}

/// A node that is stopped while its disk is slow: its next life must not find its directory until the last write of the former one is
/// done, or that would come on top of its own.
#[test]
fn a_directory_is_free_when_the_last_write_into_it_is_done() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let (_, file) = authority(home.path());
        let gate = Arc::<Gate>::default();
        let start = || {
            let vfs = Arc::new(Gated(Arc::clone(&gate)));
            OctopiiNode::builder(issuing(home.path(), &file)).vfs(vfs).start(&runtime)
        };
        let node = start().await.unwrap();
        gate.shut(true);
        tokio::select! {
            done = node.rotate_identity(None) => panic!("it did not wait for the disk: {done:?}"),
            () = async { while gate.waiting() == 0 { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
        }
        node.shutdown().await;
        drop(node);
        let refused = start().await.unwrap_err();
        assert!(refused.to_string().contains("in use by another node"), "{refused}");
        gate.shut(false);
        let end = tokio::time::Instant::now() + SOON;
        let next = loop {
            match start().await {
                Ok(next) => break next,
                Err(e) => assert!(tokio::time::Instant::now() < end, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let kept = std::fs::read_to_string(next.data_dir().join("identity.pem")).unwrap();
        assert_eq!(next.identity().to_pem(), kept, "nothing came on top of what it has read");
        next.shutdown().await;
    });
}

/// An operator whose patience ends while the disk is slow: what is on disk afterwards is what is in use.
#[test]
fn a_change_that_nobody_waits_for_is_carried_through() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let (_, file) = authority(home.path());
        let gate = Arc::<Gate>::default();
        let vfs = Arc::new(Gated(Arc::clone(&gate)));
        let node = OctopiiNode::builder(issuing(home.path(), &file)).vfs(vfs).start(&runtime).await.unwrap();
        let before = node.identity().hash();
        gate.shut(true);
        let at_the_gate = async {
            while gate.waiting() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            done = node.rotate_identity(None) => panic!("it did not wait for the disk: {done:?}"),
            () = at_the_gate => {}
        }
        // Nobody waits for it any more. The next one waits its turn.
        let next = node.rotate_identity(None);
        tokio::pin!(next);
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut next).await.is_err());
        assert_eq!(gate.waiting(), 1, "two changes write to one file");
        gate.shut(false);
        let last = tokio::time::timeout(SOON, next).await.unwrap().unwrap();
        assert_ne!(last, before);
        // And one that is dropped, with none after it.
        gate.shut(true);
        tokio::select! {
            done = node.rotate_identity(None) => panic!("it did not wait for the disk: {done:?}"),
            () = async { while gate.waiting() == 0 { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
        }
        gate.shut(false);
        let in_use = async {
            loop {
                let kept = std::fs::read_to_string(node.data_dir().join("identity.pem")).unwrap();
                let identity = node.identity();
                if identity.hash() != last && identity.to_pem() == kept {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, in_use).await.expect("the key on disk never came into use");
    });
}
