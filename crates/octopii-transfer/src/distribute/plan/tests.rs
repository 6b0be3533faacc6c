use super::*;

const BLOCK: u32 = 256 << 10;
const MIB: u64 = 1 << 20;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// `n` receivers that all share, in a chain.
fn chain(n: usize) -> Plan {
    let mut plan = Plan::new(n, BLOCK);
    for i in 0..n {
        let supply = plan.accepted(i, 10 + i as u64, true, 0, at(0));
        assert_eq!(supply, i.checked_sub(1).map_or(Upstream::Sender, Upstream::Receiver));
    }
    plan
}

/// Everyone advances by `mib` a second, a little behind the one before.
fn flow(
    plan: &mut Plan,
    seconds: std::ops::Range<u64>,
    mib: u64,
    except: &[usize],
) -> Vec<(usize, Upstream)> {
    let mut moves = Vec::new();
    for second in seconds {
        for i in 0..plan.receivers.len() {
            if !except.contains(&i) {
                plan.progress(
                    i,
                    (second * mib * MIB).saturating_sub(i as u64 * u64::from(BLOCK)),
                    at(second),
                );
            }
        }
        moves.extend(plan.review(at(second)));
    }
    moves
}

#[test]
fn a_chain_that_flows_is_left_alone() {
    let mut plan = chain(16);
    assert_eq!(flow(&mut plan, 1..60, 12, &[]), []);
}

#[test]
fn who_does_not_share_is_last() {
    let mut plan = Plan::new(3, BLOCK);
    assert_eq!(plan.accepted(2, 1, true, 0, at(0)), Upstream::Sender);
    assert_eq!(plan.accepted(0, 2, false, 0, at(0)), Upstream::Receiver(2));
    assert_eq!(plan.accepted(1, 3, true, 0, at(0)), Upstream::Receiver(2));
}

#[test]
fn one_that_has_more_already_is_not_put_behind_one_that_has_less() {
    let mut plan = Plan::new(2, BLOCK);
    plan.accepted(0, 1, true, 0, at(0));
    assert_eq!(plan.accepted(1, 2, true, 64 * MIB, at(0)), Upstream::Sender);
}

#[test]
fn the_same_node_twice_does_not_supply_itself() {
    let mut plan = Plan::new(2, BLOCK);
    plan.accepted(0, 1, true, 0, at(0));
    assert_eq!(plan.accepted(1, 1, true, 0, at(0)), Upstream::Sender);
}

/// The sender would have to upload the rest once more.
#[test]
fn who_has_said_a_little_less_supplies_before_the_sender_does() {
    let mut plan = chain(3);
    // Of the first nothing was heard since the last had less.
    plan.progress(0, 5 * MIB, at(1));
    plan.progress(1, 6 * MIB, at(1));
    plan.progress(2, 6 * MIB, at(1));
    assert_eq!(plan.gone(1, at(1)), [(2, Upstream::Receiver(0))]);
    // Much less is another matter, and so is who depends on it.
    let mut plan = chain(3);
    plan.progress(0, MIB, at(1));
    plan.progress(2, 6 * MIB, at(1));
    assert_eq!(plan.gone(1, at(1)), [(2, Upstream::Sender)]);
    let mut plan = chain(3);
    plan.progress(2, MIB, at(1));
    assert_eq!(plan.gone(0, at(1)), [(1, Upstream::Sender)]);
}

/// Killed, it says no goodbye, and what it last said may be just what the next one has.
#[test]
fn a_relay_that_falls_silent_is_left_before_its_connection_is_given_up() {
    let mut plan = chain(4);
    assert_eq!(flow(&mut plan, 1..4, 2, &[]), []);
    let (behind_it, mut moves) = ([2, 3].map(|i| plan.receivers[i].verified), Vec::new());
    for second in 4..12 {
        plan.progress(0, second * 2 * MIB, at(second));
        plan.progress(2, behind_it[0], at(second));
        plan.progress(3, behind_it[1], at(second));
        moves.extend(plan.review(at(second)).into_iter().map(|moved| (second, moved)));
    }
    assert!(moves.contains(&(7, (2, Upstream::Receiver(0)))), "{moves:?}");
    assert!(!moves.iter().any(|(_, (_, supply))| *supply == Upstream::Receiver(1)), "{moves:?}");
    // Who has everything need not say so again and again.
    let mut plan = chain(2);
    plan.finished(0, 16 * MIB);
    assert_eq!(flow(&mut plan, 1..12, 1, &[0]), []);
}

#[test]
fn when_a_relay_dies_the_chain_closes() {
    let mut plan = chain(5);
    flow(&mut plan, 1..5, 12, &[]);
    // 1 lost its only customer, so it is the one that supplies nobody.
    assert_eq!(plan.gone(2, at(5)), [(3, Upstream::Receiver(1))]);
    assert_eq!(plan.gone(0, at(5)), [(1, Upstream::Sender)]);
    assert_eq!(plan.gone(1, at(5)), [(3, Upstream::Sender)]);
    assert_eq!(plan.gone(4, at(5)), []);
}

