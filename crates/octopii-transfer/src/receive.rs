//! The receiving side of one stream.
//!
//! Three tasks share the work, so that network, disk and the way back never wait for one another longer than a bounded
//! queue allows: this one reads blocks from the network, [`store_blocks`] checks and writes them on blocking threads, and
//! [`respond`] tells the sender how far that has got and, at the end, what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use octopii_transport::{Connection, Incoming, SendStream, StreamError};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;

use crate::activity::Activity;
use crate::link::Inlet;
use crate::registry::Registration;
use crate::service::{AbortOnDrop, Shared};
use crate::sink::{Checker, IncomingBlock, Sink};
use crate::wire::{self, Acknowledgement, OfferBody, Tag};
use crate::{
    Destination, Digest, FailureCode, Offer, ReceivePolicy, ReceivedChunk, Refusal, TransferError, TransferId,
};

/// Blocks between network and disk.
const QUEUE: usize = 4;

/// Blocks that are checked, or written, in one step on a blocking thread: a hand-over between threads is paid for by several
/// blocks. With the queue and the one that is arriving, a transfer holds up to 13 blocks.
const STEP: usize = 4;

/// How often the sender hears how far its chunk has got.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// Written bytes after which they are pushed to the disk in the background, so that the final sync finds little to do.
const EARLY_SYNC: u64 = 32 << 20;

/// A block may take this many idle times: one byte now and then is no transfer.
const BLOCK_PATIENCE: u32 = 10;

const ENDED_EARLY: TransferError = TransferError::Protocol("storing ended before the chunk");

enum Opening {
    Offer(OfferBody),
    Query(TransferId),
}

/// An offer that was taken.
struct Accepted {
    offer: Arc<Offer>,
    policy: Arc<dyn ReceivePolicy>,
    registration: Registration,
    sink: Sink,
    slot: OwnedSemaphorePermit,
}

/// Serves a stream that a peer opened: a transfer or a question about one.
pub(crate) async fn serve(shared: Arc<Shared>, incoming: Incoming) {
    let Incoming { mut send, recv, connection } = incoming;
    let mut recv = Inlet::new(recv);
    let limit = shared.options.offer_timeout;
    let opening = timeout(limit, read_opening(&mut recv)).await;
    let answer = match opening.unwrap_or(Err(TransferError::Stalled { idle: limit })) {
        Ok(Opening::Query(id)) => wire::status(&shared.registry.status(connection.peer().node_id, id)),
        Ok(Opening::Offer(body)) => match accept(&shared, offer(body.clone(), &connection)).await {
            Ok(accepted) => return receive(&shared, accepted, body.block_size, send, recv).await,
            Err(refusal) => wire::refuse(&refusal),
        },
        Err(e) => wire::refuse(&e.to_peer()),
    };
    // A peer that does not read its answer is not waited for longer than one that makes no offer.
    if let Ok(Err(e)) = timeout(limit, answer_and_finish(&mut send, &answer)).await {
        tracing::debug!(peer = %connection.remote_addr(), "the answer did not get through: {e}");
    }
}

async fn read_opening(recv: &mut Inlet) -> Result<Opening, TransferError> {
    let mut version = [0];
    recv.read_exact(&mut version).await?;
    if version[0] != wire::VERSION {
        let message = format!("this node speaks version {} of the transfer protocol", wire::VERSION);
        return Err(TransferError::Unacceptable(Refusal::new(FailureCode::UnsupportedVersion, message)));
    }
    let header = recv.header().await?;
    match header.tag {
        Tag::Offer => Ok(Opening::Offer(wire::decode_offer(&recv.body(header).await?)?)),
        Tag::Query => Ok(Opening::Query(wire::decode_query(&recv.body(header).await?)?)),
        _ => Err(TransferError::Protocol("a transfer begins with an offer")),
    }
}

async fn answer_and_finish(send: &mut SendStream, answer: &[u8]) -> Result<(), StreamError> {
    send.write_all(answer).await?;
    send.finish()
}

