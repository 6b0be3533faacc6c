//! Tests of the simulator, and of Octopii inside it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crash;
mod holes;
mod libc_overrides;
mod network;
mod replay;
mod scenarios;
mod trees;
mod vfs_conformance;
mod wal;
mod world;
