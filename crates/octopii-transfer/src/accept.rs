//! Taking an offer: whose turn it is, what the policy says, where the content goes and what is there already.

use std::sync::Arc;
use std::time::Duration;

use octopii_transport::Connection;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::sleep;

use crate::claims::Claim;
use crate::journal::{About, SMALLEST_BLOCK};
use crate::registry::Registration;
use crate::relay::shelf::Shelved;
use crate::shared::Shared;
use crate::sink::{Opened, Sink};
use crate::store::Announced;
use crate::wire::{AckLevel, OfferBody};
use crate::{Destination, FailureCode, Offer, ReceivePolicy, Refusal, TransferError, tree};

/// How long an earlier transfer of the same content may take to let go of it.
const HANDOVER: Duration = Duration::from_secs(5);

/// A file in use by another process, or in the middle of a sweep, is tried this often.
const OPEN_ATTEMPTS: u32 = 100;
const OPEN_PERIOD: Duration = Duration::from_millis(50);

/// An offer that was taken.
pub(crate) struct Accepted {
    pub(crate) offer: Arc<Offer>,
    pub(crate) policy: Arc<dyn ReceivePolicy>,
    pub(crate) registration: Registration,
    pub(crate) sink: Box<Sink>,
    pub(crate) claim: Option<Claim>,
    pub(crate) slot: OwnedSemaphorePermit,
    /// If the sender lets other receivers have the content from here.
    pub(crate) shelved: Option<Arc<Shelved>>,
    /// Whether blocks may come compressed.
    pub(crate) decompresses: bool,
}

fn offer(body: &OfferBody, connection: &Connection) -> Offer {
    Offer {
        id: body.id,
        purpose: body.purpose.clone(),
        name: body.name.clone(),
        size: body.size,
        meta: body.meta.clone(),
        peer: *connection.peer(),
        remote_addr: connection.remote_addr(),
    }
}

/// Decides about an offer, and opens its destination.
pub(crate) async fn accept(
    shared: &Arc<Shared>,
    body: &OfferBody,
    connection: &Connection,
) -> Result<Accepted, Refusal> {
    let offer = Arc::new(offer(body, connection));
    let Some(policy) = shared.policy(&offer.purpose) else {
        return Err(Refusal::new(FailureCode::UnknownPurpose, "nothing here takes chunks of this purpose"));
    };
    let about = body
        .resume
        .filter(|_| body.size.is_some() && body.block_size >= SMALLEST_BLOCK)
        .map(|key| About { key, size: body.size, block_size: body.block_size });
    let claim = match body.resume {
        None => None,
        Some(key) => match shared.claims.claim(key, HANDOVER).await {
            None => {
                return Err(Refusal::new(FailureCode::Busy, "an earlier transfer of it has not ended yet"));
            }
            claim => claim,
        },
    };
    let slots = match offer.purpose.as_str() {
        // A tree must not take the place that its own files need.
        tree::LARGE | tree::PACKS => shared.trees.sessions.places(&offer).ok_or_else(tree::not_asked_for)?,
        _ => Arc::clone(&shared.slots),
    };
    let Ok(slot) = slots.try_acquire_owned() else {
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
    let destination = {
        let (service, policy, offer) = (Arc::clone(shared), Arc::clone(&policy), Arc::clone(&offer));
        let deciding = shared.executor.blocking(move || {
            let decided = policy.accept(&offer);
            if let Ok(Destination::File { dir, .. }) = &decided {
                service.sweep_once(dir);
            }
            decided
        });
        deciding.await
    };
    let opened = match destination {
        Ok(destination) => match level(&destination, body.ack, policy.least_ack()) {
            Ok(level) => open(shared, &Arc::new(destination), body, about, level).await.map_err(|e| {
                tracing::debug!(id = %offer.id, "cannot receive: {e}");
                e.to_peer()
            }),
            Err(refusal) => Err(refusal),
        },
        Err(refusal) => Err(refusal),
    };
    match opened {
        Ok(mut sink) => {
            let shelve = |key| {
                let file = Arc::clone(sink.store.file()?.file());
                shared.shelf.put(key, file, body.block_size, sink.checker.offset())
            };
            let shelved = body.relay.and_then(shelve).map(Arc::new);
            if shelved.is_some() {
                sink.store.expect_readers();
            }
            let decompresses = body.compressed && shared.options.decompress && sink.checker.take_compressed();
            Ok(Accepted { offer, policy, registration, sink, claim, slot, shelved, decompresses })
        }
        Err(refusal) => {
            registration.forget();
            Err(refusal)
        }
    }
}

/// What a chunk is acknowledged as: what its sender wants, or more.
fn level(destination: &Destination, wanted: Option<AckLevel>, least: AckLevel) -> Result<AckLevel, Refusal> {
    match destination {
        // A power cut could take the new content, and its name the old one: neither would be left.
        Destination::File { replace: true, .. } => Ok(AckLevel::Durable),
        Destination::File { .. } => Ok(wanted.unwrap_or(AckLevel::Durable).max(least)),
        Destination::Memory { .. } if wanted == Some(AckLevel::Durable) => Err(Refusal::new(
            FailureCode::AckLevel,
            "it is taken into memory there, and not durable: ask for no more than verified",
        )),
        Destination::Memory { .. } => {
            Ok(wanted.unwrap_or(AckLevel::Verified).max(least).min(AckLevel::Verified))
        }
    }
}

async fn open(
    shared: &Arc<Shared>,
    destination: &Arc<Destination>,
    body: &OfferBody,
    mut about: Option<About>,
    level: AckLevel,
) -> Result<Box<Sink>, TransferError> {
    let announced = Announced { size: body.size, stored: body.stored, block_size: body.block_size };
    let mut attempts = 0;
    loop {
        let (resources, to) = (Arc::clone(&shared.resources), Arc::clone(destination));
        let opening = shared.executor.blocking(move || Sink::open(&resources, &to, announced, about, level));
        match opening.await? {
            Opened::Sink(sink) => {
                if let (Some(file), Some(_)) = (sink.store.file(), &sink.journal) {
                    // However this transfer ends, and be it without a word to its file.
                    shared.look_after(file.dir());
                }
                return Ok(sink);
            }
            Opened::InUse => {
                attempts += 1;
                if attempts == OPEN_ATTEMPTS {
                    // Another process has it: this one begins anew, and keeps nothing.
                    about = None;
                }
                sleep(OPEN_PERIOD).await;
            }
        }
    }
}