fn offer(body: OfferBody, connection: &Connection) -> Offer {
    Offer {
        id: body.id,
        purpose: body.purpose,
        name: body.name,
        size: body.size,
        meta: body.meta,
        peer: *connection.peer(),
        remote_addr: connection.remote_addr(),
    }
}

async fn accept(shared: &Arc<Shared>, offer: Offer) -> Result<Accepted, Refusal> {
    let Some(policy) = shared.policy(&offer.purpose) else {
        return Err(Refusal::new(FailureCode::UnknownPurpose, "nothing here takes chunks of this purpose"));
    };
    let Ok(slot) = Arc::clone(&shared.slots).try_acquire_owned() else {
        let message =
            format!("{} transfers are being received; try again later", shared.options.max_incoming);
        return Err(Refusal::new(FailureCode::Busy, message));
    };
    let Some(registration) = shared.registry.register(offer.peer.node_id, offer.id) else {
        return Err(Refusal::new(
            FailureCode::DuplicateId,
            "this transfer is under way or finished; ask its status",
        ));
    };
    let service = Arc::clone(shared);
    let opened = shared.executor.blocking(move || {
        let opened = policy.accept(&offer).and_then(|destination| {
            if let Destination::File { dir, .. } = &destination {
                service.sweep_once(dir);
            }
            Sink::open(&service.resources, destination, offer.size).map_err(|e| {
                tracing::debug!(id = %offer.id, "cannot receive: {e}");
                e.to_peer()
            })
        });
        opened.map(|sink| (Arc::new(offer), policy, sink))
    });
    match opened.await {
        Ok((offer, policy, sink)) => Ok(Accepted { offer, policy, registration, sink, slot }),
        Err(refusal) => {
            registration.end(Err(refusal.clone()));
            Err(refusal)
        }
    }
}

/// Receives the chunk, tells the policy and then the sender what came of it.
async fn receive(
    shared: &Arc<Shared>,
    accepted: Accepted,
    block_size: u32,
    send: SendStream,
    mut recv: Inlet,
) {
    let Accepted { offer, policy, registration, sink, slot } = accepted;
    let (last, rx) = oneshot::channel();
    let mut responding =
        AbortOnDrop(shared.executor.spawn(respond(send, Arc::clone(registration.verified()), rx)));
    let stored = receive_blocks(shared, sink, &mut recv, &offer, block_size, registration.verified()).await;
    let verdict = match stored {
        Ok((sink, digest)) => publish(shared, sink, digest, Arc::clone(&offer), Arc::clone(&policy)).await,
        Err(error) => Err(error),
    };
    // Free before anyone hears of the end, so that whoever does can send the next chunk at once.
    drop(slot);
    let message = match verdict {
        Ok(ack) => {
            registration.end(Ok(ack));
            wire::ack(&ack)
        }
        Err(error) => {
            tracing::debug!(id = %offer.id, "transfer failed: {error}");
            let refusal = error.to_peer();
            recv.stop(u32::from(refusal.code.to_u16()));
            registration.end(Err(refusal.clone()));
            shared.executor.blocking(move || policy.failed(&offer, &error)).await;
            wire::fail(&refusal)
        }
    };
    // An error means that the responder's stream is gone; the sender will ask for the status.
    let _ = last.send(message);
    let _ = timeout(shared.options.idle_timeout, &mut responding.0).await;
}

