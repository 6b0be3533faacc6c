//! A client that asks one node after the other: whom it believes, and what it says when it cannot know.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use octopii::{
    Bincode, Client, ClusterAuthority, Code, Codec, Context, Executor, MembershipChange, OctopiiRuntime,
    PeerRole, RevokeRequest, Router, ServerOptions, Status, TokenRequest,
};
use octopii_rpc::{Server, StreamKind};
use octopii_transport::{Endpoint, EndpointOptions};

const SOON: Duration = Duration::from_secs(20);
const METHODS: [&str; 7] = [
    "octopii.status",
    "octopii.propose",
    "octopii.query",
    "octopii.member",
    "octopii.token.create",
    "octopii.token.revoke",
    "octopii.revoke",
];

/// Somebody with a certificate, at the address of a node, who gives one answer to everything.
struct Answering {
    endpoint: Endpoint,
    asked: Arc<AtomicUsize>,
    _server: Server,
}

impl Answering {
    fn new(
        executor: &Executor,
        authority: &ClusterAuthority,
        (id, role): (u64, PeerRole),
        answer: Result<Bytes, Status>,
    ) -> Self {
        let identity = authority.issue_as(id, role).unwrap();
        let endpoint = Endpoint::bind(executor, &identity, EndpointOptions::default()).unwrap();
        let (asked, mut router) = (Arc::new(AtomicUsize::new(0)), Router::new());
        for method in METHODS {
            let (counting, answer) = (Arc::clone(&asked), answer.clone());
            router.register_raw(method, move |_: Context, _: Bytes| {
                counting.fetch_add(1, Ordering::Relaxed);
                let answer = answer.clone();
                async move { answer }
            });
        }
        let server = Server::spawn(&endpoint, StreamKind::Rpc, router, ServerOptions::default()).unwrap();
        Self { endpoint, asked, _server: server }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn client(runtime: &OctopiiRuntime, authority: &ClusterAuthority, nodes: &[&Answering]) -> Client {
    let identity = authority.issue_as(1 << 61, PeerRole::Operator).unwrap();
    let nodes = nodes.iter().map(|node| node.endpoint.local_addr());
    Client::new(runtime, &identity, nodes, SOON).unwrap()
}

fn token_request() -> TokenRequest {
    TokenRequest { role: "member".to_owned(), lifetime_secs: 60, node_id: None, addresses: Vec::new() }
}

#[test]
fn only_members_answer_in_the_name_of_the_cluster() {
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let authority = ClusterAuthority::generate().unwrap();
        let executor = Executor::new(tokio::runtime::Handle::current());
        let lie = || Ok(Bytes::from_static(b"done"));
        let liars = [
            Answering::new(&executor, &authority, (50, PeerRole::Client), lie()),
            Answering::new(&executor, &authority, (51, PeerRole::Operator), lie()),
        ];
        let member = Answering::new(&executor, &authority, (1, PeerRole::Member), Ok("true".into()));
        // Whoever comes first in its list.
        let client_of_all = client(&runtime, &authority, &[&liars[0], &liars[1], &member]);
        assert_eq!(client_of_all.propose("x".into()).await.unwrap(), "true");
        assert_eq!(client_of_all.query("x".into()).await.unwrap(), "true");
        for liar in &liars {
            let alone = client(&runtime, &authority, &[liar]);
            let told = [
                alone.propose("x".into()).await.map(drop),
                alone.query("x".into()).await.map(drop),
                alone.query_at(liar.endpoint.local_addr(), "x".into()).await.map(drop),
                alone.status_of(liar.endpoint.local_addr()).await.map(drop),
                alone.create_token(&token_request()).await.map(drop),
                alone.change_membership(&MembershipChange::Remove { id: 1 }).await,
                alone.revoke(&RevokeRequest::Node(1)).await,
            ];
            for outcome in told {
                let status = outcome.unwrap_err();
                assert_eq!(status.code, Code::Unavailable, "surely not made: {}", status.message);
                assert!(status.message.contains("instead of a member"), "{}", status.message);
            }
            assert_eq!(liar.asked(), 0);
        }
        assert_eq!(member.asked(), 2);
    });
}

/// The issuing node revokes, and its answer is lost; the next node only says that it does not issue.
#[test]
fn a_revocation_that_may_have_been_made_is_never_called_surely_not_made() {
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let authority = ClusterAuthority::generate().unwrap();
        let executor = Executor::new(tokio::runtime::Handle::current());
        let node = |id, answer| Answering::new(&executor, &authority, (id, PeerRole::Member), answer);
        let refusing = |code| Err(Status::new(code, "told by the test"));
        let (lost, late) = (node(1, refusing(Code::Unknown)), node(2, refusing(Code::DeadlineExceeded)));
        let not_issuing = node(3, refusing(Code::Unavailable));
        let refused = node(4, refusing(Code::FailedPrecondition));
        let done = node(5, Ok(Bincode::encode(&()).unwrap().into()));
        let revoke = async |nodes: &[&Answering]| {
            let client = client(&runtime, &authority, nodes);
            client.revoke(&RevokeRequest::Node(9)).await.map_err(|status| status.code)
        };
        assert_eq!(revoke(&[&lost, &not_issuing]).await, Err(Code::Unknown));
        assert_eq!(revoke(&[&not_issuing, &late, &lost, &not_issuing]).await, Err(Code::DeadlineExceeded));
        assert_eq!(revoke(&[&late, &refused]).await, Err(Code::DeadlineExceeded));
        assert_eq!(revoke(&[&not_issuing]).await, Err(Code::Unavailable));
        // Made once more elsewhere: now it is known.
        assert_eq!(revoke(&[&lost, &not_issuing, &done]).await, Ok(()));
        let client = client(&runtime, &authority, &[&lost, &not_issuing]);
        assert_eq!(client.revoke_token("0").await.unwrap_err().code, Code::Unknown);
        // A question goes on, and no answer at all is no change.
        assert_eq!(client.query("x".into()).await.unwrap_err().code, Code::Unavailable);
        assert_eq!(client.propose("x".into()).await.unwrap_err().code, Code::Unknown);
    });
}
