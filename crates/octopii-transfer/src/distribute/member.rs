//! The sender's conversation with one of many receivers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octopii_transport::{Connection, NodeId, SendStream, StreamKind};
use tokio::sync::Notify;

use crate::distribute::ledger::Content;
use crate::distribute::origin::Origin;
use crate::distribute::plan::Upstream;
use crate::link::Inlet;
use crate::pace::Pace;
use crate::progress::{Meter, Phase, Progress};
use crate::relay::gather::MAX_NEEDS;
use crate::source::{Block, Form};
use crate::storing::MAX_REPAIRS;
use crate::wire::relay::{self, Need, Supplier};
use crate::wire::{self, Acceptance, Acknowledgement, OfferBody, ResumeKey, Span, Tag};
use crate::{FailureCode, TransferError, TransferId};

/// Blocks vouched for ahead of what the receiver has verified, at the most.
const AHEAD: u64 = 1024;

/// How often a receiver may ask for the same block because it is not what was vouched for. From the second time on it is the
/// sender itself that supplied it.
const ATTEMPTS: u32 = 4;

/// Messages that vouch for blocks are written this many at a time.
const TOGETHER: usize = 64;

/// One receiver, as the sender sees it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) addr: SocketAddr,
    /// Bytes it has verified, as of its last report.
    pub(super) verified: AtomicU64,
    /// Bytes it had when the latest attempt began.
    pub(super) resumed: AtomicU64,
    /// Content bytes sent to it from here.
    pub(super) travelled: AtomicU64,
    /// From here on it may have everything.
    pub(super) done: AtomicBool,
    meter: Meter,
    orders: Mutex<Orders>,
    /// There are new orders, or there is room for more.
    stir: Notify,
}

#[derive(Debug)]
struct Orders {
    node: Option<NodeId>,
    id: TransferId,
    next: Option<Order>,
    /// Blocks of an earlier attempt that it found damaged.
    again: VecDeque<Span>,
}

/// What to do for a receiver from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    supply: Upstream,
    /// Where it needs content from, if it said so.
    from: Option<u64>,
    /// It got a wrong block there, so that one comes from the sender itself.
    first: bool,
}

/// How far the conversation is.
#[derive(Debug)]
struct Said {
    vouched: u64,
    /// The next byte of content to send, if the sender supplies it.
    direct: Option<u64>,
    /// And it stops there.
    direct_to: u64,
    /// What the receiver had there was not what it should be.
    was_wrong: bool,
    done: bool,
    pace: Pace,
}

/// A conversation that ended well: the stream stays open as long as others may fetch from this receiver.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) ack: Acknowledgement,
    _connection: Connection,
    _send: SendStream,
}

impl Member {
    pub(super) fn new(addr: SocketAddr, id: TransferId) -> Self {
        Self {
            addr,
            verified: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            travelled: AtomicU64::new(0),
            done: AtomicBool::new(false),
            meter: Meter::default(),
            orders: Mutex::new(Orders { node: None, id, next: None, again: VecDeque::new() }),
            stir: Notify::new(),
        }
    }

    /// The id of the latest attempt.
    pub(super) fn id(&self) -> TransferId {
        self.lock().id
    }

    /// Forgets what was said. An id under which something was begun is not used again.
    pub(super) fn begin_anew(&self) {
        let mut orders = self.lock();
        (orders.id, orders.next) = (TransferId::random(), None);
        orders.again.clear();
        self.done.store(false, Ordering::Relaxed);
    }

    /// Lets its conversation know who supplies it from now on.
    pub(super) fn supply(&self, supply: Upstream) {
        self.order(Order { supply, from: None, first: false });
    }

