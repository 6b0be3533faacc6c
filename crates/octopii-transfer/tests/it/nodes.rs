//! Nodes of one cluster in this process, each with a transfer service and a directory.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use octopii_transfer::{
    Destination, InboxPolicy, Offer, ReceivePolicy, ReceivedChunk, Refusal, Transfer, TransferError,
    TransferOptions,
};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor, PeerRole};
use octopii_vfs::{RealVfs, Vfs};

pub(crate) const BLOCK: usize = 1 << 20;

pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) transfer: Transfer,
    pub(crate) dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new(id: u64) -> Self {
        Self::with(id, RealVfs::shared(), quick())
    }

    pub(crate) fn with(id: u64, vfs: Arc<dyn Vfs>, options: TransferOptions) -> Self {
        Self::on(endpoint(id), vfs, options)
    }

    pub(crate) fn on(endpoint: Endpoint, vfs: Arc<dyn Vfs>, options: TransferOptions) -> Self {
        let transfer = Transfer::start(&endpoint, vfs, options).unwrap();
        Self { endpoint, transfer, dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn addr(&self) -> std::net::SocketAddr {
        self.endpoint.local_addr()
    }

    pub(crate) fn inbox(&self) -> PathBuf {
        self.dir.path().join("inbox")
    }

    /// Receives files of purpose "file" into the inbox; what arrives is sent to the returned channel.
    pub(crate) fn open_inbox(&self) -> Receiver<ReceivedChunk> {
        let (tx, rx) = channel();
        self.transfer.receive(
            "file",
            InboxPolicy::new(self.inbox()).on_received(move |chunk| {
                let _ = tx.send(chunk);
            }),
        );
        rx
    }

    /// Receives chunks of `purpose` where `destination` says; reports arrivals and failures.
    pub(crate) fn receive_into(&self, purpose: &str, destination: Destination) -> Receiver<Event> {
        let (tx, rx) = channel();
        self.transfer.receive(purpose, Fixed { destination, events: tx });
        rx
    }

    pub(crate) fn source(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        octopii_vfs::write_file_durable(&RealVfs, &path, content).unwrap();
        path
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Received(ReceivedChunk),
    Failed(TransferError),
}

impl Event {
    pub(crate) fn received(self) -> ReceivedChunk {
        match self {
            Self::Received(chunk) => chunk,
            Self::Failed(e) => panic!("not received: {e}"),
        }
    }

    pub(crate) fn failed(self) -> TransferError {
        match self {
            Self::Failed(e) => e,
            Self::Received(chunk) => panic!("received {} bytes", chunk.size),
        }
    }
}

struct Fixed {
    destination: Destination,
    events: std::sync::mpsc::Sender<Event>,
}

impl ReceivePolicy for Fixed {
    fn accept(&self, _: &Offer) -> Result<Destination, Refusal> {
        Ok(self.destination.clone())
    }

    fn received(&self, received: ReceivedChunk) {
        let _ = self.events.send(Event::Received(received));
    }

    fn failed(&self, _: &Offer, error: &TransferError) {
        let _ = self.events.send(Event::Failed(error.clone()));
    }
}

/// Options for a small disk and a busy machine.
pub(crate) fn quick() -> TransferOptions {
    TransferOptions { leave_free: 0, ..TransferOptions::default() }
}

/// Options that let a test wait for a stall.
pub(crate) fn impatient() -> TransferOptions {
    TransferOptions { idle_timeout: Duration::from_millis(800), ..quick() }
}

pub(crate) fn endpoint(id: u64) -> Endpoint {
    endpoint_on(id, &Executor::new(tokio::runtime::Handle::current()))
}

pub(crate) fn endpoint_on(id: u64, executor: &Executor) -> Endpoint {
    bind(id, PeerRole::Member, executor, EndpointOptions::default())
}

pub(crate) fn endpoint_with(id: u64, options: EndpointOptions) -> Endpoint {
    bind(id, PeerRole::Member, &Executor::new(tokio::runtime::Handle::current()), options)
}

pub(crate) fn operators_endpoint(id: u64) -> Endpoint {
    let executor = Executor::new(tokio::runtime::Handle::current());
    bind(id, PeerRole::Operator, &executor, EndpointOptions::default())
}

fn bind(id: u64, role: PeerRole, executor: &Executor, options: EndpointOptions) -> Endpoint {
    static AUTHORITY: OnceLock<ClusterAuthority> = OnceLock::new();
    let identity =
        AUTHORITY.get_or_init(|| ClusterAuthority::generate().unwrap()).issue_as(id, role).unwrap();
    Endpoint::bind(executor, &identity, options).unwrap()
}

/// Content that repeats at no block boundary.
pub(crate) fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ len as u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Every name in a directory, hidden ones too; empty if there is no directory.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = RealVfs.read_dir(dir).unwrap_or_default();
    entries.into_iter().map(|e| e.name.into_string().unwrap()).collect()
}

pub(crate) fn read(path: &Path) -> Vec<u8> {
    octopii_vfs::read_file(&RealVfs, path, 1 << 30).unwrap()
}

/// Waits for what a peer does in its own time.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen within 15 s");
}
