//! Joining by a token: mistakes that can be seen beforehand cost neither the token nor the directory.

use std::path::Path;
use std::time::Duration;

use octopii::{
    Client, ClusterAuthority, Code, Config, DataDirError, IdentitySource, JoinClusterError, JoinToken,
    OctopiiNode, OctopiiRuntime, PeerRole, RevokeRequest, Revoked, StartError, TokenRequest, TokenState,
};
use tempfile::{TempDir, tempdir};

/// One node that issues certificates, and its operator.
struct Cluster {
    home: TempDir,
    authority: ClusterAuthority,
    issuing: OctopiiNode,
    operator: Client,
}

impl Cluster {
    async fn new(runtime: &OctopiiRuntime) -> Self {
        let home = tempdir().unwrap();
        let authority = ClusterAuthority::generate().unwrap();
        let file = home.path().join("authority.pem");
        std::fs::write(&file, authority.to_pem()).unwrap();
        let config = Config {
            authority: Some(file),
            node_id: Some(1),
            consensus: false,
            ..Config::new(home.path().join("issuing"))
        };
        let issuing = OctopiiNode::start(config, runtime).await.unwrap();
        let operator = client(runtime, &authority, &issuing, PeerRole::Operator);
        Self { home, authority, issuing, operator }
    }

    fn request(&self, role: PeerRole) -> TokenRequest {
        TokenRequest {
            role: role.to_string(),
            lifetime_secs: 600,
            node_id: None,
            addresses: vec![self.issuing.local_addr().to_string()],
        }
    }

    async fn token(&self, role: PeerRole) -> JoinToken {
        self.operator.create_token(&self.request(role)).await.unwrap()
    }

    async fn state(&self, token: &JoinToken) -> TokenState {
        let id = token.verifier().short();
        self.operator.tokens().await.unwrap().iter().find(|t| t.id == id).unwrap().state
    }
}

fn client(
    runtime: &OctopiiRuntime,
    authority: &ClusterAuthority,
    node: &OctopiiNode,
    role: PeerRole,
) -> Client {
    let identity = authority.issue_as(1 << 61, role).unwrap();
    Client::new(runtime, &identity, vec![node.local_addr()], Duration::from_secs(20)).unwrap()
}

fn joining(dir: &Path, token: &JoinToken, consensus: bool) -> Config {
    Config { identity: IdentitySource::Token(token.clone()), consensus, ..Config::new(dir) }
}

#[test]
fn a_token_of_the_wrong_role_is_neither_spent_nor_a_curse_on_the_directory() {
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let cluster = Cluster::new(&runtime).await;
        let dir = cluster.home.path().join("node");
        for role in [PeerRole::Client, PeerRole::Operator] {
            let token = cluster.token(role).await;
            let error = OctopiiNode::start(joining(&dir, &token, true), &runtime).await.unwrap_err();
            let told =
                matches!(&error, StartError::Join(JoinClusterError::NoMember { role: r }) if *r == role);
            assert!(told, "{error}");
            assert_eq!(cluster.state(&token).await, TokenState::Waiting);
            assert!(!dir.join("identity.pem").exists());
        }
        let token = cluster.token(PeerRole::Member).await;
        // Members of which the node is none.
        let mistaken = Config {
            node_id: Some(7),
            members: [(1, cluster.issuing.local_addr().into())].into(),
            ..joining(&dir, &token, true)
        };
        let error = OctopiiNode::start(mistaken, &runtime).await.unwrap_err();
        assert!(matches!(error, StartError::NotAMember(7)), "{error}");
        assert_eq!(cluster.state(&token).await, TokenState::Waiting);
        OctopiiNode::start(joining(&dir, &token, true), &runtime).await.unwrap();
        assert_eq!(cluster.state(&token).await, TokenState::Used);
        // Without consensus every role will do.
        let token = cluster.token(PeerRole::Client).await;
        let dir = cluster.home.path().join("client");
        OctopiiNode::start(joining(&dir, &token, false), &runtime).await.unwrap();
    });
}

