//! Senders and receivers in processes of their own.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use octopii_bench::Outcome;
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

/// Two nodes on loopback: one receives in a process that is there, the other is a process for each file.
pub(crate) struct Pair {
    receiver: Receiving,
    sender: PathBuf,
    address: SocketAddr,
}

impl Pair {
    /// Keeps its identities in `dir` and receives into the directory `inbox` in it.
    pub(crate) fn start(dir: &Path) -> Outcome<Self> {
        let authority = ClusterAuthority::generate()?;
        let [sender, receiver] = [dir.join("1.pem"), dir.join("2.pem")];
        for (path, id) in [&sender, &receiver].into_iter().zip(1..) {
            std::fs::write(path, authority.issue(id)?.to_pem())?;
        }
        let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--identity").arg(&receiver).arg("--bind").arg(address.to_string());
        let receiver = Receiving::start(command, &dir.join("inbox"))?;
        Ok(Self { receiver, sender, address })
    }

    /// Durable at the receiver when this returns.
    pub(crate) fn send(&self, file: &Path) -> Outcome<Sent> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--identity").arg(&self.sender).arg("--send-file").arg(file);
        command.arg("--peers").arg(self.address.to_string());
        Sent::of(command.output()?)
    }

    /// The receiver's resident memory, at most.
    pub(crate) fn receiver_peak_kib(&self) -> Outcome<u64> {
        self.receiver.peak_kib()
    }
}
