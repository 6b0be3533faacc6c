//! System calls that fail beneath a real process, one at a time.
//!
//! `strace` makes the chosen call of each thread return an error without doing anything; `just strace-faults`.

use std::path::Path;

use octopii_wal::WriteAheadLog;

use crate::writers::{self, Account, Report, Task};

/// Which call fails.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) call: &'static str,
    pub(crate) error: &'static str,
    /// The how-manieth call of each thread, from 1.
    pub(crate) when: u64,
    /// Whether all later ones fail, too.
    pub(crate) for_good: bool,
}

/// What a process with a fault beneath it did.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) reports: Vec<Report>,
    /// The first call made to fail.
    pub(crate) injected: Option<Injected>,
}

#[derive(Debug)]
pub(crate) struct Injected {
    line: String,
    /// Whether it only concerned the names of files of former segments: those are found again later, and not used before.
    harmless: bool,
    /// Entries that were acknowledged after it.
    acknowledged_later: usize,
}

/// Runs `task` in `dir` with `fault` beneath it.
pub(crate) fn run(task: &Task, dir: &Path, fault: Fault) -> Run {
    let scratch = tempfile::tempdir().unwrap();
    let trace = scratch.path().join("trace");
    let Fault { call, error, when, for_good } = fault;
    let later = if for_good { "+" } else { "" };
    let inject = format!("inject={call}:error={error}:when={when}{later}");
    let calls = "trace=write,pwrite64,fallocate,fsync,fdatasync,openat,unlink,rename,renameat2";
    let words =
        ["strace", "-f", "-qq", "-s", "40", "-e", calls, "-e", &inject, "-o", trace.to_str().unwrap()];
    let mut child = task
        .command(dir, &words.map(str::to_owned))
        .spawn()
        .unwrap_or_else(|e| panic!("strace: {e}; `just strace-faults` installs it"));
    let reports = writers::reports(child.stdout.take().unwrap()).collect();
    let status = child.wait().unwrap();
    assert!(status.success(), "{fault:?}: {status}; may this user trace processes?");
    let trace = String::from_utf8(read(&trace)).unwrap();
    Run { reports, injected: injected(&trace) }
}

#[expect(clippy::disallowed_methods, reason = "another program's output is no business of the log's files")]
fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn injected(trace: &str) -> Option<Injected> {
    let lines: Vec<_> = trace.lines().collect();
    let at = lines.iter().position(|line| line.contains("(INJECTED)"))?;
    let thread = lines[at].split(' ').next()?;
    let mut before = lines[..at].iter().rev().filter(|line| line.split(' ').next() == Some(thread));
    let names = before
        .find(|line| ["O_CREAT", "unlink(", "rename(", "renameat2("].iter().any(|word| line.contains(word)));
    Some(Injected {
        line: lines[at].to_owned(),
        // A file that becomes a spare is renamed by `rename`, one that becomes a segment by `renameat2`.
        harmless: lines[at].contains("fsync(")
            && names.is_some_and(|line| line.contains("unlink(") || line.contains("rename(")),
        acknowledged_later: lines[at..].iter().filter(|line| line.contains("\"@ack ")).count(),
    })
}

/// Runs a process with `fault`, then opens its log without one.
fn check(writers: usize, fault: Fault) -> bool {
    let what = format!("{writers} writers, {fault:?}");
    let dir = tempfile::tempdir().unwrap();
    let wal = dir.path().join("wal");
    let task = Task { writers, round: 0, steps: Some(60), unsynced: false };
    let run = run(&task, &wal, fault);
    let mut account = Account::new(writers);
    run.reports.iter().for_each(|report| account.note(*report));

    let calls = |is: fn(&Report) -> Option<u64>| run.reports.iter().filter_map(is);
    let failed = calls(|r| if let Report::Failed { call } = r { Some(*call) } else { None }).min();
    let acknowledged =
        calls(|r| if let Report::Acknowledged { call, .. } = r { Some(*call) } else { None }).max();
    let full: Vec<_> = calls(|r| if let Report::Full { call } = r { Some(*call) } else { None }).collect();
    if let (Some(failed), Some(acknowledged)) = (failed, acknowledged) {
        assert!(
            acknowledged < failed,
            "{what}: call {acknowledged} was acknowledged, {failed} before it failed"
        );
    }
    let refused = run.reports.contains(&Report::Refused);
    let noticed = failed.is_some() || !full.is_empty() || refused;
    match &run.injected {
        None => assert!(!noticed, "{what}: something failed of itself"),
        Some(injected) if injected.harmless => {}
        Some(injected) => {
            // Without space, the log may leave out what it can do without, such as a segment's footer.
            assert!(noticed || fault.error == "ENOSPC", "{what}: nobody heard of {}", injected.line);
            // A lone writer has nothing on the way that could be acknowledged by an earlier sync.
            if writers == 1 && full.is_empty() && fault.error == "EIO" {
                assert_eq!(injected.acknowledged_later, 0, "{what}: after {}", injected.line);
            }
        }
    }

    let log = WriteAheadLog::open(&wal, writers::options()).unwrap_or_else(|e| panic!("{what}: {e}"));
    for entry in account.settle(&log, 0) {
        assert!(!full.contains(&entry.call), "{what}: call {} failed for good, and is there", entry.call);
    }
    run.injected.is_some()
}

#[test]
#[ignore = "needs strace: just strace-faults"]
fn no_failed_call_leads_to_a_false_acknowledgement() {
    let fault = |call, error, for_good| Fault { call, error, when: 0, for_good };
    let faults = [
        fault("fdatasync", "EIO", false),
        fault("fdatasync", "EIO", true),
        fault("fsync", "EIO", false),
        fault("pwrite64", "EIO", false),
        fault("pwrite64", "ENOSPC", false),
        fault("pwrite64", "ENOSPC", true),
        fault("fallocate", "ENOSPC", false),
        fault("fallocate", "EIO", false),
    ];
    for fault in faults {
        let mut injected = 0;
        for when in (1..=12).chain([20, 40]) {
            for writers in [1, 8] {
                injected += usize::from(check(writers, Fault { when, ..fault }));
            }
        }
        println!(
            "{} {}{}: {injected} runs",
            fault.call,
            fault.error,
            if fault.for_good { ", for good" } else { "" }
        );
        assert!(injected > 0, "{fault:?}: no call was made to fail");
    }
}
