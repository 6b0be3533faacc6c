//! The power goes at every call, in every way it can, and the log is there again with everything that was acknowledged.

use std::time::Duration;

use octopii_wal::{Committer, Durability, Options, inspect};

use crate::disk::{Coin, Disk, Moment};
use crate::model::{self, Action};
use crate::seeds::{Place, for_each_seed, mix};
use crate::session::{DIR, History, Session, check_inspection};

pub(crate) fn options(disk: &Disk) -> Options {
    Options {
        vfs: disk.vfs(),
        segment_size: 64 << 10,
        committer: Committer::Caller,
        seed: Some(7),
        ..Options::default()
    }
}

/// Options for a session, by chance.
pub(crate) fn any_options(coin: &mut Coin) -> Options {
    let durability = match coin.below(8) {
        0 => Durability::None,
        1 => Durability::Interval(Duration::from_millis(5)),
        _ => Durability::Synced,
    };
    // So little may wait that a log without syncs writes many frames that are not synced.
    let max_pending_bytes = coin.pick(&[8 << 10, 8 << 10, 64 << 20]);
    let segment_size = coin.pick(&[32 << 10, 32 << 10, 32 << 10, 64 << 10]);
    let seed = Some(coin.next());
    Options {
        durability,
        max_pending_bytes,
        segment_size,
        seed,
        committer: Committer::Caller,
        ..Options::default()
    }
}

type Script = fn(&mut Coin, usize) -> Vec<Action>;

/// Runs a session of `n` actions to its end and returns every moment at which the power could have gone.
fn session(disk: &Disk, history: &mut History, coin: &mut Coin, script: Script, n: usize) -> Vec<Moment> {
    disk.record();
    let options = any_options(coin);
    let mut session = Session::open(disk, options, history).unwrap_or_else(|e| panic!("{e}"));
    session.run(&script(coin, n)).unwrap_or_else(|e| panic!("{e}"));
    if coin.one_in(4) {
        session.sync().unwrap_or_else(|e| panic!("{e}"));
    }
    let mut moments = disk.take_moments();
    moments.push(disk.moment());
    moments
}

/// The disk after a crash of some kind at `moment`.
fn any_crash(moment: &Moment, coin: &mut Coin) -> Disk {
    if coin.one_in(6) {
        return moment.after_kill();
    }
    let units = moment.units();
    let picks = units.random(coin);
    moment.after_crash(&units, &picks)
}

/// The log recovers on `disk`, goes on, crashes again, perhaps while it recovers, and recovers again.
fn aftermath(disk: &Disk, mut history: History, coin: &mut Coin) {
    let before = history.note();
    let actions = coin.below(5) as usize;
    let moments = session(disk, &mut history, coin, model::script, actions);
    let mut chosen = vec![coin.below(moments.len() as u64) as usize];
    if coin.one_in(4) {
        chosen.extend((0..moments.len()).take_while(|i| moments[*i].note == before));
    }
    for i in chosen {
        let disk = any_crash(&moments[i], coin);
        let mut history = history.at(moments[i].note);
        let inspected = coin.one_in(16).then(|| inspect(DIR, &disk.vfs()).unwrap_or_else(|e| panic!("{e}")));
        Session::open(&disk, any_options(coin), &mut history).unwrap_or_else(|e| panic!("{e}"));
        if let Some(inspected) = inspected {
            check_inspection(&inspected, history.last()).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

fn crash_at_every_call(seed: u64, place: &Place) {
    let mut coin = Coin(mix(seed, 0));
    let (mut disk, mut history) = (Disk::default(), History::new());
    let (script, n): (Script, _) =
        if seed.is_multiple_of(3) { (model::slow_script, 75) } else { (model::script, 50) };
    // Every other log has been through crashes before.
    for _ in 0..(seed % 2) * 2 {
        let moments = session(&disk, &mut history, &mut coin, script, 40);
        let at = &moments[coin.below(moments.len() as u64) as usize];
        disk = any_crash(at, &mut coin);
        history = history.at(at.note);
    }
    let moments = session(&disk, &mut history, &mut coin, script, n);
    for (i, moment) in moments.iter().enumerate() {
        let mut coin = Coin(mix(seed, 1 + i as u64));
        let units = moment.units();
        place.during(moment.call);
        let kill = std::iter::once(None);
        for (j, picks) in kill.chain(units.states(2, &mut coin).into_iter().map(Some)).enumerate() {
            if !place.enter(i, j) {
                continue;
            }
            let disk = match picks {
                Some(picks) => moment.after_crash(&units, &picks),
                None => moment.after_kill(),
            };
            aftermath(&disk, history.at(moment.note), &mut Coin(mix(seed, (1 + i as u64) << 20 | j as u64)));
        }
    }
}

#[test]
fn scripts_crashed_at_every_call() {
    for_each_seed("scripts_crashed_at_every_call", 0..200, crash_at_every_call);
}

/// Ten crashes of one log, one after the other.
fn cycles(seed: u64, place: &Place) {
    let mut coin = Coin(mix(!seed, 0));
    let (mut disk, mut history) = (Disk::default(), History::new());
    let script = if seed.is_multiple_of(3) { model::slow_script } else { model::script };
    for cycle in 0..10 {
        place.enter(cycle, 0);
        let before = history.note();
        let actions = 3 + coin.below(20) as usize;
        let moments = session(&disk, &mut history, &mut coin, script, actions);
        let opening = moments.iter().filter(|m| m.note == before).count() as u64;
        let at = match coin.below(4) {
            0 if opening > 0 => coin.below(opening),
            1 => moments.len() as u64 - 1,
            _ => coin.below(moments.len() as u64),
        };
        let at = &moments[at as usize];
        place.during(at.call);
        disk = any_crash(at, &mut coin);
        history = history.at(at.note);
    }
}

#[test]
fn fifty_thousand_random_cycles() {
    for_each_seed("fifty_thousand_random_cycles", 0..5000, cycles);
}
