//! A process killed in the middle of writing, again and again.

use octopii_wal::WriteAheadLog;

use crate::disk::Coin;
use crate::writers::{self, Account, Report, Task};

const WRITERS: usize = 16;
const ROUNDS: u64 = 12;

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut account = Account::new(WRITERS);
    let mut coin = Coin(u64::from(std::process::id()));
    for round in 0..ROUNDS {
        let task = Task { writers: WRITERS, round, steps: None, unsynced: false };
        let mut child = task.command(dir.path(), &[]).spawn().unwrap();
        // Some are killed while their first segment is being made, some after several.
        let enough = if round % 3 == 0 { 1 + coin.below(40) } else { 1 + coin.below(3000) };
        let mut seen = 0;
        for report in writers::reports(child.stdout.take().unwrap()) {
            assert!(matches!(report, Report::Acknowledged { .. } | Report::Purged { .. }), "{report:?}");
            account.note(report);
            seen += 1;
            if seen == enough {
                child.kill().unwrap();
            }
        }
        let status = child.wait().unwrap();
        assert_eq!(status.code(), None, "the child ended by itself after {seen} reports");

        let log = WriteAheadLog::open(dir.path(), writers::options()).unwrap();
        account.settle(&log, round);
    }
    assert!(account.len() > 0);
}