/// Everything from the first block to the last. Gives back the filled sink and the digest that the sender claims.
async fn receive_blocks(
    shared: &Arc<Shared>,
    sink: Sink,
    recv: &mut Inlet,
    offer: &Offer,
    block_size: u32,
    verified: &Arc<AtomicU64>,
) -> Result<(Sink, Digest), TransferError> {
    let activity = Arc::new(Activity::default());
    let (blocks, rx) = mpsc::channel(QUEUE);
    let storing = store_blocks(Arc::clone(shared), sink, rx, Arc::clone(verified), Arc::clone(&activity));
    let mut storing = AbortOnDrop(shared.executor.spawn(storing));
    let idle = shared.options.idle_timeout;
    let read = tokio::select! {
        biased;
        read = read_blocks(recv, blocks, offer.size, block_size, &activity, idle) => read,
        // While blocks may still come, storing ends for one reason only: it failed. The sender must hear of it now, not
        // with its next block.
        stored = &mut storing.0 => {
            return Err(stored.map_err(|_| TransferError::ShuttingDown).flatten().err().unwrap_or(ENDED_EARLY));
        }
        () = activity.stalled(idle) => Err(TransferError::Stalled { idle }),
    };
    let read = read.map_err(|e| match e {
        // The sender's stream was dropped, or reset on purpose, before it was done.
        TransferError::Lost(StreamError::Reset(_)) => TransferError::Cancelled,
        other => other,
    });
    // Whatever ended the reading, `blocks` is dropped by now and the storing task ends after at most a queue's worth.
    let stored = timeout(idle, &mut storing.0).await.map_err(|_| TransferError::Stalled { idle })?;
    let stored = stored.map_err(|_| TransferError::ShuttingDown)?;
    match (read, stored) {
        (Ok(Some(digest)), Ok(sink)) => Ok((sink, digest)),
        (Ok(_), Err(error)) => Err(error),
        (Ok(None), Ok(_)) => Err(ENDED_EARLY),
        (Err(_), Err(error)) => Err(error),
        (Err(error), Ok(sink)) => {
            shared.executor.blocking(move || drop(sink)).await;
            Err(error)
        }
    }
}

/// Reads blocks until the sender is done, and returns the digest it claims; `None` if nobody takes the blocks any more.
async fn read_blocks(
    recv: &mut Inlet,
    blocks: mpsc::Sender<IncomingBlock>,
    announced: Option<u64>,
    block_size: u32,
    activity: &Activity,
    idle: Duration,
) -> Result<Option<Digest>, TransferError> {
    let mut received = 0u64;
    let mut last_was_short = false;
    loop {
        let header = recv.header().await?;
        match header.tag {
            Tag::Data => {
                let len = header.len - wire::DATA_PREFIX - wire::DATA_SUFFIX;
                let mut offset = [0; wire::DATA_PREFIX];
                recv.read_exact(&mut offset).await?;
                if u64::from_le_bytes(offset) != received {
                    return Err(TransferError::Protocol("a block does not follow the one before it"));
                }
                if len > block_size as usize || last_was_short {
                    return Err(TransferError::Protocol(
                        "only the last block may differ from the block size",
                    ));
                }
                last_was_short = len < block_size as usize;
                received += len as u64;
                if announced.is_some_and(|size| received > size) {
                    return Err(size_mismatch(announced, received));
                }
                let patience = idle.saturating_mul(BLOCK_PATIENCE);
                let parts = timeout(patience, recv.parts(len, activity));
                let parts = parts.await.map_err(|_| TransferError::Stalled { idle: patience })??;
                let mut prefix = [0; wire::DATA_SUFFIX];
                recv.read_exact(&mut prefix).await?;
                if blocks.send(IncomingBlock { parts, len, prefix: Digest(prefix) }).await.is_err() {
                    return Ok(None);
                }
                activity.tick();
            }
            Tag::Done => {
                let (size, digest) = wire::decode_done(&recv.body(header).await?)?;
                if size != received || announced.is_some_and(|announced| announced != size) {
                    return Err(size_mismatch(announced.or(Some(size)), received));
                }
                return Ok(Some(digest));
            }
            _ => return Err(TransferError::Protocol("only blocks and their end follow an offer")),
        }
    }
}

