//! Fetching content from another receiver.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use octopii_transport::{NodeId, StreamError, StreamKind};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::activity::Activity;
use crate::link::Inlet;
use crate::reading::{Body, read_offset, read_sparse};
use crate::shared::{AbortOnDrop, Shared};
use crate::wire::relay::{self, RelayKey};
use crate::wire::{self, DATA_PREFIX, Tag};
use crate::{FailureCode, TransferError};

/// Blocks between the network and those who check them.
const QUEUE: usize = 2;

/// A relay that cannot be reached within this is another's turn.
const CONNECT: Duration = Duration::from_secs(5);

/// A block from a relay: nothing of it has been checked.
#[derive(Debug)]
pub(crate) struct Fed {
    pub(crate) offset: u64,
    pub(crate) parts: Vec<Bytes>,
    pub(crate) len: usize,
}

/// A stream of blocks from a relay. Dropping it ends the stream.
#[derive(Debug)]
pub(crate) struct Feed {
    blocks: mpsc::Receiver<Result<Fed, FailureCode>>,
    _fetching: AbortOnDrop<()>,
}

/// What to fetch, and from whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) node: NodeId,
    pub(crate) addr: SocketAddr,
    pub(crate) key: RelayKey,
    pub(crate) from: u64,
    pub(crate) block_size: u32,
}

impl Feed {
    pub(crate) fn open(shared: &Arc<Shared>, wanted: Wanted, activity: &Arc<Activity>) -> Self {
        let (tx, blocks) = mpsc::channel(QUEUE);
        let (service, activity) = (Arc::clone(shared), Arc::clone(activity));
        let fetching = async move {
            if let Err(error) = fetch(&service, wanted, &tx, &activity).await {
                tracing::debug!(relay = %wanted.addr, "fetching from another receiver failed: {error}");
                // An error means that nobody wants to know any more.
                let _ = tx.send(Err(error.to_peer().code)).await;
            }
        };
        Self { blocks, _fetching: AbortOnDrop(shared.executor.spawn(fetching)) }
    }

    /// The next block; `None` at the end, the reason if the relay can give no more. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Result<Fed, FailureCode>> {
        self.blocks.recv().await
    }
}

async fn fetch(
    shared: &Arc<Shared>,
    wanted: Wanted,
    blocks: &mpsc::Sender<Result<Fed, FailureCode>>,
    activity: &Activity,
) -> Result<(), TransferError> {
    let opening = async {
        let connection = shared.endpoint.connect_to(wanted.node, wanted.addr).await?;
        let (mut send, recv) = connection.open(StreamKind::Transfer).await?;
        let question = [&[wire::VERSION][..], &relay::fetch(wanted.key, wanted.from)].concat();
        send.write_all(&question).await?;
        send.finish()?;
        Ok::<_, TransferError>((send, recv))
    };
    let (_send, recv) =
        timeout(CONNECT, opening).await.unwrap_or(Err(TransferError::Stalled { idle: CONNECT }))?;
    let mut recv = Inlet::new(recv);
    let mut offset = wanted.from;
    loop {
        let header = match recv.header().await {
            Ok(header) => header,
            Err(TransferError::Lost(StreamError::UnexpectedEnd)) => return Ok(()),
            Err(error) => return Err(error),
        };
        match header.tag {
            Tag::Content | Tag::SparseContent => {
                let rest = header.len - DATA_PREFIX;
                if read_offset(&mut recv).await? != offset {
                    return Err(TransferError::Protocol("a relay's block is not the next one"));
                }
                let (parts, len) = match header.tag {
                    Tag::SparseContent => {
                        let Body { parts, len, .. } = read_sparse(&mut recv, rest, activity).await?;
                        (parts, len)
                    }
                    _ => (recv.parts(rest, activity).await?, rest),
                };
                if len > wanted.block_size as usize {
                    return Err(TransferError::Protocol("a relay's block is larger than it is offered"));
                }
                if blocks.send(Ok(Fed { offset, parts, len })).await.is_err() {
                    return Ok(());
                }
                offset += len as u64;
            }
            Tag::Refuse => {
                let refusal = wire::decode_refusal(&recv.body(header).await?)?;
                return Err(TransferError::from_peer(wanted.addr, refusal, false));
            }
            _ => return Err(TransferError::Protocol("a relay sends content and nothing else")),
        }
    }
}