    fn order(&self, order: Order) {
        self.lock().next = Some(order);
        self.stir.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Offers the chunk to receiver `i` and talks to it until it has acknowledged everything.
pub(super) async fn converse(origin: &Origin, i: usize) -> Result<Ended, TransferError> {
    let mut may_keep = true;
    loop {
        match attempt(origin, i, may_keep).await? {
            Attempt::Acknowledged(ended) => return Ok(*ended),
            // What it kept under the key is another content: it gets everything, and keeps nothing if it is cut off.
            Attempt::OtherContent => may_keep = false,
        }
        origin.members[i].begin_anew();
    }
}

enum Attempt {
    Acknowledged(Box<Ended>),
    OtherContent,
}

/// A node that is in the list more than once, at whatever addresses, keeps nothing: each of its transfers would take over the others.
fn is_alone(origin: &Origin, i: usize, node: NodeId) -> bool {
    let mut others = origin.members.iter().enumerate().filter(|(j, _)| *j != i);
    others.all(|(_, other)| other.lock().node != Some(node))
}

async fn attempt(origin: &Origin, i: usize, may_keep: bool) -> Result<Attempt, TransferError> {
    let member = &origin.members[i];
    let connection = origin.shared.endpoint.connect(member.addr).await?;
    let node = connection.peer().node_id;
    member.lock().node = Some(node);
    let key = origin.key_at(node).filter(|_| may_keep && is_alone(origin, i, node));
    let (mut send, recv) = connection.open(StreamKind::Transfer).await?;
    let mut recv = Inlet::new(recv);
    let opening = [&[wire::VERSION][..], &wire::offer(&offer(origin, member.id(), key))].concat();
    let sent = send.write_all(&opening).await;
    let Acceptance { have: known, shares, .. } =
        match crate::asking::read_acceptance(&mut recv, member.addr).await {
            // What was said before the stream broke tells more than the break.
            Err(TransferError::Lost(lost)) => return Err(TransferError::Lost(sent.err().unwrap_or(lost))),
            other => other?,
        };
    let have = known.bytes;
    let is_boundary = have.is_multiple_of(u64::from(origin.block_size));
    if have > origin.content.ledger.size() || have > 0 && key.is_none() || !is_boundary {
        return Err(TransferError::Protocol("the receiver has what was never sent to it"));
    }
    if !origin.hash_behind(known).await? {
        send.reset(u32::from(FailureCode::Cancelled.to_u16()));
        return Ok(Attempt::OtherContent);
    }
    member.resumed.store(have, Ordering::Relaxed);
    member.verified.store(have, Ordering::Relaxed);
    report(origin, i, have);
    origin.content.ledger.tell(have);
    origin.activity(i);
    let supply = origin.plan().accepted(i, node, shares, have, origin.now());
    tracing::debug!(peer = %member.addr, have, "is supplied by {}", origin.name(supply));
    member.order(Order { supply, from: Some(have), first: false });
    let acknowledged = {
        let writing = write(origin, i, &mut send, have);
        let reading = read(origin, i, &mut recv);
        tokio::pin!(reading);
        tokio::select! {
            biased;
            read = &mut reading => read,
            error = writing => match error {
                // It no longer reads because it has something to say.
                TransferError::Lost(octopii_transport::StreamError::Stopped(_)) => reading.await,
                error => Err(error),
            },
        }
    };
    match acknowledged {
        Ok(ack) => {
            origin.check(&ack)?;
            report(origin, i, ack.size);
            Ok(Attempt::Acknowledged(Box::new(Ended { ack, _connection: connection, _send: send })))
        }
        Err(error) => {
            send.reset(u32::from(FailureCode::Cancelled.to_u16()));
            Err(error)
        }
    }
}

fn offer(origin: &Origin, id: TransferId, resume: Option<ResumeKey>) -> OfferBody {
    OfferBody {
        id,
        block_size: origin.block_size,
        size: Some(origin.content.ledger.size()),
        purpose: origin.options.purpose.clone(),
        name: origin.options.name.clone(),
        meta: origin.options.meta.clone(),
        relay: Some(origin.key),
        resume,
        ack: origin.options.ack,
        compressed: false,
        stored: origin.content.source.stored(),
    }
}

/// Listens until the receiver has said its last word.
async fn read(origin: &Origin, i: usize, recv: &mut Inlet) -> Result<Acknowledgement, TransferError> {
    let member = &origin.members[i];
    let size = origin.content.ledger.size();
    let mut damaged = (0, 0);
    let (mut needs, mut repairs) = (0, 0);
    loop {
        let header = recv.header().await?;
        let body = recv.body(header).await?;
        origin.activity(i);
        match header.tag {
            Tag::Progress => {
                let verified = wire::decode_progress(&body)?.min(size);
                member.verified.fetch_max(verified, Ordering::Relaxed);
                origin.plan().progress(i, verified, origin.now());
                member.stir.notify_one();
                report(origin, i, verified);
            }
            Tag::Need if needs == MAX_NEEDS => {
                return Err(TransferError::Protocol("the receiver needed another supplier too often"));
            }
            Tag::Need => {
                needs += 1;
                let Need { offset, why } = relay::decode_need(&body)?;
                if offset > size || !offset.is_multiple_of(u64::from(origin.block_size)) && offset != size {
                    return Err(TransferError::Protocol("the receiver needs what is no block of the chunk"));
                }
                tracing::debug!(peer = %member.addr, offset, "needs another supplier: {why}");
                let supply = origin.plan().needed(i, why, origin.now());
                let first = why == FailureCode::DigestMismatch;
                if first {
                    damaged = (offset, if damaged.0 == offset { damaged.1 + 1 } else { 1 });
                    if damaged.1 > ATTEMPTS {
                        let message = format!(
                            "bytes from {offset} on were sent {ATTEMPTS} times and never arrived as they were hashed: has the source changed?"
                        );
                        return Err(TransferError::DigestMismatch(message));
                    }
                }
                member.order(Order { supply, from: Some(offset), first });
            }
            Tag::Again if repairs == MAX_REPAIRS => {
                return Err(TransferError::Protocol("too many blocks were asked for again"));
            }
            Tag::Again => {
                repairs += 1;
                member.lock().again.push_back(wire::decode_again(&body)?);
                member.stir.notify_one();
            }
            Tag::Ack => return Ok(wire::decode_ack(&body)?),
            Tag::Fail => {
                return Err(TransferError::from_peer(member.addr, wire::decode_refusal(&body)?, true));
            }
            _ => return Err(TransferError::Protocol("unexpected message from the receiver")),
        }
    }
}

/// Vouches for all blocks, and sends the content of those that the receiver is to have from here. Ends by an error only.
async fn write(origin: &Origin, i: usize, send: &mut SendStream, have: u64) -> TransferError {
    let pace = Pace::new(origin.options.rate_limit);
    let mut said = Said { vouched: have, direct: None, direct_to: 0, was_wrong: false, done: false, pace };
    let mut hashed = origin.content.ledger.watch();
    loop {
        hashed.mark_unchanged();
        match step(origin, i, send, &mut said).await {
            Ok(true) => {}
            Ok(false) => {
                tokio::select! {
                    () = origin.members[i].stir.notified() => {}
                    // An error means that the ledger is gone, and this conversation with it.
                    _ = hashed.changed() => {}
                }
            }
            Err(error) => return error,
        }
    }
}

/// The next thing to say, if there is one.
async fn step(
    origin: &Origin,
    i: usize,
    send: &mut SendStream,
    said: &mut Said,
) -> Result<bool, TransferError> {
    let member = &origin.members[i];
    let Content { ledger, source } = &origin.content;
    let size = ledger.size();
    let digest = ledger.digest()?;
    let (order, again) = {
        let mut orders = member.lock();
        (orders.next.take(), orders.again.pop_front())
    };
    if let Some(order) = order {
        obey(origin, send, said, order).await?;
    }
    if let Some(span) = again {
        let source = Arc::clone(source);
        let content = origin.shared.executor.blocking(move || source.read_again(span)).await?;
        member.travelled.fetch_add(content.len() as u64, Ordering::Relaxed);
        send.write_all(&wire::repair_start(span.offset, content.len())).await?;
        said.pace.write(send, content, |_| origin.activity(i)).await?;
    }
    if order.is_some() || again.is_some() {
        return Ok(true);
    }
    if let Some(at) = said.direct
        && at < said.direct_to
        && let Some(block) = ledger.block(at)
    {
        let (source, was_wrong) = (Arc::clone(source), said.was_wrong);
        let reading = move || {
            let content = match was_wrong {
                // Perhaps it is the source that is not what it was when it was hashed.
                true => source.read_again(Span { offset: block.offset, len: block.len }),
                false => source.content_at(block.offset, block.len as usize),
            }?;
            let form = Form::of(&content);
            Ok::<_, TransferError>(Block { offset: block.offset, content, prefix: block.prefix, form })
        };
        let content = origin.shared.executor.blocking(reading).await?;
        let (start, parts) = content.message();
        send.write_all(&start).await?;
        for part in parts {
            member.travelled.fetch_add(part.len() as u64, Ordering::Relaxed);
            said.pace.write(send, part, |_| origin.activity(i)).await?;
        }
        send.write_all(&block.prefix.0).await?;
        let end = at + u64::from(block.len);
        said.direct = Some(end);
        said.vouched = said.vouched.max(end);
        ledger.tell(end);
        origin.activity(i);
        return Ok(true);
    }
    if said.direct.is_some_and(|at| at == said.direct_to) && said.direct_to < size {
        // The block that was wrong has been sent again; the rest comes from elsewhere.
        said.direct = None;
        let supply = origin.plan().needed(i, FailureCode::Cancelled, origin.now());
        member.order(Order { supply, from: Some(said.direct_to), first: false });
        return Ok(true);
    }
    let ahead = member.verified.load(Ordering::Relaxed) + AHEAD * u64::from(origin.block_size);
    let mut together = Vec::new();
    for _ in 0..TOGETHER {
        if said.direct.is_some() || said.vouched >= size.min(ahead) {
            break;
        }
        let Some(block) = ledger.block(said.vouched) else { break };
        together.extend(relay::vouch(&block));
        said.vouched += u64::from(block.len);
    }
    if !together.is_empty() {
        send.write_all(&together).await?;
        ledger.tell(said.vouched);
        return Ok(true);
    }
    if let Some(digest) = digest
        && !said.done
        && said.vouched == size
    {
        member.done.store(true, Ordering::Relaxed);
        send.write_all(&wire::done(size, digest)).await?;
        said.done = true;
        return Ok(true);
    }
    Ok(false)
}

async fn obey(
    origin: &Origin,
    send: &mut SendStream,
    said: &mut Said,
    order: Order,
) -> Result<(), TransferError> {
    let size = origin.content.ledger.size();
    let block = u64::from(origin.block_size);
    said.was_wrong = order.first;
    match (order.supply, order.from) {
        (_, Some(from)) if order.first => {
            (said.direct, said.direct_to) = (Some(from), (from + block).min(size));
        }
        (Upstream::Sender, Some(from)) => (said.direct, said.direct_to) = (Some(from), size),
        // It will say from where on.
        (Upstream::Sender, None) => {
            said.direct = None;
            send.write_all(&relay::supplier(&Supplier::Sender)).await?;
        }
        (Upstream::Receiver(at), _) => {
            said.direct = None;
            let relay = &origin.members[at];
            let node = relay.lock().node;
            let Some(node) = node else {
                return Err(TransferError::Protocol("a relay is to supply before it is known"));
            };
            let supplier = Supplier::Receiver { node, addr: relay.addr };
            send.write_all(&relay::supplier(&supplier)).await?;
        }
    }
    Ok(())
}

fn report(origin: &Origin, i: usize, verified: u64) {
    if let Some(progress) = &origin.options.progress {
        let member = &origin.members[i];
        let size = origin.content.ledger.size();
        progress(Progress {
            peer: member.addr,
            phase: if verified < size { Phase::Sending } else { Phase::Finishing },
            sent: verified,
            verified,
            resumed: member.resumed.load(Ordering::Relaxed),
            total: Some(size),
            bytes_per_second: member.meter.rate(verified),
        });
    }
}
