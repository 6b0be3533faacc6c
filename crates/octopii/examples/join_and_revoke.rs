//! A cluster with an authority of its own: a node joins with a token, handlers see who calls, a key is replaced while the node
//! runs, and a revoked node is cut off. `cargo run --example join_and_revoke`

use std::error::Error;
use std::time::Duration;

use octopii::{
    Client, ClusterAuthority, Code, Config, Context, IdentitySource, OctopiiNode, OctopiiRuntime, PeerRole,
    Revoked, Router, Status, TokenRequest,
};

fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    // What `octopii cluster init` does. The file admits nodes: mode 0600, and on one well-guarded machine only.
    let authority = ClusterAuthority::generate()?;
    let file = home.path().join("authority.pem");
    octopii::create_file_durable(&octopii::RealVfs, &file, authority.to_pem().as_bytes())?;

    let runtime = OctopiiRuntime::new(2);
    runtime.block_on(async {
        // This node issues certificates, its own to begin with. Its handler serves members only.
        let mut router = Router::new();
        router.register("whoami", |context: Context, (): ()| async move {
            match context.peer.role {
                PeerRole::Member => Ok(context.peer.node_id),
                role => Err(Status::new(Code::PermissionDenied, format!("a {role} may not ask"))),
            }
        });
        let issuing = Config {
            authority: Some(file),
            node_id: Some(1),
            consensus: false,
            ..Config::new(home.path().join("issuing"))
        };
        let issuing = OctopiiNode::builder(issuing).router(router).start(&runtime).await?;

        // An operator makes a token: `octopii token create`.
        let operator = authority.issue_as(1 << 61, PeerRole::Operator)?;
        let operator = Client::new(&runtime, &operator, vec![issuing.local_addr()], Duration::from_secs(5))?;
        let request = TokenRequest {
            role: PeerRole::Member.to_string(),
            lifetime_secs: 600,
            node_id: None,
            addresses: vec![issuing.local_addr().to_string()],
        };
        let token = operator.create_token(&request).await?;

        // A node joins with it: `octopii node --join FILE`. Its key is made here and stays here.
        let joining = Config {
            identity: IdentitySource::Token(token.expose().parse()?),
            consensus: false,
            ..Config::new(home.path().join("joining"))
        };
        let joined = OctopiiNode::start(joining, &runtime).await?;
        let peer = joined.peer(issuing.local_addr());
        let seen: u64 = peer.call("whoami", &(), Duration::from_secs(5)).await?;
        assert_eq!(seen, joined.node_id());
        println!("node {seen} has joined, and is known by its certificate");

        // A new key, while it runs; then the old certificate is revoked.
        let old = joined.identity().hash();
        let new = joined.rotate_identity(Some(issuing.local_addr().into())).await?;
        issuing.revoke(&authority.revoke(Revoked::Certificate(old), 0)?).await?;
        let seen = ask(&peer).await?;
        println!("node {seen} goes on with certificate {new}");

        // And now the node itself.
        issuing.revoke(&authority.revoke(Revoked::Node(seen), 0)?).await?;
        let refused = ask(&peer).await.expect_err("it is cut off");
        println!("node {seen} is cut off: {}", refused.message);

        operator.close().await;
        joined.shutdown().await;
        issuing.shutdown().await;
        Ok(())
    })
}

/// Once more if the connection was cut under the call: the next one is made with the certificate in use.
async fn ask(peer: &octopii::Peer) -> Result<u64, Status> {
    match peer.call("whoami", &(), Duration::from_secs(5)).await {
        Err(_) => peer.call("whoami", &(), Duration::from_secs(5)).await,
        answered => answered,
    }
}
