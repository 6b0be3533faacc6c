//! What a tree being received is made of.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::OpenMode;

use crate::TransferError;
use crate::compression::Decompressor;
use crate::framing::{HEADER_LEN, Malformed};
use crate::tree::check::{Awaited, Checked, Checker, Closing, Task, Wanted};
use crate::tree::commit::{self, Settled, Staged};
use crate::tree::outcome::{EntryFailure, EntryOutcome, Ledger, NotDone};
use crate::tree::policy::{TreeOffer, TreePolicy};
use crate::tree::root::Root;
use crate::tree::sessions::{Arrival, Packs};
use crate::tree::wire::{self, Entry, Header, Packed, Tag, Unpack};

/// What is only touched on blocking threads, or for a moment.
pub(in crate::tree) struct Work {
    pub(super) offer: TreeOffer,
    pub(super) policy: Arc<dyn TreePolicy>,
    pub(super) root: Root,
    pub(super) checker: Checker,
    pub(super) awaited: Arc<Awaited>,
    pub(super) packs: Arc<Packs>,
    /// For packs that come compressed, if they may.
    pub(super) decompressor: Option<Decompressor>,
    pub(super) ledger: Ledger,
    pub(super) staged: Vec<Staged>,
    pub(super) staged_bytes: u64,
    /// In the order of their numbers.
    pub(super) closing: VecDeque<Closing>,
}

impl Work {
    pub(in crate::tree) fn new(
        offer: TreeOffer,
        policy: Arc<dyn TreePolicy>,
        root: Root,
        checker: Checker,
        (awaited, packs): (Arc<Awaited>, Arc<Packs>),
        decompressor: Option<Decompressor>,
    ) -> Self {
        Self {
            offer,
            policy,
            root,
            checker,
            awaited,
            packs,
            decompressor,
            ledger: Ledger::default(),
            staged: Vec::new(),
            staged_bytes: 0,
            closing: VecDeque::new(),
        }
    }

    /// Checks a page. Gives back as well what has failed already although a result was promised.
    pub(super) fn check(&mut self, entries: Vec<Entry>) -> Result<(Checked, Vec<Settled>), TransferError> {
        let mut checked = self.checker.page(&self.root, entries)?;
        for (path, outcome) in &checked.settled {
            self.policy.entry(&self.offer, path, outcome);
            self.ledger.settle(path, outcome);
        }
        let mut failed = Vec::new();
        for task in std::mem::take(&mut checked.tasks) {
            match task {
                Task::Link { entry, path, target } => match commit::stage_link(&mut self.root, &target) {
                    Ok(at) => self.staged.push(Staged { entry, at, path, bytes: 0, attributes: None }),
                    Err(why) => failed.push(Settled::not_done(entry, path, why)),
                },
                Task::Close(closing) => {
                    checked.closing.push(closing.entry);
                    self.closing.push_back(closing);
                }
            }
        }
        Ok((checked, failed))
    }

    pub(super) fn stage(&mut self, pack: Vec<Packed>) -> Result<Vec<Settled>, TransferError> {
        let before = self.staged.len();
        let told = self.checker.next();
        let settled = commit::stage(&mut self.root, &self.awaited, told, pack, &mut self.staged)?;
        self.staged_bytes += self.staged[before..].iter().map(|file| file.bytes).sum::<u64>();
        Ok(settled)
    }

    pub(super) fn stage_compressed(&mut self, body: &Bytes) -> Result<Vec<Settled>, TransferError> {
        let pack = self.decompress(body)?;
        self.stage(wire::decode_pack(&pack)?)
    }

    fn decompress(&mut self, body: &Bytes) -> Result<Bytes, TransferError> {
        let (len, frame) = wire::decode_compressed(body)?;
        let Some(decompressor) = &mut self.decompressor else {
            return Err(TransferError::Protocol("a compressed pack, and that was not agreed on"));
        };
        let pack = decompressor.decompress(&[frame], len);
        Ok(pack.ok_or(Malformed("what a compressed pack holds is not what it says"))?)
    }

