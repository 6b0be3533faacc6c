//! Entries and votes, durable in the write-ahead log.

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod durability;
pub(crate) mod entry;
mod recent;
pub(crate) mod store;
