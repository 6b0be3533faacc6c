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
use crate::relay::gather::{Gather, Terms, read_orders};
use crate::relay::shelf::Shelved;
use crate::service::{AbortOnDrop, Shared};
use crate::sink::{IncomingBlock, Sink};
use crate::store::store_blocks;
use crate::wire::relay::{Need, RelayKey};
use crate::wire::{self, Acknowledgement, OfferBody, Tag};
use crate::{
    Destination, Digest, FailureCode, Offer, ReceivePolicy, ReceivedChunk, Refusal, TransferError,
    TransferId, relay,
};

/// Blocks between network and disk.
const QUEUE: usize = 4;

/// How often the sender hears how far its chunk has got.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// A block may take this many idle times: one byte now and then is no transfer.
pub(crate) const BLOCK_PATIENCE: u32 = 10;

/// How long a chunk that arrived is kept at hand for other receivers, at the most.
const RETAIN: Duration = Duration::from_secs(600);

const ENDED_EARLY: TransferError = TransferError::Protocol("storing ended before the chunk");

enum Opening {
    Offer(OfferBody),
    Query(TransferId),
    Fetch(RelayKey, u64),
}

/// An offer that was taken.
struct Accepted {
    offer: Arc<Offer>,
    policy: Arc<dyn ReceivePolicy>,
    registration: Registration,
    sink: Sink,
    slot: OwnedSemaphorePermit,
    /// If the sender lets other receivers have the content from here.
    shelved: Option<Arc<Shelved>>,
}

