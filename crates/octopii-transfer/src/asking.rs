//! What a sender asks a receiver beside the content: whether it takes an offer, and what became of one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use octopii_transport::{ConnectError, Connection, NodeId, StreamError, StreamKind};
use tokio::time::{sleep, timeout};

use crate::link::Inlet;
use crate::shared::Shared;
use crate::wire::{self, Acceptance, Acknowledgement, Tag, TransferStatus};
use crate::{FailureCode, Refusal, TransferError, TransferId};

/// A lost acknowledgement is asked for this often.
pub(crate) const STATUS_PERIOD: Duration = Duration::from_millis(200);

/// Reads the answer to an offer.
pub(crate) async fn read_acceptance(recv: &mut Inlet, peer: SocketAddr) -> Result<Acceptance, TransferError> {
    let header = match recv.header().await {
        // The transport turns away streams of a kind that nobody accepts.
        Err(TransferError::Lost(StreamError::Reset(1))) => {
            let refusal = Refusal::new(FailureCode::UnknownPurpose, "no transfers are received there");
            return Err(TransferError::Refused { peer, refusal });
        }
        other => other?,
    };
    let body = recv.body(header).await?;
    match header.tag {
        Tag::Accept => Ok(wire::decode_accept(&body)?),
        Tag::Refuse => Err(TransferError::from_peer(peer, wire::decode_refusal(&body)?, false)),
        Tag::Fail => Err(TransferError::from_peer(peer, wire::decode_refusal(&body)?, true)),
        _ => Err(TransferError::Protocol("an offer is accepted or refused, nothing else")),
    }
}

/// A connection to whoever listens there, or to this node alone.
pub(crate) async fn connect(
    shared: &Shared,
    addr: SocketAddr,
    node: Option<NodeId>,
) -> Result<Connection, ConnectError> {
    match node {
        Some(node) => shared.endpoint.connect_to(node, addr).await,
        None => shared.endpoint.connect(addr).await,
    }
}

/// Asks the node at `addr`, if it is this one, about a transfer.
pub(crate) async fn status(
    shared: &Shared,
    (addr, node): (SocketAddr, Option<NodeId>),
    id: TransferId,
    limit: Duration,
) -> Result<TransferStatus, TransferError> {
    let asking = async {
        let connection = connect(shared, addr, node).await?;
        let (mut send, recv) = connection.open(StreamKind::Transfer).await?;
        let mut recv = Inlet::new(recv);
        let question = [&[wire::VERSION][..], &wire::query(id)].concat();
        send.write_all(&question).await?;
        send.finish()?;
        let header = recv.header().await?;
        let body = recv.body(header).await?;
        match header.tag {
            Tag::Status => Ok(wire::decode_status(&body)?),
            Tag::Refuse => Err(TransferError::from_peer(addr, wire::decode_refusal(&body)?, false)),
            _ => Err(TransferError::Protocol("a question about a transfer is answered with its status")),
        }
    };
    timeout(limit, asking).await.unwrap_or(Err(TransferError::Stalled { idle: limit }))
}

/// Everything was sent, but no answer came: the receiver remembers.
pub(crate) async fn what_became_of_it(
    shared: &Shared,
    (peer, node): (SocketAddr, Option<NodeId>),
    id: TransferId,
    idle: Duration,
    lost: TransferError,
) -> Result<Acknowledgement, TransferError> {
    let unknown = || TransferError::OutcomeUnknown { peer, error: Arc::new(lost.clone()) };
    let asking = async {
        loop {
            match status(shared, (peer, node), id, idle).await {
                Ok(TransferStatus::Finished(ack)) => return Ok(ack),
                Ok(TransferStatus::Failed(refusal)) => {
                    return Err(TransferError::from_peer(peer, refusal, true));
                }
                // It has restarted since.
                Ok(TransferStatus::Unknown) => return Err(unknown()),
                Ok(TransferStatus::Receiving { .. }) | Err(_) => sleep(STATUS_PERIOD).await,
            }
        }
    };
    timeout(idle, asking).await.unwrap_or_else(|_| Err(unknown()))
}

/// Whether the receiver may have stored the chunk although the sender saw this.
pub(crate) fn may_have_arrived(error: &TransferError) -> bool {
    matches!(error, TransferError::Lost(_) | TransferError::Stalled { .. })
}
