//! Tests that run for many seeds, on all cores, and tell how to repeat the one that failed.
//!
//! `OCTOPII_SEEDS=0..1000` runs more, or others. `OCTOPII_WAL_SEED=17` runs one; `OCTOPII_WAL_SEED=17:143:5` runs one, and
//! of it only what concerns call 143 and state 5, and with `-- --nocapture` tells what happens.

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;

const SEED: &str = "OCTOPII_WAL_SEED";

/// Where in the run for a seed a test is.
#[derive(Debug, Default)]
pub(crate) struct Place {
    call: Cell<usize>,
    state: Cell<usize>,
    during: Cell<&'static str>,
    only: [Option<usize>; 2],
}

impl Place {
    /// A name for the call, for messages.
    pub(crate) fn during(&self, call: &'static str) {
        self.during.set(call);
    }

    /// Whether this is to be run; if so, a failure will name it.
    pub(crate) fn enter(&self, call: usize, state: usize) -> bool {
        self.call.set(call);
        self.state.set(state);
        self.only[0].is_none_or(|only| only == call) && self.only[1].is_none_or(|only| only == state)
    }
}

/// Whether a single seed is run, so that it is worth telling what happens.
pub(crate) fn is_repeating() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| std::env::var_os(SEED).is_some())
}

/// A number for a purpose of its own, from a seed.
pub(crate) fn mix(seed: u64, purpose: u64) -> u64 {
    crate::disk::Coin(seed ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93)).next()
}

/// Calls `run` for every seed, and fails when it panics for one.
pub(crate) fn for_each_seed(test: &str, seeds: Range<u64>, run: impl Fn(u64, &Place) + Sync) {
    if let Ok(wanted) = std::env::var(SEED) {
        let mut parts =
            wanted.split(':').map(|n| n.parse::<u64>().expect("OCTOPII_WAL_SEED: seed[:call[:state]]"));
        let seed = parts.next().unwrap();
        let only = [parts.next().map(|n| n as usize), parts.next().map(|n| n as usize)];
        return run(seed, &Place { only, ..Place::default() });
    }
    let seeds = match std::env::var("OCTOPII_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("OCTOPII_SEEDS: from..to");
            from.parse().unwrap()..to.parse().unwrap()
        }
        Err(_) => seeds,
    };
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicBool::new(false);
    let failures = Mutex::new(Vec::new());
    let worker = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds.end || failed.load(Ordering::Relaxed) {
            return;
        }
        let place = Place::default();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(seed, &place))) {
            failed.store(true, Ordering::Relaxed);
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let place = (place.call.get(), place.state.get(), place.during.get());
            failures.lock().unwrap().push((seed, place, text.unwrap_or_default()));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(worker);
        }
    });
    if let Some((seed, (call, state, during), text)) = failures.into_inner().unwrap().into_iter().min() {
        panic!(
            "seed {seed}, call {call} {during}, state {state}: {text}\n\
             to repeat: OCTOPII_WAL_SEED={seed}:{call}:{state} cargo test -p octopii-wal --test it {test}"
        );
    }
}
