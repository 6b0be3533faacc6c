//! Scripts without faults: the log does what the model does, with every durability and whoever commits.

use octopii_wal::{Committer, Options};

use crate::crash::any_options;
use crate::disk::{Coin, Disk};
use crate::model::{self, Action};
use crate::seeds::{Place, for_each_seed, mix};
use crate::session::{Failure, History, Session};

/// Runs a script, comparing after every action, then closes and opens the log again.
fn follows_the_model(options: &Options, actions: &[Action]) -> Result<(), Failure> {
    let (disk, mut history) = (Disk::default(), History::new());
    let mut session = Session::open(&disk, options.clone(), &mut history)?;
    for action in actions {
        session.step(action)?;
        session.check()?;
    }
    session.step(&Action::Reopen { close: true })
}

/// The same script without what the failure does not need.
fn shorten(mut actions: Vec<Action>, fails: impl Fn(&[Action]) -> bool) -> Vec<Action> {
    let mut chunk = actions.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < actions.len() {
            let mut shorter = actions.clone();
            shorter.drain(at..(at + chunk).min(actions.len()));
            if fails(&shorter) {
                actions = shorter;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    actions
}

fn run(seed: u64, committer: Committer) {
    let mut coin = Coin(mix(seed, 9));
    let options = Options { committer, ..any_options(&mut coin) };
    let script = if seed.is_multiple_of(3) { model::slow_script } else { model::script };
    let actions = script(&mut coin, 60);
    if let Err(failure) = follows_the_model(&options, &actions) {
        let shorter = shorten(actions, |actions| follows_the_model(&options, actions).is_err());
        let last = follows_the_model(&options, &shorter).err().unwrap_or(failure);
        panic!("{last}\nshortened script, with {options:?}:\n{shorter:#?}");
    }
}

#[test]
fn a_log_that_callers_commit_follows_the_model() {
    let run = |seed, _: &Place| run(seed, Committer::Caller);
    for_each_seed("a_log_that_callers_commit_follows_the_model", 0..300, run);
}

#[test]
fn a_log_with_a_thread_follows_the_model() {
    let run = |seed, _: &Place| run(seed, Committer::Thread);
    for_each_seed("a_log_with_a_thread_follows_the_model", 0..150, run);
}

#[test]
fn a_failing_script_is_shortened_to_what_it_needs() {
    let actions = model::script(&mut Coin(1), 200);
    let syncs = |actions: &[Action]| actions.iter().filter(|a| matches!(a, Action::Sync)).count();
    assert!(syncs(&actions) > 3);
    let shorter = shorten(actions, |actions| syncs(actions) >= 3);
    assert_eq!((shorter.len(), syncs(&shorter)), (3, 3));
}
