//! What a receiver remembers of transfer ids, so that a lost acknowledgement can be asked for again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use octopii_transport::NodeId;

use crate::outcomes::Outcome;
use crate::wire::{Acknowledgement, TransferStatus};
use crate::{FailureCode, Refusal, TransferId};

/// One sender cannot ask about another's transfers.
type Key = (NodeId, TransferId);

/// Transfers under way, and the latest that ended.
#[derive(Debug)]
pub(crate) struct Registry {
    entries: Mutex<Entries>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Entries {
    active: BTreeMap<Key, Arc<AtomicU64>>,
    ended: BTreeMap<Key, Result<Acknowledgement, Refusal>>,
    // Oldest first; holds exactly the keys of `ended`.
    order: VecDeque<Key>,
}

/// A transfer under way; recorded as failed if dropped before [`Registration::end`].
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
        if entries.ended.remove(&key).is_some() {
            entries.order.retain(|k| *k != key);
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
            entries.order.push_back(key);
        }
        while entries.order.len() > self.capacity {
            if let Some(oldest) = entries.order.pop_front() {
                entries.ended.remove(&oldest);
            }
        }
    }
}

impl Registration {
    /// Bytes verified so far, to be kept up to date.
    pub(crate) fn verified(&self) -> &Arc<AtomicU64> {
        &self.verified
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
