//! Followers: woken when there is something, and not before.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use octopii_wal::{CommitDelay, Committer, Cursor, Durability, Error, Options, WriteAheadLog};

use crate::crash::options;
use crate::disk::{Coin, Disk, Fault};

/// Longer than anything here takes: whoever waits this long was not woken.
const NEVER: Duration = Duration::from_secs(30);

fn open(disk: &Disk, committer: Committer, durability: Durability) -> WriteAheadLog {
    let options = Options { committer, durability, segment_size: 16 << 20, ..options(disk) };
    WriteAheadLog::open("/wal", options).unwrap()
}

fn threaded(disk: &Disk) -> WriteAheadLog {
    open(disk, Committer::Thread, Durability::Synced)
}

/// Counts how often it is woken.
#[derive(Default)]
pub(crate) struct Count(AtomicUsize);

impl Count {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Runs a future on this thread, which must be woken whenever there is something to do.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread, AtomicBool);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.1.store(true, Ordering::SeqCst);
            self.0.unpark();
        }
    }
    let unpark = Arc::new(Unpark(thread::current(), AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(out) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return out;
        }
        // A thread may be unparked for something else, but not often.
        let mut parked = 0;
        while !unpark.1.swap(false, Ordering::SeqCst) {
            assert!(parked < 30, "not woken");
            thread::park_timeout(NEVER / 30);
            parked += 1;
        }
    }
}

fn all(cursor: &mut Cursor) -> Vec<u64> {
    cursor.next_batch(usize::MAX).unwrap().into_iter().map(|(index, _)| index).collect()
}

#[test]
fn followers_are_woken_when_the_entry_is_synced_and_not_before() {
    let disk = Disk::default();
    let log = threaded(&disk);
    let topic = log.topic("t").unwrap();
    topic.append("begin a segment").unwrap().wait().unwrap();
    let mut cursors: Vec<_> = (0..4).map(|i| topic.cursor(&format!("c{i}")).unwrap()).collect();
    log.sync().unwrap().wait().unwrap();
    cursors.iter_mut().for_each(|c| assert_eq!(all(c), [0]));
    let woken = AtomicUsize::new(0);
    disk.set_gate_closed(true);
    thread::scope(|scope| {
        for (i, mut cursor) in cursors.into_iter().enumerate() {
            let woken = &woken;
            scope.spawn(move || {
                match i {
                    0 => cursor.wait().unwrap(),
                    1 => assert!(cursor.wait_timeout(NEVER).unwrap()),
                    _ => block_on(cursor.ready()).unwrap(),
                }
                woken.fetch_add(1, Ordering::SeqCst);
                assert_eq!(all(&mut cursor), [1]);
            });
        }
        // Kept, and waited for by nobody but the followers.
        let ticket = topic.append("awaited").unwrap();
        disk.wait_for_sync_at_gate();
        assert_eq!(woken.load(Ordering::SeqCst), 0);
        disk.set_gate_closed(false);
        drop(ticket);
    });
    assert_eq!(woken.load(Ordering::SeqCst), 4);
}

