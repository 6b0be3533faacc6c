//! Durable proposals on three nodes, beside the group commit of one log on the same disk.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use octopii::{ClusterAuthority, Config, IdentitySource, KvCommand, KvQuery, OctopiiNode, OctopiiRuntime};
use octopii_bench::Outcome;
use octopii_bench::logs::{Appends, Topics};
use octopii_bench::report::{median, quantile};
use octopii_wal::Durability;

const VALUE: usize = 100;

pub(crate) fn measure(dir: &Path, rounds: usize, time: Duration) -> Outcome<()> {
    println!(
        "\n### Consensus: three nodes in one process, each on its own runtime, 100 B values, every reply durable on a majority\n"
    );
    println!("| clients | log alone, appends/s | proposals/s | ratio | p50 | p99 | linearizable reads/s |");
    println!("|---|---|---|---|---|---|---|");
    for clients in [1, 64, 256] {
        let (mut logs, mut rates, mut reads, mut times) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // The most that a cluster whose disks are one disk could do: the same entries, one log.
        let log_alone = Appends {
            size: VALUE,
            writers: clients,
            topics: Topics::Shared,
            durability: Durability::Synced,
            purge_after: None,
        };
        for _ in 0..rounds {
            logs.push(log_alone.run(dir, time)?.rate);
            let cluster = Cluster::start(dir)?;
            rates.push(cluster.run(clients, time, &mut times, |n| {
                let key = n.to_le_bytes().to_vec();
                Ask::Propose(KvCommand::Put { key, value: vec![7; VALUE] }.encode())
            })?);
            let mut unused = Vec::new();
            reads.push(cluster.run(clients, time, &mut unused, |n| {
                Ask::Query(KvQuery::Get { key: n.to_le_bytes().to_vec() }.encode())
            })?);
            cluster.stop();
        }
        let (log, rate) = (median(&mut logs), median(&mut rates));
        println!(
            "| {clients} | {log:.0} | {rate:.0} | {:.2} | {:.2?} | {:.2?} | {:.0} |",
            rate / log,
            quantile(&mut times, 0.5),
            quantile(&mut times, 0.99),
            median(&mut reads)
        );
    }
    Ok(())
}

enum Ask {
    Propose(Bytes),
    Query(Bytes),
}

struct Cluster {
    _home: tempfile::TempDir,
    nodes: Vec<(OctopiiRuntime, OctopiiNode)>,
    clients: OctopiiRuntime,
}

impl Cluster {
    fn start(dir: &Path) -> Outcome<Self> {
        let home = tempfile::tempdir_in(dir)?;
        let authority = ClusterAuthority::generate()?;
        let sockets = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let addresses = sockets.iter().map(UdpSocket::local_addr).collect::<Result<Vec<_>, _>>()?;
        drop(sockets);
        let members: BTreeMap<u64, _> = (1..).zip(addresses).collect();
        let mut nodes = Vec::new();
        for (id, bind) in &members {
            let config = Config {
                bind: *bind,
                members: members.iter().map(|(id, addr)| (*id, (*addr).into())).collect(),
                identity: IdentitySource::Given(authority.issue(*id)?),
                ..Config::new(home.path().join(id.to_string()))
            };
            let runtime = OctopiiRuntime::try_new(1)?;
            let node = runtime.block_on(OctopiiNode::start(config, &runtime))?;
            nodes.push((runtime, node));
        }
        let clients = OctopiiRuntime::try_new(1)?;
        let leader = clients.block_on(nodes[0].1.wait_for_leader(Duration::from_secs(20)));
        leader.ok_or("no leader within 20 s")?;
        Ok(Self { _home: home, nodes, clients })
    }

    /// `clients` tasks that ask again and again, spread over the nodes; gives answers per second.
    fn run(
        &self,
        clients: usize,
        time: Duration,
        times: &mut Vec<Duration>,
        ask: impl Fn(u64) -> Ask + Copy + Send + 'static,
    ) -> Outcome<f64> {
        let begun = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|client| {
                let node = self.nodes[client % self.nodes.len()].1.clone();
                self.clients.spawn(async move {
                    let (mut taken, mut n) = (Vec::new(), client as u64);
                    while begun.elapsed() < time {
                        let at = Instant::now();
                        match ask(n) {
                            Ask::Propose(command) => drop(node.propose(command).await?),
                            Ask::Query(query) => drop(node.query(&query).await?),
                        }
                        taken.push(at.elapsed());
                        n += clients as u64;
                    }
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(taken)
                })
            })
            .collect();
        let mut answers = 0;
        for task in tasks {
            let taken = self.clients.block_on(task)??;
            answers += taken.len();
            times.extend(taken);
        }
        Ok(answers as f64 / begun.elapsed().as_secs_f64())
    }

    fn stop(self) {
        for (runtime, node) in self.nodes {
            runtime.block_on(node.shutdown());
        }
    }
}
