//! Joining by a token: mistakes that can be seen beforehand cost neither the token nor the directory.

use std::path::Path;
use std::time::Duration;

use octopii::{
    Client, ClusterAuthority, Config, DataDirError, IdentitySource, JoinClusterError, JoinToken, OctopiiNode,
    OctopiiRuntime, PeerRole, StartError, TokenRequest, TokenState,
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
            members: [(1, cluster.issuing.local_addr())].into(),
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
