//! One chunk to many receivers, each behind a link of its own: network namespaces joined by a bridge, with a token bucket on
//! both ends of every link. Needs root, `ip` and `tc`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use octopii_bench::Outcome;
use octopii_bench::report::median;
use octopii_transport::ClusterAuthority;

use crate::process::{Receiving, Sent};

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
