//! This thread's clock and randomness while it runs a simulation.
//!
//! Overrides of the operating system's entry points ask here first; on a thread that is not inside [`enter`] they get
//! nothing and go on to the real system, so simulations do not disturb other tests of the same process.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::Duration;

use crate::Rng;

/// What the wall clock shows when a simulation begins: 2030-01-01T00:00:00Z, as time since the Unix epoch.
pub const EPOCH: Duration = Duration::from_secs(1_893_456_000);

struct World {
    random: Rng,
    elapsed: Duration,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Ends the simulated world of this thread when dropped.
#[derive(Debug)]
pub struct Guard {
    // Belongs to the thread that entered.
    _not_send: PhantomData<*const ()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = WORLD.try_with(|world| world.borrow_mut().take());
    }
}

/// Begins a simulated world on this thread, with randomness from `seed` and the clock at [`EPOCH`].
///
/// Enter on a fresh thread: thread-local generators and hash keys that were seeded before stay as they are.
///
/// # Panics
///
/// If this thread is in a simulated world already.
pub fn enter(seed: u64) -> Guard {
    WORLD.with(|world| {
        let mut world = world.borrow_mut();
        assert!(world.is_none(), "this thread already runs a simulation");
        *world = Some(World { random: Rng::labelled(seed, "operating system"), elapsed: Duration::ZERO });
    });
    Guard { _not_send: PhantomData }
}

/// Sets the time since the simulation began.
pub fn set_elapsed(elapsed: Duration) {
    WORLD.with(|world| {
        if let Some(world) = world.borrow_mut().as_mut() {
            world.elapsed = elapsed;
        }
    });
}

/// Time since the simulation began; zero outside one.
pub fn elapsed() -> Duration {
    WORLD
        .try_with(|world| world.borrow().as_ref().map(|world| world.elapsed))
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// The simulated wall clock, as time since the Unix epoch; nothing outside a simulation.
pub fn wall_clock() -> Option<Duration> {
    WORLD
        .try_with(|world| world.try_borrow().ok()?.as_ref().map(|world| EPOCH + world.elapsed))
        .ok()
        .flatten()
}

/// Fills `out` with the simulation's random bytes and returns true; outside a simulation leaves it alone and returns
/// false.
pub fn fill_random(out: &mut [u8]) -> bool {
    WORLD
        .try_with(|world| match world.try_borrow_mut().ok()?.as_mut() {
            Some(world) => {
                world.random.fill(out);
                Some(())
            }
            None => None,
        })
        .ok()
        .flatten()
        .is_some()
}