/// Serves a stream that a peer opened: a transfer or a question about one.
pub(crate) async fn serve(shared: Arc<Shared>, incoming: Incoming) {
    let Incoming { mut send, recv, connection } = incoming;
    let mut recv = Inlet::new(recv);
    let limit = shared.options.offer_timeout;
    let opening = timeout(limit, read_opening(&mut recv)).await;
    let answer = match opening.unwrap_or(Err(TransferError::Stalled { idle: limit })) {
        Ok(Opening::Query(id)) => wire::status(&shared.registry.status(connection.peer().node_id, id)),
        Ok(Opening::Fetch(key, offset)) => {
            if let Err(e) = relay::serve::serve(&shared, &mut send, key, offset).await {
                tracing::debug!(peer = %connection.remote_addr(), "handing on a chunk ended early: {e}");
            }
            return;
        }
        Ok(Opening::Offer(body)) => match accept(&shared, offer(body.clone(), &connection), &body).await {
            Ok(accepted) => return receive(&shared, accepted, body, send, recv).await,
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
        Tag::Fetch => {
            let (key, offset) = wire::relay::decode_fetch(&recv.body(header).await?)?;
            Ok(Opening::Fetch(key, offset))
        }
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

async fn accept(shared: &Arc<Shared>, offer: Offer, body: &OfferBody) -> Result<Accepted, Refusal> {
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
        Ok((offer, policy, sink)) => {
            let shelve = |key| {
                let (file, _) = sink.store.file()?;
                shared.shelf.put(key, file, body.block_size, sink.store.written())
            };
            let shelved = body.relay.and_then(shelve).map(Arc::new);
            Ok(Accepted { offer, policy, registration, sink, slot, shelved })
        }
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
    body: OfferBody,
    send: SendStream,
    mut recv: Inlet,
) {
    let Accepted { offer, policy, registration, sink, slot, shelved } = accepted;
    let (last, rx) = oneshot::channel();
    let (needs, needed) = mpsc::channel(1);
    let answers = Answers { verified: Arc::clone(registration.verified()), needed, last: rx };
    let responding = respond(send, wire::accept(0, shelved.is_some()), answers);
    let mut responding = AbortOnDrop(shared.executor.spawn(responding));
    let stored = {
        let run = Receiving {
            shared,
            body: &body,
            verified: registration.verified(),
            activity: Arc::default(),
            shelved: shelved.as_ref(),
        };
        match body.relay {
            None => run.take_from_sender(sink, &mut recv).await,
            Some(key) => run.take_from_anyone(sink, &mut recv, key, needs).await,
        }
    };
    let verdict = match stored {
        Ok((sink, digest)) => publish(shared, sink, digest, Arc::clone(&offer), Arc::clone(&policy)).await,
        Err(error) => Err(error),
    };
    // Free before anyone hears of the end, so that whoever does can send the next chunk at once.
    drop(slot);
    let mut succeeded = false;
    let message = match verdict {
        Ok(ack) => {
            succeeded = true;
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
    let complete = shelved.filter(|_| succeeded);
    complete.iter().for_each(|shelved| shelved.complete());
    // An error means that the responder's stream is gone; the sender will ask for the status.
    let _ = last.send(message);
    let _ = timeout(shared.options.idle_timeout, &mut responding.0).await;
    if complete.is_some() {
        // Others may fetch it until the sender has no more use for that, which it tells by ending its stream.
        let _ = timeout(RETAIN, recv.end()).await;
    }
}

/// The blocks of one chunk on their way from the network to their destination.
struct Receiving<'a> {
    shared: &'a Arc<Shared>,
    body: &'a OfferBody,
    verified: &'a Arc<AtomicU64>,
    activity: Arc<Activity>,
    shelved: Option<&'a Arc<Shelved>>,
}

impl Receiving<'_> {
    /// Everything from the first block to the last, from the sender itself. Gives back the filled sink and the digest that
    /// the sender claims.
    async fn take_from_sender(&self, sink: Sink, recv: &mut Inlet) -> Result<(Sink, Digest), TransferError> {
        let idle = self.shared.options.idle_timeout;
        let (size, block_size) = (self.body.size, self.body.block_size);
        match self
            .pass(sink, |blocks| read_blocks(recv, blocks, size, block_size, &self.activity, idle))
            .await?
        {
            Passed::Whole(sink, digest) => Ok((sink, digest)),
            Passed::Mismatch(sink, error) => {
                self.shared.executor.blocking(move || drop(sink)).await;
                Err(error)
            }
        }
    }

    /// The same, from whoever the sender names. A block that is not what the sender vouches for is asked for again.
    async fn take_from_anyone(
        &self,
        mut sink: Sink,
        recv: &mut Inlet,
        key: RelayKey,
        needs: mpsc::Sender<Need>,
    ) -> Result<(Sink, Digest), TransferError> {
        let idle = self.shared.options.idle_timeout;
        let terms = Terms {
            key,
            block_size: self.body.block_size,
            announced: self.body.size,
            have: sink.store.written(),
        };
        let (tx, orders) = mpsc::channel(QUEUE);
        let mut gather = Gather::new(self.shared, &self.activity, self.verified, &terms, orders, needs);
        let obeying = read_orders(recv, tx, terms.block_size, &self.activity, idle);
        let gathering = async {
            loop {
                match self.pass(sink, |blocks| gather.run(blocks)).await? {
                    Passed::Whole(sink, digest) => return Ok((sink, digest)),
                    Passed::Mismatch(good, error) => {
                        tracing::debug!("{error}; asking for them again");
                        sink = good;
                        gather.rewind(sink.store.written()).await?;
                    }
                }
            }
        };
        tokio::pin!(gathering);
        tokio::select! {
            biased;
            gathered = &mut gathering => gathered,
            // There are no more orders: it puts away what it has, and ends.
            error = obeying => gathering.await.map_err(|_| abandoned(error)),
        }
    }

    /// Hands what `reading` reads to the sink until all is read, or one block is not what it should be.
    async fn pass<F>(
        &self,
        sink: Sink,
        reading: impl FnOnce(mpsc::Sender<IncomingBlock>) -> F,
    ) -> Result<Passed, TransferError>
    where
        F: Future<Output = Result<Option<Digest>, TransferError>>,
    {
        let (blocks, rx) = mpsc::channel(QUEUE);
        let storing = store_blocks(
            Arc::clone(self.shared),
            sink,
            rx,
            Arc::clone(self.verified),
            Arc::clone(&self.activity),
            self.shelved.cloned(),
        );
        let mut storing = AbortOnDrop(self.shared.executor.spawn(storing));
        let idle = self.shared.options.idle_timeout;
        let read = tokio::select! {
            biased;
            read = reading(blocks) => read,
            // While blocks may still come, storing ends for one reason only: it failed. The sender must hear of it now,
            // not with its next block.
            stored = &mut storing.0 => {
                let (sink, mismatch) = stored.map_err(|_| TransferError::ShuttingDown)??;
                return Ok(Passed::Mismatch(sink, mismatch.unwrap_or(ENDED_EARLY)));
            }
            () = self.activity.stalled(idle) => Err(TransferError::Stalled { idle }),
        };
        // Whatever ended the reading, `blocks` is dropped by now and the storing task ends after at most a queue's worth.
        let stored = timeout(idle, &mut storing.0).await.map_err(|_| TransferError::Stalled { idle })?;
        let (sink, mismatch) = stored.map_err(|_| TransferError::ShuttingDown)??;
        match (read, mismatch) {
            (_, Some(error)) => Ok(Passed::Mismatch(sink, error)),
            (Ok(Some(digest)), None) => Ok(Passed::Whole(sink, digest)),
            (Ok(None), None) => Ok(Passed::Mismatch(sink, ENDED_EARLY)),
            (Err(error), None) => {
                self.shared.executor.blocking(move || drop(sink)).await;
                Err(abandoned(error))
            }
        }
    }
}

/// What came of handing blocks to a sink.
enum Passed {
    Whole(Sink, Digest),
    /// Up to here all is well; the next block was not what it should be.
    Mismatch(Sink, TransferError),
}

/// The sender's stream was dropped, or reset on purpose, before it was done.
fn abandoned(error: TransferError) -> TransferError {
    match error {
        TransferError::Lost(StreamError::Reset(_)) => TransferError::Cancelled,
        other => other,
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

/// What goes back to the sender.
struct Answers {
    verified: Arc<AtomicU64>,
    needed: mpsc::Receiver<Need>,
    last: oneshot::Receiver<Vec<u8>>,
}

/// The way back: the acceptance, signs of life, what is needed, and the last word. If there is no last word the stream is
/// reset.
async fn respond(mut send: SendStream, acceptance: Vec<u8>, answers: Answers) -> Result<(), StreamError> {
    let Answers { verified, mut needed, mut last } = answers;
    send.write_all(&acceptance).await?;
    loop {
        tokio::select! {
            biased;
            message = &mut last => {
                let Ok(message) = message else { return Ok(()) };
                answer_and_finish(&mut send, &message).await?;
                // Until the last word has arrived, this transfer is not over: see `Transfer::drain`.
                return send.stopped().await.map(|_| ());
            }
            Some(need) = needed.recv() => send.write_all(&wire::relay::need(&need)).await?,
            () = tokio::time::sleep(PROGRESS_PERIOD) => {
                send.write_all(&wire::progress(verified.load(Ordering::Relaxed))).await?;
            }
        }
    }
}

pub(crate) fn size_mismatch(announced: Option<u64>, received: u64) -> TransferError {
    let announced = announced.unwrap_or_default();
    let message = format!("{announced} bytes were announced, but {received} arrived");
    TransferError::Unacceptable(Refusal::new(FailureCode::SizeMismatch, message))
}
