//! Three nodes of real QUIC, real log and real consensus lose their power, one by one and all at once.
//!
//! Whatever was acknowledged to a client is read back from every node afterwards, and all nodes agree.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use octopii_raft::{
    Consensus, ConsensusOptions, KvCommand, KvQuery, KvResponse, KvStore, RaftConfig, Rejected,
    SnapshotSource, StateMachine,
};
use octopii_sim::{Machine, Options, Outcome, Scenario, Trace, Weather};
use octopii_transfer::{Transfer, TransferOptions};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Identity, NodeId};
use octopii_vfs::{Vfs, create_dir_all_durable, read_file, write_file_durable};
use octopii_wal::{CommitDelay, Committer, WriteAheadLog};

use crate::replay;

const NODES: [&str; 3] = ["node1", "node2", "node3"];
const PORT: u16 = 7000;

/// Keys with their values.
type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

/// What the clients of all nodes have done, and the nodes themselves as far as they are up.
#[derive(Default)]
struct World {
    nodes: RefCell<BTreeMap<String, Consensus>>,
    /// Keys with their values whose writing was acknowledged.
    acknowledged: RefCell<Contents>,
    /// Writes may be going on.
    writing: Cell<bool>,
    /// Nodes whose client has had its last answer.
    idle: Cell<usize>,
    /// Whole contents as each node tells them, when asked.
    contents: RefCell<BTreeMap<String, Contents>>,
}

pub(super) fn run(seed: u64) -> Trace {
    let weather = Weather { loss: 0.01, duplication: 0.01 };
    Scenario::run(seed, Options { weather, ..Options::default() }, |scenario| {
        let world = Rc::new(World::default());
        world.writing.set(true);
        let authority = ClusterAuthority::generate().unwrap();
        for (name, id) in NODES.into_iter().zip(1..) {
            let (identity, world) = (authority.issue(id).unwrap(), Rc::clone(&world));
            scenario.host(name, move |machine| node(machine, identity.clone(), Rc::clone(&world)));
        }
        let mut rng = scenario.rng("faults");
        progress(scenario, &world, 20);

        // The leader loses its power between two calls to its disk, amid a stream of writes.
        let leader = leader(scenario, &world);
        lose_power(scenario, &world, &leader, rng.below(40));
        progress(scenario, &world, 20);
        boot(scenario, &[&leader]);
        progress(scenario, &world, 20);

        // All lose it at once, the moment a write was acknowledged: only what is on disks survives.
        for _ in 0..3 {
            progress(scenario, &world, 1 + rng.below(10) as usize);
            for name in NODES {
                scenario.crash(name);
            }
            world.nodes.borrow_mut().clear();
            scenario.run_for(Duration::from_millis(rng.below(500)));
            boot(scenario, &NODES);
        }
        progress(scenario, &world, 20);

        world.writing.set(false);
        let everyone = || world.contents.borrow().len() == NODES.len();
        scenario.run_until(Duration::from_secs(30), everyone).unwrap();
        check(&world);
        scenario.trace().clone()
    })
}

/// Lets time pass until `more` writes have been acknowledged.
fn progress(scenario: &mut Scenario, world: &World, more: usize) {
    let goal = world.acknowledged.borrow().len() + more;
    let reached = || world.acknowledged.borrow().len() >= goal;
    scenario.run_until(Duration::from_secs(60), reached).expect("writes go on");
}

fn leader(scenario: &mut Scenario, world: &World) -> String {
    let find = || {
        let nodes = world.nodes.borrow();
        nodes.iter().find(|(_, node)| node.is_leader()).map(|(name, _)| name.clone())
    };
    scenario.run_until(Duration::from_secs(30), || find().is_some()).expect("there is a leader");
    find().unwrap()
}

fn lose_power(scenario: &mut Scenario, world: &World, name: &str, calls: u64) {
    scenario.crash_after(name, calls);
    let goes = scenario.run_until_down(name, Duration::from_secs(1));
    goes.expect("a node writes all the time");
    world.nodes.borrow_mut().remove(name);
}

fn boot(scenario: &mut Scenario, names: &[&str]) {
    for name in names {
        scenario.boot(name);
    }
}

fn check(world: &World) {
    let contents = world.contents.borrow();
    let acknowledged = world.acknowledged.borrow();
    assert!(acknowledged.len() >= 80);
    for (name, entries) in contents.iter() {
        for (key, value) in acknowledged.iter() {
            let found = entries.get(key);
            assert_eq!(found, Some(value), "{name} lost {}", String::from_utf8_lossy(key));
        }
    }
    assert!(contents.values().all(|entries| *entries == contents[NODES[0]]), "the nodes disagree");
}

