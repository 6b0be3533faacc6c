//! Every call to the file system fails once: nothing is acknowledged that is not durable, and nothing durable is lost.

use std::io;

use octopii_wal::{Committer, Durability, Error, OpenError, Options, WriteAheadLog};

use crate::crash::{any_options, options};
use crate::disk::{Coin, Disk, Fault, Survivors};
use crate::model::{self, Action};
use crate::seeds::{Place, for_each_seed, mix};
use crate::session::{DIR, Failure, History, Session};

const KINDS: [io::ErrorKind; 3] =
    [io::ErrorKind::Other, io::ErrorKind::StorageFull, io::ErrorKind::Interrupted];

/// A log that has been used before, and what it holds.
fn used(seed: u64) -> (Disk, History) {
    let mut coin = Coin(mix(seed, 0));
    let (disk, mut history) = (Disk::default(), History::new());
    let mut session = Session::open(&disk, any_options(&mut coin), &mut history).unwrap();
    session.run(&model::script(&mut coin, 15)).unwrap();
    session.sync().unwrap();
    drop(session);
    (disk.after_crash(Survivors::Random(seed)), history)
}

/// Runs a script on `disk`, which fails somewhere, and looks at what comes of it.
fn run(seed: u64, disk: &Disk, mut history: History) {
    let mut coin = Coin(mix(seed, 1));
    let options = any_options(&mut coin);
    let mut actions = model::script(&mut coin, 20);
    actions.push(Action::Sync);
    let mut session = match Session::open(disk, options.clone(), &mut history) {
        Ok(session) => session,
        // It fails once; the next attempt goes through.
        Err(Failure::Open(OpenError::Io { .. }) | Failure::Log(Error::Io { .. })) => {
            Session::open(disk, options, &mut history).unwrap_or_else(|e| panic!("opening again: {e}"))
        }
        Err(e) => panic!("{e}"),
    };
    let mut goes_on = true;
    for action in &actions {
        match session.step(action) {
            Ok(()) => continue,
            Err(Failure::Log(Error::StorageFull { .. })) => {
                goes_on = session.fall_back_after_full_disk().unwrap_or_else(|e| panic!("{e}"));
            }
            Err(Failure::Log(Error::Poisoned { .. })) => {
                assert_stopped(session.log());
                goes_on = false;
            }
            // The next look goes through.
            Err(Failure::Log(Error::Io { .. })) => {}
            // The log was closed, and opening it again failed.
            Err(Failure::Open(OpenError::Io { .. })) => goes_on = false,
            Err(e) => panic!("{e}"),
        }
        if !goes_on {
            break;
        }
        match session.check() {
            Ok(()) | Err(Failure::Log(Error::Io { .. })) => {}
            Err(e) => panic!("going on: {e}"),
        }
    }
    drop(session);
    let random = Survivors::Random(mix(seed, 2));
    let crashes = [Survivors::Nothing, Survivors::Everything, random].map(|s| disk.after_crash(s));
    for disk in crashes.into_iter().chain([disk.after_kill()]) {
        let mut history = history.clone();
        let mut session = Session::open(&disk, any_options(&mut coin), &mut history)
            .unwrap_or_else(|e| panic!("after a crash: {e}"));
        session.run(&model::script(&mut coin, 3)).unwrap_or_else(|e| panic!("after a crash: {e}"));
        let again = disk.after_crash(coin.pick(&[Survivors::Nothing, random]));
        drop(session);
        Session::open(&again, any_options(&mut coin), &mut history)
            .unwrap_or_else(|e| panic!("after another crash: {e}"));
    }
}

/// Whatever is tried on a log that stopped fails as well.
fn assert_stopped(log: &WriteAheadLog) {
    assert!(matches!(log.topic("late"), Err(Error::Poisoned { .. })));
    assert!(matches!(log.sync(), Err(Error::Poisoned { .. })));
    for name in log.topics() {
        let topic = log.topic(&name).unwrap();
        assert!(matches!(topic.append("late"), Err(Error::Poisoned { .. })));
        assert!(matches!(topic.truncate(0), Err(Error::Poisoned { .. })));
        assert!(matches!(topic.purge(0), Err(Error::Poisoned { .. })));
        assert!(matches!(topic.set_metadata("k", "v"), Err(Error::Poisoned { .. })));
    }
    assert!(matches!(log.commit(log.batch()), Err(Error::Poisoned { .. })));
    assert!(matches!(log.close(), Err(Error::Poisoned { .. })));
}

fn fail_every_change(seed: u64, place: &Place) {
    let (disk, history) = used(seed);
    let total = {
        let disk = disk.after_kill();
        run(seed, &disk, history.clone());
        disk.calls()
    };
    for call in 1..=total {
        let faults = KINDS.iter().flat_map(|kind| [Fault::Fail(*kind), Fault::FailLate(*kind)]);
        for (i, fault) in faults.enumerate() {
            if place.enter(call as usize, i) {
                let disk = disk.after_kill();
                disk.set_fault(call, fault);
                run(seed, &disk, history.clone());
            }
        }
    }
}

#[test]
fn every_call_that_changes_something_failed_once() {
    for_each_seed("every_call_that_changes_something_failed_once", 0..40, fail_every_change);
}

