//! One chunk to many receivers, each behind a link of its own: network namespaces joined by a bridge, with a token bucket on
//! both ends of every link. Needs root, `ip` and `tc`.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use octopii_bench::Outcome;
use octopii_bench::report::median;
use octopii_transfer::{ChunkSource, InboxPolicy, SendOptions, Transfer, TransferOptions};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor, Identity};
use octopii_wal::vfs::RealVfs;

use crate::memory;

/// A sender or a receiver, in a process of its own.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Role {
    /// Certificate and key of this node
    #[arg(long, hide = true)]
    identity: Option<PathBuf>,
    /// Address of this node
    #[arg(long, hide = true, default_value = "127.0.0.1:0")]
    bind: SocketAddr,
    /// Receive into this directory until the standard input ends
    #[arg(long, hide = true)]
    receive_in: Option<PathBuf>,
    /// Send this file to these peers
    #[arg(long, hide = true)]
    send_file: Option<PathBuf>,
    #[arg(long, hide = true)]
    peers: Vec<SocketAddr>,
}

impl Role {
    /// Plays the role, if the arguments name one.
    pub(crate) fn play(&self) -> Outcome<bool> {
        let Some(identity) = &self.identity else { return Ok(false) };
        let identity = Identity::from_pem(&std::fs::read_to_string(identity)?)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(async {
            let executor = Executor::new(tokio::runtime::Handle::current());
            let options = EndpointOptions { bind: self.bind, ..EndpointOptions::default() };
            let endpoint = Endpoint::bind(&executor, &identity, options)?;
            let transfer = Transfer::start(&endpoint, RealVfs::shared(), TransferOptions::default())?;
            match (&self.receive_in, &self.send_file) {
                (Some(dir), _) => receive(&transfer, dir).await,
                (None, Some(file)) => self.send(&endpoint, &transfer, file).await,
                (None, None) => Err("neither a sender nor a receiver".into()),
            }
        })?;
        Ok(true)
    }

    async fn send(&self, endpoint: &Endpoint, transfer: &Transfer, file: &Path) -> Outcome<()> {
        let called = Instant::now();
        for &peer in &self.peers {
            endpoint.connect(peer).await?;
        }
        let begun = Instant::now();
        let first = Arc::new(OnceLock::new());
        let seen = Arc::clone(&first);
        let progress: octopii_transfer::ProgressFn = Arc::new(move |progress| {
            if progress.sent > 0 {
                seen.get_or_init(Instant::now);
            }
        });
        let options = SendOptions { progress: Some(progress), ..SendOptions::new("bench") };
        let results =
            transfer.send_to_all(&ChunkSource::File(file.to_owned()), self.peers.clone(), options).await;
        let seconds = begun.elapsed().as_secs_f64();
        let mut uploaded = 0;
        for (&peer, result) in self.peers.iter().zip(results) {
            if let Some(error) = result.error {
                return Err(format!("{peer}: {error}").into());
            }
            uploaded += endpoint.connect(peer).await?.stats().bytes_sent;
        }
        let first = first.get().ok_or("nothing was sent")?.duration_since(called).as_secs_f64();
        println!("{seconds} {uploaded} {first} {}", memory::peak_kib("self")?);
        Ok(())
    }
}

/// What a sender tells.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) seconds: f64,
    /// Bytes of UDP payload.
    pub(crate) uploaded: f64,
    /// Seconds from before connecting until content was handed to the network.
    pub(crate) first_byte: f64,
    /// Resident memory at most.
    pub(crate) peak_kib: u64,
}

impl Sent {
    pub(crate) fn of(output: Output) -> Outcome<Self> {
        let told = String::from_utf8(output.stdout)?;
        let fields: Vec<&str> = told.split_whitespace().collect();
        let [seconds, uploaded, first_byte, peak_kib] = fields[..] else {
            return Err(format!("sending failed: {}", String::from_utf8_lossy(&output.stderr)).into());
        };
        Ok(Self {
            seconds: seconds.parse()?,
            uploaded: uploaded.parse()?,
            first_byte: first_byte.parse()?,
            peak_kib: peak_kib.parse()?,
        })
    }
}

async fn receive(transfer: &Transfer, dir: &Path) -> Outcome<()> {
    let dir = dir.to_owned();
    transfer.receive(
        "bench",
        InboxPolicy::new(dir).on_received(|chunk| {
            if let octopii_transfer::Location::File(path) = chunk.location {
                // What cannot be removed only takes space.
                let _ = std::fs::remove_file(path);
            }
        }),
    );
    println!("ready");
    std::io::stdout().flush()?;
    let closed = || std::io::stdin().read_line(&mut String::new());
    tokio::task::spawn_blocking(closed).await??;
    Ok(())
}

/// Network namespaces `<prefix>-0` to `<prefix>-<n>`, removed when dropped.
struct Links {
    prefix: String,
    made: Vec<String>,
}

