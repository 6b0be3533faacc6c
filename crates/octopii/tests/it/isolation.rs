//! Octopii's threads and the application's leave each other alone: each side is blocked until the other has got on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use octopii::{OctopiiNode, OctopiiRuntime, RuntimeOptions};
use tempfile::tempdir;

use crate::config;

/// Opens once; whoever waits blocks its thread.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    /// Blocks the thread, and says whether the gate was opened in time.
    fn block(&self) -> bool {
        let opened =
            self.1.wait_timeout_while(self.0.lock().unwrap(), Duration::from_secs(30), |open| !*open);
        *opened.unwrap().0
    }
}

#[test]
fn an_application_that_blocks_all_its_threads_does_not_stop_heartbeats_and_calls() {
    let home = tempdir().unwrap();
    let runtime = OctopiiRuntime::new(2);
    let application = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    // Started, and used, from the application's own runtime.
    let (a, b) = application.block_on(async {
        let start = |name: &'static str| OctopiiNode::start(config(home.path(), name), &runtime);
        (start("a").await.unwrap(), start("b").await.unwrap())
    });
    let peer = a.peer(b.local_addr());
    let echo = |peer: octopii::Peer| async move {
        peer.call::<_, ()>(octopii::ECHO, &(), Duration::from_secs(20)).await
    };
    application.block_on(echo(peer.clone())).unwrap();

    let (gate, blocked) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    let stuck: Vec<_> = (0..3)
        .map(|i| {
            let (gate, blocked) = (Arc::clone(&gate), Arc::clone(&blocked));
            let block = move || {
                blocked.fetch_add(1, Ordering::SeqCst);
                gate.block()
            };
            if i < 2 { application.spawn(async move { block() }) } else { application.spawn_blocking(block) }
        })
        .collect();
    while blocked.load(Ordering::SeqCst) < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Longer than a connection lives without an answered ping would take ten seconds; calls and pings show it sooner.
    let working = runtime.spawn(async move {
        for _ in 0..50 {
            echo(peer.clone()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        peer
    });
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(20), working).await.unwrap().unwrap() });
    assert!(a.connections().iter().all(|c| c.health == octopii::Health::Good), "{:?}", a.connections());
    gate.open();
    for stuck in stuck {
        assert!(
            application.block_on(stuck).unwrap(),
            "the application was not blocked for as long as Octopii worked"
        );
    }
}

#[test]
fn a_saturated_octopii_does_not_stop_the_applications_timers() {
    let runtime = OctopiiRuntime::new(2);
    let (gate, blocked) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
    // Every one of Octopii's threads, until the application has got on.
    let stuck: Vec<_> = (0..2)
        .map(|_| {
            let (gate, blocked) = (Arc::clone(&gate), Arc::clone(&blocked));
            runtime.spawn(async move {
                blocked.fetch_add(1, Ordering::SeqCst);
                gate.block()
            })
        })
        .collect();
    while blocked.load(Ordering::SeqCst) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let application = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    application.block_on(async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        for _ in 0..100 {
            ticks.tick().await;
        }
    });
    gate.open();
    for stuck in stuck {
        assert!(
            runtime.block_on(stuck).unwrap(),
            "Octopii was not blocked for as long as the application worked"
        );
    }
}

#[test]
fn threads_are_as_many_and_named_as_asked_and_can_be_prepared() {
    let prepared = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&prepared);
    let mut options = RuntimeOptions::default().on_thread_start(move || {
        counting.fetch_add(1, Ordering::SeqCst);
    });
    options.threads = 3;
    options.name = "storage".to_owned();
    let runtime = OctopiiRuntime::with_options(options).unwrap();
    let name = runtime
        .block_on(runtime.spawn(async { std::thread::current().name().unwrap_or_default().to_owned() }))
        .unwrap();
    assert!(name.starts_with("storage-"), "{name}");
    for _ in 0..1000 {
        if prepared.load(Ordering::SeqCst) == 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let named = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let comm = task.as_ref().unwrap().path().join("comm");
            std::fs::read_to_string(comm).is_ok_and(|name| name.starts_with("storage-"))
        })
        .count();
    assert_eq!((named, prepared.load(Ordering::SeqCst)), (3, 3));
}
