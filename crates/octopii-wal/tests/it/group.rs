//! Many writers, one sync.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use octopii_wal::{Committer, Error, Options, WriteAheadLog};

use crate::crash::options;
use crate::disk::{Coin, Disk, Fault};

fn threaded(disk: &Disk) -> WriteAheadLog {
    let options = Options { committer: Committer::Thread, segment_size: 16 << 20, ..options(disk) };
    WriteAheadLog::open("/wal", options).unwrap()
}

/// Runs a future on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(out) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return out;
        }
        thread::park();
    }
}

#[test]
fn writers_that_wait_during_a_sync_share_the_next_one() {
    let disk = Disk::default();
    let log = threaded(&disk);
    let topic = log.topic("t").unwrap();
    topic.append("first").unwrap().wait().unwrap();
    let before = disk.syncs();
    disk.set_gate_closed(true);
    let waiting = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| topic.append("held up").unwrap().wait().unwrap());
        disk.wait_for_sync_at_gate();
        for i in 0..64 {
            let (topic, waiting) = (&topic, &waiting);
            scope.spawn(move || {
                let ticket = topic.append(format!("{i}")).unwrap();
                waiting.fetch_add(1, Ordering::SeqCst);
                if i % 2 == 0 { ticket.wait().unwrap() } else { block_on(ticket.durable()).unwrap() }
            });
        }
        while waiting.load(Ordering::SeqCst) < 64 {
            thread::yield_now();
        }
        disk.set_gate_closed(false);
    });
    assert_eq!(topic.next_index(), 66);
    assert_eq!(disk.syncs() - before, 2);
}

#[test]
fn tickets_become_durable_in_order_across_topics() {
    let disk = Disk::default();
    let log = threaded(&disk);
    let topics: Vec<_> = (0..4).map(|i| log.topic(&format!("t{i}")).unwrap()).collect();
    thread::scope(|scope| {
        for seed in 0..4 {
            let topics = &topics;
            scope.spawn(move || {
                let mut coin = Coin(seed);
                for _ in 0..50 {
                    let mut tickets: Vec<_> =
                        (0..20).map(|_| topics[coin.below(4) as usize].append("x").unwrap()).collect();
                    while let Some(ticket) = tickets.pop() {
                        // From the last to the first: when a later one is done, so is every earlier one.
                        if ticket.is_done() {
                            assert!(tickets.iter().all(|t| t.is_done()));
                        }
                        if coin.toss() {
                            ticket.wait().unwrap();
                            assert!(tickets.iter().all(|t| t.is_done()));
                        }
                    }
                }
            });
        }
    });
    assert_eq!(topics.iter().map(|t| t.next_index()).sum::<u64>(), 4000);
}

#[test]
fn a_dropped_future_or_ticket_takes_nothing_with_it() {
    let disk = Disk::default();
    let log = threaded(&disk);
    let topic = log.topic("t").unwrap();
    disk.set_gate_closed(true);
    let mut polled = Box::pin(topic.append("polled, then dropped").unwrap().durable());
    assert!(polled.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(polled);
    drop(topic.append("never waited for").unwrap());
    let last = topic.append("waited for").unwrap();
    disk.set_gate_closed(false);
    block_on(last.durable()).unwrap();
    assert_eq!(topic.next_index(), 3);

    // Nobody waits here; the thread commits all the same.
    for _ in 0..100 {
        drop(topic.append("dropped").unwrap());
        while log.stats().pending_bytes > 0 {
            thread::yield_now();
        }
    }
    log.close().unwrap();
    let log =
        WriteAheadLog::open("/wal", options(&disk.after_crash(crate::disk::Survivors::Nothing))).unwrap();
    assert_eq!(log.topic("t").unwrap().next_index(), 103);
}

#[test]
fn a_failed_sync_fails_every_waiter_and_stops_the_log() {
    let disk = Disk::default();
    let log = threaded(&disk);
    let topic = log.topic("t").unwrap();
    topic.append("safe").unwrap().wait().unwrap();
    disk.set_gate_closed(true);
    thread::scope(|scope| {
        let mut waiters = vec![scope.spawn(|| topic.append("in the failing sync").unwrap().wait())];
        disk.wait_for_sync_at_gate();
        let tickets: Vec<_> = (0..16).map(|i| topic.append(format!("{i}")).unwrap()).collect();
        for (i, ticket) in tickets.into_iter().enumerate() {
            waiters.push(scope.spawn(move || match i % 2 {
                0 => ticket.wait(),
                _ => block_on(ticket.durable()),
            }));
        }
        disk.set_fault(disk.calls() + 1, Fault::Fail(io::ErrorKind::Other));
        disk.set_gate_closed(false);
        for waiter in waiters {
            assert!(matches!(waiter.join().unwrap(), Err(Error::Poisoned { operation: "sync", .. })));
        }
    });
    let error = topic.append("later").map(drop).unwrap_err();
    assert!(error.to_string().contains("open the log again"), "{error}");
    let syncs = disk.syncs();
    assert!(log.close().is_err());
    assert_eq!(disk.syncs(), syncs, "a failed sync is never tried again");
    // The failed write is gone; what was acknowledged is there.
    let disk = disk.after_crash(crate::disk::Survivors::Nothing);
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    assert_eq!(log.topic("t").unwrap().read_range(0..99, 999).unwrap(), [(0, "safe".into())]);
}

#[test]
fn appending_blocks_when_too_much_waits_and_memory_stays_bounded() {
    let disk = Disk::default();
    let max_pending_bytes = 64 << 10;
    let options =
        Options { committer: Committer::Thread, segment_size: 16 << 20, max_pending_bytes, ..options(&disk) };
    let log = WriteAheadLog::open("/wal", options).unwrap();
    let topic = log.topic("t").unwrap();
    for _ in 0..200 {
        drop(topic.append(vec![0; 5000]).unwrap());
        assert!(log.stats().pending_bytes <= max_pending_bytes as u64);
    }
    // One that is larger than everything that may wait is let in alone.
    topic.append(vec![0; 100 << 10]).unwrap().wait().unwrap();
    assert_eq!(topic.next_index(), 201);
}

#[test]
fn the_log_can_be_dropped_from_a_waker_on_its_own_thread() {
    struct DropLog(std::sync::Mutex<Option<(WriteAheadLog, octopii_wal::Topic)>>, AtomicUsize);
    impl Wake for DropLog {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let disk = Disk::default();
    let log = threaded(&disk);
    let topic = log.topic("t").unwrap();
    let mut future = pin!(topic.append("x").unwrap().durable());
    let waker = Arc::new(DropLog(std::sync::Mutex::new(Some((log, topic))), AtomicUsize::new(0)));
    let task = Waker::from(Arc::clone(&waker));
    if future.as_mut().poll(&mut Context::from_waker(&task)).is_pending() {
        while waker.1.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
    }
    drop(waker.0.lock().unwrap().take());
    block_on(future).unwrap();
}
