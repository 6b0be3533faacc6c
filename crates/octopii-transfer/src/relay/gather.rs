//! Putting a chunk together from what its sender vouches for and what others supply.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::activity::Activity;
use crate::link::Inlet;
use crate::reading::{BLOCK_PATIENCE, read_block, read_offset, size_mismatch};
use crate::relay::feed::{Fed, Feed, Wanted};
use crate::shared::Shared;
use crate::store::IncomingBlock;
use crate::storing::Arrival;
use crate::wire::relay::{Need, RelayKey, Supplier, Vouched, decode_supplier, decode_vouch};
use crate::wire::{self, Tag};
use crate::{Digest, FailureCode, TransferError};

/// Blocks that may be vouched for ahead of those verified: 32 bytes each. The sender keeps to a quarter of it.
const MAX_AHEAD: usize = 4096;

/// A sender that can find no supplier in this many attempts has none, and a receiver that finds fault with so many wants none.
pub(crate) const MAX_NEEDS: u32 = 1000;

/// Suppliers that a sender may name in one transfer: each may cost a dial to wherever it says.
const MAX_SUPPLIERS: u32 = 1000;

/// What the sender says.
#[derive(Debug)]
pub(crate) enum Order {
    Vouch(Vouched),
    Supplier(Supplier),
    /// A block with its content: the sender is the supplier now.
    Block(IncomingBlock),
    /// A block of an earlier transfer once more.
    Repair {
        offset: u64,
        parts: Vec<Bytes>,
    },
    Done {
        size: u64,
        digest: Digest,
    },
}

/// Reads what the sender says until the stream ends or says something wrong, which is the last thing handed over, or until
/// nobody wants to hear it. Not cancel-safe.
pub(crate) async fn read_orders(
    recv: &mut Inlet,
    orders: mpsc::Sender<Result<Order, TransferError>>,
    block_size: u32,
    activity: &Activity,
    idle: Duration,
) {
    let mut open = true;
    while open {
        let order = read_order(recv, block_size, activity, idle).await;
        activity.tick();
        open = order.is_ok();
        open &= orders.send(order).await.is_ok();
    }
}

async fn read_order(
    recv: &mut Inlet,
    block_size: u32,
    activity: &Activity,
    idle: Duration,
) -> Result<Order, TransferError> {
    let header = recv.header().await?;
    let message = async {
        match header.tag {
            Tag::Vouch => Ok(Order::Vouch(decode_vouch(&recv.body(header).await?)?)),
            Tag::Supplier => Ok(Order::Supplier(decode_supplier(&recv.body(header).await?)?)),
            Tag::Data | Tag::Sparse => {
                let block = read_block(recv, header, activity).await?;
                if block.len > block_size as usize {
                    return Err(TransferError::Protocol("a block is larger than was offered"));
                }
                Ok(Order::Block(block))
            }
            Tag::Repair => {
                let offset = read_offset(recv).await?;
                Ok(Order::Repair {
                    offset,
                    parts: recv.parts(header.len - wire::DATA_PREFIX, activity).await?,
                })
            }
            Tag::Done => {
                let (size, digest) = wire::decode_done(&recv.body(header).await?)?;
                Ok(Order::Done { size, digest })
            }
            _ => Err(TransferError::Protocol("only blocks, suppliers and the end follow an offer")),
        }
    };
    let patience = idle.saturating_mul(BLOCK_PATIENCE);
    timeout(patience, message).await.unwrap_or(Err(TransferError::Stalled { idle: patience }))
}

