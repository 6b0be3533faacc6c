//! Locks, atomics and threads come from here, so that a test can put its own scheduler beneath them.
//!
//! Compiled for tests with `--cfg shuttle` they are those of [shuttle](https://docs.rs/shuttle), which runs threads one at a
//! time and chooses at each of these operations which one goes on. `Arc` and `OnceLock` stay the standard library's:
//! nothing here waits for them.

#[cfg(all(test, shuttle))]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError, atomic},
    thread,
};
#[cfg(not(all(test, shuttle)))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError, atomic},
    thread,
};
