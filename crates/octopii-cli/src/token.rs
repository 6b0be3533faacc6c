//! `octopii token`, and where `--join` finds one.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use octopii::{JoinToken, OctopiiRuntime, TokenRequest, TokenState};
use serde_json::json;

use crate::args::{Token, TokenCommand};
use crate::exit::Failure;
use crate::kv::client;
use crate::output::Output;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Token) -> Result<(), Failure> {
    let client = client(runtime, args.target)?;
    let outcome = ask(&client, *output, args.command).await;
    client.close().await;
    outcome
}

async fn ask(client: &octopii::Client, output: Output, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create { role, ttl, id, addresses } => {
            let request =
                TokenRequest { role: role.to_string(), lifetime_secs: ttl.as_secs(), node_id: id, addresses };
            let token = client.create_token(&request).await?;
            let told = json!({
                "token": token.expose(),
                "id": token.verifier().short(),
                "role": role.to_string(),
                "expires": seconds(token.expires()),
                "addresses": token.addresses(),
            });
            output.result(token.expose(), &told);
        }
        TokenCommand::List => {
            let tokens = client.tokens().await?;
            output.line(format_args!("{:<16} {:<9} {:>8} {:<8} EXPIRES", "TOKEN", "ROLE", "NODE", "STATE"));
            for token in tokens {
                let state = match token.state {
                    TokenState::Waiting => "waiting",
                    TokenState::Used => "used",
                    TokenState::Expired => "expired",
                };
                let line = format!(
                    "{:<16} {:<9} {:>8} {:<8} {}",
                    token.id,
                    token.role,
                    token.node_id,
                    state,
                    from_now(token.expires)
                );
                output.result(line, &json!(token));
            }
        }
        TokenCommand::Revoke { id } => {
            if !client.revoke_token(&id).await? {
                return Err(Failure::failed(format!(
                    "no token {id}: `octopii token list` shows those there are"
                )));
            }
            output.result("ok", &json!({ "ok": true }));
        }
    }
    Ok(())
}

/// The token in a file, on standard input (`-`), or in `$OCTOPII_JOIN`: never on the command line, which every user of the machine
/// can read.
pub(crate) fn to_join_with(source: Option<&Path>) -> Result<Option<JoinToken>, Failure> {
    let text = match source {
        Some(path) if path.as_os_str().as_encoded_bytes().starts_with(b"octopii-join-") => {
            return Err(Failure::failed(
                "a token on the command line can be read by every user of this machine: put it into a file and give the \
                 file's name, or - for standard input, or set OCTOPII_JOIN. Revoke this one if others could see it",
            ));
        }
        Some(path) if path.as_os_str() == "-" => bounded(std::io::stdin().lock())
            .map_err(|e| Failure::failed(format!("cannot read the token from standard input: {e}")))?,
        Some(path) => std::fs::File::open(path)
            .and_then(bounded)
            .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?,
        None => match std::env::var("OCTOPII_JOIN") {
            Ok(text) if !text.is_empty() => text,
            _ => return Ok(None),
        },
    };
    text.trim().parse().map(Some).map_err(Failure::failed)
}

fn bounded(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(JoinToken::MAX_TEXT as u64 + 64).read_to_string(&mut text)?;
    Ok(text)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How long ago, or from now, that is.
pub(crate) fn from_now(at: u64) -> String {
    let now = seconds(SystemTime::now());
    let rounded = |secs: u64| indicatif::HumanDuration(Duration::from_secs(secs)).to_string();
    if at > now { format!("in {}", rounded(at - now)) } else { format!("{} ago", rounded(now - at)) }
}