#[test]
fn an_entry_is_committed_for_the_follower_that_waits_already() {
    for committer in [Committer::Thread, Committer::Caller] {
        let disk = Disk::default();
        let log = open(&disk, committer, Durability::Synced);
        let topic = log.topic("t").unwrap();
        let mut cursor = topic.cursor("c").unwrap();
        log.sync().unwrap().wait().unwrap();
        // Several times, since the committing thread may once more be awake for something else.
        for i in 0..10 {
            let count = Arc::new(Count::default());
            let waker = Waker::from(Arc::clone(&count));
            let mut ready = Box::pin(cursor.ready());
            assert!(ready.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            let kept = topic.append("x").unwrap();
            for _ in 0..3000 {
                if count.get() > 0 {
                    break;
                }
                thread::park_timeout(Duration::from_millis(10));
            }
            assert_eq!((count.get(), kept.is_done()), (1, committer == Committer::Thread));
            assert!(ready.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
            assert!(kept.is_done());
            drop(ready);
            assert_eq!(all(&mut cursor), [i]);
        }
    }
}

#[test]
fn only_followers_of_topics_that_advanced_are_woken_and_a_dropped_one_is_not() {
    for durability in [Durability::Synced, Durability::None] {
        let disk = Disk::default();
        let log = open(&disk, Committer::Thread, durability);
        let (a, b) = (log.topic("a").unwrap(), log.topic("b").unwrap());
        let (of_a, of_b) = (a.cursor("c").unwrap(), b.cursor("c").unwrap());
        log.sync().unwrap().wait().unwrap();
        let counts: [Arc<Count>; 3] = Default::default();
        let wakers: Vec<_> = counts.iter().map(|c| Waker::from(Arc::clone(c))).collect();
        let mut ready = [Box::pin(of_a.ready()), Box::pin(of_b.ready())];
        let mut dropped = Box::pin(of_a.ready());
        for _ in 0..2 {
            assert!(ready[0].as_mut().poll(&mut Context::from_waker(&wakers[0])).is_pending());
            assert!(ready[1].as_mut().poll(&mut Context::from_waker(&wakers[1])).is_pending());
            assert!(dropped.as_mut().poll(&mut Context::from_waker(&wakers[2])).is_pending());
        }
        drop(dropped);
        assert_eq!(Arc::strong_count(&counts[2]), 2, "a future that is gone leaves its waker behind");
        b.set_metadata("k", "v").unwrap().wait().unwrap();
        a.append("x").unwrap().wait().unwrap();
        assert_eq!(
            ready[0].as_mut().poll(&mut Context::from_waker(&wakers[0])).map(|r| r.is_ok()),
            Poll::Ready(true)
        );
        assert!(ready[1].as_mut().poll(&mut Context::from_waker(&wakers[1])).is_pending());
        // The waker of the committing thread may come a little after the ticket.
        while counts[0].get() == 0 {
            thread::yield_now();
        }
        assert_eq!(counts.each_ref().map(|c| c.get()), [1, 0, 0], "{durability:?}");
    }
}

#[test]
fn a_follower_hears_that_the_log_stopped_after_it_has_everything() {
    let poison = |disk: &Disk, log: &WriteAheadLog| {
        disk.set_fault(disk.calls() + 1, Fault::Fail(io::ErrorKind::Other));
        log.topic("t").unwrap().append("lost").unwrap().wait().unwrap_err();
    };
    let close = |_: &Disk, log: &WriteAheadLog| log.close().unwrap();
    for committer in [Committer::Thread, Committer::Caller] {
        for (stop, is_close) in [(&poison as &dyn Fn(&Disk, &WriteAheadLog), false), (&close, true)] {
            let disk = Disk::default();
            let log = open(&disk, committer, Durability::Synced);
            let topic = log.topic("t").unwrap();
            topic.append("0").unwrap().wait().unwrap();
            let mut behind = topic.cursor("behind").unwrap();
            let mut cursors: Vec<_> = (0..3).map(|i| topic.cursor(&format!("c{i}")).unwrap()).collect();
            cursors.iter_mut().for_each(|c| assert_eq!(all(c), [0]));
            log.sync().unwrap().wait().unwrap();
            thread::scope(|scope| {
                let waiting: Vec<_> = cursors
                    .into_iter()
                    .enumerate()
                    .map(|(i, cursor)| {
                        scope.spawn(move || match i {
                            0 => cursor.wait(),
                            1 => cursor.wait_timeout(NEVER).map(|_| ()),
                            _ => block_on(cursor.ready()),
                        })
                    })
                    .collect();
                stop(&disk, &log);
                for follower in waiting {
                    let error = follower.join().unwrap().unwrap_err();
                    assert_eq!(matches!(error, Error::Closed), is_close, "{error}");
                    assert_eq!(matches!(error, Error::Poisoned { .. }), !is_close, "{error}");
                }
            });
            behind.wait().unwrap();
            assert_eq!(all(&mut behind), [0]);
            assert!(behind.wait().is_err() && behind.wait_timeout(NEVER).is_err());
            assert!(block_on(behind.ready()).is_err() && behind.next_batch(1).is_err());
        }
    }
}

#[test]
fn waiting_with_a_limit_ends() {
    for committer in [Committer::Thread, Committer::Caller] {
        let log = open(&Disk::default(), committer, Durability::Synced);
        let topic = log.topic("t").unwrap();
        let mut cursor = topic.cursor("c").unwrap();
        assert!(!cursor.wait_timeout(Duration::from_millis(20)).unwrap());
        assert!(!cursor.wait_timeout(Duration::ZERO).unwrap());
        topic.append("x").unwrap().wait().unwrap();
        assert!(cursor.wait_timeout(Duration::ZERO).unwrap());
        assert_eq!(all(&mut cursor), [0]);
    }
}

#[test]
fn without_a_thread_the_follower_commits() {
    let disk = Disk::default();
    let log = open(&disk, Committer::Caller, Durability::Synced);
    let topic = log.topic("t").unwrap();
    let mut cursor = topic.cursor("c").unwrap();
    let _kept = topic.append("0").unwrap();
    cursor.wait().unwrap();
    assert_eq!(all(&mut cursor), [0]);
    let _kept = topic.append("1").unwrap();
    block_on(cursor.ready()).unwrap();
    assert_eq!(all(&mut cursor), [1]);
    // One that waits already is woken by the append, to commit it.
    for i in 2..20 {
        thread::scope(|scope| {
            let cursor = &cursor;
            let follower =
                scope.spawn(move || if i % 2 == 0 { cursor.wait() } else { block_on(cursor.ready()) });
            let kept = topic.append("x").unwrap();
            follower.join().unwrap().unwrap();
            assert!(kept.is_done());
        });
        assert_eq!(all(&mut cursor), [i]);
    }
    // A commit that fails for lack of space is no news for a follower.
    disk.set_capacity(Some(disk.used()));
    let failing = topic.append(vec![0; 15 << 20]).unwrap();
    assert!(!cursor.wait_timeout(Duration::from_millis(1)).unwrap());
    assert!(matches!(failing.wait(), Err(Error::StorageFull { .. })));
}

#[test]
fn followers_leave_group_commit_as_it_is() {
    let disk = Disk::default();
    let log = threaded(&disk);
    let topic = log.topic("t").unwrap();
    topic.append("first").unwrap().wait().unwrap();
    let mut cursor = topic.cursor("c").unwrap();
    log.sync().unwrap().wait().unwrap();
    assert_eq!(all(&mut cursor), [0]);
    let before = disk.syncs();
    disk.set_gate_closed(true);
    let waiting = AtomicUsize::new(0);
    thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let mut seen = 1;
            while seen < 66 {
                cursor.wait().unwrap();
                seen += all(&mut cursor).len();
            }
        });
        scope.spawn(|| topic.append("held up").unwrap().wait().unwrap());
        disk.wait_for_sync_at_gate();
        for _ in 0..64 {
            scope.spawn(|| {
                let ticket = topic.append("x").unwrap();
                waiting.fetch_add(1, Ordering::SeqCst);
                ticket.wait().unwrap();
            });
        }
        while waiting.load(Ordering::SeqCst) < 64 {
            thread::yield_now();
        }
        disk.set_gate_closed(false);
        follower.join().unwrap();
    });
    assert_eq!(disk.syncs() - before, 2);
}