/// Checks and stores blocks until there are no more; the next ones are checked while the ones before are written. On an
/// error the sink is dropped, on a blocking thread: its file is gone when this returns.
async fn store_blocks(
    shared: Arc<Shared>,
    sink: Sink,
    mut blocks: mpsc::Receiver<IncomingBlock>,
    verified: Arc<AtomicU64>,
    activity: Arc<Activity>,
) -> Result<Sink, TransferError> {
    let executor = &shared.executor;
    let Sink { mut checker, mut store } = sink;
    let mut checked: Vec<IncomingBlock> = Vec::new();
    let mut written = 0;
    let mut synced = 0;
    let mut syncing: Option<AbortOnDrop<Result<(), TransferError>>> = None;
    loop {
        let mut arrived = Vec::new();
        let open = match checked.is_empty() {
            true => blocks.recv_many(&mut arrived, STEP).await > 0,
            // What was checked is not kept waiting for more.
            false => {
                arrived.extend(std::iter::from_fn(|| blocks.try_recv().ok()).take(STEP));
                true
            }
        };
        let writing = {
            let blocks = std::mem::take(&mut checked);
            async move {
                if blocks.is_empty() {
                    return Ok(store);
                }
                executor.blocking(move || store.write(blocks).map(|()| store)).await
            }
        };
        let checking = async move {
            if arrived.is_empty() {
                return Ok((checker, arrived));
            }
            executor.blocking(move || checker.check(&arrived).map(|()| (checker, arrived))).await
        };
        let (stored, newly) = tokio::join!(writing, checking);
        let failed;
        (store, failed) = match (stored, newly) {
            (Ok(store), Ok(newly)) => {
                (checker, checked) = newly;
                (store, None)
            }
            (Ok(store), Err(error)) => {
                checker = Checker::default();
                (store, Some(error))
            }
            (Err(error), _) => return Err(error),
        };
        if let Some(error) = failed {
            executor.blocking(move || drop(store)).await;
            return Err(error);
        }
        if store.written() != written {
            written = store.written();
            verified.store(written, Ordering::Relaxed);
            activity.tick();
        }
        if open && written - synced < EARLY_SYNC {
            continue;
        }
        // At most one early sync runs at a time. One that failed dooms the file: what it left unwritten, a later sync
        // would no longer report.
        if let Some(mut earlier) = syncing.take() {
            let result = (&mut earlier.0).await.map_err(|_| TransferError::ShuttingDown).flatten();
            if let Err(error) = result {
                executor.blocking(move || drop(store)).await;
                return Err(error);
            }
        }
        if !open {
            return Ok(Sink { checker, store });
        }
        synced = written;
        if let Some((file, path)) = store.file() {
            let on = executor.clone();
            syncing = Some(AbortOnDrop(executor.spawn(async move {
                on.blocking(move || file.sync_data().map_err(|e| TransferError::store("syncing", path, e)))
                    .await
            })));
        }
    }
}

/// Verifies the whole, publishes it and lets the policy know, in this order.
async fn publish(
    shared: &Arc<Shared>,
    sink: Sink,
    expected: Digest,
    offer: Arc<Offer>,
    policy: Arc<dyn ReceivePolicy>,
) -> Result<Acknowledgement, TransferError> {
    let publishing = shared.executor.blocking(move || {
        let size = sink.store.written();
        let (location, digest, level) = sink.finish(expected)?;
        policy.received(ReceivedChunk { offer: Offer::clone(&offer), location, digest, size });
        Ok(Acknowledgement { level, size, digest })
    });
    publishing.await
}

/// The way back: the acceptance, signs of life, and the last word. If there is no last word the stream is reset.
async fn respond(
    mut send: SendStream,
    verified: Arc<AtomicU64>,
    mut last: oneshot::Receiver<Vec<u8>>,
) -> Result<(), StreamError> {
    send.write_all(&wire::accept(0)).await?;
    loop {
        tokio::select! {
            biased;
            message = &mut last => {
                let Ok(message) = message else { return Ok(()) };
                answer_and_finish(&mut send, &message).await?;
                // Until the last word has arrived, this transfer is not over: see `Transfer::drain`.
                return send.stopped().await.map(|_| ());
            }
            () = tokio::time::sleep(PROGRESS_PERIOD) => {
                send.write_all(&wire::progress(verified.load(Ordering::Relaxed))).await?;
            }
        }
    }
}

fn size_mismatch(announced: Option<u64>, received: u64) -> TransferError {
    let announced = announced.unwrap_or_default();
    let message = format!("{announced} bytes were announced, but {received} arrived");
    TransferError::Unacceptable(Refusal::new(FailureCode::SizeMismatch, message))
}
