//! The simulated clock and randomness reach what asks the operating system.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use octopii_sim::world;

/// What every source of randomness in the house says on a fresh thread with this seed.
fn sources(seed: u64) -> Vec<String> {
    let ask = move || {
        let _world = world::enter(seed);
        let map: HashMap<u32, ()> = (0..100).map(|n| (n, ())).collect();
        let order: Vec<_> = map.into_keys().collect();
        let mut system = [0; 32];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut system).unwrap();
        vec![
            format!("hash map {order:?}"),
            format!("ring {system:?}"),
            format!("rand {}", rand::random::<u64>()),
            format!("getrandom {:?}", rand::TryRngCore::try_next_u64(&mut rand::rngs::OsRng)),
        ]
    };
    std::thread::spawn(ask).join().unwrap()
}

#[test]
fn randomness_follows_the_seed() {
    let (first, again, other) = (sources(1), sources(1), sources(2));
    assert_eq!(first, again);
    for (one, two) in first.iter().zip(&other) {
        assert_ne!(one, two);
    }
}

#[test]
fn the_wall_clock_is_simulated() {
    let real = SystemTime::now();
    let ask = || {
        let _world = world::enter(1);
        world::set_elapsed(Duration::from_secs(5));
        SystemTime::now()
    };
    let simulated = std::thread::spawn(ask).join().unwrap();
    assert_eq!(simulated, SystemTime::UNIX_EPOCH + world::EPOCH + Duration::from_secs(5));
    assert!(SystemTime::now() >= real, "other threads keep the real clock");
}

#[test]
fn threads_outside_get_real_randomness() {
    let _world = world::enter(1);
    let ask = || (rand::random::<u64>(), rand::random::<u64>());
    let (one, two) = (std::thread::spawn(ask).join().unwrap(), std::thread::spawn(ask).join().unwrap());
    assert_ne!(one, two);
}

#[test]
fn failed_system_calls_still_set_errno() {
    // A futex wait on a value that changed: std reaches it through `syscall`, and locks that contend rely on it.
    let shared = std::sync::Arc::new(std::sync::Mutex::new(0));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for _ in 0..10_000 {
                    *shared.lock().unwrap() += 1;
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(*shared.lock().unwrap(), 40_000);
    let missing = std::fs::metadata("/no/such/file").unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}