/// A chunk being put together.
#[derive(Debug)]
pub(crate) struct Gather {
    shared: Arc<Shared>,
    activity: Arc<Activity>,
    verified: Arc<AtomicU64>,
    key: RelayKey,
    block_size: u32,
    announced: Option<u64>,
    orders: mpsc::Receiver<Result<Order, TransferError>>,
    needs: mpsc::Sender<Need>,
    /// Blocks that the sender vouches for, from `vouched_from` on; those that are verified are dropped from the front.
    vouched: VecDeque<(u32, Digest)>,
    vouched_from: u64,
    vouched_to: u64,
    /// Where the next block to hand over begins.
    next: u64,
    /// What waits to be handed over. It is not lost when that is interrupted.
    pending: Option<Arrival>,
    feed: Option<Feed>,
    /// A block that came before it was vouched for.
    early: Option<Fed>,
    end: Option<(u64, Digest)>,
    /// Everything has been handed over, and the end.
    complete: bool,
    asked: u32,
    suppliers: u32,
}

/// What [`Gather`] needs to know.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) key: RelayKey,
    pub(crate) block_size: u32,
    /// Content bytes in all, if the sender said so.
    pub(crate) announced: Option<u64>,
    /// Content bytes that are here already.
    pub(crate) have: u64,
}

