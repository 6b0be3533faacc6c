//! The receiving side of one stream.
//!
//! Three tasks share the work, so that network, disk and the way back never wait for one another longer than a bounded
//! queue allows: this one reads what arrives, [`Storing`] checks and writes it on blocking threads, and [`respond`] tells the
//! sender how far that has got, what it should send again and, at the end, what came of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use octopii_transport::{Incoming, SendStream, StreamError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::accept::{Accepted, accept};
use crate::activity::Activity;
use crate::claims::Claim;
use crate::link::Inlet;
use crate::outcomes::Outcome;
use crate::reading::{Expected, read_arrivals};
use crate::relay::gather::{Gather, Terms, read_orders};
use crate::relay::shelf::Shelved;
use crate::respond::{Answers, answer_and_finish, respond};
use crate::shared::{AbortOnDrop, Shared};
use crate::sink::Sink;
use crate::storing::{Arrival, Damage, MAX_REPAIRS, Stored, Storing};
use crate::wire::relay::{Need, RelayKey};
use crate::wire::{self, Acceptance, AckLevel, Acknowledgement, OfferBody, Span, Tag};
use crate::{
    Digest, FailureCode, Offer, ReceivePolicy, ReceivedChunk, Refusal, TransferError, TransferId, relay,
};

/// Blocks between network and disk. With those in the steps of checking and writing and the one that is arriving, a transfer
/// holds up to 13 blocks.
const QUEUE: usize = 4;

/// How long a chunk that arrived is kept at hand for other receivers, at the most.
const RETAIN: Duration = Duration::from_secs(600);

