//! Slow topics do not pin the disk, and their entries survive being moved.

use octopii_wal::{Committer, Durability, Error, Options, Topic, WriteAheadLog};

use crate::crash::options;
use crate::disk::{Disk, Survivors};

fn entry(i: u64) -> Vec<u8> {
    let mut entry = i.to_le_bytes().to_vec();
    entry.resize(2000, i as u8);
    entry
}

/// Appends to `topic` and keeps the last ten entries.
fn churn(topic: &Topic, rounds: u64) -> Result<(), Error> {
    for _ in 0..rounds {
        for _ in 0..10 {
            topic.append(entry(topic.next_index()))?.wait()?;
        }
        topic.purge(topic.next_index() - 10)?.wait()?;
    }
    Ok(())
}

fn check(topic: &Topic, first: u64) {
    let found = topic.read_range(0..u64::MAX, usize::MAX).unwrap();
    assert_eq!((topic.first_index(), found.len() as u64), (first, topic.next_index() - first));
    assert!(found.iter().all(|(i, data)| *data == entry(*i)));
}

#[test]
fn a_slow_topic_does_not_pin_the_disk() {
    for (committer, durability) in [
        (Committer::Caller, Durability::Synced),
        (Committer::Thread, Durability::Synced),
        (Committer::Caller, Durability::None),
    ] {
        let disk = Disk::default();
        let options = Options { committer, durability, max_pending_bytes: 64 << 10, ..options(&disk) };
        let log = WriteAheadLog::open("/wal", options.clone()).unwrap();
        let [slow, slower, fast] = ["slow", "slower", "fast"].map(|name| log.topic(name).unwrap());
        for i in 0..15 {
            slow.append(entry(i)).unwrap().wait().unwrap();
            slower.append(entry(i)).unwrap().wait().unwrap();
        }
        let mut most = 0;
        for round in 0..20 {
            churn(&fast, 5).unwrap();
            most = most.max(log.stats().segments);
            if round == 10 {
                slow.truncate(8).unwrap().wait().unwrap();
                (8..10).for_each(|i| slow.append(entry(i)).unwrap().wait().unwrap());
                slower.purge(3).unwrap().wait().unwrap();
            }
        }
        // 2 MB went through segments of 64 KiB, and 80 kB are alive.
        assert!(most < 16, "{committer:?} {durability:?}: {most} segments");
        let names: Vec<_> = log.laggards().into_iter().map(|l| (l.topic, l.first_index)).collect();
        assert!(
            names.contains(&("slow".to_owned(), 0)) && names.contains(&("slower".to_owned(), 3)),
            "{names:?}"
        );
        log.sync().unwrap().wait().unwrap();
        for survivors in [Survivors::Nothing, Survivors::Everything] {
            let disk = disk.after_crash(survivors);
            let log = WriteAheadLog::open("/wal", Options { vfs: disk.vfs(), ..options.clone() }).unwrap();
            check(&log.topic("slow").unwrap(), 0);
            check(&log.topic("slower").unwrap(), 3);
            assert_eq!(log.topic("slow").unwrap().next_index(), 10);
            assert!(log.stats().segments < 16);
        }
    }
}

#[test]
fn entries_dropped_while_they_are_being_moved_stay_dropped() {
    // Truncations and purges race with the committing thread that moves the same entries.
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_size: 64 << 10, ..Options::default() };
    for round in 0..20 {
        let log = WriteAheadLog::open(dir.path(), options.clone()).unwrap();
        let [slow, fast] = ["slow", "fast"].map(|name| log.topic(name).unwrap());
        let first = slow.first_index();
        while slow.next_index() < first + 40 {
            slow.append(entry(slow.next_index())).unwrap().wait().unwrap();
        }
        std::thread::scope(|scope| {
            scope.spawn(|| churn(&fast, 40).unwrap());
            for i in 0..20 {
                let from = slow.next_index() - 3;
                drop(slow.truncate(from).unwrap());
                drop(slow.append(entry(from)).unwrap());
                drop(slow.append(entry(from + 1)).unwrap());
                if (i + round) % 7 == 0 {
                    slow.purge(slow.first_index() + 1).unwrap().wait().unwrap();
                }
            }
        });
        let (first, next) = (slow.first_index(), slow.next_index());
        check(&slow, first);
        drop((slow, fast, log));
        let log = WriteAheadLog::open(dir.path(), options.clone()).unwrap();
        check(&log.topic("slow").unwrap(), first);
        assert_eq!(log.topic("slow").unwrap().next_index(), next);
    }
}

