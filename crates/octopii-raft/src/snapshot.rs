//! Snapshots: as files, in their directory, and on their way here.

pub(crate) mod file;
pub(crate) mod inbox;
pub(crate) mod store;
