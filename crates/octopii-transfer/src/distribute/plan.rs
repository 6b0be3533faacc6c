//! Who supplies whom. Pure decisions: no clock, no network.
//!
//! Receivers form a chain in the order in which they accept: the sender supplies the first, each supplies the next, so the
//! last has everything about one block per receiver after the first, and the sender uploads the content once. Whoever is cut
//! off is moved to another receiver that is ahead of it, or to the sender if there is none.

use std::time::Duration;

use octopii_transport::NodeId;

use crate::FailureCode;

/// Without a byte from its supplier for this long, although the supplier claims to have more, a receiver is moved.
const STALL: Duration = Duration::from_secs(3);
/// A supplier that has not said for this long how far it is, five times a second, is as good as gone, long before its
/// connection is given up.
const SILENT: Duration = Duration::from_secs(3);
/// After a move the new supplier gets this long to show what it can do.
const SETTLE: Duration = Duration::from_secs(3);
/// A supplier this far behind the one in front holds up those behind it: they are moved. More for long chains, in which
/// everyone is a little behind.
const CRAWL: u64 = 16 << 20;
const CRAWL_PER_RECEIVER: u64 = 4;
/// A receiver supplied by the sender that gets less than this a second holds up all others: the next one is supplied by the
/// sender, too, to see whether it is quicker.
const SLOW: u64 = 1 << 20;
/// How long it may be that slow.
const SLOW_FOR: Duration = Duration::from_secs(5);
/// A receiver that lags behind its supplier gets this many other ones: more will not help it, the link that is slow is its own.
const TRIES: u32 = 2;
/// Failed fetches after which nobody is sent to a receiver any more.
const STRIKES: u32 = 3;

/// What a receiver may have got since it last said how much: one of the chain is known up to here as of some time ago, and the one
/// behind it as of now.
const UNTOLD: u64 = 4 << 20;

/// Where a receiver gets content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upstream {
    Sender,
    /// From the receiver with this number.
    Receiver(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not heard of yet.
    Offered,
    Receiving,
    Finished,
    Gone,
}

#[derive(Debug)]
struct Receiver {
    phase: Phase,
    node: NodeId,
    shares: bool,
    verified: u64,
    /// When `verified` last grew, or the supply changed.
    moved: Duration,
    /// When it last said anything.
    heard: Duration,
    supply: Upstream,
    /// When the supply was last changed.
    since: Duration,
    /// Bytes verified then.
    verified_then: u64,
    /// How far the supplier was ahead then.
    behind_then: u64,
    /// Fetches from it that failed.
    strikes: u32,
    /// How often it was moved because it could not keep up with its supplier.
    tried: u32,
}

/// All receivers of one distribution, by number. Times are counted from its beginning.
#[derive(Debug)]
pub(crate) struct Plan {
    receivers: Vec<Receiver>,
    block_size: u64,
    /// The receiver behind which the next one is put.
    tail: Option<usize>,
}

impl Plan {
    pub(crate) fn new(receivers: usize, block_size: u32) -> Self {
        let one = || Receiver {
            phase: Phase::Offered,
            node: 0,
            shares: false,
            verified: 0,
            moved: Duration::ZERO,
            heard: Duration::ZERO,
            supply: Upstream::Sender,
            since: Duration::ZERO,
            verified_then: 0,
            behind_then: 0,
            strikes: 0,
            tried: 0,
        };
        Self {
            receivers: std::iter::repeat_with(one).take(receivers).collect(),
            block_size: u64::from(block_size),
            tail: None,
        }
    }

    /// A receiver has accepted; says who supplies it.
    pub(crate) fn accepted(
        &mut self,
        i: usize,
        node: NodeId,
        shares: bool,
        have: u64,
        now: Duration,
    ) -> Upstream {
        let receiver = &mut self.receivers[i];
        receiver.phase = Phase::Receiving;
        (receiver.node, receiver.shares, receiver.verified, receiver.heard) = (node, shares, have, now);
        let behind = self.tail.filter(|&tail| self.may_supply(tail, i, have, now));
        let supply = behind.map_or(Upstream::Sender, Upstream::Receiver);
        self.supply(i, supply, now);
        if shares {
            self.tail = Some(i);
        }
        supply
    }

