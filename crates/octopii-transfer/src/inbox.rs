//! The safe default: everything into one directory.

use std::fmt;
use std::path::PathBuf;

use crate::{AckLevel, Destination, FailureCode, Offer, ReceivePolicy, ReceivedChunk, Refusal};

/// Receives files into one directory, under the name the sender proposes.
///
/// Names must pass [`check_file_name`](crate::check_file_name); an existing file is never overwritten, the newcomer is numbered; an offer without
/// a name is called `chunk-` and its transfer id.
pub struct InboxPolicy {
    dir: PathBuf,
    max_size: u64,
    least_ack: AckLevel,
    on_received: Option<Box<dyn Fn(ReceivedChunk) + Send + Sync>>,
}

impl InboxPolicy {
    /// An inbox in `dir`, which is created with the first file. No limit on the size but the disk's, and
    /// [`max_sparse`](crate::TransferOptions::max_sparse) for files with holes.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), max_size: u64::MAX, least_ack: AckLevel::Received, on_received: None }
    }

    /// Refuses chunks of more than `bytes`, and those that do not tell their size.
    #[must_use]
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = bytes;
        self
    }

    /// Makes every file at least this safe, also if its sender asks for less (see [`ReceivePolicy::least_ack`]).
    #[must_use]
    pub fn least_ack(mut self, level: AckLevel) -> Self {
        self.least_ack = level;
        self
    }

    /// Calls `f` with every chunk that arrived, on a blocking thread, before its sender is told (but see
    /// [`AckLevel::Received`]).
    #[must_use]
    pub fn on_received(mut self, f: impl Fn(ReceivedChunk) + Send + Sync + 'static) -> Self {
        self.on_received = Some(Box::new(f));
        self
    }
}

impl fmt::Debug for InboxPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxPolicy")
            .field("dir", &self.dir)
            .field("max_size", &self.max_size)
            .field("least_ack", &self.least_ack)
            .finish_non_exhaustive()
    }
}

impl ReceivePolicy for InboxPolicy {
    fn accept(&self, offer: &Offer) -> Result<Destination, Refusal> {
        if offer.size.unwrap_or(u64::MAX) > self.max_size {
            let message = format!("the inbox takes at most {} bytes per file", self.max_size);
            return Err(Refusal::new(FailureCode::TooLarge, message));
        }
        let name = match &offer.name {
            Some(name) => name.clone(),
            None => format!("chunk-{}", offer.id),
        };
        // The name is checked where every policy's choice is checked.
        Ok(Destination::File { dir: self.dir.clone(), name, replace: false })
    }

    fn received(&self, received: ReceivedChunk) {
        if let Some(f) = &self.on_received {
            f(received);
        }
    }

    fn least_ack(&self) -> AckLevel {
        self.least_ack
    }

    fn directories(&self) -> Vec<PathBuf> {
        vec![self.dir.clone()]
    }
}
