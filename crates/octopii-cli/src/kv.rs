//! `octopii kv`.

use octopii::{Client, OctopiiRuntime};
use serde_json::{Value, json};

use crate::args::{Kv, KvCommand, Target};
use crate::exit::Failure;
use crate::identity;
use crate::output::Output;

pub(crate) async fn run(runtime: &OctopiiRuntime, output: &Output, args: Kv) -> Result<(), Failure> {
    let client = client(runtime, args.target)?;
    let outcome = ask(&client, *output, args.command).await;
    client.close().await;
    outcome
}

async fn ask(client: &Client, output: Output, command: KvCommand) -> Result<(), Failure> {
    match command {
        KvCommand::Get { key } => {
            let value = client.get(key.as_bytes()).await?.ok_or_else(|| Failure::no_such_key(&key))?;
            output.text(&String::from_utf8_lossy(&value), &entry(&key, "value", Some(&value)));
        }
        KvCommand::Put { key, value } => {
            let previous = client.put(key.as_bytes(), value.as_bytes()).await?;
            output.result("ok", &entry(&key, "previous", previous.as_deref()));
        }
        KvCommand::Del { key } => {
            let previous = client.delete(key.as_bytes()).await?.ok_or_else(|| Failure::no_such_key(&key))?;
            output.result("ok", &entry(&key, "previous", Some(&previous)));
        }
    }
    Ok(())
}

pub(crate) fn client(runtime: &OctopiiRuntime, target: Target) -> Result<Client, Failure> {
    identity::required(&target.nodes, target.identity.as_deref())?;
    let identity = identity::load(target.identity.as_deref(), None)?;
    Client::new(runtime, &identity, target.nodes, target.timeout).map_err(Failure::failed)
}

/// A value is text if it can be, hexadecimal digits otherwise.
fn entry(key: &str, name: &str, value: Option<&[u8]>) -> Value {
    match value.map(std::str::from_utf8) {
        None => json!({ "key": key, name: null }),
        Some(Ok(text)) => json!({ "key": key, name: text }),
        Some(Err(_)) => {
            let hex: String = value.unwrap_or_default().iter().map(|b| format!("{b:02x}")).collect();
            json!({ "key": key, format!("{name}_hex"): hex })
        }
    }
}