impl Gather {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        activity: &Arc<Activity>,
        verified: &Arc<AtomicU64>,
        terms: &Terms,
        orders: mpsc::Receiver<Result<Order, TransferError>>,
        needs: mpsc::Sender<Need>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            activity: Arc::clone(activity),
            verified: Arc::clone(verified),
            key: terms.key,
            block_size: terms.block_size,
            announced: terms.announced,
            orders,
            needs,
            vouched: VecDeque::new(),
            vouched_from: terms.have,
            vouched_to: terms.have,
            next: terms.have,
            pending: None,
            feed: None,
            early: None,
            end: None,
            complete: false,
            asked: 0,
            suppliers: 0,
        }
    }

    /// Hands over blocks and the end, and then what is asked for again, until nobody takes it any more. After it was dropped,
    /// [`rewind`](Self::rewind) makes it usable again.
    pub(crate) async fn run(&mut self, arrivals: mpsc::Sender<Arrival>) -> Result<(), TransferError> {
        loop {
            if self.pending.is_some() {
                let Ok(room) = arrivals.reserve().await else { return Ok(()) };
                if let Some(arrival) = self.pending.take() {
                    room.send(arrival);
                }
                continue;
            }
            let next = match self.end {
                Some((size, digest)) if self.next == size && !self.complete => {
                    self.complete = true;
                    self.drop_feed();
                    Some(Arrival::Done(digest))
                }
                _ => self.match_early().await?.map(Arrival::Block),
            };
            if next.is_some() {
                self.pending = next;
                continue;
            }
            let Self { feed, early, orders, .. } = self;
            let fed = async {
                match feed {
                    Some(feed) if early.is_none() => feed.next().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                order = orders.recv() => {
                    let order = order.ok_or(TransferError::Cancelled).flatten()?;
                    self.pending = self.obey(order)?;
                }
                fed = fed => match fed {
                    Some(Ok(fed)) => self.early = Some(fed),
                    Some(Err(why)) => self.ask(why).await?,
                    // It has given all it will ever have, and more is needed.
                    None => self.ask(FailureCode::SizeMismatch).await?,
                },
            }
        }
    }

    /// Everything from `to` on is wanted again: what was handed over from there is not what the sender vouches for.
    pub(crate) async fn rewind(&mut self, to: u64) -> Result<(), TransferError> {
        self.next = to;
        self.complete = false;
        // What was asked for again comes once.
        self.pending.take_if(|arrival| !matches!(arrival, Arrival::Repair { .. }));
        self.ask(FailureCode::DigestMismatch).await
    }

    /// What the sender said of blocks that are verified is not needed any more.
    fn settle(&mut self) {
        let verified = self.verified.load(Ordering::Relaxed);
        while let Some((len, _)) = self.vouched.front()
            && self.vouched_from + u64::from(*len) <= verified
        {
            self.vouched_from += u64::from(*len);
            self.vouched.pop_front();
        }
    }

    /// Carries out an order, and returns what it brought if that is of use.
    fn obey(&mut self, order: Order) -> Result<Option<Arrival>, TransferError> {
        match order {
            Order::Vouch(block) => {
                if block.offset != self.vouched_to {
                    return Err(TransferError::Protocol("blocks are vouched for in order"));
                }
                self.vouch(block.len, block.prefix)?;
            }
            Order::Supplier(Supplier::Sender) => {
                self.drop_feed();
                // It wants to know from where on.
                let need = Need { offset: self.next, why: FailureCode::Cancelled };
                // Full: it has not even heard of what is needed already.
                let _ = self.needs.try_send(need);
            }
            Order::Supplier(Supplier::Receiver { node, addr }) => {
                self.suppliers += 1;
                if self.suppliers > MAX_SUPPLIERS {
                    return Err(TransferError::Protocol("too many suppliers were named"));
                }
                self.drop_feed();
                let wanted =
                    Wanted { node, addr, key: self.key, from: self.next, block_size: self.block_size };
                self.feed = Some(Feed::open(&self.shared, wanted, &self.activity));
            }
            Order::Block(block) => {
                let offset = block.offset;
                if offset == self.vouched_to {
                    self.vouch(block.len as u32, block.prefix)?;
                } else if self.vouched_at(offset) != Some((block.len as u32, block.prefix))
                    && offset >= self.vouched_from
                {
                    return Err(TransferError::Protocol("a block is not the one that was vouched for"));
                }
                self.drop_feed();
                // Others were under way when something else was asked for.
                if offset == self.next {
                    self.next += block.len as u64;
                    return Ok(Some(Arrival::Block(block)));
                }
            }
            Order::Repair { offset, parts } => return Ok(Some(Arrival::Repair { offset, parts })),
            Order::Done { size, digest } => {
                if self.announced.is_some_and(|announced| announced != size) || size != self.vouched_to {
                    return Err(size_mismatch(self.announced.or(Some(size)), self.vouched_to));
                }
                self.end = Some((size, digest));
            }
        }
        Ok(None)
    }

    fn vouch(&mut self, len: u32, prefix: Digest) -> Result<(), TransferError> {
        self.settle();
        let last_was_short = self.vouched.back().is_some_and(|(len, _)| *len < self.block_size);
        if len == 0 || len > self.block_size || last_was_short {
            return Err(TransferError::Protocol("only the last block may differ from the block size"));
        }
        if self.vouched.len() >= MAX_AHEAD {
            return Err(TransferError::Protocol("too many blocks are vouched for ahead of their content"));
        }
        self.vouched.push_back((len, prefix));
        self.vouched_to += u64::from(len);
        if self.announced.is_some_and(|size| self.vouched_to > size) {
            return Err(size_mismatch(self.announced, self.vouched_to));
        }
        Ok(())
    }

    fn vouched_at(&self, offset: u64) -> Option<(u32, Digest)> {
        let blocks = offset.checked_sub(self.vouched_from)? / u64::from(self.block_size);
        self.vouched.get(usize::try_from(blocks).ok()?).copied()
    }

    /// The block that a relay supplied, once the sender vouches for it.
    async fn match_early(&mut self) -> Result<Option<IncomingBlock>, TransferError> {
        let Some((len, prefix)) = self.vouched_at(self.next) else { return Ok(None) };
        let Some(fed) = self.early.take() else { return Ok(None) };
        if fed.offset != self.next || fed.len != len as usize {
            self.ask(FailureCode::Protocol).await?;
            return Ok(None);
        }
        self.next += u64::from(len);
        Ok(Some(IncomingBlock {
            offset: fed.offset,
            parts: fed.parts,
            len: fed.len,
            prefix,
            compressed: false,
            travelled: fed.len,
        }))
    }

    fn drop_feed(&mut self) {
        self.feed = None;
        self.early = None;
    }

    async fn ask(&mut self, why: FailureCode) -> Result<(), TransferError> {
        self.drop_feed();
        self.asked += 1;
        if self.asked > MAX_NEEDS {
            return Err(TransferError::Protocol("no supplier has the content that the sender vouches for"));
        }
        let need = Need { offset: self.next, why };
        self.needs.send(need).await.map_err(|_| TransferError::Cancelled)
    }
}
