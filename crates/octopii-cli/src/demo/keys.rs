//! Keys replicated to three nodes, read back from each.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use octopii::{KvCommand, KvQuery, KvResponse, OctopiiNode};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Stage, broken};
use crate::args::Sabotage;
use crate::exit::Failure;

/// What was acknowledged, and must be there for ever after.
pub(super) type Acknowledged = BTreeMap<String, String>;

const KEYS: usize = 1_000;
const WRITERS: usize = 32;

pub(super) async fn show(stage: &Stage<'_>, sabotage: Option<Sabotage>) -> Result<Acknowledged, Failure> {
    let begun = Instant::now();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let node = stage.node.clone();
        writers.spawn(async move {
            let mut acknowledged = Acknowledged::new();
            for n in (writer..KEYS).step_by(WRITERS) {
                let (key, value) = (format!("key-{n:05}"), format!("value-{n}"));
                put(&node, &key, &value).await.map_err(|e| broken(format!("{key} is replicated: {e}")))?;
                acknowledged.insert(key, value);
            }
            Ok::<_, Failure>(acknowledged)
        });
    }
    let mut acknowledged = Acknowledged::new();
    while let Some(written) = writers.join_next().await {
        acknowledged.extend(written.map_err(Failure::failed)??);
    }
    let took = begun.elapsed();
    if sabotage == Some(Sabotage::AcknowledgedKey) {
        stage.client.delete(b"key-00007").await?;
    }
    for (id, addr) in &stage.cluster.members {
        check(stage, &acknowledged, &format!("node {id}"), *addr).await?;
    }
    stage.claim(
        format_args!(
            "{} keys put by {WRITERS} writers in {took:.2?}, each durable on a majority, and read back from every node",
            acknowledged.len()
        ),
        &json!({ "event": "keys", "acknowledged": acknowledged.len(), "seconds": took.as_secs_f64() }),
    );
    Ok(acknowledged)
}

pub(super) async fn put(node: &OctopiiNode, key: &str, value: &str) -> Result<(), octopii::ProposeError> {
    let command = KvCommand::Put { key: key.as_bytes().to_vec(), value: value.as_bytes().to_vec() };
    node.propose(command.encode()).await.map(|_| ())
}

/// Every acknowledged key must be there, with its value, when this one node is asked.
pub(super) async fn check(
    stage: &Stage<'_>,
    acknowledged: &Acknowledged,
    who: &str,
    addr: SocketAddr,
) -> Result<(), Failure> {
    let found = read_all(stage, addr).await.map_err(|e| broken(format!("{who} answers reads: {e}")))?;
    for (key, value) in acknowledged {
        match found.get(key) {
            Some(found) if found == value => {}
            Some(other) => return Err(broken(format!("{who} has {key} = {value}: it has {other}"))),
            None => return Err(broken(format!("{who} has every acknowledged key: {key} is missing"))),
        }
    }
    Ok(())
}

/// Every key, linearizably, through one node.
async fn read_all(stage: &Stage<'_>, addr: SocketAddr) -> Result<Acknowledged, octopii::Status> {
    let mut found = Acknowledged::new();
    let mut start = Vec::new();
    loop {
        let query = KvQuery::Range { start: start.clone(), end: None, limit: 1_000 };
        let answer = stage.client.query_at(addr, query.encode()).await?;
        let Ok(KvResponse::Entries { entries, more }) = KvResponse::decode(&answer) else {
            return Err(octopii::Status::new(octopii::Code::DataLoss, "the answer is no list of entries"));
        };
        if let Some((last, _)) = entries.last() {
            start = [last.as_slice(), &[0]].concat();
        }
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        found.extend(entries.into_iter().map(|(key, value)| (text(key), text(value))));
        if !more {
            return Ok(found);
        }
    }
}
