//! Tests of the simulator, and of Octopii inside it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crash;
mod vfs_conformance;
