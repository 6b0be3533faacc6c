//! Three separate processes, killed and wiped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use octopii::{Client, OctopiiRuntime, RealVfs};

use crate::{Home, Running, failed, free_addresses, stderr, succeeded, three_free_ports};

struct Cluster {
    home: Home,
    addresses: BTreeMap<u64, SocketAddr>,
    nodes: BTreeMap<u64, Running>,
}

impl Cluster {
    /// Three nodes that take snapshots often.
    fn start() -> Self {
        let home = Home::new();
        std::fs::write(home.path().join("node.toml"), "[raft]\nsnapshot_every = 100\n").unwrap();
        let addresses = (1..).zip(free_addresses(3)).collect();
        let mut cluster = Self { home, addresses, nodes: BTreeMap::new() };
        for id in 1..=3 {
            cluster.start_node(id);
        }
        for node in cluster.nodes.values_mut() {
            assert_eq!(node.line()["event"], "ready");
        }
        cluster
    }

    fn start_node(&mut self, id: u64) {
        let members: Vec<_> = self.addresses.iter().map(|(id, addr)| format!("{id}={addr}")).collect();
        let (id_text, bind, dir) = (id.to_string(), self.addresses[&id].to_string(), format!("node{id}"));
        let mut args =
            vec!["node", "--config", "node.toml", "--id", &id_text, "--bind", &bind, "--data-dir", &dir];
        for member in &members {
            args.extend(["--member", member]);
        }
        self.nodes.insert(id, self.home.start(&args));
    }

    fn node(&self, id: u64) -> String {
        self.addresses[&id].to_string()
    }

    fn all(&self) -> String {
        self.addresses.values().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn status(&self, node: u64) -> serde_json::Value {
        let shown = succeeded(&self.home.run(&["--json", "cluster", "status", "--node", &self.node(node)]));
        let mut lines = shown.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.find(|status| status["node_id"] == node).unwrap()
    }

    fn leader(&self) -> u64 {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            for id in self.nodes.keys() {
                if let Some(leader) = self.status(*id)["leader"].as_u64() {
                    return leader;
                }
            }
        }
        panic!("no leader within 10 s");
    }

    fn client(&self, runtime: &OctopiiRuntime, nodes: Vec<SocketAddr>) -> Client {
        let authority = octopii::local_authority(&RealVfs, &self.home.path().join("state")).unwrap();
        Client::new(runtime, &authority.issue(1 << 40).unwrap(), nodes, Duration::from_secs(10)).unwrap()
    }

    /// Every key has its value when this node is asked.
    fn check(&self, runtime: &OctopiiRuntime, node: u64, expected: &BTreeMap<String, String>) {
        let client = self.client(runtime, vec![self.addresses[&node]]);
        for (key, value) in expected {
            let found = runtime.block_on(client.get(key.as_bytes())).unwrap();
            assert_eq!(found.as_deref(), Some(value.as_bytes()), "{key} at node {node}");
        }
    }
}

/// Puts through the given nodes until told to stop; what was acknowledged is collected.
fn stream_of_puts(
    runtime: &OctopiiRuntime,
    client: Client,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, String>>>,
) -> tokio::task::JoinHandle<()> {
    runtime.spawn(async move {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) {
            let (key, value) = (format!("stream{n:06}"), n.to_string());
            if client.put(key.as_bytes(), value.as_bytes()).await.is_ok() {
                acknowledged.lock().unwrap().insert(key, value);
            }
            n += 1;
        }
    })
}