#[test]
fn no_wakeup_is_lost() {
    const ENTRIES: u64 = 1000;
    for durability in [Durability::Synced, Durability::None] {
        for committer in [Committer::Thread, Committer::Caller] {
            let disk = Disk::default();
            let log = open(&disk, committer, durability);
            let topics: Vec<_> = (0..2).map(|i| log.topic(&format!("t{i}")).unwrap()).collect();
            thread::scope(|scope| {
                for (t, topic) in topics.iter().enumerate() {
                    scope.spawn(move || {
                        let mut coin = Coin(t as u64);
                        for _ in 0..ENTRIES {
                            let ticket = topic.append("x").unwrap();
                            match coin.below(4) {
                                0 => ticket.wait().unwrap(),
                                1 => thread::yield_now(),
                                _ => {}
                            }
                        }
                    });
                    for kind in 0..3 {
                        let mut cursor = topic.cursor(&format!("c{kind}")).unwrap();
                        scope.spawn(move || {
                            let mut next = 0;
                            while next < ENTRIES {
                                match kind {
                                    0 => assert!(cursor.wait_timeout(NEVER).unwrap(), "not woken"),
                                    1 => block_on(cursor.ready()).unwrap(),
                                    _ => {
                                        // Polled once and dropped, again and again.
                                        let waker = Waker::noop();
                                        drop(
                                            Box::pin(cursor.ready())
                                                .as_mut()
                                                .poll(&mut Context::from_waker(waker)),
                                        );
                                        block_on(cursor.ready()).unwrap();
                                    }
                                }
                                let batch = all(&mut cursor);
                                assert!(!batch.is_empty() && batch[0] == next);
                                next += batch.len() as u64;
                            }
                        });
                    }
                }
            });
        }
    }
}

#[test]
fn a_commit_takes_the_time_that_a_simulator_gives_it() {
    let begun = Arc::new(AtomicUsize::new(0));
    let open_gate = Arc::new(AtomicBool::new(false));
    let delay = {
        let (begun, open_gate) = (Arc::clone(&begun), Arc::clone(&open_gate));
        CommitDelay::new(move || {
            begun.fetch_add(1, Ordering::SeqCst);
            let open_gate = Arc::clone(&open_gate);
            std::future::poll_fn(move |_| match open_gate.load(Ordering::SeqCst) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
        })
    };
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", Options { commit_delay: Some(delay), ..options(&disk) }).unwrap();
    let topic = log.topic("t").unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    let (mut first, mut second) =
        (pin!(topic.append("0").unwrap().durable()), pin!(topic.append("1").unwrap().durable()));
    for _ in 0..3 {
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
    }
    assert_eq!(
        (begun.load(Ordering::SeqCst), disk.calls()),
        (2, 0),
        "one delay each, and nothing written before"
    );
    open_gate.store(true, Ordering::SeqCst);
    assert!(matches!(first.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
    // Committed along with the first, so there is nothing left to wait for.
    open_gate.store(false, Ordering::SeqCst);
    assert!(matches!(second.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
    // Whoever blocks a thread is no simulated task, and is not delayed.
    topic.append("2").unwrap().wait().unwrap();
    assert_eq!(begun.load(Ordering::SeqCst), 2);
}
