//! Who gets in when more is appended than the disk takes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use octopii_wal::{Appending, Committer, Durability, Error, Options, Ticket, Topic, WriteAheadLog};

use crate::crash::options;
use crate::disk::{Coin, Disk, Fault};
use crate::follow::{Count, block_on};

const BUDGET: usize = 1 << 20;
/// An entry that takes 1 KiB with its header.
const ENTRY: usize = 1000;

fn open(disk: &Disk, committer: Committer, max_pending_bytes: usize) -> WriteAheadLog {
    let options = Options { committer, max_pending_bytes, segment_size: 64 << 20, ..options(disk) };
    WriteAheadLog::open("/wal", options).unwrap()
}

/// A log whose disk does nothing until the gate is opened, with a commit under way in the topic "gate".
fn stalled(disk: &Disk) -> WriteAheadLog {
    let log = open(disk, Committer::Thread, BUDGET);
    log.topic("gate").unwrap().append("begin a segment").unwrap().wait().unwrap();
    for name in ["flood", "other", "third", "quiet"] {
        log.topic(name).unwrap().set_metadata("k", "v").unwrap().wait().unwrap();
    }
    disk.set_gate_closed(true);
    drop(log.topic("gate").unwrap().append("held up").unwrap());
    disk.wait_for_sync_at_gate();
    log
}

fn poll(future: &mut Appending, waker: &Waker) -> Poll<Result<Ticket, Error>> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Appends once, if that is possible at once.
fn try_append(topic: &Topic, len: usize) -> bool {
    match poll(&mut topic.append_async(vec![0; len]), Waker::noop()) {
        Poll::Ready(ticket) => {
            drop(ticket.unwrap());
            true
        }
        Poll::Pending => false,
    }
}

/// Appends as much as goes in at once. Returns how many entries.
fn flood(topic: &Topic) -> usize {
    std::iter::repeat_with(|| try_append(topic, ENTRY)).take_while(|done| *done).count()
}

#[test]
fn a_flood_takes_half_and_leaves_room_for_whoever_comes() {
    let disk = Disk::default();
    let log = stalled(&disk);
    let (flooding, quiet) = (log.topic("flood").unwrap(), log.topic("quiet").unwrap());
    let entries = flood(&flooding);
    assert!((505..=512).contains(&entries), "{entries} of 1 KiB in half of 1 MiB");
    // More threads and tasks that flood change nothing.
    let mut waiting: Vec<_> = (0..100).map(|_| flooding.append_async(vec![0; ENTRY])).collect();
    waiting.iter_mut().for_each(|w| assert!(poll(w, Waker::noop()).is_pending()));
    thread::scope(|scope| {
        scope.spawn(|| drop(flooding.append("blocked until the gate opens").unwrap()));
        for _ in 0..100 {
            assert!(try_append(&quiet, ENTRY));
        }
        // Also by the other way, which would block here for good.
        drop(quiet.append(vec![0; ENTRY]).unwrap());
        assert!(try_append(&quiet, 100 << 10), "a larger one as well");
        disk.set_gate_closed(false);
        for appending in waiting {
            drop(block_on(appending).unwrap());
        }
    });
    log.close().unwrap();
    assert_eq!((flooding.next_index(), quiet.next_index()), (entries as u64 + 101, 102));
}

#[test]
fn floods_share_alike() {
    let disk = Disk::default();
    let log = stalled(&disk);
    let topics = ["flood", "other", "third"].map(|name| log.topic(name).unwrap());
    // In turn, as threads would, and the third comes when the others have all they can get.
    while topics[..2].iter().map(|topic| try_append(topic, ENTRY)).filter(|done| *done).count() > 0 {}
    for topic in &topics[..2] {
        assert!((335..=345).contains(&topic.next_index()), "{} KiB, a third of 1 MiB", topic.next_index());
    }
    let entries = flood(&topics[2]);
    assert!((165..=175).contains(&entries), "{entries} KiB, half of what was left");
    disk.set_gate_closed(false);
}

#[test]
fn a_batch_counts_against_each_of_its_topics_and_keeps_its_place_in_each() {
    let disk = Disk::default();
    let log = stalled(&disk);
    let [flooding, quiet, third] = ["flood", "quiet", "third"].map(|name| log.topic(name).unwrap());
    flood(&flooding);
    let mut both = log.batch();
    both.append(&quiet, "x").append(&flooding, vec![0; ENTRY]).append(&quiet, "y");
    let mut both = log.commit_async(both);
    assert!(poll(&mut both, Waker::noop()).is_pending());
    assert_eq!(quiet.next_index(), 0, "all or nothing");
    // What comes later for one of its topics stays behind it.
    let mut behind = quiet.append_async("z");
    assert!(poll(&mut behind, Waker::noop()).is_pending());
    assert!(try_append(&third, ENTRY));
    // If it gives up, those behind it go on.
    let count = Arc::new(Count::default());
    assert!(poll(&mut behind, &Waker::from(Arc::clone(&count))).is_pending());
    drop(both);
    assert_eq!(count.get(), 1);
    assert!(poll(&mut behind, Waker::noop()).is_ready());
    assert_eq!(quiet.next_index(), 1);
    let mut shared = log.batch();
    shared.append(&quiet, vec![0; 200 << 10]).append(&third, vec![0; 20 << 10]);
    assert!(poll(&mut log.commit_async(shared), Waker::noop()).is_ready());
    assert!(!try_append(&quiet, 60 << 10), "it has its share");
    assert!(try_append(&third, 30 << 10));
    disk.set_gate_closed(false);
}

