//! The power goes at every call, and the log is there again with everything that was acknowledged.

use std::io;

use octopii_wal::{Committer, Durability, Error, Options, WriteAheadLog};

use crate::disk::{Disk, Fault, Survivors};
use crate::model::{self, Action, Model, TOPICS};

pub(crate) fn options(disk: &Disk) -> Options {
    Options {
        vfs: disk.vfs(),
        segment_size: 64 << 10,
        committer: Committer::Caller,
        seed: Some(7),
        ..Options::default()
    }
}

/// How far a script came.
struct Run {
    /// The model after every action called, from the empty one.
    models: Vec<Model>,
    /// Index into `models` of the last one known to be durable.
    acknowledged: usize,
}

/// Runs `actions`, continuing `run`, until they end or one fails. Waits after each when `wait_always`.
fn drive(log: &WriteAheadLog, actions: &[Action], run: &mut Run, wait_always: bool) -> Result<(), Error> {
    let mut topics = Vec::new();
    for name in TOPICS {
        topics.push(log.topic(name)?);
    }
    for action in actions {
        let mut model = run.models.last().unwrap().clone();
        model::apply(&mut model, action);
        run.models.push(model);
        let called = run.models.len() - 1;
        let ticket = model::run(log, &topics, action)?;
        if wait_always || matches!(action, Action::Wait) {
            ticket.wait()?;
            run.acknowledged = called;
        }
        assert_eq!(model::without_empty(run.models[called].clone()), model::observe(log)?);
    }
    Ok(())
}

/// Opens the log after a crash and checks that it holds what some moment after the last acknowledgement left. Returns
/// that moment.
fn recover(disk: &Disk, run: &Run, what: &str) -> usize {
    let log = WriteAheadLog::open("/wal", options(disk)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let found = model::observe(&log).unwrap_or_else(|e| panic!("{what}: {e}"));
    let at = (run.acknowledged..run.models.len())
        .rfind(|k| model::without_empty(run.models[*k].clone()) == found)
        .unwrap_or_else(|| panic!("{what}: recovered a state that never was, or lost acknowledged data"));
    // What is shown must be durable: the next crash may not take it back.
    disk.set_fault(disk.calls() + 1, Fault::Crash);
    drop(log);
    at
}

fn crash_at_every_call(seed: u64, durability: Durability, wait_always: bool) {
    let actions = model::script(seed, 60);
    // So little may wait that a log without syncs writes many frames that are not synced.
    let options_of = |disk: &Disk| Options { durability, max_pending_bytes: 8 << 10, ..options(disk) };
    let total = {
        let disk = Disk::default();
        let log = WriteAheadLog::open("/wal", options_of(&disk)).unwrap();
        let mut run = Run { models: vec![Model::new()], acknowledged: 0 };
        drive(&log, &actions, &mut run, wait_always).unwrap();
        log.close().unwrap();
        disk.calls()
    };
    for crash_at in 1..=total {
        let disk = Disk::default();
        disk.set_fault(crash_at, Fault::Crash);
        let mut run = Run { models: vec![Model::new()], acknowledged: 0 };
        if let Ok(log) = WriteAheadLog::open("/wal", options_of(&disk)) {
            let done = drive(&log, &actions, &mut run, wait_always).is_ok();
            assert!(done || log.topic("late").is_err());
            drop(log);
        }
        let what = format!("seed {seed} {durability:?} crash at {crash_at}");
        let crashes = [
            ("process", disk.after_kill()),
            ("nothing kept", disk.after_crash(Survivors::Nothing)),
            ("everything kept", disk.after_crash(Survivors::Everything)),
            ("some kept", disk.after_crash(Survivors::Random(seed ^ crash_at))),
        ];
        for (crash, disk) in crashes {
            let what = format!("{what}, {crash}");
            let first = recover(&disk, &run, &what);
            // Shown once, so it stays.
            let disk = disk.after_crash(Survivors::Nothing);
            let mut next = Run { models: run.models[..=first].to_vec(), acknowledged: first };
            assert_eq!(recover(&disk, &next, &what), first, "{what}: the recovered tail was lost again");
            // And the log goes on from there, through another crash.
            let disk = disk.after_crash(Survivors::Nothing);
            let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
            drive(&log, &model::script(seed + 1, 8), &mut next, true).unwrap();
            disk.set_fault(disk.calls() + 1, Fault::Crash);
            drop(log);
            let disk = disk.after_crash(Survivors::Random(crash_at));
            recover(&disk, &next, &what);
        }
    }
}

#[test]
fn every_crash_of_a_synced_log_that_waits_now_and_then() {
    (1..=3).for_each(|seed| crash_at_every_call(seed, Durability::Synced, false));
}

#[test]
fn every_crash_of_a_synced_log_that_always_waits() {
    (11..=12).for_each(|seed| crash_at_every_call(seed, Durability::Synced, true));
}

#[test]
fn every_crash_of_a_log_without_syncs() {
    (21..=22).for_each(|seed| crash_at_every_call(seed, Durability::None, false));
}

#[test]
fn every_call_failed_once_loses_nothing_acknowledged() {
    let actions = model::script(31, 60);
    let total = {
        let disk = Disk::default();
        let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
        let mut run = Run { models: vec![Model::new()], acknowledged: 0 };
        drive(&log, &actions, &mut run, false).unwrap();
        disk.calls()
    };
    let kinds = [io::ErrorKind::Other, io::ErrorKind::StorageFull, io::ErrorKind::Interrupted];
    for (fail_at, kind) in (1..=total).flat_map(|at| kinds.map(|kind| (at, kind))) {
        let what = format!("{kind:?} at {fail_at}");
        let disk = Disk::default();
        disk.set_fault(fail_at, Fault::Fail(kind));
        let mut run = Run { models: vec![Model::new()], acknowledged: 0 };
        let Ok(log) = WriteAheadLog::open("/wal", options(&disk)) else { continue };
        match drive(&log, &actions, &mut run, false) {
            Err(Error::Poisoned { .. }) => {
                // For good: whatever is tried later fails as well.
                assert!(matches!(log.topic("late"), Err(Error::Poisoned { .. })), "{what}");
                assert!(matches!(log.sync(), Err(Error::Poisoned { .. })), "{what}");
                assert!(matches!(log.close(), Err(Error::Poisoned { .. })), "{what}");
            }
            Err(Error::StorageFull { .. }) => {
                // Nothing of what failed is there, and the log goes on.
                run.models.truncate(run.acknowledged + 1);
                let found = model::observe(&log).unwrap();
                assert_eq!(found, model::without_empty(run.models[run.acknowledged].clone()), "{what}");
                drive(&log, &model::script(32, 20), &mut run, true).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            Err(other) => panic!("{what}: {other}"),
            Ok(()) => {}
        }
        drop(log);
        for survivors in [Survivors::Nothing, Survivors::Everything, Survivors::Random(fail_at)] {
            recover(&disk.after_crash(survivors), &run, &what);
        }
    }
}

#[test]
fn segments_go_only_when_the_purge_is_durable_even_without_syncs() {
    let disk = Disk::default();
    let options = Options { durability: Durability::None, max_pending_bytes: 8 << 10, ..options(&disk) };
    let log = WriteAheadLog::open("/wal", options.clone()).unwrap();
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
        let log = WriteAheadLog::open("/wal", Options { vfs: disk.vfs(), ..options.clone() }).unwrap();
        assert_eq!(log.topic("t").unwrap().read(29).unwrap().unwrap(), vec![29; 5000]);
    }
}
