//! Transfers between real endpoints on loopback.

mod basic;
mod cancel;
mod disk;
mod hostile;
mod many;
mod names;
mod nodes;
mod raw;
mod recording;
mod status;
