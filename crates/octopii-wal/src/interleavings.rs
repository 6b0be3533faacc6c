//! The commit queue under a scheduler that chooses among the interleavings of its threads: `just shuttle`.
//!
//! A waiter that is never woken is a deadlock to the scheduler, and fails the test with the schedule that led there.

use std::future::Future;
use std::io;
use std::task::{Context, Poll, Waker};

use shuttle::future::block_on;

use self::disk::{Disk, Fault, Survivors};
use crate::sync::thread;
use crate::{Committer, Durability, Error, Options, Ticket, Topic, WriteAheadLog};

#[allow(dead_code, reason = "the integration tests use the rest")]
#[path = "../tests/it/disk/mod.rs"]
mod disk;

/// Runs `test` under many schedules: evenly random ones, and ones with few changes of thread at unlikely places.
fn explore(test: impl Fn() + Send + Sync + Copy + 'static) {
    let times = std::env::var("OCTOPII_SCHEDULES").map_or(2000, |n| n.parse().unwrap());
    shuttle::check_random(test, times);
    shuttle::check_pct(test, times, 3);
}

fn options(disk: &Disk) -> Options {
    Options {
        vfs: disk.vfs(),
        segment_size: 64 << 10,
        committer: Committer::Thread,
        seed: Some(7),
        ..Options::default()
    }
}

fn open(disk: &Disk) -> WriteAheadLog {
    WriteAheadLog::open("/wal", options(disk)).unwrap()
}

/// What a power cut at this moment would leave of a topic.
fn durable(disk: &Disk, topic: &str) -> Vec<String> {
    let disk = disk.after_crash(Survivors::Nothing);
    let options = Options { committer: Committer::Caller, ..options(&disk) };
    let log = WriteAheadLog::open("/wal", options).unwrap();
    let entries = log.topic(topic).unwrap().read_range(0..u64::MAX, usize::MAX).unwrap();
    entries.into_iter().map(|(_, entry)| String::from_utf8(entry.to_vec()).unwrap()).collect()
}

/// Waits in one of three ways, and checks that an acknowledgement is worth something.
fn acknowledge(disk: &Disk, topic: &Topic, entry: &str, way: usize) -> Result<(), Error> {
    let ticket = topic.append(entry.to_owned())?;
    match way % 3 {
        0 => ticket.wait()?,
        1 => block_on(ticket.durable())?,
        _ => give_up_and_wait(ticket, topic)?,
    }
    assert!(
        durable(disk, topic.name()).iter().any(|e| e == entry),
        "{entry} was acknowledged and is not durable"
    );
    Ok(())
}

/// Drops a future that is being waited for, then waits for a later operation.
fn give_up_and_wait(ticket: Ticket, topic: &Topic) -> Result<(), Error> {
    let mut future = Box::pin(ticket.durable());
    let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(future);
    match polled {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => topic.set_metadata("later", "x")?.wait(),
    }
}

