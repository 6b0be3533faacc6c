//! Who decides where an incoming tree goes.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use octopii_transport::PeerIdentity;

use super::outcome::{EntryOutcome, TreeReport};
use crate::{Refusal, TransferError, TransferId};

/// A tree that a sender proposes. Everything but `peer` and `remote_addr` is the sender's word.
#[derive(Debug, Clone)]
pub struct TreeOffer {
    /// The sender's name for this transfer.
    pub id: TransferId,
    /// Which policy decides; at most 64 bytes.
    pub purpose: String,
    /// A name for the directory; at most 255 bytes, anything in them.
    pub name: PathBuf,
    /// Whatever the sending application wants to tell the receiving one; at most 64 KiB.
    pub meta: Bytes,
    /// Whether what the source no longer has is to be removed; refused unless [`TreeDestination::delete`] allows it.
    pub delete: bool,
    /// Whether it is only asked what would be done: then nothing is, and of the policy nothing but `accept` is called.
    pub dry_run: bool,
    /// Who sends, from its verified certificate.
    pub peer: PeerIdentity,
    /// From where.
    pub remote_addr: SocketAddr,
}

/// What happens if something has the wanted name already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExistingTree {
    /// A directory that earlier transfers of the same source made is brought up to date; the source is the sender's word (see
    /// [`TreeDestination::delete`] for who may remove there). Anything else is left alone, and a
    /// new directory `name (1)`, `name (2)`, … is made beside it.
    #[default]
    UpdateOwn,
    /// A directory of that name is brought up to date, whoever made it. Give this to nobody for a directory that holds more
    /// than received trees.
    Update,
    /// A new directory is made beside it, except to finish what an interrupted transfer of the same source began.
    Fresh,
    /// The tree is refused, except to finish what an interrupted transfer of the same source began.
    Refuse,
}

/// Bounds on what a tree may make a receiver hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeLimits {
    /// Entries: files, directories, links. Default 10 million.
    pub entries: u64,
    /// Bytes of all files that are not there yet. Default: what the disk has, less
    /// [`TransferOptions::leave_free`](crate::TransferOptions::leave_free).
    pub bytes: u64,
    /// Directories within directories; at most 128. Default 64.
    pub depth: usize,
}

impl Default for TreeLimits {
    fn default() -> Self {
        Self { entries: 10_000_000, bytes: u64::MAX, depth: 64 }
    }
}

/// Where an accepted tree goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeDestination {
    /// The directory in which the tree's directory is; created if missing. Trusted: nobody but this user should be able to
    /// rename things in it. Octopii keeps what is not complete in a directory `.octopii-trees` in it.
    pub dir: PathBuf,
    /// The name of the tree's directory: one plain component of at most 240 bytes; anything else is refused.
    pub name: PathBuf,
    /// What happens if the name is taken.
    pub existing: ExistingTree,
    /// Bounds.
    pub limits: TreeLimits,
    /// Permission bits that files and directories may get; the others are dropped. Default `0o777`.
    pub mode_mask: u32,
    /// Whether symbolic links that cannot lead out of the tree are made. Default no.
    pub links: bool,
    /// Whether a sender may have removed what is in the tree's directory and not in the source any more, whoever put it there: only the
    /// node that made the directory, and operators; with [`ExistingTree::Update`] everybody. A sender is refused, too, if the file system
    /// does not tell when directories were created, since one that was made anew may pass for the one that was sent. Default no.
    pub delete: bool,
}

impl TreeDestination {
    /// A destination with the defaults for everything else.
    pub fn new(dir: impl Into<PathBuf>, name: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            name: name.into(),
            existing: ExistingTree::default(),
            limits: TreeLimits::default(),
            mode_mask: 0o777,
            links: false,
            delete: false,
        }
    }
}

/// A tree that arrived: all that could be done is durable.
#[derive(Debug, Clone)]
pub struct ReceivedTree {
    /// What the sender said.
    pub offer: TreeOffer,
    /// Where it is.
    pub path: PathBuf,
    /// What was done and what was not, as the sender is told.
    pub report: TreeReport,
}

/// Decides where the trees of one purpose go, and hears of those that arrived. All methods are called on blocking threads.
pub trait TreePolicy: Send + Sync + 'static {
    /// Takes the offer or refuses it. A refusal's message is shown to the sender.
    fn accept(&self, offer: &TreeOffer) -> Result<TreeDestination, Refusal>;

    /// An entry is settled: durable, there already, or not done. In no particular order. What was removed is durable with
    /// [`received`](Self::received).
    fn entry(&self, offer: &TreeOffer, path: &Path, outcome: &EntryOutcome) {
        let (_, _, _) = (offer, path, outcome);
    }

    /// The tree is there, as far as its report says. Called before the sender hears of the end.
    fn received(&self, received: ReceivedTree);

    /// An accepted tree ended early. What is complete of it stays, and is not sent again when the tree is.
    fn failed(&self, offer: &TreeOffer, error: &TransferError) {
        let (_, _) = (offer, error);
    }

    /// Directories into which trees are received; what a crashed process left in them is removed when the policy is
    /// installed.
    fn directories(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

type OnReceived = Box<dyn Fn(ReceivedTree) + Send + Sync>;

/// Receives trees into one directory, under the name the sender proposes. An existing directory is touched only if
/// the same source has made it; see [`ExistingTree`].
pub struct TreeInbox {
    destination: TreeDestination,
    on_received: Option<OnReceived>,
}

impl TreeInbox {
    /// An inbox in `dir`, which is created with the first tree.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { destination: TreeDestination::new(dir, ""), on_received: None }
    }

    /// What happens if the name is taken.
    #[must_use]
    pub fn existing(mut self, existing: ExistingTree) -> Self {
        self.destination.existing = existing;
        self
    }

    /// Bounds on each tree.
    #[must_use]
    pub fn limits(mut self, limits: TreeLimits) -> Self {
        self.destination.limits = limits;
        self
    }

    /// Permission bits that files and directories may get.
    #[must_use]
    pub fn mode_mask(mut self, mask: u32) -> Self {
        self.destination.mode_mask = mask;
        self
    }

    /// Makes symbolic links that cannot lead out of the tree.
    #[must_use]
    pub fn links(mut self, links: bool) -> Self {
        self.destination.links = links;
        self
    }

    /// Lets senders have removed what their source no longer has; see [`TreeDestination::delete`].
    #[must_use]
    pub fn delete(mut self, delete: bool) -> Self {
        self.destination.delete = delete;
        self
    }

    /// Calls `f` with every tree that arrived, on a blocking thread, before its sender is told.
    #[must_use]
    pub fn on_received(mut self, f: impl Fn(ReceivedTree) + Send + Sync + 'static) -> Self {
        self.on_received = Some(Box::new(f));
        self
    }
}

impl fmt::Debug for TreeInbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeInbox").field("destination", &self.destination).finish_non_exhaustive()
    }
}

impl TreePolicy for TreeInbox {
    fn accept(&self, offer: &TreeOffer) -> Result<TreeDestination, Refusal> {
        // The name is checked where every policy's choice is checked.
        Ok(TreeDestination { name: offer.name.clone(), ..self.destination.clone() })
    }

    fn received(&self, received: ReceivedTree) {
        if let Some(f) = &self.on_received {
            f(received);
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        vec![self.destination.dir.clone()]
    }
}
