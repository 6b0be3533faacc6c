//! The same seed in another process gives the same run.
//!
//! Each run has a process to itself: this test binary, started again with one scenario and one seed to run.

use std::process::{Command, Stdio};

use crate::scenarios;

/// `scenario seed` to run in this process.
const RUN: &str = "OCTOPII_SIM_RUN";

/// Seeds to run instead of the default ones: `5`, `1,2,3` or `0..100`.
const SEEDS: &str = "OCTOPII_SEEDS";

/// Set to a file's path to have each run's last events written there, with the process number appended.
const TRACE: &str = "OCTOPII_SIM_TRACE";

/// What a run in another process came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// Digest and count of the events.
    pub(crate) trace: String,
}

/// Runs a scenario in a process of its own.
///
/// # Panics
///
/// If the scenario fails there.
pub(crate) fn run(scenario: &str, seed: u64) -> Run {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "replay::one_run", "--ignored", "--nocapture", "--test-threads=1"])
        .env(RUN, format!("{scenario} {seed}"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let trace = stdout.lines().find_map(|line| line.strip_prefix("trace ")).map(str::to_owned);
    match trace {
        Some(trace) if output.status.success() => Run { trace },
        _ => panic!(
            "{scenario} fails with seed {seed}; to see it again:\n  {SEEDS}={seed} cargo test -p octopii-sim --test it \
             {scenario}\n{stdout}\n{stderr}"
        ),
    }
}

/// The seeds to run: those of the environment, or `default`.
pub(crate) fn seeds(default: std::ops::Range<u64>) -> Vec<u64> {
    let Ok(text) = std::env::var(SEEDS) else {
        return default.collect();
    };
    let number = |text: &str| text.trim().parse::<u64>().expect("OCTOPII_SEEDS is `5`, `1,2,3` or `0..100`");
    match text.split_once("..") {
        Some((first, end)) => (number(first)..number(end)).collect(),
        None => text.split(',').map(number).collect(),
    }
}

/// Runs each seed twice, each time in a process of its own, and compares; different seeds must differ.
pub(crate) fn check_deterministic(scenario: &str, default_seeds: std::ops::Range<u64>) {
    let mut seen = std::collections::BTreeMap::new();
    for seed in seeds(default_seeds) {
        let (first, second) = (run(scenario, seed), run(scenario, seed));
        assert_eq!(first, second, "{scenario} with seed {seed} took two courses");
        if let Some(other) = seen.insert(first.trace, seed) {
            panic!("{scenario} takes the same course with seeds {other} and {seed}");
        }
    }
}

#[test]
#[ignore = "the other tests start it in a process of its own"]
fn one_run() {
    let run = std::env::var(RUN).unwrap();
    let (scenario, seed) = run.split_once(' ').unwrap();
    let trace = scenarios::run(scenario, seed.parse().unwrap());
    if let Ok(path) = std::env::var(TRACE) {
        let path = format!("{path}.{}", std::process::id());
        #[expect(clippy::disallowed_methods, reason = "output for whoever hunts a difference")]
        std::fs::write(path, trace.lines().join("\n")).unwrap();
    }
    // On a line of its own: libtest has begun one for this test.
    println!("\ntrace {} of {} events", trace.digest(), trace.count());
}
