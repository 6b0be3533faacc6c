//! Writes join tokens, certificates and revocations into a directory, as the fuzzer's first inputs.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use octopii_fuzz::token;
use octopii_transport::{ClusterAuthority, JoinToken, NodeKey, PeerRole, Revoked};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = PathBuf::from(std::env::args().nth(1).ok_or("usage: token-seeds DIRECTORY")?);
    std::fs::create_dir_all(&corpus)?;
    let authority = ClusterAuthority::generate()?;
    let write = |name: &str, which: u8, bytes: &[u8]| std::fs::write(corpus.join(name), [&[which], bytes].concat());
    for (name, addresses) in [("one", vec!["10.0.0.1:4701"]), ("more", vec!["[::1]:1", "node-1.example.com:65535"])] {
        let addresses = addresses.into_iter().map(str::to_owned).collect();
        let expires = UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        let token =
            JoinToken::generate(authority.cluster(), authority.hash(), PeerRole::Member, expires, addresses)?;
        write(&format!("text-{name}"), 0, token.expose().as_bytes())?;
        write(&format!("body-{name}"), 1, &token::body(&token.expose()).ok_or("not a token")?)?;
    }
    let certified = authority.certify(1, PeerRole::Client, &NodeKey::generate()?.public())?;
    write("certified", 2, &certified.to_bytes())?;
    write("node", 3, &authority.revoke(Revoked::Node(7), 5)?.to_bytes())?;
    write("certificate", 3, &authority.revoke(Revoked::Certificate(authority.hash()), 5)?.to_bytes())?;
    Ok(())
}