async fn node(machine: Machine, identity: Identity, world: Rc<World>) -> Outcome {
    let vfs = machine.vfs();
    create_dir_all_durable(vfs.as_ref(), Path::new("/data"))?;
    let wal = octopii_wal::Options {
        vfs: machine.vfs(),
        committer: Committer::Caller,
        segment_size: 64 << 10,
        seed: Some(machine.rng("wal").next()),
        commit_delay: Some(commit_delay(&machine)),
        ..octopii_wal::Options::default()
    };
    let endpoint = EndpointOptions {
        socket: Some(machine.bind(PORT).await?),
        rng_seed: Some(machine.rng_seed("quic")),
        ..EndpointOptions::default()
    };
    let endpoint = Endpoint::bind(&machine.executor(), &identity, endpoint)?;
    let options = ConsensusOptions {
        transfer: Transfer::start(&endpoint, machine.vfs(), TransferOptions::default())?,
        endpoint,
        wal: WriteAheadLog::open("/data/wal", wal)?,
        vfs: machine.vfs(),
        state_dir: "/data/state".into(),
        config: RaftConfig::default(),
        state_machine: Box::new(Recorded { machine: machine.clone(), store: KvStore::new() }),
        incarnation: incarnation(&machine, vfs.as_ref())?,
    };
    let consensus = Consensus::start(options).await?;
    world.nodes.borrow_mut().insert(machine.name().to_owned(), consensus.clone());
    let members: BTreeMap<NodeId, SocketAddr> =
        NODES.into_iter().zip(1..).map(|(name, id)| (id, machine.lookup(name, PORT))).collect();
    consensus.bootstrap(members).await?;
    write(&machine, &consensus, &world).await;
    world.idle.set(world.idle.get() + 1);
    while world.idle.get() < NODES.len() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let entries = read_all(&consensus).await?;
    world.contents.borrow_mut().insert(machine.name().to_owned(), entries);
    std::future::pending().await
}

/// Syncs take up to 15 ms: long enough to lose the power between a write and its acknowledgement.
fn commit_delay(machine: &Machine) -> CommitDelay {
    let rng = Mutex::new(machine.rng("disk latency"));
    CommitDelay::new(move || {
        let latency = Duration::from_millis(rng.lock().unwrap().below(16));
        async move { tokio::time::sleep(latency).await }
    })
}

/// The random number that tells this disk from one that was lost.
fn incarnation(machine: &Machine, vfs: &dyn Vfs) -> std::io::Result<u64> {
    let path = Path::new("/data/incarnation");
    let bytes = match read_file(vfs, path, 8) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let fresh = machine.rng("incarnation").next().to_le_bytes();
            write_file_durable(vfs, path, &fresh)?;
            fresh.to_vec()
        }
        Err(e) => return Err(e),
    };
    Ok(u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// A client of this node: writes one key after the other.
async fn write(machine: &Machine, consensus: &Consensus, world: &World) {
    let mut rng = machine.rng("writes");
    let mut number = 0;
    while world.writing.get() {
        let key = format!("{}-{}-{number}", machine.name(), machine.boot()).into_bytes();
        let mut value = vec![0; rng.below(300) as usize];
        rng.fill(&mut value);
        let command = KvCommand::Put { key: key.clone(), value: value.clone() };
        let written = consensus.propose(command.encode()).await;
        // A client on a dead machine hears nothing.
        if written.is_ok() && machine.is_on() {
            machine.record(format_args!("acknowledged {}", String::from_utf8_lossy(&key)), &value);
            world.acknowledged.borrow_mut().insert(key, value);
        }
        number += 1;
        tokio::time::sleep(Duration::from_millis(rng.below(20))).await;
    }
}

async fn read_all(consensus: &Consensus) -> Result<Contents, Box<dyn std::error::Error>> {
    let query = KvQuery::Range { start: Vec::new(), end: None, limit: u32::MAX };
    let reply = loop {
        match consensus.query(&query.encode()).await {
            Ok(reply) => break reply,
            // An election may be going on.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    match KvResponse::decode(&reply)? {
        KvResponse::Entries { entries, more: false } => Ok(entries.into_iter().collect()),
        other => Err(format!("unexpected answer {other:?}").into()),
    }
}

/// Records what is applied.
struct Recorded {
    machine: Machine,
    store: KvStore,
}

impl StateMachine for Recorded {
    fn apply(&mut self, command: &[u8]) -> Result<Bytes, Rejected> {
        self.machine.record(format_args!("apply {} B", command.len()), command);
        self.store.apply(command)
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, Rejected> {
        self.store.query(query)
    }

    fn capture(&self) -> Box<dyn SnapshotSource> {
        self.store.capture()
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> std::io::Result<()> {
        self.machine.record(format_args!("restore"), &[]);
        self.store.restore(snapshot)
    }
}

#[test]
fn cluster_is_deterministic() {
    replay::check_deterministic("cluster", 0..5);
}