#[test]
fn those_who_wait_for_room_get_it_in_order() {
    struct Note(usize, Arc<Mutex<Vec<usize>>>);
    impl Wake for Note {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }
    let disk = Disk::default();
    let log = stalled(&disk);
    let flooding = log.topic("flood").unwrap();
    flood(&flooding);
    let order = Arc::new(Mutex::new(Vec::new()));
    let wakers: Vec<_> = (0..50).map(|i| Waker::from(Arc::new(Note(i, Arc::clone(&order))))).collect();
    // Small ones, for which there would be room, among the large.
    let entry = |i: usize| vec![i as u8; [40 << 10, 10][i % 2]];
    let mut waiting: Vec<_> = (0..50).map(|i| flooding.append_async(entry(i))).collect();
    for (appending, waker) in waiting.iter_mut().zip(&wakers) {
        assert!(poll(appending, waker).is_pending());
    }
    // Others are let in or wait meanwhile, and the line is gone through again.
    let mut other = log.topic("other").unwrap().append_async(vec![0; 500 << 10]);
    assert!(poll(&mut other, Waker::noop()).is_pending());
    assert!(try_append(&log.topic("quiet").unwrap(), 10));
    let too_early = order.lock().unwrap().clone();
    disk.set_gate_closed(false);
    assert_eq!(too_early, []);
    for (i, (mut appending, waker)) in waiting.into_iter().zip(&wakers).enumerate() {
        let ticket = loop {
            match poll(&mut appending, waker) {
                Poll::Ready(ticket) => break ticket.unwrap(),
                Poll::Pending => thread::yield_now(),
            }
        };
        // Room is granted first, and its owner woken a little later.
        let woken = loop {
            let woken = order.lock().unwrap().clone();
            if woken.len() > i {
                break woken;
            }
            thread::yield_now();
        };
        assert_eq!(woken[..=i], (0..=i).collect::<Vec<_>>());
        let index = ticket.index().unwrap();
        drop(ticket);
        assert_eq!(flooding.read(index).unwrap().unwrap()[0], i as u8);
    }
}

#[test]
fn a_future_dropped_before_it_is_ready_appends_nothing_and_passes_its_room_on() {
    let disk = Disk::default();
    let log = stalled(&disk);
    let flooding = log.topic("flood").unwrap();
    let entries = flood(&flooding) as u64;
    let counts: [Arc<Count>; 3] = Default::default();
    let wakers = counts.each_ref().map(|count| Waker::from(Arc::clone(count)));
    // Each for so much that only one goes in.
    let mut waiting = counts.each_ref().map(|_| flooding.append_async(vec![0; 400 << 10]));
    for (appending, waker) in waiting.iter_mut().zip(&wakers) {
        assert!(poll(appending, waker).is_pending());
    }
    let [first, second, mut third] = waiting;
    drop(second);
    disk.set_gate_closed(false);
    // All that was appended gets written, and the first has its room, unused.
    log.sync().unwrap().wait().unwrap();
    while counts[0].get() == 0 {
        thread::yield_now();
    }
    assert_eq!(counts.each_ref().map(|c| c.get()), [1, 0, 0]);
    assert!(poll(&mut third, &wakers[2]).is_pending());
    drop(first);
    assert_eq!(counts[2].get(), 1);
    assert!(poll(&mut third, &wakers[2]).is_ready());
    assert_eq!(flooding.next_index(), entries + 1);
    // Nothing of the budget was lost on the way.
    log.sync().unwrap().wait().unwrap();
    disk.set_gate_closed(true);
    drop(log.topic("gate").unwrap().append("held up").unwrap());
    disk.wait_for_sync_at_gate();
    assert!((505..=512).contains(&flood(&flooding)));
    disk.set_gate_closed(false);
}

