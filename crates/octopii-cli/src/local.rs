//! Nodes on this machine, each a process of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use octopii::{Client, NodeId};
use tokio::time::{Instant, sleep};

use crate::exit::Failure;

/// A node in a process of its own, started from this very program. It ends with its handle, and by itself when this
/// process ends in any way.
pub(crate) struct NodeProcess {
    pub(crate) id: NodeId,
    pub(crate) addr: SocketAddr,
    pub(crate) data_dir: PathBuf,
    process: Child,
    log: PathBuf,
    // Where this process' lines begin in the log.
    log_start: u64,
}

/// What every node of a local cluster is told.
pub(crate) struct LocalCluster {
    pub(crate) dir: PathBuf,
    pub(crate) members: BTreeMap<NodeId, SocketAddr>,
    /// The nodes' own authority, instead of the user's.
    pub(crate) authority_dir: Option<PathBuf>,
}

/// A node answers within this after its start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

impl LocalCluster {
    pub(crate) fn data_dir(&self, id: NodeId) -> PathBuf {
        self.dir.join(format!("node{id}"))
    }

    /// The command that starts a node, as a person would type it.
    pub(crate) fn command_line(&self, id: NodeId) -> String {
        let dir = quoted(&self.data_dir(id).to_string_lossy());
        let mut line = format!("octopii node --id {id} --data-dir {dir}");
        if let Some(addr) = self.members.get(&id) {
            line.push_str(&format!(" --bind {addr}"));
        }
        for (id, addr) in &self.members {
            line.push_str(&format!(" --member {id}={addr}"));
        }
        line
    }

    /// Starts a member's process. It is not yet ready when this returns; see [`NodeProcess::answers`].
    pub(crate) fn start(&self, id: NodeId) -> Result<NodeProcess, Failure> {
        let addr = *self.members.get(&id).expect("only members are started");
        let failed = |e: std::io::Error| Failure::failed(format!("cannot start node {id}: {e}"));
        let program = std::env::current_exe().map_err(failed)?;
        let log = self.dir.join(format!("node{id}.log"));
        let out = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let log_start = out.metadata().map_err(failed)?.len();
        let mut command = Command::new(program);
        command.args(["node", "--until-eof", "--id", &id.to_string(), "--bind", &addr.to_string()]);
        command.arg("--data-dir").arg(self.data_dir(id));
        if let Some(dir) = &self.authority_dir {
            command.arg("--authority-dir").arg(dir);
        }
        for (id, addr) in &self.members {
            command.arg("--member").arg(format!("{id}={addr}"));
        }
        let process = command
            .stdin(Stdio::piped())
            .stdout(out.try_clone().map_err(failed)?)
            .stderr(out)
            .spawn()
            .map_err(failed)?;
        Ok(NodeProcess { id, addr, data_dir: self.data_dir(id), process, log, log_start })
    }
}

impl NodeProcess {
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until the node answers, or tells why it does not.
    pub(crate) async fn answers(&mut self, client: &Client) -> Result<(), Failure> {
        let end = Instant::now() + START_TIMEOUT;
        loop {
            if self.has_ended() {
                let said = self.said();
                let why = said.lines().next_back();
                let why = why.map_or_else(|| format!("see {}", self.log.display()), str::to_owned);
                return Err(Failure::failed(format!("node {} ended: {why}", self.id)));
            }
            // Another program's node may answer at its address until it has the port.
            if !self.said().contains(" listens on ") && Instant::now() < end {
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            match client.status_of(self.addr).await {
                Ok(_) => return Ok(()),
                Err(status) if Instant::now() > end => {
                    return Err(Failure::failed(format!(
                        "node {} does not answer: {}",
                        self.id, status.message
                    )));
                }
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// What the process has printed so far.
    fn said(&self) -> String {
        let mut bytes = Vec::new();
        // Without a log there is nothing to quote.
        let _ = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.log_start))?;
            file.read_to_end(&mut bytes)
        });
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.process.try_wait(), Ok(None))
    }

    /// SIGKILL: no warning, no last write.
    pub(crate) fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Asks the node to end in order, by the end of its input.
    pub(crate) fn ask_to_stop(&mut self) {
        drop(self.process.stdin.take());
    }

    /// Asks the node to end in order, and sees to it that it has.
    pub(crate) async fn stop(&mut self, limit: Duration) {
        self.ask_to_stop();
        let end = Instant::now() + limit;
        while !self.has_ended() && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
        self.kill();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Free UDP ports on loopback, held together for a moment so that they differ.
pub(crate) fn free_addresses(n: usize) -> Result<Vec<SocketAddr>, Failure> {
    let sockets: Result<Vec<_>, _> = (0..n).map(|_| UdpSocket::bind("127.0.0.1:0")).collect();
    sockets
        .and_then(|sockets| sockets.iter().map(UdpSocket::local_addr).collect())
        .map_err(|e| Failure::failed(format!("no free port on 127.0.0.1: {e}")))
}

/// As a shell reads it back.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_path_can_be_pasted_into_a_shell() {
        assert_eq!(quoted("octopii-cluster/node1"), "octopii-cluster/node1");
        assert_eq!(quoted("my dir/it's $HOME"), r"'my dir/it'\''s $HOME'");
    }
}
