//! Trees being received, for what of theirs travels as chunk transfers: large files, and packs that go to many.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use octopii_transport::NodeId;
use tokio::sync::{Notify, Semaphore, mpsc};

use super::check::{Awaited, Wanted, is_small};
use super::root::{large_name, packs_name};
use crate::{
    Destination, Digest, FailureCode, Location, Offer, ReceivePolicy, ReceivedChunk, Refusal, TransferId,
};

/// The purpose of the chunks that are large files of trees.
pub(crate) const LARGE: &str = "octopii.tree";

/// Large files of one tree that travel at the same time.
pub(crate) const LARGE_AT_ONCE: usize = 2;

/// The purpose of the chunks that are packs of small files of trees that go to many.
pub(crate) const PACKS: &str = "octopii.packs";

/// Chunks of packs of one tree that travel at the same time.
pub(crate) const PACKS_AT_ONCE: usize = 2;

/// The longest chunk of packs, in bytes.
pub(crate) const MAX_PACKS: u64 = 32 << 20;

/// Chunks of packs that were taken and are remembered until they arrive: more than are under way, for one may never do so.
const EXPECTED: usize = 16;

const META_LEN: usize = 16 + 8;

/// What the offer of a large file says about itself, by its entry, and that of a chunk of packs, by its number.
pub(crate) fn chunk_meta(tree: TransferId, which: u64) -> Bytes {
    let mut meta = Vec::with_capacity(META_LEN);
    meta.extend_from_slice(&tree.0.to_le_bytes());
    meta.extend_from_slice(&which.to_le_bytes());
    meta.into()
}

fn parse(meta: &[u8]) -> Option<(TransferId, u64)> {
    let (tree, rest) = meta.split_first_chunk()?;
    Some((TransferId(u128::from_le_bytes(*tree)), u64::from_le_bytes(rest.try_into().ok()?)))
}

/// What the chunk policy knows of a tree.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) awaited: Arc<Awaited>,
    /// Where its large files grow.
    pub(crate) dir: PathBuf,
    /// Told of each that has.
    pub(crate) arrived: mpsc::UnboundedSender<Arrival>,
    /// Its sender has begun the tree again.
    pub(crate) superseded: Notify,
    /// For its large files: they are a part of what the tree has a place for.
    pub(crate) places: Arc<Semaphore>,
    /// For chunks of packs, likewise.
    pub(crate) packs_places: Arc<Semaphore>,
    pub(crate) packs: Arc<Packs>,
}

/// The chunks of packs of one tree.
#[derive(Debug, Default)]
pub(crate) struct Packs(Mutex<KnownPacks>);

#[derive(Debug, Default)]
struct KnownPacks {
    expected: VecDeque<u64>,
    /// With their lengths.
    arrived: BTreeMap<u64, u64>,
}

impl Packs {
    fn lock(&self) -> MutexGuard<'_, KnownPacks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more is taken, unless those that are there must be unpacked first.
    fn expect(&self, number: u64) -> bool {
        let mut known = self.lock();
        let is_known = known.arrived.contains_key(&number) || known.expected.contains(&number);
        if known.arrived.len() >= PACKS_AT_ONCE || is_known {
            return false;
        }
        if known.expected.len() == EXPECTED {
            known.expected.pop_front();
        }
        known.expected.push_back(number);
        true
    }

    fn arrived(&self, number: u64, len: u64) {
        let mut known = self.lock();
        if let Some(at) = known.expected.iter().position(|expected| *expected == number) {
            known.expected.remove(at);
            known.arrived.insert(number, len);
        }
    }

    /// The length of a chunk that is there.
    pub(crate) fn get(&self, number: u64) -> Option<u64> {
        self.lock().arrived.get(&number).copied()
    }

    pub(crate) fn forget(&self, number: u64) {
        self.lock().arrived.remove(&number);
    }
}

/// A large file that lies, verified and durable, under its hidden name.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) entry: u64,
    pub(crate) wanted: Wanted,
    pub(crate) digest: Digest,
}

type Key = (NodeId, TransferId);

/// Every tree that is being received.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<BTreeMap<Key, Arc<Session>>>);

/// Ends the session when dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
    key: Key,
}

