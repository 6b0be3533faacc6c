//! Entries and votes, durable in the write-ahead log.

#[cfg(test)]
mod conformance;
pub(crate) mod entry;
mod recent;
pub(crate) mod store;
