//! Directories: trees of many files, sent over one stream.
//!
//! The sender walks its directory and tells what is there, page by page; the receiver answers which files it lacks; small
//! files come in packs, large ones as chunk transfers of their own; thousands are made durable together; and at the end both
//! sides know of every path what became of it. A tree that is sent again costs only what has changed, so an interrupted one
//! is continued by sending it again. `docs/formats/tree.md` describes the bytes.
//!
//! What is *not* here: owners, extended attributes, hard links.

mod accept;
mod check;
mod commit;
mod content;
mod foresight;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod link;
mod many;
mod name;
mod options;
mod outcome;
mod policy;
mod pulse;
mod receive;
mod rehearsal;
mod removal;
mod root;
mod send;
mod sending;
mod sessions;
mod source;
mod together;
mod walk;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use octopii_vfs::Vfs;

pub(crate) use accept::serve;
#[cfg(feature = "fuzzing")]
pub use fuzzing::decode_tree_message;
pub(crate) use many::send_to_all;
pub use name::shown_path;
pub use options::{Links, TreeOptions};
pub use outcome::{
    EntryFailure, EntryFn, EntryOutcome, NotDone, TreeProgress, TreeProgressFn, TreeReport, UndoneEntry,
};
pub use policy::{ExistingTree, ReceivedTree, TreeDestination, TreeInbox, TreeLimits, TreeOffer, TreePolicy};
pub(crate) use send::send;
pub(crate) use sessions::{LARGE, LargeFiles, PACKS, Sessions, SharedPacks, not_asked_for};

/// What a service knows of trees.
#[derive(Default)]
pub(crate) struct Trees {
    policies: RwLock<BTreeMap<String, Arc<dyn TreePolicy>>>,
    pub(crate) sessions: Arc<Sessions>,
    /// Held while a tree is opened, and while another is swept.
    pub(crate) opening: Mutex<()>,
}

impl Trees {
    pub(crate) fn policy(&self, purpose: &str) -> Option<Arc<dyn TreePolicy>> {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).get(purpose).cloned()
    }

    pub(crate) fn install(&self, purpose: &str, policy: Arc<dyn TreePolicy>) {
        self.policies.write().unwrap_or_else(PoisonError::into_inner).insert(purpose.to_owned(), policy);
    }
}

/// Removes what a crashed process has left of trees in `dir`; `large` does that for large files that were cut off. Blocks.
pub(crate) fn sweep(vfs: &Arc<dyn Vfs>, dir: &Path, opening: &Mutex<()>, large: &dyn Fn(&Path)) {
    match root::sweep(vfs, dir, opening, large) {
        Ok(()) => {}
        // File systems without directory handles receive no trees.
        Err(e) if e.kind() == std::io::ErrorKind::Unsupported => {}
        Err(e) => tracing::warn!(dir = %dir.display(), "cannot clean up unfinished trees: {e}"),
    }
}
