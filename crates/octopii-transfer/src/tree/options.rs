//! How to send a tree.

use std::fmt;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;

use super::name::MAX_NAME;
use super::outcome::{EntryFn, TreeProgressFn};
use crate::compression::LEVELS;
use crate::{TransferError, TransferId};

/// What happens to symbolic links in a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Links {
    /// They are left out and reported.
    #[default]
    Skip,
    /// Those that cannot lead out of the tree are sent as links, the others left out and reported. The receiver's policy must
    /// allow it too.
    Inside,
}

/// How to send a tree.
#[derive(Clone)]
pub struct TreeOptions {
    /// Which of the receiver's policies decides; 1 to 64 bytes.
    pub purpose: String,
    /// The directory's name at the receiver. Default: its own.
    pub name: Option<String>,
    /// Told to the receiver's policy; at most 64 KiB.
    pub meta: Bytes,
    /// Names the source, so that a tree that is sent again continues or updates what was sent before, and nothing else.
    /// Default: this node's id and the directory's path.
    pub source: Option<String>,
    /// Tells files apart by their SHA-256 instead of by size and time of the last change. Reads every file of the tree on
    /// both sides, even those that are unchanged. Default: no.
    pub checksum: bool,
    /// Removes at the receiver, in the tree's directory, what the source no longer has: last of all, and only if everything else
    /// was done: what vanishes while the tree is being read counts as not done, and a tree that is removed or replaced meanwhile fails with
    /// [`SourceError::Replaced`](crate::SourceError::Replaced). Links are removed, never followed; what is mounted there
    /// stays. The receiver's policy must allow it
    /// ([`TreeDestination::delete`](crate::TreeDestination::delete)), or the tree is refused. Default: no.
    pub delete: bool,
    /// Only asks what would be done: what the report then counts, and what is told of each entry, is what would be stored and removed as
    /// things are now. Neither side changes anything. Fails if the receiver has a directory in the tree whose mode does not let its owner
    /// look into it: a real run changes that mode. Default: no.
    pub dry_run: bool,
    /// What happens to symbolic links. Default: left out and reported.
    pub links: Links,
    /// Fails at the first entry that cannot be read, instead of reporting it and going on. Default: no.
    pub strict: bool,
    /// Called from Octopii's threads as the tree advances; must return quickly.
    pub progress: Option<TreeProgressFn>,
    /// Called from Octopii's threads with every entry that is settled; must return quickly.
    pub on_entry: Option<EntryFn>,
    /// The level of zstd, from 1 (fastest) to 19, to compress with: packs of small files and the blocks of large ones, each by itself. What
    /// does not shrink travels as it is, and so does everything if the receiver wishes. Worth it where the network is slower than the
    /// processor: level 3 compresses 100 MB/s and more. Takes up to 10 MiB more here, 30 MiB at the highest levels, and as much for each
    /// large file under way. Default: no compression.
    pub compress: Option<i32>,
    /// Content bytes a second as they travel (compressed, if they are), spread evenly but for small files, which go whole. Default: as fast
    /// as possible.
    pub rate_limit: Option<NonZeroU64>,
    /// For the whole tree, from connecting to the last acknowledgement. Default: no limit but the idle one.
    pub timeout: Option<Duration>,
    /// The tree is given up when nothing is heard of the receiver for this long, or when it only gives signs of life and nothing is
    /// done, on either side, for ten times as long. Default 30 s.
    pub idle_timeout: Duration,
    /// How often in a row a tree that was cut off is begun again without anything new having arrived, after a jittered pause
    /// that grows from 0.1 s to 5 s, within `timeout`. What is there already is not sent again, but told of as unchanged;
    /// progress begins anew with each attempt. Default: 0.
    pub retries: u32,
    /// The id to use. Default: a random one. A tree of the same id that this node is sending to the same receiver is ended there.
    pub id: Option<TransferId>,
}

impl TreeOptions {
    /// Options for a purpose, with the defaults for everything else.
    pub fn new(purpose: impl Into<String>) -> Self {
        Self {
            purpose: purpose.into(),
            name: None,
            meta: Bytes::new(),
            source: None,
            checksum: false,
            delete: false,
            dry_run: false,
            links: Links::Skip,
            strict: false,
            progress: None,
            on_entry: None,
            compress: None,
            rate_limit: None,
            timeout: None,
            idle_timeout: Duration::from_secs(30),
            retries: 0,
            id: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), TransferError> {
        if self.purpose.is_empty() || self.purpose.len() > crate::wire::MAX_PURPOSE {
            return Err(TransferError::InvalidOptions("the purpose must be 1 to 64 bytes long"));
        }
        if self.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > MAX_NAME) {
            return Err(TransferError::InvalidOptions("the name must be 1 to 255 bytes long"));
        }
        if self.meta.len() > crate::wire::MAX_META {
            return Err(TransferError::InvalidOptions("meta must not be longer than 64 KiB"));
        }
        if self.compress.is_some_and(|level| !LEVELS.contains(&level)) {
            return Err(TransferError::InvalidOptions("the level of compression is 1 to 19"));
        }
        if self.idle_timeout.is_zero() {
            return Err(TransferError::InvalidOptions("the idle timeout must not be zero"));
        }
        Ok(())
    }
}

impl fmt::Debug for TreeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeOptions")
            .field("purpose", &self.purpose)
            .field("name", &self.name)
            .field("source", &self.source)
            .field("checksum", &self.checksum)
            .field("delete", &self.delete)
            .field("dry_run", &self.dry_run)
            .field("links", &self.links)
            .field("strict", &self.strict)
            .field("compress", &self.compress)
            .field("rate_limit", &self.rate_limit)
            .field("timeout", &self.timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}
