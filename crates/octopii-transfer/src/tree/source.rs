//! The directory that is sent, held open.

use std::path::PathBuf;
use std::sync::Arc;

use octopii_vfs::{DirHandle, Vfs};

use super::options::TreeOptions;
use super::walk::{Rules, Walk};
use crate::SourceError;

/// A directory to send: the same one however often it is walked, whatever takes its name.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    root: DirHandle,
    /// Without links.
    path: PathBuf,
    vfs: Arc<dyn Vfs>,
}

/// One that is sent, and how it is walked.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) root: DirHandle,
    /// Without links.
    pub(crate) path: PathBuf,
    vfs: Arc<dyn Vfs>,
    rules: Rules,
}

impl Opened {
    /// Blocks.
    pub(crate) fn open(vfs: &Arc<dyn Vfs>, path: PathBuf) -> Result<Self, SourceError> {
        let unreadable = |error| unreadable(path.clone(), error);
        // A link to the tree itself is followed; none in it is.
        let target = vfs.canonicalize(&path).map_err(unreadable)?;
        let root = vfs.open_dir(&target).map_err(unreadable)?;
        Ok(Self { root, path: target, vfs: Arc::clone(vfs) })
    }
}

impl Source {
    pub(crate) fn new(Opened { root, path, vfs }: Opened, options: &TreeOptions) -> Self {
        let TreeOptions { links, checksum, strict, delete, .. } = *options;
        Self { root, path, vfs, rules: Rules { links, checksum, strict, delete } }
    }

    /// Begins at the beginning. Blocks.
    pub(crate) fn walk(&self) -> Result<Walk, SourceError> {
        let (vfs, root) = (Arc::clone(&self.vfs), Arc::clone(&self.root));
        let walk = Walk::new(vfs, self.path.clone(), root, self.rules);
        walk.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => SourceError::Replaced(self.path.clone()),
            _ => unreadable(self.path.clone(), error),
        })
    }
}

fn unreadable(path: PathBuf, error: std::io::Error) -> SourceError {
    match error.kind() {
        std::io::ErrorKind::NotFound => SourceError::NotFound(path),
        std::io::ErrorKind::NotADirectory => SourceError::NotADirectory(path),
        _ => SourceError::Unreadable { path, error: Arc::new(error) },
    }
}