impl Registered {
    /// Returns when the tree's sender has begun it again.
    pub(crate) async fn superseded(&self) {
        self.session.superseded.notified().await;
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Session>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` if this sender has a tree of this id under way.
    pub(crate) fn register(
        self: &Arc<Self>,
        peer: NodeId,
        id: TransferId,
        session: Session,
    ) -> Option<Registered> {
        let key = (peer, id);
        let mut sessions = self.lock();
        if sessions.contains_key(&key) {
            return None;
        }
        let session = Arc::new(session);
        sessions.insert(key, Arc::clone(&session));
        Some(Registered { sessions: Arc::clone(self), session, key })
    }

    /// Ends a tree of this id that the same sender has under way, in its own time. Says whether there is one.
    pub(crate) fn supersede(&self, peer: NodeId, id: TransferId) -> bool {
        let sessions = self.lock();
        let found = sessions.get(&(peer, id));
        if let Some(session) = found {
            session.superseded.notify_one();
        }
        found.is_some()
    }

    /// The places for the chunks of the tree that an offer is about, if there is such a tree.
    pub(crate) fn places(&self, offer: &Offer) -> Option<Arc<Semaphore>> {
        let (session, _) = self.find(offer)?;
        Some(Arc::clone(if offer.purpose == PACKS { &session.packs_places } else { &session.places }))
    }

    /// The session and the entry, or the number of packs, that an offer is about.
    fn find(&self, offer: &Offer) -> Option<(Arc<Session>, u64)> {
        let (id, entry) = parse(&offer.meta)?;
        let session = self.lock().get(&(offer.peer.node_id, id)).cloned()?;
        Some((session, entry))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.key);
    }
}

/// The answer to a large file that no tree has asked for.
pub(crate) fn not_asked_for() -> Refusal {
    Refusal::new(FailureCode::Rejected, "this file was not asked for")
}

/// Takes the large files of trees under way, and nothing else.
#[derive(Debug)]
pub(crate) struct LargeFiles(pub(crate) Arc<Sessions>);

impl ReceivePolicy for LargeFiles {
    fn accept(&self, offer: &Offer) -> Result<Destination, Refusal> {
        let (session, entry) = self.0.find(offer).ok_or_else(not_asked_for)?;
        let wanted = session.awaited.get(entry).ok_or_else(not_asked_for)?;
        if is_small(wanted.size) || offer.size != Some(wanted.size) {
            return Err(Refusal::new(FailureCode::SizeMismatch, "the file is not as long as was announced"));
        }
        let (dir, name) = (session.dir.clone(), large_name(&wanted.path));
        Ok(Destination::File { dir, name, replace: true })
    }

    fn received(&self, received: ReceivedChunk) {
        let Some((session, entry)) = self.0.find(&received.offer) else { return };
        // What an attempt that was cut off has asked for may come when the next one counts its entries in another way.
        let is_meant = |wanted: &Wanted| match &received.location {
            Location::File(at) => at.file_name() == Some(OsStr::new(&large_name(&wanted.path))),
            Location::Memory(_) => false,
        };
        if !session.awaited.get(entry).is_some_and(|wanted| wanted.size == received.size && is_meant(&wanted))
        {
            return;
        }
        // It came already, with another transfer at the same time.
        let Some(wanted) = session.awaited.take(entry) else { return };
        // An error means that the tree has ended; what it leaves is cleaned up with the rest of it.
        let _ = session.arrived.send(Arrival { entry, wanted, digest: received.digest });
    }
}

/// Takes the packs of trees under way, and nothing else.
#[derive(Debug)]
pub(crate) struct SharedPacks(pub(crate) Arc<Sessions>);

impl ReceivePolicy for SharedPacks {
    fn accept(&self, offer: &Offer) -> Result<Destination, Refusal> {
        let (session, number) = self.0.find(offer).ok_or_else(not_asked_for)?;
        if session.awaited.is_empty() {
            return Err(not_asked_for());
        }
        if offer.size.is_none_or(|size| size > MAX_PACKS) {
            return Err(Refusal::new(FailureCode::TooLarge, "these are more packs than come together"));
        }
        if !session.packs.expect(number) {
            return Err(Refusal::new(FailureCode::Busy, "earlier packs have not been unpacked yet"));
        }
        Ok(Destination::File { dir: session.dir.clone(), name: packs_name(number), replace: false })
    }

    fn received(&self, received: ReceivedChunk) {
        let Some((session, number)) = self.0.find(&received.offer) else { return };
        let is_meant = match &received.location {
            Location::File(at) => at.file_name() == Some(OsStr::new(&packs_name(number))),
            Location::Memory(_) => false,
        };
        if is_meant {
            session.packs.arrived(number, received.size);
        }
    }
}