/// Runs `work` in `writers` threads, each with a topic of its own.
fn writers(log: &WriteAheadLog, writers: usize, work: impl Fn(usize, &Topic) + Copy + Send + Sync + 'static) {
    let topics: Vec<_> = (0..writers).map(|i| log.topic(&format!("t{i}")).unwrap()).collect();
    let threads: Vec<_> =
        topics.into_iter().enumerate().map(|(i, topic)| thread::spawn(move || work(i, &topic))).collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

#[test]
fn every_writer_is_woken_and_only_when_its_entry_is_durable() {
    explore(|| {
        let disk = Disk::default();
        let log = open(&disk);
        let topics: Vec<_> = (0..3).map(|i| log.topic(&format!("t{i}")).unwrap()).collect();
        thread::scope(|scope| {
            for (i, topic) in topics.iter().enumerate() {
                let disk = &disk;
                scope.spawn(move || {
                    for n in 0..2 {
                        acknowledge(disk, topic, &n.to_string(), i + n).unwrap();
                    }
                });
            }
        });
        log.close().unwrap();
        assert!(topics.iter().all(|t| t.next_index() == 2));
    });
}

#[test]
fn what_becomes_durable_becomes_so_in_the_order_of_calls() {
    explore(|| {
        let disk = Disk::default();
        let log = open(&disk);
        writers(&log, 2, |_, topic| {
            let first = topic.append("first").unwrap();
            let second = topic.append("second").unwrap();
            second.wait().unwrap();
            assert!(first.is_done());
            first.wait().unwrap();
        });
    });
}

#[test]
fn an_entry_that_nobody_waits_for_reaches_its_consumer() {
    explore(|| {
        let disk = Disk::default();
        let log = open(&disk);
        let topic = log.topic("t").unwrap();
        let cursor = topic.cursor("c").unwrap();
        let consumer = thread::spawn(move || cursor.wait().unwrap());
        drop(topic.append("dropped").unwrap());
        consumer.join().unwrap();
        assert_eq!(durable(&disk, "t"), ["dropped"]);
        log.close().unwrap();
    });
}

#[test]
fn closing_leaves_nobody_waiting_and_keeps_what_was_called() {
    explore(|| {
        let disk = Disk::default();
        let log = open(&disk);
        let topics: Vec<_> = (0..2).map(|i| log.topic(&format!("t{i}")).unwrap()).collect();
        thread::scope(|scope| {
            for (i, topic) in topics.iter().enumerate() {
                let disk = &disk;
                scope.spawn(move || {
                    for n in 0..2 {
                        match acknowledge(disk, topic, &n.to_string(), i + n) {
                            Ok(()) | Err(Error::Closed) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
            scope.spawn(|| log.close().unwrap());
        });
        // A call that got through before the closing is durable, even if its waiter was told of the closing.
        for topic in &topics {
            assert_eq!(durable(&disk, topic.name()).len() as u64, topic.next_index());
        }
    });
}

#[test]
fn a_failed_call_of_the_disk_is_told_to_every_waiter() {
    for call in 1..8 {
        explore(move || fail(call));
    }
}

fn fail(call: u64) {
    let disk = Disk::default();
    let log = open(&disk);
    let topics: Vec<_> = (0..3).map(|i| log.topic(&format!("t{i}")).unwrap()).collect();
    disk.set_fault(disk.calls() + call, Fault::Fail(io::ErrorKind::Other));
    thread::scope(|scope| {
        for (i, topic) in topics.iter().enumerate() {
            let disk = &disk;
            scope.spawn(move || {
                let mut failed = false;
                for n in 0..3 {
                    match acknowledge(disk, topic, &n.to_string(), i + n) {
                        Ok(()) => assert!(!failed, "the log goes on after a failed write or sync"),
                        Err(Error::Poisoned { .. }) => failed = true,
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert_eq!(log.close().is_err(), log.topic("late").is_err_and(|e| !matches!(e, Error::Closed)));
}

#[test]
fn appending_that_is_held_back_goes_on() {
    explore(|| {
        let disk = Disk::default();
        let options = Options { max_pending_bytes: 100, ..options(&disk) };
        let log = WriteAheadLog::open("/wal", options).unwrap();
        writers(&log, 3, |_, topic| {
            for _ in 0..3 {
                drop(topic.append(vec![0; 40]).unwrap());
            }
            topic.append("last").unwrap().wait().unwrap();
        });
        log.close().unwrap();
    });
}

#[test]
fn a_sync_that_is_asked_for_is_done_in_a_log_that_does_not_sync() {
    explore(|| {
        let disk = Disk::default();
        let options = Options { durability: Durability::None, ..options(&disk) };
        let log = WriteAheadLog::open("/wal", options).unwrap();
        let topics: Vec<_> = (0..2).map(|i| log.topic(&format!("t{i}")).unwrap()).collect();
        thread::scope(|scope| {
            for topic in &topics {
                let (log, disk) = (&log, &disk);
                scope.spawn(move || {
                    drop(topic.append("x").unwrap());
                    log.sync().unwrap().wait().unwrap();
                    assert_eq!(durable(disk, topic.name()), ["x"]);
                });
            }
        });
    });
}

#[test]
fn a_consumer_is_woken_by_an_entry_or_by_the_end_of_the_log() {
    explore(|| {
        let disk = Disk::default();
        let log = open(&disk);
        let topic = log.topic("t").unwrap();
        let consume = |way: usize| {
            let mut cursor = topic.cursor("c").unwrap();
            thread::spawn(move || {
                let mut seen = 0;
                loop {
                    let ready = if way == 0 { cursor.wait() } else { block_on(cursor.ready()) };
                    match ready {
                        Ok(()) => seen += cursor.next_batch(usize::MAX).unwrap().len(),
                        Err(Error::Closed) => return seen,
                        Err(other) => panic!("{other}"),
                    }
                }
            })
        };
        let consumers = [consume(0), consume(1)];
        topic.append("a").unwrap().wait().unwrap();
        topic.append("b").unwrap().wait().unwrap();
        log.close().unwrap();
        for consumer in consumers {
            assert_eq!(consumer.join().unwrap(), 2);
        }
    });
}
