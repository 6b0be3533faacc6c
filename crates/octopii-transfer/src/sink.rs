//! An open destination, from what an earlier transfer left to the final name. Everything here blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::checker::Checker;
use crate::digest::PrefixHasher;
use crate::journal::{About, Entry, Journal, Prefix};
use crate::store::{Announced, Resources, Store, Target, no_memory, reserve_space, too_large};
use crate::temporary::{TemporaryFile, check_destination_name};
use crate::wire::{AckLevel, Have};
use crate::{Destination, Digest, Location, TransferError};

/// An open destination: what is known of the content, and where it goes. They are apart so that one block can be checked
/// while another is written.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) checker: Checker,
    pub(crate) store: Store,
    /// Vouches for what is on the disk, if the content can be resumed.
    pub(crate) journal: Option<Journal>,
    /// What an earlier transfer left.
    pub(crate) earlier: Arc<Prefix>,
    pub(crate) have: Have,
    pub(crate) block_size: u32,
    /// What is acknowledged.
    pub(crate) level: AckLevel,
}

/// What became of an attempt to open a destination.
pub(crate) enum Opened {
    Sink(Box<Sink>),
    /// Somebody else is receiving the same content into it.
    InUse,
}

impl Sink {
    /// Opens the destination, to go on from what is left of `resume` in it.
    pub(crate) fn open(
        with: &Resources,
        to: &Destination,
        announced: Announced,
        resume: Option<About>,
        level: AckLevel,
    ) -> Result<Opened, TransferError> {
        let Announced { size, block_size, .. } = announced;
        let mut checker = Checker::new(PrefixHasher::default(), 0, block_size);
        let (mut journal, mut earlier, mut have) = (None, Arc::<Prefix>::default(), Have::nothing());
        let target = match to {
            Destination::File { dir, name, replace } => {
                check_destination_name(name)?;
                let temporary = match resume {
                    None => TemporaryFile::create(&with.vfs, dir)?,
                    Some(about) => {
                        let Some(opened) = TemporaryFile::open_resumable(&with.vfs, dir, about)? else {
                            return Ok(Opened::InUse);
                        };
                        let temporary;
                        (temporary, journal, earlier) = (opened.0, Some(opened.1), Arc::new(opened.2));
                        if let Some((known, hasher)) = earlier.have(block_size) {
                            checker = Checker::new(hasher, known.bytes, block_size);
                            have = known;
                        }
                        checker.chains = Some(BTreeMap::new());
                        temporary
                    }
                };
                let around_holes = announced.stored.map(|_| have.bytes);
                if let Some(end) = around_holes {
                    // Where nothing will be written, nothing of an earlier transfer may be left.
                    temporary.cut(end)?;
                }
                let reserved = reserve_space(with, &temporary, announced, have.bytes)?;
                let leave_free = (!reserved).then_some(with.leave_free);
                Target::File {
                    temporary,
                    name: name.clone(),
                    replace: *replace,
                    scratch: Vec::new(),
                    crcs: BTreeMap::new(),
                    leave_free,
                    around_holes,
                }
            }
            Destination::Memory { limit } => {
                if size.is_some_and(|size| size > *limit) {
                    return Err(too_large(*limit));
                }
                let bytes = size.unwrap_or(*limit);
                let reservation = with.memory.reserve(bytes).ok_or_else(|| no_memory(bytes, &with.memory))?;
                Target::Memory {
                    buffer: Vec::new(),
                    limit: *limit,
                    announced: size,
                    _reservation: reservation,
                }
            }
        };
        let store = Store { target, cached: false, written: 0 };
        Ok(Opened::Sink(Box::new(Self { checker, store, journal, earlier, have, block_size, level })))
    }

    /// The digest of everything, if it is what the sender claims.
    pub(crate) fn verify(&self, expected: Digest) -> Result<Digest, TransferError> {
        let digest = self.checker.hasher.prefix();
        if digest != expected {
            let message = format!("the sender's SHA-256 is {expected}, the receiver's {digest}");
            return Err(TransferError::DigestMismatch(message));
        }
        Ok(digest)
    }

    /// Makes the chunk available, once its digest has been verified: a file under its final name, and durable there if that was
    /// wanted. Says how safe it is now.
    pub(crate) fn finish(mut self, expected: Digest) -> Result<(Location, Digest, AckLevel), TransferError> {
        let verified = self.verify(expected);
        self.store.set_keep(false);
        let digest = verified?;
        match self.store.target {
            Target::File { temporary, name, replace, .. } => {
                let level = self.level.max(AckLevel::Verified);
                let path = temporary.publish(&name, replace, level == AckLevel::Durable)?;
                Ok((Location::File(path), digest, level))
            }
            Target::Memory { buffer, .. } => {
                Ok((Location::Memory(buffer.into()), digest, AckLevel::Verified))
            }
        }
    }

    /// Whether syncing now is of use later: to what is acknowledged as durable, or to who resumes.
    pub(crate) fn is_synced_early(&self) -> bool {
        self.level == AckLevel::Durable || self.journal.is_some()
    }

    /// Leaves what has arrived to another transfer of the same content, if that is possible at all. Returns whether it is.
    pub(crate) fn keep(mut self, stored: u64) -> bool {
        let Some(mut journal) = self.journal.take() else { return false };
        let entries = self.vouch_for(&journal, stored);
        let synced = match self.store.file() {
            Some(file) => file.file().sync_data().and_then(|()| journal.append(&entries)),
            None => return false,
        };
        match synced {
            Ok(()) if journal.is_worth_keeping(0) => self.store.set_keep(true),
            Ok(()) => {}
            // What was not written, a later sync would no longer report.
            Err(e) => {
                tracing::warn!("cannot keep an interrupted transfer: {e}");
                self.store.set_keep(false);
            }
        }
        self.store.file().is_some_and(TemporaryFile::is_kept)
    }

    /// What the journal is told of the blocks that are stored up to `stored` and that it does not vouch for yet.
    pub(crate) fn vouch_for(&mut self, journal: &Journal, stored: u64) -> Vec<Entry> {
        let block_size = u64::from(self.block_size);
        let (chains, crcs) = match (&mut self.checker.chains, &mut self.store.target) {
            (Some(chains), Target::File { crcs, .. }) => (chains, crcs),
            _ => return Vec::new(),
        };
        if journal.is_full() {
            chains.clear();
            crcs.clear();
            return Vec::new();
        }
        let mut entries = Vec::new();
        let mut at = journal.bytes();
        while at + block_size <= stored
            && let (Some(&chain), Some(&crc)) = (chains.get(&at), crcs.get(&at))
        {
            entries.push(Entry { chain, crc });
            at += block_size;
        }
        *chains = chains.split_off(&at);
        *crcs = crcs.split_off(&at);
        entries
    }
}
