//! What a change of the receiver's disk would come to, without making it.

use std::io;
use std::path::Path;

use octopii_vfs::DirHandle;

use super::name::shown;
use crate::{FailureCode, Refusal, TransferError};

/// What making a directory would come to.
pub(super) fn would_create(base: &DirHandle, path: &Path) -> io::Result<()> {
    match base.attributes(path) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Whether the directory lets its owner not look into it, so that only a change of its mode could tell what is in it.
pub(super) fn is_closed(base: &DirHandle, dir: &Path) -> bool {
    let is_denied = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    // Whatever the name, and be there nothing of it.
    base.names(dir).is_err_and(is_denied) || base.attributes(&dir.join("x")).is_err_and(is_denied)
}

/// The end of a dry run: to tell anything would be to guess.
pub(super) fn cannot_tell(closed: &Path) -> TransferError {
    let message = format!(
        "what would be done cannot be told without changing the mode of the receiver's directory {}: its owner may not look into it",
        shown(closed)
    );
    TransferError::Unacceptable(Refusal::new(FailureCode::Rejected, message))
}