enum Opening {
    Offer(OfferBody),
    Query(TransferId),
    Fetch(RelayKey, u64),
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
        Ok(Opening::Offer(body)) => match accept(&shared, &body, &connection).await {
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

/// Receives the chunk, tells the policy and then the sender what came of it.
async fn receive(
    shared: &Arc<Shared>,
    accepted: Accepted,
    body: OfferBody,
    send: SendStream,
    mut recv: Inlet,
) {
    let Accepted { offer, policy, registration, sink, mut claim, slot, shelved, decompresses } = accepted;
    let (last, rx) = oneshot::channel();
    let (needs, needed) = mpsc::channel(1);
    let (again, wanted) = mpsc::channel(MAX_REPAIRS);
    let acceptance = Acceptance { shares: shelved.is_some(), decompresses, have: sink.have };
    let answers = Answers { verified: Arc::clone(registration.verified()), needed, wanted, last: rx };
    let responding = respond(send, wire::accept(&acceptance), answers);
    let mut responding = AbortOnDrop(shared.executor.spawn(responding));
    let stored = {
        let run = Receiving {
            shared,
            body: &body,
            verified: registration.verified(),
            activity: Arc::default(),
            shelved: shelved.as_ref(),
            decompresses,
        };
        match body.relay {
            None => run.take_from_sender(sink, &mut recv, again, &mut claim).await,
            Some(key) => run.take_from_anyone(sink, &mut recv, key, (needs, again), &mut claim).await,
        }
    };
    let (mut slot, mut last) = (Some(slot), Some(last));
    let verdict = match stored {
        Ok((sink, digest)) => {
            if sink.level == AckLevel::Received
                && let Ok(digest) = sink.verify(digest)
            {
                let size = sink.checker.offset();
                let ack = Acknowledgement { level: AckLevel::Received, size, digest };
                slot = None;
                // As below.
                last.take().map(|last| last.send(wire::ack(&ack)));
            }
            publish(shared, sink, digest, Arc::clone(&offer), Arc::clone(&policy)).await
        }
        Err(error) => Err(error),
    };
    // Free before anyone hears of the end, so that whoever does can send the next chunk at once.
    drop(slot);
    let mut succeeded = false;
    let message = match verdict {
        Ok(ack) => {
            succeeded = true;
            registration.end(Ok(ack));
            drop(claim);
            wire::ack(&ack)
        }
        Err(error) => {
            tracing::debug!(id = %offer.id, "transfer failed: {error}");
            let refusal = error.to_peer();
            recv.stop(u32::from(refusal.code.to_u16()));
            registration.end(Err(refusal.clone()));
            drop(claim);
            shared.executor.blocking(move || policy.failed(&offer, &error)).await;
            wire::fail(&refusal)
        }
    };
    let complete = shelved.filter(|_| succeeded);
    complete.iter().for_each(|shelved| shelved.complete());
    let lent = complete.as_ref().and_then(|_| shared.lending.try_acquire().ok());
    // An error means that the responder's stream is gone; the sender will ask for the status.
    let _ = last.map(|last| last.send(message));
    let _ = timeout(shared.options.idle_timeout, &mut responding.0).await;
    if lent.is_some() {
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
    decompresses: bool,
}

/// How handing blocks to a sink ended, and the error that cut it short, if one did.
type Passed = (Stored, Result<(), TransferError>);

impl Receiving<'_> {
    /// Everything from the first block to the last, from the sender itself. Gives back the filled sink and the digest that
    /// the sender claims.
    async fn take_from_sender(
        &self,
        sink: Box<Sink>,
        recv: &mut Inlet,
        again: mpsc::Sender<Span>,
        claim: &mut Option<Claim>,
    ) -> Result<(Box<Sink>, Digest), TransferError> {
        let idle = self.shared.options.idle_timeout;
        let expected = Expected {
            from: sink.have.bytes,
            size: self.body.size,
            block_size: self.body.block_size,
            compressed: self.decompresses,
        };
        let read = async |arrivals| {
            tokio::select! {
                biased;
                read = read_arrivals(recv, arrivals, expected, &self.activity, idle) => read,
                () = superseded(claim) => Err(TransferError::Superseded),
            }
        };
        let storing = self.storing(&sink, Damage::Ask(again));
        let (stored, read) = self.pass(storing, sink, read).await?;
        self.conclude(stored, read).await
    }

    /// The same, from whoever the sender names. A block that is not what the sender vouches for is asked for again.
    async fn take_from_anyone(
        &self,
        mut sink: Box<Sink>,
        recv: &mut Inlet,
        key: RelayKey,
        (needs, again): (mpsc::Sender<Need>, mpsc::Sender<Span>),
        claim: &mut Option<Claim>,
    ) -> Result<(Box<Sink>, Digest), TransferError> {
        let idle = self.shared.options.idle_timeout;
        let terms = Terms {
            key,
            block_size: self.body.block_size,
            announced: self.body.size,
            have: sink.checker.offset(),
        };
        let (tx, orders) = mpsc::channel(QUEUE);
        let mut gather = Gather::new(self.shared, &self.activity, self.verified, &terms, orders, needs);
        let obeying = read_orders(recv, tx, terms.block_size, &self.activity, idle);
        let mut storing = self.storing(&sink, Damage::Stop(again));
        let gathering = async {
            loop {
                let read = async |arrivals| {
                    tokio::select! {
                        biased;
                        run = gather.run(arrivals) => run,
                        () = superseded(claim) => Err(TransferError::Superseded),
                    }
                };
                match self.pass(storing, sink, read).await? {
                    (Stored::Mismatch(good, rest, error), Ok(())) => {
                        tracing::debug!("{error}; asking for them again");
                        (sink, storing) = (good, *rest);
                        gather.rewind(sink.checker.offset()).await?;
                    }
                    (Stored::Mismatch(sink, ..), Err(error)) => {
                        return Err(self.let_go(sink, 0, error).await);
                    }
                    (stored, read) => return self.conclude(stored, read).await,
                }
            }
        };
        tokio::pin!(gathering);
        tokio::select! {
            biased;
            gathered = &mut gathering => gathered,
            // There are no more orders: it puts away what it has, and ends.
            () = obeying => gathering.await,
        }
    }

    async fn conclude(
        &self,
        stored: Stored,
        read: Result<(), TransferError>,
    ) -> Result<(Box<Sink>, Digest), TransferError> {
        match (stored, read) {
            // Whoever has sent everything may leave before it is acknowledged.
            (Stored::Whole(sink, digest), Ok(()) | Err(TransferError::Lost(_))) => Ok((sink, digest)),
            (Stored::Whole(sink, _), Err(error)) | (Stored::Mismatch(sink, _, error), _) => {
                Err(self.let_go(sink, 0, error).await)
            }
            (Stored::Cut(sink, stored), read) => {
                Err(self.let_go(sink, stored, read.err().unwrap_or(TransferError::Cancelled)).await)
            }
        }
    }

    fn storing(&self, sink: &Sink, damage: Damage) -> Storing {
        Storing::new(
            self.shared.executor.clone(),
            Arc::clone(&self.activity),
            Arc::clone(self.verified),
            self.shelved.cloned(),
            damage,
            sink,
        )
    }

    /// Hands what `reading` reads to the sink until all is there, nothing more comes, or one block is not what it should be.
    async fn pass(
        &self,
        storing: Storing,
        sink: Box<Sink>,
        reading: impl AsyncFnOnce(mpsc::Sender<Arrival>) -> Result<(), TransferError>,
    ) -> Result<Passed, TransferError> {
        let (arrivals, rx) = mpsc::channel(QUEUE);
        let mut storing = AbortOnDrop(self.shared.executor.spawn(storing.run(sink, rx)));
        let idle = self.shared.options.idle_timeout;
        let read = tokio::select! {
            biased;
            // While content may still come, storing ends in few ways only: everything is there, a block is not what it should
            // be, or it failed. The sender must hear of it now, not with its next block.
            stored = &mut storing.0 => {
                return Ok((stored.map_err(|_| TransferError::ShuttingDown).flatten()?, Ok(())));
            }
            read = reading(arrivals) => read,
            () = self.activity.stalled(idle) => Err(TransferError::Stalled { idle }),
        };
        // Whatever ended the reading, nothing more arrives: storing ends after at most a queue's worth, or, if everything has
        // arrived, when what was there before has been checked.
        let stored = tokio::select! {
            biased;
            stored = &mut storing.0 => stored.map_err(|_| TransferError::ShuttingDown).flatten()?,
            () = self.activity.stalled(idle) => return Err(TransferError::Stalled { idle }),
        };
        Ok((stored, read))
    }

    /// Keeps what has arrived if another transfer may go on from it after this error.
    async fn let_go(&self, mut sink: Box<Sink>, stored: u64, error: TransferError) -> TransferError {
        let service = Arc::clone(self.shared);
        let error = abandoned(error);
        let resumable = matches!(
            error,
            TransferError::Lost(_)
                | TransferError::Stalled { .. }
                | TransferError::Superseded
                | TransferError::ShuttingDown
        );
        let letting_go = self.shared.executor.blocking(move || {
            if !resumable {
                sink.store.set_keep(false);
                return;
            }
            let dir = sink.store.file().map(|file| file.dir().to_owned());
            if sink.keep(stored)
                && let Some(dir) = dir
            {
                service.sweep(&dir);
            }
        });
        letting_go.await;
        error
    }
}

async fn superseded(claim: &mut Option<Claim>) {
    match claim {
        Some(claim) => claim.superseded().await,
        None => std::future::pending().await,
    }
}

/// The sender's stream was dropped, or reset on purpose, before it was done.
fn abandoned(error: TransferError) -> TransferError {
    match error {
        TransferError::Lost(StreamError::Reset(_) | StreamError::UnexpectedEnd) => TransferError::Cancelled,
        other => other,
    }
}

/// Verifies the whole, publishes it and lets the policy know, in this order.
async fn publish(
    shared: &Arc<Shared>,
    sink: Box<Sink>,
    expected: Digest,
    offer: Arc<Offer>,
    policy: Arc<dyn ReceivePolicy>,
) -> Result<Acknowledgement, TransferError> {
    let service = Arc::clone(shared);
    let publishing = shared.executor.blocking(move || {
        let size = sink.checker.offset();
        let (location, digest, level) = sink.finish(expected)?;
        let received = ReceivedChunk { offer: Offer::clone(&offer), location, digest, level, size };
        // The chunk is there, whatever its policy makes of it: who heard that it is not would send it a second time.
        if catch_unwind(AssertUnwindSafe(|| policy.received(received))).is_err() {
            tracing::error!(id = %offer.id, "a receive policy panicked over a chunk that has arrived");
        }
        if let (AckLevel::Durable, Some(outcomes)) = (level, &service.outcomes) {
            let outcome = Outcome { peer: offer.peer.node_id, id: offer.id, size, digest };
            if let Err(e) = outcomes.record(&outcome) {
                tracing::warn!(id = %offer.id, "a restart will forget this transfer: {e}");
            }
        }
        Ok(Acknowledgement { level, size, digest })
    });
    publishing.await
}
