//! One file as a person would send it, beside the tools that they would use otherwise: each a process from its start to its
//! end, with its server running already, and the file synced at the receiver.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use octopii_bench::report::{Subject, in_turn, median, ratios};
use octopii_bench::{Outcome, raw_file};

use crate::process::Pair;

pub(crate) fn measure(dir: &Path, rounds: usize, mib: usize) -> Outcome<()> {
    println!(
        "\n### {mib} MiB, disk to disk on one machine, whole processes, durable\n\n\
         | tool | seconds | octopii's seconds | times as fast | lowest to highest |\n|---|---|---|---|---|"
    );
    let dir = dir.canonicalize()?;
    let file = dir.join("whole.bin");
    raw_file::whole(&file, mib << 20)?;
    let pair = Pair::start(&dir)?;
    let mut others = Vec::new();
    let rsync = Rsync::start(&dir);
    match &rsync {
        Ok(rsync) => others.push(("rsync daemon, plaintext, --fsync", rsync.command(&file))),
        Err(error) => println!("| rsync daemon: skipped, {error} | | | | |"),
    }
    let ssh = Ssh::start(&dir);
    match &ssh {
        Ok(ssh) => {
            others.push(("rsync over ssh, --fsync", ssh.rsync(&file, &dir)));
            others.push(("scp, then a sync", ssh.scp(&file, &dir)));
        }
        Err(error) => println!("| ssh: skipped, {error} | | | | |"),
    }
    let arrived = dir.join("there").join("whole.bin");
    std::fs::create_dir_all(dir.join("there"))?;
    let mut names = Vec::new();
    let mut subjects: Vec<Subject<'_, f64>> = vec![Box::new(|| {
        let begun = Instant::now();
        pair.send(&file)?;
        Ok(begun.elapsed().as_secs_f64())
    })];
    for (name, mut command) in others {
        names.push(name);
        let arrived = &arrived;
        subjects.push(Box::new(move || {
            let begun = Instant::now();
            let output = command.output()?;
            if !output.status.success() {
                return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
            }
            // Costs nothing where the tool has done it.
            std::fs::File::open(arrived)?.sync_all()?;
            let seconds = begun.elapsed().as_secs_f64();
            std::fs::remove_file(arrived)?;
            Ok(seconds)
        }));
    }
    let mut taken = in_turn(rounds, &mut subjects)?;
    for (name, other) in names.iter().zip(1..) {
        let mut ratios = ratios(&taken[other], &taken[0]);
        let (theirs, ours) = (median(&mut taken[other]), median(&mut taken[0].clone()));
        println!(
            "| {name} | {theirs:.2} | {ours:.2} | {:.2} | {:.2} to {:.2} |",
            median(&mut ratios),
            ratios[0],
            ratios[ratios.len() - 1]
        );
    }
    Ok(())
}

/// A server that is ended when dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts `command` for a free port and waits until somebody listens on that.
    fn start(command: impl FnOnce(u16) -> Outcome<Command>) -> Outcome<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = command(port)?.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut server = Self { child, port };
        for _ in 0..100 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("the server ended with {status}").into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err("the server does not listen".into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already, or reaped below.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Rsync(Server);

impl Rsync {
    fn start(dir: &Path) -> Outcome<Self> {
        let config = dir.join("rsyncd.conf");
        let there = dir.join("there");
        std::fs::create_dir_all(&there)?;
        // Started by root it would store as nobody.
        let user = if is_root()? { "uid = root\ngid = root\n" } else { "" };
        let text = format!("{user}use chroot = no\n[there]\npath = {}\nread only = no\n", there.display());
        std::fs::write(&config, text)?;
        let server = Server::start(|port| {
            let mut command = Command::new("rsync");
            command.args(["--daemon", "--no-detach", "--address=127.0.0.1"]);
            command.arg(format!("--port={port}")).arg(format!("--config={}", config.display()));
            Ok(command)
        })?;
        Ok(Self(server))
    }

    fn command(&self, file: &Path) -> Command {
        let mut command = Command::new("rsync");
        command.args(["-a", "--fsync"]).arg(file).arg(format!("rsync://127.0.0.1:{}/there/", self.0.port));
        command
    }
}

fn is_root() -> Outcome<bool> {
    Ok(Command::new("id").arg("-u").output()?.stdout == b"0\n")
}

/// A server with a key of its own that lets in a key of its own, with the cipher that is fastest on processors with AES.
struct Ssh {
    server: Server,
    options: Vec<String>,
}

impl Ssh {
    fn start(dir: &Path) -> Outcome<Self> {
        for name in ["host", "user"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(name));
            if !command.status()?.success() {
                return Err("ssh-keygen failed".into());
            }
        }
        let config = dir.join("sshd.conf");
        let server = Server::start(|port| {
            let text = format!(
                "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nStrictModes no\n\
                 UsePAM no\nPidFile none\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n",
                dir.display()
            );
            std::fs::write(&config, text)?;
            // It wants to be called by its whole path.
            let mut command = Command::new("/usr/sbin/sshd");
            command.arg("-D").arg("-e").arg("-f").arg(&config).stderr(Stdio::null());
            Ok(command)
        })?;
        let key = dir.join("user").display().to_string();
        let options = ["-F", "none", "-i", &key, "-c", "aes128-gcm@openssh.com"]
            .into_iter()
            .chain([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "BatchMode=yes",
            ])
            .map(str::to_owned)
            .collect();
        Ok(Self { server, options })
    }

    fn rsync(&self, file: &Path, dir: &Path) -> Command {
        let mut command = Command::new("rsync");
        command.args(["-a", "--fsync", "-e"]);
        command.arg(format!("ssh -p {} {}", self.server.port, self.options.join(" ")));
        command.arg(file).arg(format!("127.0.0.1:{}/there/", dir.display()));
        command
    }

    fn scp(&self, file: &Path, dir: &Path) -> Command {
        let mut command = Command::new("scp");
        command.args(&self.options).arg("-q").arg("-P").arg(self.server.port.to_string());
        command.arg(file).arg(format!("127.0.0.1:{}/there/", dir.display()));
        command
    }
}