fn fail_every_look(seed: u64, place: &Place) {
    let (disk, history) = used(seed);
    let total = {
        let disk = disk.after_kill();
        run(seed, &disk, history.clone());
        disk.looks()
    };
    for look in 1..=total {
        for (i, kind) in KINDS.iter().enumerate() {
            if place.enter(look as usize, i) {
                let disk = disk.after_kill();
                disk.set_look_fault(look, *kind);
                run(seed, &disk, history.clone());
            }
        }
    }
}

#[test]
fn every_call_that_only_looks_failed_once() {
    for_each_seed("every_call_that_only_looks_failed_once", 0..10, fail_every_look);
}

/// After a sync has failed, the system takes the pages in its memory for what is on disk, and no later sync writes them.
/// Programs read them all the same, the next opening of the log among them.
#[test]
fn what_is_shown_after_a_failed_sync_and_a_reopening_stays() {
    for (durability, goes_on) in
        [Durability::Synced, Durability::None].into_iter().flat_map(|d| [(d, false), (d, true)])
    {
        let disk = Disk::default();
        let options = Options { durability, max_pending_bytes: 8 << 10, ..options(&disk) };
        let log = WriteAheadLog::open(DIR, options.clone()).unwrap();
        let topic = log.topic("t").unwrap();
        topic.append("safe").unwrap().wait().unwrap();
        log.sync().unwrap().wait().unwrap();
        disk.fail_next_sync();
        let failed = (0..4).try_for_each(|_| topic.append(vec![1; 5000])?.wait());
        let failed = failed.and_then(|()| log.sync()?.wait());
        assert!(matches!(failed, Err(Error::Poisoned { operation: "sync", .. })), "{failed:?}");
        drop((topic, log));

        let log = WriteAheadLog::open(DIR, options.clone()).unwrap();
        let topic = log.topic("t").unwrap();
        assert!(topic.next_index() > 1, "the system still has in memory what was not synced");
        if goes_on {
            topic.append("later").unwrap().wait().unwrap();
            log.sync().unwrap().wait().unwrap();
        }
        let shown = model::observe(&log).unwrap();
        let disk = disk.after_crash(Survivors::Nothing);
        drop((topic, log));
        let log = WriteAheadLog::open(DIR, Options { vfs: disk.vfs(), ..options }).unwrap();
        assert!(model::observe(&log).unwrap() == shown, "{durability:?}: what was shown is gone");
    }
}

/// A disk that is full for a while, at any size.
fn fill(seed: u64, _: &Place) {
    let mut coin = Coin(mix(seed, 0));
    let (disk, mut history) = (Disk::default(), History::new());
    let options = Options { committer: Committer::Caller, ..any_options(&mut coin) };
    let mut session = Session::open(&disk, options, &mut history).unwrap_or_else(|e| panic!("{e}"));
    disk.set_capacity(Some(coin.below(200 << 10) as usize));
    let mut open = true;
    for action in &model::script(&mut coin, 60) {
        match session.step(action) {
            Ok(()) => {}
            Err(Failure::Log(Error::StorageFull { .. })) => {
                open = session.fall_back_after_full_disk().unwrap_or_else(|e| panic!("{e}"));
            }
            // A footer may be due, and there is no space for it.
            Err(Failure::Open(OpenError::Io { .. })) => open = false,
            Err(e) => panic!("{e}"),
        }
        if !open {
            break;
        }
        session.check().unwrap_or_else(|e| panic!("{e}"));
    }
    disk.set_capacity(None);
    if open {
        session.run(&model::script(&mut coin, 10)).unwrap_or_else(|e| panic!("with space again: {e}"));
        session.sync().and_then(|()| session.check()).unwrap_or_else(|e| panic!("with space again: {e}"));
    }
    drop(session);
    let disk = disk.after_crash(Survivors::Random(seed));
    Session::open(&disk, any_options(&mut coin), &mut history).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_disk_that_is_full_for_a_while_takes_nothing_acknowledged() {
    for_each_seed("a_disk_that_is_full_for_a_while_takes_nothing_acknowledged", 0..2000, fill);
}

#[test]
fn segments_go_only_when_the_purge_is_durable_even_without_syncs() {
    let disk = Disk::default();
    let options = Options { durability: Durability::None, max_pending_bytes: 8 << 10, ..options(&disk) };
    let log = WriteAheadLog::open(DIR, options.clone()).unwrap();
    let topic = log.topic("t").unwrap();
    for i in 0..30 {
        topic.append(vec![i; 5000]).unwrap().wait().unwrap();
    }
    log.sync().unwrap().wait().unwrap();
    let segments = log.stats().segments;
    topic.purge(29).unwrap().wait().unwrap();
    // Enough to have the purge written, but nobody asks for a sync.
    topic.append(vec![30; 5000]).unwrap().wait().unwrap();
    assert!(log.stats().segments < segments);
    for survivors in [Survivors::Nothing, Survivors::Everything] {
        let disk = disk.after_crash(survivors);
        let log = WriteAheadLog::open(DIR, Options { vfs: disk.vfs(), ..options.clone() }).unwrap();
        assert_eq!(log.topic("t").unwrap().read(29).unwrap().unwrap(), vec![29; 5000]);
    }
}
