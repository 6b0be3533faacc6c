//! What calls and consensus notice of a transfer between the same two nodes that takes all it can get.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use octopii::{
    ChunkSource, ClusterAuthority, Config, Context, IdentitySource, InboxPolicy, Limits, Location,
    OctopiiNode, OctopiiRuntime, Router, SendOptions,
};
use octopii_bench::Outcome;
use octopii_bench::report::{median, quantile};
use sha2::{Digest as _, Sha256};

/// Between two calls: they measure what the transfer does to them, not what they do to themselves.
const PAUSE: Duration = Duration::from_millis(1);
const DEADLINE: Duration = Duration::from_secs(10);

/// What else is going on.
#[derive(Debug, Clone, Copy)]
enum Beside {
    Nothing,
    /// Both cores are busy, as they are with a transfer, but nothing is sent.
    Hashing,
    /// A file goes from the leader to the follower, again and again.
    Sending,
    /// From the follower to the leader.
    Receiving,
    /// As `Sending`, limited to so many MB per second.
    Limited(u64),
}

impl Beside {
    const ALL: [(Self, &str); 5] = [
        (Self::Nothing, "nothing"),
        (Self::Hashing, "two threads that hash, no transfer"),
        (Self::Sending, "a file from the caller"),
        (Self::Receiving, "a file to the caller"),
        (Self::Limited(100), "a file from the caller, 100 MB/s"),
    ];
}

/// Round trips of one kind.
type Times = Vec<Duration>;

/// Round trips of every kind, and MiB per second of the transfers.
#[derive(Debug, Default)]
struct Taken {
    calls: Times,
    heartbeats: Times,
    rates: Vec<f64>,
}

pub(crate) fn measure(
    dir: &Path,
    rounds: usize,
    mib: usize,
    time: Duration,
    window: Option<u32>,
) -> Outcome<()> {
    println!(
        "\n### Beside a transfer: two nodes in one process, a thread each, one connection; a call of 64 B and a round of\n\
         heartbeats (a linearizable read on the leader of two voters) every ms, while a file of {mib} MiB goes from disk to disk\n"
    );
    println!(
        "| meanwhile | calls: p50, p99, longest | heartbeats: p50, p99, longest | p99 of idle | MiB/s |"
    );
    println!("|---|---|---|---|---|");
    let pair = Pair::start(dir, mib, window)?;
    let mut taken: Vec<Taken> = Beside::ALL.iter().map(|_| Taken::default()).collect();
    let term = pair.term();
    for round in 0..=rounds {
        for ((beside, _), taken) in Beside::ALL.into_iter().zip(&mut taken) {
            let one = pair.sample(beside, time)?;
            // The first round warms up.
            if round > 0 {
                taken.calls.extend(one.calls);
                taken.heartbeats.extend(one.heartbeats);
                taken.rates.extend(one.rates);
            }
        }
    }
    let idle = [quantile(&mut taken[0].calls, 0.99), quantile(&mut taken[0].heartbeats, 0.99)];
    for ((_, name), taken) in Beside::ALL.into_iter().zip(&mut taken) {
        let of = |times: &mut Times, idle: Duration| quantile(times, 0.99).as_secs_f64() / idle.as_secs_f64();
        let ratios = [of(&mut taken.calls, idle[0]), of(&mut taken.heartbeats, idle[1])];
        let rate = match &mut taken.rates[..] {
            [] => "–".to_owned(),
            rates => format!("{:.0}", median(rates)),
        };
        println!(
            "| {name} | {} | {} | {:.1}, {:.1} | {rate} |",
            tell(&mut taken.calls),
            tell(&mut taken.heartbeats),
            ratios[0],
            ratios[1],
        );
    }
    let elections = pair.term() - term;
    println!("\nElections meanwhile: {elections}.");
    pair.stop();
    Ok(())
}

fn tell(times: &mut Times) -> String {
    let at = |times: &mut Times, q| format!("{:.2} ms", quantile(times, q).as_secs_f64() * 1e3);
    format!("{}, {}, {}", at(times, 0.5), at(times, 0.99), at(times, 1.0))
}

/// Two nodes that are a group of two voters. Every round of heartbeats needs both.
struct Pair {
    _home: tempfile::TempDir,
    /// The leader first.
    nodes: Vec<(OctopiiRuntime, OctopiiNode)>,
    file: PathBuf,
    mib: usize,
    clients: OctopiiRuntime,
}

