//! Transfers between real endpoints on loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "tests spawn as an application does")]

mod basic;
mod cancel;
mod compressed;
mod disk;
mod freed;
mod holes;
mod hostile;
mod levels;
mod many;
mod names;
mod nodes;
mod raw;
mod receivers_by_hand;
mod recording;
mod relays;
mod relays_by_hand;
mod repair;
mod resume;
mod sources;
mod status;
mod tree;
