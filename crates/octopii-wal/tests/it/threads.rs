//! Many threads on one log when the power goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use octopii_wal::{Committer, Options, WriteAheadLog};

use crate::crash::options;
use crate::disk::{Coin, Disk, Fault, Survivors};
use crate::model::content;
use crate::seeds::{Place, for_each_seed, mix};
use crate::session::DIR;

const WRITERS: u64 = 4;

fn entry(writer: u64, index: u64) -> bytes::Bytes {
    content(writer << 48 | index << 16, (index as usize * 37) % 1500)
}

/// Each writer appends to a topic of its own and to a common one in one batch, until the disk is dead.
fn power_cut_under_writers(seed: u64, _: &Place) {
    let mut coin = Coin(mix(seed, 0));
    let disk = Disk::default();
    let options = Options { committer: Committer::Thread, segment_size: 32 << 10, ..options(&disk) };
    disk.set_fault(10 + coin.below(120), Fault::Crash);
    let acknowledged: Vec<_> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    if let Ok(log) = WriteAheadLog::open(DIR, options.clone()) {
        thread::scope(|scope| {
            for (writer, acknowledged) in acknowledged.iter().enumerate() {
                let (log, writer) = (&log, writer as u64);
                scope.spawn(move || {
                    let Ok(own) = log.topic(&format!("t{writer}")) else { return };
                    let Ok(common) = log.topic("common") else { return };
                    for index in 0.. {
                        let mut batch = log.batch();
                        batch
                            .append(&own, entry(writer, index))
                            .append(&common, writer.to_le_bytes().to_vec());
                        let Ok(ticket) = log.commit(batch) else { return };
                        // Every fourth one is not waited for.
                        if index % 4 == 3 {
                            continue;
                        }
                        if ticket.wait().is_err() {
                            return;
                        }
                        acknowledged.store(index + 1, Ordering::SeqCst);
                    }
                });
            }
        });
    }
    for survivors in [Survivors::Nothing, Survivors::Everything, Survivors::Random(seed)] {
        let disk = disk.after_crash(survivors);
        let log = WriteAheadLog::open(DIR, Options { vfs: disk.vfs(), ..options.clone() }).unwrap();
        let common = log.topic("common").unwrap().read_range(0..u64::MAX, usize::MAX).unwrap();
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let own = log.topic(&format!("t{writer}")).unwrap();
            let next = own.next_index();
            let acknowledged = acknowledged.load(Ordering::SeqCst);
            assert!(next >= acknowledged, "{survivors:?}: {next} of {acknowledged} acknowledged entries");
            for (index, found) in own.read_range(0..u64::MAX, usize::MAX).unwrap() {
                assert_eq!(found, entry(writer as u64, index), "{survivors:?}");
            }
            let in_common = common.iter().filter(|(_, by)| by[..] == (writer as u64).to_le_bytes()[..]);
            assert_eq!(in_common.count() as u64, next, "{survivors:?}: half a batch");
        }
    }
}

#[test]
fn a_power_cut_under_many_writers_loses_nothing_acknowledged() {
    let test = "a_power_cut_under_many_writers_loses_nothing_acknowledged";
    for_each_seed(test, 0..300, power_cut_under_writers);
}

/// While a sync is under way, nothing that waits for it is done.
#[test]
fn nothing_is_acknowledged_while_its_sync_is_under_way() {
    let disk = Disk::default();
    let options = Options { committer: Committer::Thread, ..options(&disk) };
    let log = WriteAheadLog::open(DIR, options).unwrap();
    let topic = log.topic("t").unwrap();
    topic.append("first").unwrap().wait().unwrap();
    disk.set_gate_closed(true);
    let held = topic.append("held").unwrap();
    thread::scope(|scope| {
        scope.spawn(|| topic.append("in the sync").unwrap().wait().unwrap());
        disk.wait_for_sync_at_gate();
        let is_done = held.is_done();
        disk.set_gate_closed(false);
        assert!(!is_done);
    });
    held.wait().unwrap();
}
