//! What this node has verified and others may fetch.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use octopii_vfs::FileHandle;
use tokio::sync::watch;

use crate::wire::relay::RelayKey;

/// Chunks that arrive here, or have arrived, for as long as others may need them.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    held: Mutex<BTreeMap<RelayKey, Arc<Held>>>,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) file: FileHandle,
    pub(crate) block_size: u32,
    state: watch::Sender<State>,
}

/// How much there is of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// Verified bytes from the beginning.
    pub(crate) verified: u64,
    pub(crate) end: End,
}

/// Whether more will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Open,
    Whole,
    GivenUp,
}

/// Keeps a chunk on the shelf. Dropping it takes the chunk away: those who fetch it get what is there and no more.
#[derive(Debug)]
pub(crate) struct Shelved {
    shelf: Arc<Shelf>,
    key: RelayKey,
    held: Arc<Held>,
}

impl Shelf {
    /// Offers `file` under `key`; `None` if something else is there under that key.
    pub(crate) fn put(
        self: &Arc<Self>,
        key: RelayKey,
        file: FileHandle,
        block_size: u32,
        verified: u64,
    ) -> Option<Shelved> {
        let mut all = self.lock();
        let Entry::Vacant(place) = all.entry(key) else { return None };
        let state = watch::Sender::new(State { verified, end: End::Open });
        let held = Arc::new(Held { file, block_size, state });
        place.insert(Arc::clone(&held));
        Some(Shelved { shelf: Arc::clone(self), key, held })
    }

    pub(crate) fn find(&self, key: RelayKey) -> Option<Arc<Held>> {
        self.lock().get(&key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelayKey, Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}

impl Shelved {
    /// More of it is verified and stored.
    pub(crate) fn advance(&self, verified: u64) {
        self.held.state.send_modify(|state| state.verified = verified);
    }

    /// All of it is there.
    pub(crate) fn complete(&self) {
        self.held.state.send_modify(|state| state.end = End::Whole);
    }
}

impl Drop for Shelved {
    fn drop(&mut self) {
        self.shelf.lock().remove(&self.key);
        self.held.state.send_if_modified(|state| {
            let open = state.end == End::Open;
            if open {
                state.end = End::GivenUp;
            }
            open
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use octopii_vfs::{OpenMode, RealVfs, Vfs};

    #[test]
    fn what_is_dropped_unfinished_is_given_up_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealVfs.open(&dir.path().join("f"), OpenMode::CreateNew).unwrap();
        let shelf = Arc::new(Shelf::default());
        let (key, other) = (RelayKey(1), RelayKey(2));
        let shelved = shelf.put(key, Arc::clone(&file), 10, 0).unwrap();
        assert!(shelf.put(key, Arc::clone(&file), 10, 0).is_none(), "the key is taken");
        let whole = shelf.put(other, file, 10, 20).unwrap();
        let held = shelf.find(key).unwrap();
        shelved.advance(30);
        assert_eq!(*held.watch().borrow(), State { verified: 30, end: End::Open });
        drop(shelved);
        assert_eq!(*held.watch().borrow(), State { verified: 30, end: End::GivenUp });
        assert!(shelf.find(key).is_none());
        let held = shelf.find(other).unwrap();
        whole.complete();
        drop(whole);
        assert_eq!(*held.watch().borrow(), State { verified: 20, end: End::Whole });
    }
}