#[test]
fn every_acknowledged_key_survives_the_leaders_sigkill_and_a_wiped_follower_returns_by_snapshot() {
    let mut cluster = Cluster::start();
    let runtime = OctopiiRuntime::new(2);

    // Through any of the three.
    for id in 1..=3u64 {
        let key = format!("by{id}");
        assert_eq!(
            succeeded(&cluster.home.run(&["kv", "put", &key, "x", "--node", &cluster.node(id)])),
            "ok\n"
        );
    }
    assert_eq!(succeeded(&cluster.home.run(&["kv", "get", "by1", "--node", &cluster.node(3)])), "x\n");
    failed(&cluster.home.run(&["kv", "get", "absent", "--node", &cluster.node(2)]), 5, "no such key: absent");
    failed(&cluster.home.run(&["kv", "del", "absent", "--node", &cluster.node(2)]), 5, "no such key: absent");

    let leader = cluster.leader();
    let survivors: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let puts = stream_of_puts(
        &runtime,
        cluster.client(&runtime, survivors.iter().map(|id| cluster.addresses[id]).collect()),
        Arc::clone(&stop),
        Arc::clone(&acknowledged),
    );
    let progress = |at_least: usize| {
        let end = Instant::now() + Duration::from_secs(30);
        while acknowledged.lock().unwrap().len() < at_least {
            assert!(Instant::now() < end, "puts are no longer acknowledged");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    progress(100);
    cluster.nodes.get_mut(&leader).unwrap().kill();
    let at_kill = acknowledged.lock().unwrap().len();
    progress(at_kill + 100);
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(puts).unwrap();
    let expected = acknowledged.lock().unwrap().clone();
    for id in &survivors {
        cluster.check(&runtime, *id, &expected);
    }

    // The killed node comes back from its disk.
    cluster.start_node(leader);
    cluster.check(&runtime, leader, &expected);

    // A follower that lost its directory may not come back as if nothing had happened ...
    let leader = cluster.leader();
    let wiped = (1..=3).find(|id| *id != leader).unwrap();
    cluster.nodes.get_mut(&wiped).unwrap().kill();
    std::fs::remove_dir_all(cluster.home.path().join(format!("node{wiped}"))).unwrap();
    let (id_text, bind) = (wiped.to_string(), cluster.node(wiped));
    let members: Vec<_> = cluster.addresses.iter().map(|(id, addr)| format!("{id}={addr}")).collect();
    let mut args = vec!["node", "--id", &id_text, "--bind", &bind, "--data-dir", "wiped"];
    members.iter().for_each(|member| args.extend(["--member", member]));
    failed(&cluster.home.run(&args), 1, "under a new id");

    // ... but under a new id: it catches up by snapshot, votes, and the old one is removed.
    let fresh = free_addresses(1)[0].to_string();
    let _fourth = cluster.home.start(&[
        "node",
        "--config",
        "node.toml",
        "--id",
        "4",
        "--bind",
        &fresh,
        "--data-dir",
        "node4",
    ]);
    let all = cluster.all();
    succeeded(&cluster.home.run(&["cluster", "add", "4", &fresh, "--node", &all]));
    succeeded(&cluster.home.run(&["cluster", "promote", "4", "--node", &all]));
    succeeded(&cluster.home.run(&["cluster", "remove", &id_text, "--node", &all]));
    cluster.addresses.remove(&wiped);
    cluster.nodes.remove(&wiped);
    cluster.addresses.insert(4, fresh.parse().unwrap());
    let status = cluster.status(4);
    assert!(status["snapshot"].as_u64().is_some(), "node 4 did not get a snapshot: {status}");
    let voters: Vec<_> =
        status["members"].as_array().unwrap().iter().filter(|m| m["voter"] == true).collect();
    assert_eq!(voters.len(), 3, "{status}");
    cluster.check(&runtime, 4, &expected);
}

#[test]
fn up_keeps_a_cluster_running_until_it_is_asked_to_stop() {
    let home = Home::new();
    let port = three_free_ports();
    let mut up = home
        .command(&["--json", "up", "--dir", "cluster", "--base-port", &port.to_string()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(up.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        serde_json::from_str::<serde_json::Value>(&line).unwrap()
    };
    let pids: Vec<u64> = (0..3).map(|_| line()["pid"].as_u64().unwrap()).collect();
    let node = format!("127.0.0.1:{}", port + 1);
    succeeded(&home.run(&["kv", "put", "greeting", "hello", "--node", &node]));
    // One is killed: the others go on, and the user is told.
    assert!(
        std::process::Command::new("kill").args(["-9", &pids[0].to_string()]).status().unwrap().success()
    );
    assert_eq!(line()["event"], "down");
    assert_eq!(succeeded(&home.run(&["kv", "get", "greeting", "--node", &node])), "hello\n");
    assert!(
        std::process::Command::new("kill").args(["-INT", &up.id().to_string()]).status().unwrap().success()
    );
    assert!(up.wait().unwrap().success());
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} was left behind");
    }
}

/// As where addresses change and only names stay: nothing but a name is typed, kept or shown.
#[test]
fn three_processes_that_know_each_other_by_host_names() {
    let home = Home::new();
    let ports: Vec<u16> = free_addresses(4).iter().map(SocketAddr::port).collect();
    let name = |id: usize| format!("localhost:{}", ports[id - 1]);
    let members: Vec<_> = (1..=3).map(|id| format!("{id}={}", name(id))).collect();
    let start = |id: usize, members: &[String]| {
        let (id_text, bind, dir) =
            (id.to_string(), format!("127.0.0.1:{}", ports[id - 1]), format!("node{id}"));
        let mut args = vec!["node", "--id", &id_text, "--bind", &bind, "--data-dir", &dir];
        members.iter().for_each(|member| args.extend(["--member", member]));
        home.start(&args)
    };
    let mut nodes: Vec<_> = (1..=3).map(|id| start(id, &members)).collect();
    for node in &mut nodes {
        assert_eq!(node.line()["event"], "ready");
    }
    succeeded(&home.run(&["kv", "put", "greeting", "hello", "--node", &name(2)]));
    // A killed one comes back from its disk alone: the names are in the membership.
    nodes[2].kill();
    succeeded(&home.run(&["kv", "put", "greeting", "hello again", "--node", &name(1)]));
    nodes[2] = start(3, &[]);
    assert_eq!(succeeded(&home.run(&["kv", "get", "greeting", "--node", &name(3)])), "hello again\n");
    // One more is added by its name, by way of any of them.
    let fourth = start(4, &[]);
    succeeded(&home.run(&["cluster", "add", "4", &name(4), "--node", &name(3)]));
    assert_eq!(succeeded(&home.run(&["kv", "get", "greeting", "--node", &name(4)])), "hello again\n");
    let shown = succeeded(&home.run(&["--json", "cluster", "status", "--node", &name(1)]));
    let statuses: Vec<serde_json::Value> =
        shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(statuses.len(), 4, "every member is found by its name: {shown}");
    for (id, member) in (1..).zip(statuses[0]["members"].as_array().unwrap()) {
        assert_eq!(member["addr"], name(id));
    }
    drop(fourth);
    // What is no name is said at once.
    for wrong in ["2=node 2:4701", "2=node-2", "2=node-2:0", "2=:4701"] {
        let output = home.run(&["node", "--member", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(stderr(&output).contains("is not an address and a port"), "{}", stderr(&output));
    }
}

/// One that is started before its names are known waits, says which one it is, and does not give up.
#[test]
fn a_member_whose_name_is_not_known_yet_is_waited_for() {
    let home = Home::new();
    let own = free_addresses(1)[0].to_string();
    let mut node = home
        .command(&["--json", "node", "--id", "1", "--bind", &own, "--data-dir", "node1"])
        .args(["--member", &format!("1={own}"), "--member", "2=node-2.invalid:4701"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = std::io::BufReader::new(node.stderr.take().unwrap());
    let mut told = String::new();
    while !told.contains("node-2.invalid:4701 cannot be found") {
        told.clear();
        assert_ne!(std::io::BufRead::read_line(&mut log, &mut told).unwrap(), 0, "the node has ended");
    }
    assert!(told.contains("WARN"), "{told}");
    let status = succeeded(&home.run(&["--json", "cluster", "status", "--node", &own]));
    assert!(status.contains("\"node_id\":1"), "{status}");
    assert!(node.try_wait().unwrap().is_none(), "it goes on");
    node.kill().unwrap();
    node.wait().unwrap();
}
