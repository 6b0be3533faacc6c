//! The log as its users see it, on real and on failing disks.
#![expect(clippy::unwrap_used, reason = "what fails in a test should fail loudly")]

mod basics;
mod crash;
mod cursors;
mod damage;
mod disk;
mod fairness;
mod faults;
mod fixture;
mod flips;
mod follow;
mod full;
mod group;
mod kill;
mod model;
mod power;
mod property;
mod reclaim;
mod seeds;
mod segments;
mod session;
mod strace;
mod threads;
mod verify;
mod writers;
