//! What a receiver remembers of transfer ids, so that a lost acknowledgement can be asked for again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use octopii_transport::NodeId;

use crate::outcomes::Outcome;
use crate::wire::{Acknowledgement, TransferStatus};
use crate::{FailureCode, Refusal, TransferId};

/// One sender cannot ask about another's transfers.
type Key = (NodeId, TransferId);

/// Transfers under way, and the latest that ended: those of the sender that has most are forgotten first, so that nobody makes
/// this node forget what it has told others.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: Mutex<Entries>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Entries {
    active: BTreeMap<Key, Arc<AtomicU64>>,
    ended: BTreeMap<Key, Result<Acknowledgement, Refusal>>,
    // The keys of `ended`: those of each sender, oldest first, and the number of each among all.
    order: BTreeMap<NodeId, VecDeque<(u64, TransferId)>>,
    count: u64,
}

/// A transfer under way; recorded as failed if dropped before it was [ended](Registration::end) or
/// [forgotten](Registration::forget).
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<Registry>,
    key: Key,
    verified: Arc<AtomicU64>,
    ended: bool,
}

impl Registry {
    /// Remembers the `capacity` latest transfers that ended.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), capacity })
    }

    /// What an earlier process acknowledged, the oldest first.
    pub(crate) fn restore(&self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            self.end((outcome.peer, outcome.id), Ok(outcome.acknowledgement()));
        }
    }

    /// `None` if this id is under way or has succeeded; one that failed may be tried again.
    pub(crate) fn register(self: &Arc<Self>, peer: NodeId, id: TransferId) -> Option<Registration> {
        let key = (peer, id);
        let mut entries = self.lock();
        if entries.active.contains_key(&key) || matches!(entries.ended.get(&key), Some(Ok(_))) {
            return None;
        }
        if entries.ended.remove(&key).is_some()
            && let Some(ids) = entries.order.get_mut(&peer)
        {
            ids.retain(|(_, known)| *known != id);
        }
        let verified = Arc::new(AtomicU64::new(0));
        entries.active.insert(key, Arc::clone(&verified));
        Some(Registration { registry: Arc::clone(self), key, verified, ended: false })
    }

    pub(crate) fn status(&self, peer: NodeId, id: TransferId) -> TransferStatus {
        let entries = self.lock();
        if let Some(verified) = entries.active.get(&(peer, id)) {
            return TransferStatus::Receiving { verified: verified.load(Ordering::Relaxed) };
        }
        match entries.ended.get(&(peer, id)) {
            Some(Ok(ack)) => TransferStatus::Finished(*ack),
            Some(Err(refusal)) => TransferStatus::Failed(refusal.clone()),
            None => TransferStatus::Unknown,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().expect("nothing panics while it is held")
    }

    fn end(&self, key: Key, outcome: Result<Acknowledgement, Refusal>) {
        let mut entries = self.lock();
        entries.active.remove(&key);
        if entries.ended.insert(key, outcome).is_none() {
            entries.count += 1;
            let entry = (entries.count, key.1);
            entries.order.entry(key.0).or_default().push_back(entry);
        }
        while entries.ended.len() > self.capacity {
            entries.forget_one();
        }
    }
}

impl Entries {
    fn forget_one(&mut self) {
        // Of several that have most, the one with the oldest.
        let most = |ids: &VecDeque<(u64, TransferId)>| (ids.len(), Reverse(ids.front().map(|(n, _)| *n)));
        let Some((&peer, ids)) = self.order.iter_mut().max_by_key(|(_, ids)| most(ids)) else { return };
        let oldest = ids.pop_front();
        if ids.is_empty() {
            self.order.remove(&peer);
        }
        oldest.and_then(|(_, id)| self.ended.remove(&(peer, id)));
    }
}

impl Registration {
    /// Bytes verified so far, to be kept up to date.
    pub(crate) fn verified(&self) -> &Arc<AtomicU64> {
        &self.verified
    }

    /// Nothing came of it, and that need not be remembered.
    pub(crate) fn forget(mut self) {
        self.ended = true;
        self.registry.lock().active.remove(&self.key);
    }

    pub(crate) fn end(mut self, outcome: Result<Acknowledgement, Refusal>) {
        self.ended = true;
        self.registry.end(self.key, outcome);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.ended {
            self.registry.end(self.key, Err(Refusal::new(FailureCode::Cancelled, "the receiver gave it up")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AckLevel, Digest};

    fn ack() -> Acknowledgement {
        Acknowledgement { level: AckLevel::Durable, size: 1, digest: Digest::of(b"x") }
    }

    #[test]
    fn remembers_the_latest_and_forgets_the_oldest() {
        let registry = Registry::new(2);
        for id in 0..3 {
            registry.register(1, TransferId(id)).unwrap().end(Ok(ack()));
        }
        assert_eq!(registry.status(1, TransferId(0)), TransferStatus::Unknown);
        assert_eq!(registry.status(1, TransferId(2)), TransferStatus::Finished(ack()));
        assert_eq!(registry.status(2, TransferId(2)), TransferStatus::Unknown, "another peer's transfer");
    }

    #[test]
    fn of_many_senders_the_oldest_goes() {
        let registry = Registry::new(2);
        for peer in [1, 2, 3] {
            registry.register(peer, TransferId(0)).unwrap().end(Ok(ack()));
        }
        let known = |peer| registry.status(peer, TransferId(0)) == TransferStatus::Finished(ack());
        assert_eq!([known(1), known(2), known(3)], [false, true, true]);
    }

    #[test]
    fn nobody_makes_it_forget_what_others_were_told() {
        let registry = Registry::new(4);
        registry.register(1, TransferId(0)).unwrap().end(Ok(ack()));
        registry.register(2, TransferId(0)).unwrap().end(Ok(ack()));
        for id in 0..100 {
            drop(registry.register(3, TransferId(id)).unwrap());
        }
        assert_eq!(registry.status(1, TransferId(0)), TransferStatus::Finished(ack()));
        assert_eq!(registry.status(2, TransferId(0)), TransferStatus::Finished(ack()));
        assert_eq!(registry.status(3, TransferId(97)), TransferStatus::Unknown);
        assert!(matches!(registry.status(3, TransferId(98)), TransferStatus::Failed(_)));
        // What was refused takes nobody's place, not even its sender's own.
        registry.register(3, TransferId(100)).unwrap().forget();
        assert_eq!(registry.status(3, TransferId(100)), TransferStatus::Unknown);
        assert!(matches!(registry.status(3, TransferId(98)), TransferStatus::Failed(_)));
        let entries = registry.lock();
        assert_eq!((entries.ended.len(), entries.active.len()), (4, 0));
        assert_eq!(entries.order.values().map(VecDeque::len).sum::<usize>(), 4);
    }

    #[test]
    fn an_id_is_used_once_unless_it_failed() {
        let registry = Registry::new(2);
        let id = TransferId(1);
        let first = registry.register(1, id).unwrap();
        assert!(registry.register(1, id).is_none());
        assert_eq!(registry.status(1, id), TransferStatus::Receiving { verified: 0 });
        drop(first);
        assert!(matches!(registry.status(1, id), TransferStatus::Failed(_)));
        registry.register(1, id).unwrap().end(Ok(ack()));
        assert!(registry.register(1, id).is_none());
        registry.register(1, TransferId(2)).unwrap().end(Ok(ack()));
        assert_eq!(registry.status(1, id), TransferStatus::Finished(ack()), "two entries fit");
    }
}