#[test]
fn a_damaged_survivor_stays_where_it_is() {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    let [slow, fast] = ["slow", "fast"].map(|name| log.topic(name).unwrap());
    slow.append(entry(0xff)).unwrap().wait().unwrap();
    let place = disk.contents().into_iter().find_map(|(path, data)| {
        let at = data.windows(2000).position(|window| window == entry(0xff))?;
        Some((path, at))
    });
    let (path, at) = place.unwrap();
    disk.edit(&path, |data| data[at + 100] ^= 1);
    churn(&fast, 100).unwrap();
    assert!(log.stats().segments > 20, "what cannot be read must not be thrown away");
    assert!(matches!(slow.read(0), Err(Error::Damaged(_))));
    assert_eq!(log.laggards()[0].topic, "slow");
    assert!(log.laggards()[0].held_bytes > 20 * (32 << 10));
    // Purging it is the way out.
    slow.purge(1).unwrap().wait().unwrap();
    assert!(log.stats().segments < 5);
    let first = fast.first_index();
    check(&fast, first);
}

#[test]
fn a_segment_goes_only_when_the_copies_of_its_survivors_are_durable() {
    let disk = Disk::default();
    let options = Options { durability: Durability::None, max_pending_bytes: 8 << 10, ..options(&disk) };
    let log = WriteAheadLog::open("/wal", options.clone()).unwrap();
    let [slow, fast] = ["slow", "fast"].map(|name| log.topic(name).unwrap());
    for i in 0..3 {
        slow.append(entry(i)).unwrap().wait().unwrap();
    }
    log.sync().unwrap().wait().unwrap();
    let mut before = 0;
    let mut freed = 0;
    for i in 0..1000 {
        fast.append(entry(i)).unwrap().wait().unwrap();
        if i % 50 == 49 {
            fast.purge(i - 5).unwrap().wait().unwrap();
        }
        let segments = log.stats().segments;
        if segments < before {
            freed += 1;
            let disk = disk.after_crash(Survivors::Nothing);
            let log = WriteAheadLog::open("/wal", Options { vfs: disk.vfs(), ..options.clone() }).unwrap();
            check(&log.topic("slow").unwrap(), 0);
            assert_eq!(log.topic("slow").unwrap().next_index(), 3);
        }
        before = segments;
    }
    assert!(freed > 3, "{freed}");
}

#[test]
fn an_entry_dropped_while_it_is_read_to_be_moved_is_not_moved() {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    let [slow, fast] = ["slow", "fast"].map(|name| log.topic(name).unwrap());
    for i in 0..5 {
        slow.append(entry(i)).unwrap().wait().unwrap();
    }
    // The first read is that of the survivors.
    let meddled = slow.clone();
    disk.meddle(move || {
        drop(meddled.truncate(2).unwrap());
        drop(meddled.append("in its place").unwrap());
        drop(meddled.purge(1).unwrap());
    });
    for _ in 0..100 {
        churn(&fast, 1).unwrap();
        if slow.next_index() == 3 {
            break;
        }
    }
    assert_eq!((slow.first_index(), slow.next_index()), (1, 3), "nothing was read");
    fast.append("with what was to be moved").unwrap().wait().unwrap();
    log.close().unwrap();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    let slow = log.topic("slow").unwrap();
    let found = slow.read_range(0..9, usize::MAX).unwrap();
    assert_eq!(found, [(1, entry(1).into()), (2, "in its place".into())]);
}