    /// A receiver reports how much it has verified.
    pub(crate) fn progress(&mut self, i: usize, verified: u64, now: Duration) {
        let receiver = &mut self.receivers[i];
        receiver.heard = now;
        if verified > receiver.verified {
            (receiver.verified, receiver.moved) = (verified, now);
        }
    }

    /// A receiver has everything.
    pub(crate) fn finished(&mut self, i: usize, size: u64) {
        self.receivers[i].phase = Phase::Finished;
        self.receivers[i].verified = size;
    }

    /// A receiver is lost; says who is to be supplied by whom instead.
    pub(crate) fn gone(&mut self, i: usize, now: Duration) -> Vec<(usize, Upstream)> {
        self.receivers[i].phase = Phase::Gone;
        if self.tail == Some(i) {
            self.tail = None;
        }
        let orphans: Vec<_> = self.supplied_by(i).collect();
        orphans.into_iter().map(|orphan| (orphan, self.move_on(orphan, now))).collect()
    }

    /// A receiver can get no more from its supplier; says who is next.
    pub(crate) fn needed(&mut self, i: usize, why: FailureCode, now: Duration) -> Upstream {
        if let Upstream::Receiver(from) = self.receivers[i].supply {
            self.receivers[from].strikes += match why {
                // Whoever hands on wrong bytes is asked no more.
                FailureCode::DigestMismatch | FailureCode::Protocol => STRIKES,
                _ => 1,
            };
            return self.move_on(i, now);
        }
        Upstream::Sender
    }

    /// Looks at everyone; says who is to be supplied by whom instead. To be called about twice a second.
    pub(crate) fn review(&mut self, now: Duration) -> Vec<(usize, Upstream)> {
        let mut moves = Vec::new();
        // First those whose own supplier is the trouble: once they are helped, so are those behind them.
        for i in 0..self.receivers.len() {
            let Some(from) = self.settled_supplier(i, now) else { continue };
            if self.is_starved(i, from, now) || self.is_silent(from, now) {
                self.receivers[from].strikes += 1;
                moves.push((i, self.move_on(i, now)));
            } else if self.is_left_behind(i, from) {
                self.receivers[from].strikes += 1;
                self.receivers[i].tried += 1;
                moves.push((i, self.move_ahead(i, now)));
            }
        }
        for i in 0..self.receivers.len() {
            let Some(from) = self.settled_supplier(i, now) else { continue };
            let is_settled = self.receivers[from].since + SETTLE <= now;
            if is_settled && self.is_held_up(i, from, now) {
                moves.push((i, self.move_ahead(i, now)));
            } else if is_settled && self.is_behind_a_slow_head(i, from, now) {
                self.supply(i, Upstream::Sender, now);
                moves.push((i, Upstream::Sender));
            }
        }
        moves
    }

    /// The receiver that supplies it and has had the time to show what it can do.
    fn settled_supplier(&self, i: usize, now: Duration) -> Option<usize> {
        let receiver = &self.receivers[i];
        match receiver.supply {
            Upstream::Receiver(from)
                if receiver.phase == Phase::Receiving && receiver.since + SETTLE <= now =>
            {
                Some(from)
            }
            _ => None,
        }
    }

    /// It gets nothing although its supplier claims to have more.
    fn is_starved(&self, i: usize, from: usize, now: Duration) -> bool {
        let (own, supplier) = (&self.receivers[i], &self.receivers[from]);
        now > own.moved + STALL && supplier.verified > own.verified
    }

    /// It has not finished, and nothing is heard from it.
    fn is_silent(&self, from: usize, now: Duration) -> bool {
        self.receivers[from].phase == Phase::Receiving && now > self.receivers[from].heard + SILENT
    }

    /// It has nearly all that its supplier has, and someone else is far ahead of both.
    fn is_held_up(&self, i: usize, from: usize, now: Duration) -> bool {
        let (own, supplier) = (self.receivers[i].verified, self.receivers[from].verified);
        supplier.saturating_sub(own) <= CRAWL / 2 && self.best(i, supplier + self.far(), now).is_some()
    }

    fn far(&self) -> u64 {
        CRAWL + CRAWL_PER_RECEIVER * self.block_size * self.receivers.len() as u64
    }