    /// Stages a pack that lies in a chunk of packs, as one that came by itself.
    pub(super) fn unpack(
        &mut self,
        Unpack { chunk, offset, last, entries }: Unpack,
    ) -> Result<Vec<Settled>, TransferError> {
        let Some(len) = self.packs.get(chunk) else {
            return Err(TransferError::Protocol("packs are to be opened that are not there"));
        };
        let at = self.root.staged_packs(chunk);
        let mut settled = Vec::new();
        if !entries.is_empty() {
            let pack = self.read_pack(&at, len, offset)?;
            if pack.len() != entries.len() {
                return Err(TransferError::Protocol("a pack has another number of files than was told"));
            }
            let wanted = pack.into_iter().zip(entries);
            let wanted = wanted.filter_map(|(packed, entry)| Some(Packed { entry: entry?, ..packed }));
            settled = self.stage(wanted.collect())?;
        }
        if last {
            // Before another one may come.
            if let Err(e) = self.root.base.remove_file(&at) {
                return Err(TransferError::store("removing", self.root.base_path.join(&at), e));
            }
            self.packs.forget(chunk);
        }
        Ok(settled)
    }

    fn read_pack(&mut self, at: &Path, len: u64, offset: u64) -> Result<Vec<Packed>, TransferError> {
        let base = &self.root.base;
        let reading = |e| TransferError::store("reading", self.root.base_path.join(at), e);
        let file = base.open(at, OpenMode::Read).map_err(reading)?;
        let beyond = TransferError::Protocol("a pack is to be opened that is not in its chunk");
        let Some(room) = len.checked_sub(offset).and_then(|room| room.checked_sub(HEADER_LEN as u64)) else {
            return Err(beyond);
        };
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, offset).map_err(reading)?;
        let header = Header::decode(header)?;
        if header.len as u64 > room {
            return Err(beyond);
        }
        let mut body = vec![0; header.len];
        file.read_exact_at(&mut body, offset + HEADER_LEN as u64).map_err(reading)?;
        let body = Bytes::from(body);
        match header.tag {
            Tag::Pack => Ok(wire::decode_pack(&body)?),
            Tag::Compressed => Ok(wire::decode_pack(&self.decompress(&body)?)?),
            _ => Err(TransferError::Protocol("something else than packs is in a chunk of packs")),
        }
    }

    pub(super) fn arrived(&mut self, Arrival { entry, wanted, digest }: Arrival) -> Option<Settled> {
        let Wanted { path, size, mode, modified, digest: told } = wanted;
        let at = self.root.staged_large(&path);
        if told.is_some_and(|told| told != digest) {
            // Cleaned up with the next transfer of this tree, if it cannot be now.
            let _ = self.root.base.remove_file(&at);
            let why = NotDone::new(EntryFailure::Changed, "is not what was announced");
            return Some(Settled::not_done(entry, path, why));
        }
        self.staged_bytes += size;
        self.staged.push(Staged { entry, at, path, bytes: size, attributes: Some((mode, modified)) });
        None
    }

    /// Writes down what was removed and what could not be, with their paths from the tree's directory.
    pub(super) fn settle_removed(
        &mut self,
        mut outcomes: Vec<(PathBuf, EntryOutcome)>,
    ) -> Vec<(PathBuf, EntryOutcome)> {
        for (path, outcome) in &mut outcomes {
            if let Ok(within) = path.strip_prefix(&self.root.path) {
                *path = within.to_owned();
            }
            self.policy.entry(&self.offer, path, outcome);
            self.ledger.settle(path, outcome);
        }
        outcomes
    }

    /// Writes down what became of entries, with their paths from the tree's directory.
    pub(super) fn settle(&mut self, mut settled: Vec<Settled>) -> Vec<Settled> {
        for Settled { path, outcome, .. } in &mut settled {
            if let Ok(within) = path.strip_prefix(&self.root.path) {
                *path = within.to_owned();
            }
            self.policy.entry(&self.offer, path, outcome);
            self.ledger.settle(path, outcome);
        }
        settled
    }
}
