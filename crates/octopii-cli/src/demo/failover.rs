//! The leader dies in the middle of a stream of puts, and comes back from its log.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use octopii::{NodeId, OctopiiNode};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::keys::{Acknowledged, check, put};
use super::{OWN, Stage, broken};
use crate::args::Sabotage;
use crate::exit::Failure;

/// Puts go on for this long before the leader dies.
const BEFORE: Duration = Duration::from_millis(500);
/// And for at least this long after the first one that its successor acknowledged.
const AFTER: Duration = Duration::from_millis(500);
/// A successor that takes longer than this has failed.
const FAILOVER_LIMIT: Duration = Duration::from_secs(10);
/// A restarted node must have everything within this.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(20);

pub(super) async fn show(
    stage: &mut Stage<'_>,
    mut acknowledged: Acknowledged,
    sabotage: Option<Sabotage>,
) -> Result<(), Failure> {
    let leader = leader_in_a_process(stage).await?;
    let puts = Puts::begin(&stage.node);
    sleep(BEFORE).await;
    let process =
        stage.processes.iter_mut().find(|p| p.id == leader).expect("the leader is one of the processes");
    let pid = process.pid();
    let killed_at = Instant::now();
    process.kill();
    stage.say(
        format_args!("kill -9 {pid}: node {leader}, the leader, in the middle of a stream of puts"),
        &json!({ "event": "killed", "node": leader }),
    );
    let recovered_at = puts.acknowledged_after(killed_at).await?;
    sleep(AFTER).await;
    let written = puts.end().await?;
    let successor = stage.leader().await?;
    if successor == leader {
        return Err(broken("another node leads after the leader's death"));
    }
    stage.claim(
        format_args!(
            "node {successor} leads; the next put was acknowledged {:.2?} after the kill",
            recovered_at - killed_at
        ),
        &json!({ "event": "failover", "leader": successor, "seconds": (recovered_at - killed_at).as_secs_f64() }),
    );

    let during = written.len();
    acknowledged.extend(written);
    for (id, addr) in stage.cluster.members.iter().filter(|(id, _)| **id != leader) {
        check(stage, &acknowledged, &format!("survivor {id}"), *addr).await?;
    }
    stage.claim(
        format_args!(
            "all {} acknowledged keys ({during} of them around the kill) are on both survivors",
            acknowledged.len()
        ),
        &json!({ "event": "survived", "acknowledged": acknowledged.len() }),
    );

    let begun = Instant::now();
    if sabotage != Some(Sabotage::Restart) {
        restart(stage, leader).await?;
    }
    let applied = catch_up(stage, leader).await?;
    check(stage, &acknowledged, &format!("restarted node {leader}"), stage.cluster.members[&leader]).await?;
    stage.claim(
        format_args!(
            "node {leader} restarted from its log, caught up to entry {applied} in {:.2?}, and has every key",
            begun.elapsed()
        ),
        &json!({ "event": "restarted", "node": leader, "applied": applied, "seconds": begun.elapsed().as_secs_f64() }),
    );
    Ok(())
}

/// This process cannot be killed, so it must not lead.
async fn leader_in_a_process(stage: &Stage<'_>) -> Result<NodeId, Failure> {
    let end = Instant::now() + FAILOVER_LIMIT;
    loop {
        let leader = stage.leader().await?;
        if leader != OWN {
            return Ok(leader);
        }
        if Instant::now() > end {
            return Err(broken("leadership can be handed over"));
        }
        let to = stage.processes.first().map_or(OWN, |p| p.id);
        stage.say(
            format_args!("node {OWN} hands leadership to node {to}, which can be killed for real"),
            &json!({ "event": "handover", "to": to }),
        );
        stage.node.transfer_leader(to).await.map_err(Failure::failed)?;
        let patience = Instant::now() + Duration::from_secs(2);
        while stage.leader().await? == OWN && Instant::now() < patience {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn restart(stage: &mut Stage<'_>, id: NodeId) -> Result<(), Failure> {
    let mut process = stage.cluster.start(id)?;
    process.answers(&stage.client).await?;
    if let Some(old) = stage.processes.iter_mut().find(|p| p.id == id) {
        *old = process;
    }
    Ok(())
}

/// Waits until the node has applied everything that is committed now.
async fn catch_up(stage: &Stage<'_>, id: NodeId) -> Result<u64, Failure> {
    let committed = stage.node.consensus_status().and_then(|s| s.committed);
    let end = Instant::now() + CATCH_UP_LIMIT;
    loop {
        match stage.client.status_of(stage.cluster.members[&id]).await {
            Ok(status) if status.applied >= committed => return Ok(status.applied.unwrap_or(0)),
            outcome if Instant::now() > end => {
                let why = outcome.map_or_else(|e| e.message, |s| format!("it has applied {:?}", s.applied));
                return Err(broken(format!("node {id} catches up after its restart: {why}")));
            }
            _ => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// An acknowledged put.
struct Put {
    begun: Instant,
    ended: Instant,
    key: String,
    value: String,
}

/// A stream of puts through one node, and what was acknowledged of it.
struct Puts {
    done: Arc<Mutex<Vec<Put>>>,
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Puts {
    fn begin(node: &OctopiiNode) -> Self {
        let done: Arc<Mutex<Vec<_>>> = Arc::default();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let (node_, done_) = (node.clone(), Arc::clone(&done));
        let task = node.executor().spawn(async move {
            let mut n = 0;
            while !*stopped.borrow() {
                let (key, value) = (format!("stream-{n:06}"), format!("value-{n}"));
                let begun = Instant::now();
                // An error acknowledges nothing: the key may be there or not.
                if put(&node_, &key, &value).await.is_ok() {
                    done_.lock().expect("no panic while held").push(Put {
                        begun,
                        ended: Instant::now(),
                        key,
                        value,
                    });
                }
                n += 1;
            }
        });
        Self { done, stop, task }
    }

    /// When the first put that was begun after `at` was acknowledged.
    async fn acknowledged_after(&self, at: Instant) -> Result<Instant, Failure> {
        let first = |done: &[Put]| done.iter().find(|put| put.begun > at).map(|put| put.ended);
        loop {
            if let Some(when) = first(&self.done.lock().expect("no panic while held")) {
                return Ok(when);
            }
            if at.elapsed() > FAILOVER_LIMIT {
                return Err(broken("puts are acknowledged again within 10 s of the leader's death"));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> Result<Acknowledged, Failure> {
        self.stop.send_replace(true);
        self.task.await.map_err(Failure::failed)?;
        let done = std::mem::take(&mut *self.done.lock().expect("no panic while held"));
        Ok(done.into_iter().map(|put| (put.key, put.value)).collect())
    }
}