    /// It falls far behind its supplier, and may try others.
    fn is_left_behind(&self, i: usize, from: usize) -> bool {
        let (own, supplier) = (&self.receivers[i], &self.receivers[from]);
        own.tried < TRIES && supplier.verified > own.verified + own.behind_then + self.far()
    }

    /// The sender supplies its supplier, which crawls; and few are supplied by the sender.
    fn is_behind_a_slow_head(&self, i: usize, from: usize, now: Duration) -> bool {
        let head = &self.receivers[from];
        let time = now.saturating_sub(head.since.max(self.receivers[i].since));
        let direct = |r: &&Receiver| r.phase == Phase::Receiving && r.supply == Upstream::Sender;
        head.supply == Upstream::Sender
            && head.phase == Phase::Receiving
            && time >= SLOW_FOR
            && head.verified.saturating_sub(head.verified_then)
                < (SLOW as f64 * now.saturating_sub(head.since).as_secs_f64()) as u64
            && head.verified.saturating_sub(self.receivers[i].verified) <= CRAWL / 2
            && self.receivers.iter().filter(direct).count() < 2
    }

    /// Finds another supplier than the present one: who has what it needs or, as far as is known, will soon have it.
    fn move_on(&mut self, i: usize, now: Duration) -> Upstream {
        let has = self.receivers[i].verified;
        let needed = if self.best(i, has, now).is_some() { has } else { has.saturating_sub(UNTOLD) };
        self.move_to(i, needed, now)
    }

    /// Finds another supplier that is far ahead.
    fn move_ahead(&mut self, i: usize, now: Duration) -> Upstream {
        self.move_to(i, self.receivers[i].verified + self.far(), now)
    }

    fn move_to(&mut self, i: usize, needed: u64, now: Duration) -> Upstream {
        let supply = self.best(i, needed, now).map_or(Upstream::Sender, Upstream::Receiver);
        self.supply(i, supply, now);
        supply
    }

    fn supply(&mut self, i: usize, supply: Upstream, now: Duration) {
        let ahead = match supply {
            Upstream::Sender => 0,
            Upstream::Receiver(from) => self.receivers[from].verified,
        };
        let receiver = &mut self.receivers[i];
        (receiver.supply, receiver.since, receiver.moved) = (supply, now, now);
        receiver.verified_then = receiver.verified;
        receiver.behind_then = ahead.saturating_sub(receiver.verified);
    }

    /// The best other supplier of those who have `needed`: who supplies the fewest, and of those who has most.
    fn best(&self, i: usize, needed: u64, now: Duration) -> Option<usize> {
        let own = &self.receivers[i];
        (0..self.receivers.len())
            .filter(|&c| own.supply != Upstream::Receiver(c) && self.may_supply(c, i, needed, now))
            .min_by_key(|&c| {
                (
                    self.supplied_by(c).filter(|&s| s != i).count(),
                    std::cmp::Reverse(self.receivers[c].verified),
                )
            })
    }

    fn may_supply(&self, from: usize, to: usize, needed: u64, now: Duration) -> bool {
        let candidate = &self.receivers[from];
        matches!(candidate.phase, Phase::Receiving | Phase::Finished)
            && candidate.shares
            && candidate.strikes < STRIKES
            && !self.is_silent(from, now)
            && candidate.verified >= needed
            && candidate.node != self.receivers[to].node
            && !self.depends(from, to)
    }

    /// Whether `i` gets its content, directly or not, from `on`.
    fn depends(&self, i: usize, on: usize) -> bool {
        let mut at = i;
        // Nobody depends on itself, so this ends.
        loop {
            if at == on {
                return true;
            }
            match self.receivers[at].supply {
                // Who has everything depends on nobody.
                Upstream::Receiver(from) if self.receivers[at].phase == Phase::Receiving => at = from,
                _ => return false,
            }
        }
    }

    fn supplied_by(&self, i: usize) -> impl Iterator<Item = usize> {
        let supplied = move |r: &Receiver| r.phase == Phase::Receiving && r.supply == Upstream::Receiver(i);
        self.receivers.iter().enumerate().filter(move |(_, r)| supplied(r)).map(|(n, _)| n)
    }
}

#[cfg(test)]
mod tests;