impl Links {
    fn make(nodes: usize, mbit: u32) -> Outcome<Self> {
        let prefix = format!("octopii-{}", std::process::id());
        let mut links = Self { prefix, made: Vec::new() };
        let hub = links.namespace("hub")?;
        run(&["ip", "-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        run(&["ip", "-n", &hub, "link", "set", "bridge", "up"])?;
        for i in 0..nodes {
            let node = links.namespace(&i.to_string())?;
            let (port, address) = (format!("port{i}"), format!("{}/16", Self::ip(i)));
            run(&[
                "ip", "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
                &node,
            ])?;
            run(&["ip", "-n", &hub, "link", "set", &port, "master", "bridge", "up"])?;
            run(&["ip", "-n", &node, "address", "add", &address, "dev", "eth0"])?;
            run(&["ip", "-n", &node, "link", "set", "eth0", "up"])?;
            run(&["ip", "-n", &node, "link", "set", "lo", "up"])?;
            let rate = format!("{mbit}mbit");
            for (namespace, device) in [(&hub, port.as_str()), (&node, "eth0")] {
                let limit = ["root", "tbf", "rate", &rate, "burst", "256kb", "latency", "50ms"];
                run(&[&["tc", "-n", namespace, "qdisc", "add", "dev", device][..], &limit].concat())?;
            }
        }
        Ok(links)
    }

    fn namespace(&mut self, name: &str) -> Outcome<String> {
        let name = format!("{}-{name}", self.prefix);
        run(&["ip", "netns", "add", &name])?;
        self.made.push(name.clone());
        Ok(name)
    }

    fn ip(i: usize) -> String {
        format!("10.77.{}.{}", i / 250, i % 250 + 1)
    }

    fn address(i: usize) -> SocketAddr {
        format!("{}:4433", Self::ip(i)).parse().expect("an address")
    }

    fn command(&self, i: usize) -> Outcome<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{i}", self.prefix)]).arg(std::env::current_exe()?);
        command.arg("--bind").arg(Self::address(i).to_string());
        Ok(command)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for name in &self.made {
            if let Err(error) = run(&["ip", "netns", "delete", name]) {
                eprintln!("cannot remove network namespace {name}: {error}");
            }
        }
    }
}

fn run(command: &[&str]) -> Outcome<()> {
    let output = Command::new(command[0]).args(&command[1..]).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{}`: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim()).into())
}

/// A receiving process; ended when dropped.
pub(crate) struct Receiving(Child);

impl Receiving {
    /// Receives into `dir`. `command` is this program with an identity and an address.
    pub(crate) fn start(mut command: Command, dir: &Path) -> Outcome<Self> {
        command.arg("--receive-in").arg(dir);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take();
        let receiving = Self(child);
        let mut line = String::new();
        BufReader::new(out.ok_or("no output")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            return Err("a receiver did not start".into());
        }
        Ok(receiving)
    }

    /// Its resident memory, at most.
    pub(crate) fn peak_kib(&self) -> Outcome<u64> {
        memory::peak_kib(&self.0.id().to_string())
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // Its standard input ends with this.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

pub(crate) fn measure(dir: &Path, rounds: usize, mib: usize, peers: usize, mbit: u32) -> Outcome<()> {
    println!(
        "\n### Transfer: {mib} MiB to {peers} receivers, each behind a link of {mbit} Mbit/s in both directions\n\n\
         | receivers | seconds | of the time for one | uploaded by the sender, of the file |\n|---|---|---|---|"
    );
    let links = Links::make(peers + 1, mbit)?;
    let authority = ClusterAuthority::generate()?;
    let identity = |i: usize| -> Outcome<PathBuf> {
        let path = dir.join(format!("{i}.pem"));
        std::fs::write(&path, authority.issue(i as u64 + 1)?.to_pem())?;
        Ok(path)
    };
    let mut receiving = Vec::new();
    // The links are what is to be measured: in memory where there is a file system for it.
    let tmpfs = Path::new("/dev/shm");
    let inboxes = tempfile::tempdir_in(if tmpfs.is_dir() { tmpfs } else { dir })?;
    for i in 1..=peers {
        let mut command = links.command(i)?;
        command.arg("--identity").arg(identity(i)?);
        receiving.push(Receiving::start(command, &inboxes.path().join(i.to_string()))?);
    }
    let file = dir.join("source.bin");
    let content: Vec<u8> = (0..mib << 20).map(|i| (i ^ (i >> 9)) as u8).collect();
    std::fs::write(&file, &content)?;
    let sender = identity(0)?;
    let send = |to: usize| -> Outcome<(f64, f64)> {
        let mut command = links.command(0)?;
        command.arg("--identity").arg(&sender).arg("--send-file").arg(&file);
        (1..=to).for_each(|i| {
            command.arg("--peers").arg(Links::address(i).to_string());
        });
        let sent = Sent::of(command.output()?)?;
        Ok((sent.seconds, sent.uploaded / (mib << 20) as f64))
    };
    let counts: Vec<usize> = [1, 2, 4, 8, 16].into_iter().filter(|&n| n < peers).chain([peers]).collect();
    let mut taken = vec![Vec::new(); counts.len()];
    for _ in 0..rounds {
        for (at, &to) in counts.iter().enumerate() {
            taken[at].push(send(to)?);
            // Between two that share the links.
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    for (at, to) in counts.iter().enumerate() {
        let mut ratios: Vec<f64> =
            taken[at].iter().zip(&taken[0]).map(|(many, one)| many.0 / one.0).collect();
        let mut seconds: Vec<f64> = taken[at].iter().map(|run| run.0).collect();
        let mut uploads: Vec<f64> = taken[at].iter().map(|run| run.1).collect();
        println!(
            "| {to} | {:.2} | {:.2} | {:.2} |",
            median(&mut seconds),
            median(&mut ratios),
            median(&mut uploads)
        );
    }
    Ok(())
}