#[test]
fn a_relay_that_claims_more_than_it_gives_is_left() {
    let mut plan = chain(4);
    flow(&mut plan, 1..5, 12, &[]);
    let moves = flow(&mut plan, 5..12, 12, &[2]);
    assert_eq!(moves[0], (2, Upstream::Receiver(0)), "{moves:?}");
}

#[test]
fn a_relay_that_lies_is_never_used_again() {
    let mut plan = chain(4);
    flow(&mut plan, 1..5, 12, &[]);
    assert_eq!(plan.needed(2, FailureCode::DigestMismatch, at(5)), Upstream::Receiver(0));
    // 3 is a little behind 1, and soon is not.
    let moves = [(1, Upstream::Receiver(3)), (2, Upstream::Sender)];
    assert_eq!(plan.gone(0, at(6)), moves, "1 lied to 2");
    assert_eq!(plan.needed(3, FailureCode::Cancelled, at(6)), Upstream::Sender);
}

/// Plays a distribution in which receiver `i` takes in `links[i]` MiB a second at the most, and gives the moves and the seconds
/// until each had all `size` MiB.
fn play(links: &[u64], size: u64) -> (Vec<(usize, Upstream)>, Vec<u64>) {
    let mut plan = chain(links.len());
    let mut moves = Vec::new();
    let mut finished = vec![0; links.len()];
    for second in 1..10_000 {
        // In the order of the chain, as if blocks were passed on at once.
        for i in 0..links.len() {
            let supplied = match plan.receivers[i].supply {
                Upstream::Sender => size * MIB,
                Upstream::Receiver(from) => plan.receivers[from].verified,
            };
            let verified = supplied.min(plan.receivers[i].verified + links[i] * MIB);
            plan.progress(i, verified.max(plan.receivers[i].verified), at(second));
            if verified >= size * MIB && finished[i] == 0 {
                finished[i] = second;
                plan.finished(i, size * MIB);
            }
        }
        if finished.iter().all(|&second| second > 0) {
            return (moves, finished);
        }
        moves.extend(plan.review(at(second)));
    }
    panic!("it never ends: {moves:?}");
}

#[test]
fn a_crawling_relay_is_passed_by() {
    let (moves, finished) = play(&[12, 12, 1, 12, 12], 600);
    assert_eq!(finished[2], 600, "its link is what it is");
    assert!(
        [0, 1, 3, 4].iter().all(|&i| finished[i] < 65),
        "50 s, and some to notice: {finished:?} {moves:?}"
    );
    assert!(moves.len() < 8, "{moves:?}");
    assert!(moves.iter().all(|(_, supply)| *supply != Upstream::Sender), "{moves:?}");
}

#[test]
fn one_whose_only_relay_crawls_is_supplied_by_the_sender() {
    let mut plan = chain(3);
    for second in 1..10 {
        plan.progress(0, second * 12 * MIB, at(second));
        plan.progress(1, second * MIB, at(second));
        plan.progress(2, second * MIB, at(second));
        let moves = plan.review(at(second));
        if !moves.is_empty() {
            assert_eq!(moves[0], (1, Upstream::Sender));
            return;
        }
    }
    panic!("it was left with the one that crawls");
}

#[test]
fn one_that_cannot_keep_up_gets_two_more_chances() {
    let (moves, finished) = play(&[12, 12, 12, 1], 300);
    assert_eq!(moves.iter().map(|(i, _)| *i).collect::<Vec<_>>(), [3, 3], "{moves:?}");
    assert_eq!(finished[3], 300);
}

#[test]
fn behind_a_slow_head_the_sender_tries_one_more() {
    let mut plan = chain(4);
    let mut moves = Vec::new();
    for second in 1..30 {
        for i in 0..4 {
            plan.progress(i, second * (200 << 10), at(second));
        }
        moves.extend(plan.review(at(second)));
    }
    assert_eq!(moves[0], (1, Upstream::Sender), "{moves:?}");
    let direct = moves.iter().filter(|(_, supply)| *supply == Upstream::Sender).count();
    assert_eq!(direct, 1, "the sender's own link may be what is slow: {moves:?}");
}

#[test]
fn nobody_depends_on_itself_whatever_happens() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..200 {
        let mut plan = chain(8);
        for second in 1..60 {
            for i in 0..8 {
                let more = random(20) as u64 * MIB;
                plan.progress(i, plan.receivers[i].verified + more, at(second));
            }
            match random(12) {
                0 => drop(plan.gone(random(8), at(second))),
                1 => plan.finished(random(8), 2000 * MIB),
                2 => drop(plan.needed(random(8), FailureCode::Cancelled, at(second))),
                _ => {}
            }
            plan.review(at(second));
            for i in (0..8).filter(|&i| plan.receivers[i].phase == Phase::Receiving) {
                if let Upstream::Receiver(from) = plan.receivers[i].supply {
                    assert!(!plan.depends(from, i), "{plan:?}");
                    assert_ne!(plan.receivers[from].phase, Phase::Gone, "{plan:?}");
                }
            }
        }
    }
}
