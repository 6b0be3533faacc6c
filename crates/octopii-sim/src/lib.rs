//! Simulated network, disk and clock for Octopii.
//!
//! The code under test is the real one: real QUIC, real write-ahead log, real consensus. Only its edges are replaced,
//! and everything that happens at them follows from one seed.
//!
//! - [`Scenario`] holds machines and the network between them, and lets time pass. It crashes and boots machines, and
//!   cuts and repairs links.
//! - [`Machine`] is what the software on one of them is given: a disk, sockets, seeds.
//! - [`SimDisk`] is a disk that a power cut can strike: what was not synced is lost, kept or torn, by the seed.
//! - [`Trace`] records what happens at the edges and folds it into one digest, by which two runs are compared.
//! - [`world`] is this thread's clock and randomness. A test binary routes the operating system's clock and random
//!   numbers there (see `tests/it/libc_overrides.rs`); the library itself overrides nothing.
//!
//! The same seed gives the same trace only if nothing outside the simulation has a say. Some counters belong to the
//! whole process (tokio's task ids and the seeds of its `select!`), so a run that shall be compared or replayed has a
//! process to itself.

mod disk;
mod machine;
mod power;
mod rng;
mod scenario;
mod socket;
mod trace;
pub mod world;

pub use disk::{Counters, Operation, SimDisk};
pub use machine::Machine;
pub use power::Power;
pub use rng::Rng;
pub use scenario::{Options, Outcome, Scenario, TimedOut};
pub use socket::{SimSocket, Weather};
pub use trace::{Event, Trace};