impl Pair {
    fn start(dir: &Path, mib: usize, window: Option<u32>) -> Outcome<Self> {
        let home = tempfile::tempdir_in(dir)?;
        let authority = ClusterAuthority::generate()?;
        let sockets = (0..2).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let addresses = sockets.iter().map(UdpSocket::local_addr).collect::<Result<Vec<_>, _>>()?;
        drop(sockets);
        let members: BTreeMap<u64, _> = (1..).zip(addresses).collect();
        let mut nodes = Vec::new();
        for (id, bind) in &members {
            let mut limits = Limits::default();
            if let Some(kib) = window {
                limits.stream_window = kib << 10;
            }
            let config = Config {
                bind: *bind,
                limits,
                members: members.iter().map(|(id, addr)| (*id, (*addr).into())).collect(),
                identity: IdentitySource::Given(authority.issue(*id)?),
                ..Config::new(home.path().join(id.to_string()))
            };
            let runtime = OctopiiRuntime::try_new(1)?;
            let mut router = Router::new();
            router.register("echo", |_: Context, body: Vec<u8>| async move { Ok(body) });
            let inbox = InboxPolicy::new(home.path().join(format!("in{id}"))).on_received(|chunk| {
                if let Location::File(path) = chunk.location {
                    // What cannot be removed only takes space.
                    let _ = std::fs::remove_file(path);
                }
            });
            let starting =
                OctopiiNode::builder(config).router(router).receive("bench", inbox).start(&runtime);
            let node = runtime.block_on(starting)?;
            nodes.push((runtime, node));
        }
        let clients = OctopiiRuntime::try_new(1)?;
        let leader = clients.block_on(nodes[0].1.wait_for_leader(Duration::from_secs(20)));
        if leader.ok_or("no leader within 20 s")?.0 != nodes[0].1.node_id() {
            nodes.swap(0, 1);
        }
        let file = home.path().join("source.bin");
        std::fs::write(&file, (0..mib << 20).map(|i| (i ^ (i >> 9)) as u8).collect::<Vec<_>>())?;
        Ok(Self { _home: home, nodes, file, mib, clients })
    }

    fn term(&self) -> u64 {
        self.nodes[0].1.consensus_status().map_or(0, |status| status.term)
    }

    /// Measures for `time` while `beside` goes on.
    fn sample(&self, beside: Beside, time: Duration) -> Outcome<Taken> {
        let over = Arc::new(AtomicBool::new(false));
        let hashed = Arc::new(AtomicU64::new(0));
        let busy: Vec<_> = (0..if matches!(beside, Beside::Hashing) { 2 } else { 0 })
            .map(|_| {
                let (over, hashed) = (Arc::clone(&over), Arc::clone(&hashed));
                std::thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        hashed.fetch_add(u64::from(Sha256::digest(vec![7; 1 << 20])[0]), Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let [leader, follower] = [&self.nodes[0].1, &self.nodes[1].1];
        let transfer = match beside {
            Beside::Nothing | Beside::Hashing => None,
            Beside::Sending => Some((leader, follower, None)),
            Beside::Receiving => Some((follower, leader, None)),
            Beside::Limited(mb) => Some((leader, follower, std::num::NonZeroU64::new(mb * 1_000_000))),
        };
        let transferring = transfer.map(|(from, to, rate_limit)| {
            let (from, to, file, over) =
                (from.clone(), to.local_addr(), self.file.clone(), Arc::clone(&over));
            let mib = self.mib;
            self.clients.spawn(async move {
                let mut rates = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let options = SendOptions { rate_limit, ..SendOptions::new("bench") };
                    from.transfer().send(to, &ChunkSource::File(file.clone()), options).await?;
                    rates.push(mib as f64 / begun.elapsed().as_secs_f64());
                }
                Ok::<_, octopii::TransferError>(rates)
            })
        });
        let (calling, asking) = (leader.clone(), leader.clone());
        let (to, begun) = (follower.local_addr(), Instant::now() + Duration::from_millis(100));
        let calls = self.clients.spawn(async move {
            let (mut taken, body) = (Vec::new(), vec![7_u8; 64]);
            tokio::time::sleep_until(begun.into()).await;
            while begun.elapsed() < time {
                let at = Instant::now();
                let _: Vec<u8> = calling.peer(to).call("echo", &body, DEADLINE).await?;
                taken.push(at.elapsed());
                tokio::time::sleep(PAUSE).await;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(taken)
        });
        let heartbeats = self.clients.spawn(async move {
            let mut taken = Vec::new();
            tokio::time::sleep_until(begun.into()).await;
            while begun.elapsed() < time {
                let at = Instant::now();
                asking.query(&octopii::KvQuery::Get { key: b"none".to_vec() }.encode()).await?;
                taken.push(at.elapsed());
                tokio::time::sleep(PAUSE).await;
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(taken)
        });
        let calls = self.clients.block_on(calls)?;
        let heartbeats = self.clients.block_on(heartbeats)?;
        over.store(true, Ordering::Relaxed);
        for thread in busy {
            thread.join().map_err(|_| "a hashing thread panicked")?;
        }
        let rates = match transferring {
            Some(task) => self.clients.block_on(task)??,
            None => Vec::new(),
        };
        Ok(Taken { calls: calls?, heartbeats: heartbeats?, rates })
    }

    fn stop(self) {
        for (runtime, node) in self.nodes {
            runtime.block_on(node.shutdown());
        }
    }
}