#[test]
fn those_who_wait_for_room_hear_that_the_log_stopped() {
    for is_poisoned in [true, false] {
        let disk = Disk::default();
        let log = stalled(&disk);
        let flooding = log.topic("flood").unwrap();
        flood(&flooding);
        let mut waiting = flooding.append_async(vec![0; 400 << 10]);
        assert!(poll(&mut waiting, Waker::noop()).is_pending());
        thread::scope(|scope| {
            let blocked = scope.spawn(|| flooding.append(vec![0; 400 << 10]).map(drop));
            let closing = (!is_poisoned).then(|| scope.spawn(|| log.close()));
            if is_poisoned {
                disk.set_fault(disk.calls() + 1, Fault::Fail(io::ErrorKind::Other));
            } else {
                // The log counts as closing from when nothing more may be appended.
                while !matches!(log.sync(), Err(Error::Closed)) {
                    thread::yield_now();
                }
            }
            disk.set_gate_closed(false);
            let outcomes = [block_on(waiting).map(drop), blocked.join().unwrap()];
            for error in outcomes.map(Result::unwrap_err) {
                assert_eq!(matches!(error, Error::Poisoned { .. }), is_poisoned, "{error}");
                assert_eq!(matches!(error, Error::Closed), !is_poisoned, "{error}");
            }
            closing.into_iter().for_each(|closing| closing.join().unwrap().unwrap());
        });
    }
}

#[test]
fn without_space_nobody_waits_for_room_in_vain() {
    for committer in [Committer::Thread, Committer::Caller] {
        let disk = Disk::default();
        let log = open(&disk, committer, 64 << 10);
        disk.set_capacity(Some(2 << 20));
        let purging = log.topic("t0").unwrap();
        thread::scope(|scope| {
            for t in 0..3 {
                let topic = log.topic(&format!("t{t}")).unwrap();
                scope.spawn(move || {
                    let mut failed = 0;
                    while failed < 20 {
                        let appended = match t {
                            0 => topic.append(vec![0; 9000]),
                            _ => block_on(topic.append_async(vec![0; 9000])),
                        };
                        match appended.map(drop) {
                            Ok(()) => {}
                            Err(Error::StorageFull { .. }) => failed += 1,
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
        });
        disk.set_capacity(None);
        purging.append("goes on").unwrap().wait().unwrap();
    }
}

#[test]
fn with_little_room_everything_appended_gets_there() {
    for durability in [Durability::Synced, Durability::None] {
        for (committer, budget) in [
            (Committer::Thread, 16 << 10),
            (Committer::Caller, 16 << 10),
            (Committer::Thread, 0),
            (Committer::Caller, 0),
        ] {
            let disk = Disk::default();
            let options = Options { durability, ..options(&disk) };
            let options = Options { committer, max_pending_bytes: budget, segment_size: 64 << 20, ..options };
            let log = WriteAheadLog::open("/wal", options).unwrap();
            let topics: Vec<_> = (0..3).map(|i| log.topic(&format!("t{i}")).unwrap()).collect();
            let appended = AtomicU64::new(0);
            thread::scope(|scope| {
                for seed in 0..6 {
                    let (log, topics, appended) = (&log, &topics, &appended);
                    scope.spawn(move || {
                        let mut coin = Coin(seed);
                        for _ in 0..150 {
                            let topic = &topics[coin.below(3) as usize];
                            let entry = vec![0; [10, 1000, 3000, 7000, 20_000][coin.below(5) as usize]];
                            let ticket = match coin.below(4) {
                                0 => topic.append(entry).unwrap(),
                                1 => block_on(topic.append_async(entry)).unwrap(),
                                2 => {
                                    let mut given_up = topic.append_async(entry.clone());
                                    let count = Waker::from(Arc::new(Count::default()));
                                    match poll(&mut given_up, &count) {
                                        Poll::Ready(ticket) => ticket.unwrap(),
                                        Poll::Pending => {
                                            drop(given_up);
                                            continue;
                                        }
                                    }
                                }
                                _ => {
                                    let mut batch = log.batch();
                                    batch.append(&topics[0], "part").append(&topics[1], entry);
                                    appended.fetch_add(1, Ordering::SeqCst);
                                    block_on(log.commit_async(batch)).unwrap()
                                }
                            };
                            appended.fetch_add(1, Ordering::SeqCst);
                            if coin.below(4) == 0 {
                                ticket.wait().unwrap();
                            }
                        }
                    });
                }
            });
            log.close().unwrap();
            let there: u64 = topics.iter().map(|t| t.next_index()).sum();
            assert_eq!(there, appended.load(Ordering::SeqCst));
        }
    }
}

#[test]
fn what_cannot_be_appended_is_refused_by_the_future_too() {
    let log = open(&Disk::default(), Committer::Thread, BUDGET);
    let topic = log.topic("t").unwrap();
    let refused = block_on(topic.append_async(vec![0; octopii_wal::MAX_ENTRY + 1]));
    assert!(matches!(refused, Err(Error::EntryTooLarge { .. })));
    let other = open(&Disk::default(), Committer::Thread, BUDGET);
    let mut batch = other.batch();
    batch.append(&topic, "stray");
    assert!(matches!(block_on(other.commit_async(batch)), Err(Error::ForeignTopic { .. })));
    let ticket = block_on(topic.append_async("fits")).unwrap();
    assert_eq!(ticket.index(), Some(0));
    block_on(ticket.durable()).unwrap();
}