#[test]
fn no_other_node_moves_into_a_directory_that_has_lost_its_identity() {
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let cluster = Cluster::new(&runtime).await;
        let dir = cluster.home.path().join("node");
        let token = cluster.token(PeerRole::Member).await;
        let node = OctopiiNode::start(joining(&dir, &token, false), &runtime).await.unwrap();
        node.shutdown().await;
        drop(node);
        let identity = dir.join("identity.pem");
        let lost = std::fs::read(&identity).unwrap();
        std::fs::remove_file(&identity).unwrap();
        let another = cluster.token(PeerRole::Member).await;
        let error = loop {
            match OctopiiNode::start(joining(&dir, &another, false), &runtime).await.unwrap_err() {
                StartError::Join(JoinClusterError::DataDir(DataDirError::Locked { .. })) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                error => break error,
            }
        };
        let told =
            matches!(error, StartError::Join(JoinClusterError::DataDir(DataDirError::IdentityLost { .. })));
        assert!(told, "{error}");
        assert_eq!(cluster.state(&another).await, TokenState::Waiting);
        assert!(!identity.exists());
        // Restored from a backup it goes on, with whatever token.
        std::fs::write(&identity, lost).unwrap();
        OctopiiNode::start(joining(&dir, &another, false), &runtime).await.unwrap();
        assert_eq!(cluster.state(&another).await, TokenState::Waiting);
    });
}

/// A member that others have got hold of.
#[test]
fn a_member_has_the_authority_sign_nothing() {
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let cluster = Cluster::new(&runtime).await;
        for role in [PeerRole::Member, PeerRole::Client] {
            let taken = client(&runtime, &cluster.authority, &cluster.issuing, role);
            let waiting = cluster.token(PeerRole::Member).await;
            let told = [
                taken.create_token(&cluster.request(PeerRole::Operator)).await.map(drop),
                taken.revoke_token(&waiting.verifier().short()).await.map(drop),
                taken.revoke(&RevokeRequest::Node(1)).await,
                taken
                    .revoke(&RevokeRequest::Certificate(cluster.issuing.identity().hash().to_string()))
                    .await,
            ];
            for outcome in told {
                assert_eq!(outcome.unwrap_err().code, Code::PermissionDenied);
            }
            assert_eq!(cluster.state(&waiting).await, TokenState::Waiting);
        }
        assert!(cluster.issuing.revocations().is_empty());
        // What the authority has signed may come from anywhere.
        let signed = cluster.authority.revoke(Revoked::Node(9), 5).unwrap();
        let member = client(&runtime, &cluster.authority, &cluster.issuing, PeerRole::Member);
        member.revoke(&RevokeRequest::Signed(signed.to_bytes().to_vec())).await.unwrap();
        cluster.operator.revoke(&RevokeRequest::Node(10)).await.unwrap();
        assert_eq!(cluster.issuing.revocations().len(), 2);
    });
}

#[test]
fn no_token_gives_out_an_id_that_is_or_was_somebodys() {
    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        let cluster = Cluster::new(&runtime).await;
        let ask = async |id| {
            let request = TokenRequest { node_id: Some(id), ..cluster.request(PeerRole::Member) };
            cluster.operator.create_token(&request).await.map(drop).map_err(|status| status.code)
        };
        cluster.operator.revoke(&RevokeRequest::Node(9)).await.unwrap();
        assert_eq!(ask(1).await, Err(Code::FailedPrecondition), "the issuing node's own");
        assert_eq!(ask(9).await, Err(Code::FailedPrecondition), "revoked for ever");
        assert_eq!(ask(5).await, Ok(()));
        assert_eq!(ask(5).await, Err(Code::FailedPrecondition), "another token's");
        // The issuing node's own choice is made with the token, and told.
        let token = cluster.token(PeerRole::Member).await;
        let told = cluster.operator.tokens().await.unwrap();
        let told = told.iter().find(|t| t.id == token.verifier().short()).unwrap().node_id;
        let node = OctopiiNode::start(joining(&cluster.home.path().join("n"), &token, false), &runtime).await;
        assert_eq!(node.unwrap().node_id(), told);
    });
}
