//! A running node's new key: who may answer when it asks for a certificate, and what is left of a change that fails.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use octopii::{
    Bincode, ClusterAuthority, Codec, Config, Context, Executor, OctopiiNode, OctopiiRuntime, PeerRole,
    RotateError, Router, RpcClient, ServerOptions, Status,
};
use octopii_rpc::{Server, StreamKind};
use octopii_transport::{Endpoint, EndpointOptions};
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
    fn relaying(executor: &Executor, ours: &ClusterAuthority, to: SocketAddr) -> Self {
        Self::new(executor, ours, PeerRole::Member, move |request, rpc| {
            Box::pin(async move { rpc.call_raw(to, RENEW, request, SOON).await })
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
        let own = || ours.successor().unwrap().without_predecessors();
        let liars = [
            Liar::forging(&executor, &ours, PeerRole::Member, own()),
            Liar::relaying(&executor, &ours, issuing.local_addr()),
        ];
        for liar in &liars {
            victim.rotate_identity(Some(liar.endpoint.local_addr())).await.unwrap_err();
            assert_eq!(liar.asked.load(Ordering::Relaxed), 1);
            assert!(on_disk() == before, "the old key is gone");
            assert_eq!(victim.identity().hash(), hash);
        }
        // Who is no member is not even asked.
        for role in [PeerRole::Client, PeerRole::Operator] {
            let authority = ClusterAuthority::from_pem(&ours.to_pem()).unwrap();
            let liar = Liar::forging(&executor, &ours, role, authority);
            let error = victim.rotate_identity(Some(liar.endpoint.local_addr())).await.unwrap_err();
            assert!(matches!(error, RotateError::NotIssued(_)), "{error}");
            assert!(error.to_string().contains("instead of a member"), "{error}");
            assert_eq!(liar.asked.load(Ordering::Relaxed), 0);
        }
        let renewed = victim.rotate_identity(Some(issuing.local_addr())).await.unwrap();
        assert_eq!(victim.identity().hash(), renewed);
        assert!(String::from_utf8(on_disk()).unwrap() == victim.identity().to_pem());
    });
}
