//! Topics, entries, batches, reopening.

use octopii_wal::{Committer, Durability, Error, OpenError, Options, WriteAheadLog};

fn small() -> Options {
    Options { segment_size: 64 << 10, ..Options::default() }
}

#[test]
fn appended_entries_are_there_after_reopening() {
    for committer in [Committer::Thread, Committer::Caller] {
        for durability in
            [Durability::Synced, Durability::None, Durability::Interval(std::time::Duration::from_millis(5))]
        {
            let dir = tempfile::tempdir().unwrap();
            let options = Options { committer, durability, ..small() };
            let log = WriteAheadLog::open(dir.path(), options.clone()).unwrap();
            let a = log.topic("a").unwrap();
            let b = log.topic("b").unwrap();
            let mut last = None;
            for i in 0..500u64 {
                let ticket = a.append(format!("a{i}")).unwrap();
                assert_eq!(ticket.index(), Some(i));
                last = Some(ticket);
                if i % 3 == 0 {
                    b.append(vec![i as u8; 1000]).unwrap().wait().unwrap();
                }
            }
            last.unwrap().wait().unwrap();
            assert_eq!(a.read(7).unwrap().unwrap(), "a7");
            drop((a, b, log));

            let log = WriteAheadLog::open(dir.path(), options).unwrap();
            assert_eq!(log.topics(), ["a", "b"]);
            let (a, b) = (log.topic("a").unwrap(), log.topic("b").unwrap());
            assert_eq!((a.first_index(), a.next_index()), (0, 500));
            assert_eq!((b.first_index(), b.next_index()), (0, 167));
            let all = a.read_range(0..u64::MAX, usize::MAX).unwrap();
            assert_eq!(all.len(), 500);
            for (i, entry) in all {
                assert_eq!(entry, format!("a{i}"));
            }
            assert_eq!(b.read(166).unwrap().unwrap(), vec![(166 * 3) as u8; 1000]);
            assert_eq!(b.read(167).unwrap(), None);
            assert!(durability != Durability::Synced || log.stats().segments > 1);
        }
    }
}

#[test]
fn truncating_and_purging_survive_and_free_segments() {
    let dir = tempfile::tempdir().unwrap();
    let log = WriteAheadLog::open(dir.path(), small()).unwrap();
    let topic = log.topic("t").unwrap();
    topic.set_metadata("vote", "7").unwrap().wait().unwrap();
    for i in 0..100u64 {
        topic.append(vec![i as u8; 4000]).unwrap().wait().unwrap();
    }
    let before = log.stats().segments;
    topic.truncate(90).unwrap().wait().unwrap();
    assert_eq!(topic.append("new 90").unwrap().index(), Some(90));
    topic.purge(80).unwrap().wait().unwrap();
    assert!(log.stats().segments < before / 2, "{} of {before}", log.stats().segments);
    assert_eq!(topic.read(79).unwrap(), None);
    log.close().unwrap();
    assert!(matches!(topic.append("x"), Err(Error::Closed)));

    let log = WriteAheadLog::open(dir.path(), small()).unwrap();
    let topic = log.topic("t").unwrap();
    assert_eq!((topic.first_index(), topic.next_index()), (80, 91));
    assert_eq!(topic.metadata("vote").unwrap(), "7");
    assert_eq!(topic.read(90).unwrap().unwrap(), "new 90");
    assert_eq!(topic.read(89).unwrap().unwrap(), vec![89; 4000]);
    // Beyond the end: empty, and going on from there.
    topic.purge(1000).unwrap().wait().unwrap();
    assert_eq!((topic.first_index(), topic.next_index()), (1000, 1000));
    assert_eq!(topic.append("k").unwrap().index(), Some(1000));
}

#[test]
fn a_second_opener_is_refused_however_the_path_is_spelt() {
    let dir = tempfile::tempdir().unwrap();
    let log = WriteAheadLog::open(dir.path().join("wal"), small()).unwrap();
    let other_spelling = dir.path().join("wal/../wal/.");
    assert!(matches!(WriteAheadLog::open(&other_spelling, small()), Err(OpenError::Locked { .. })));
    drop(log);
    WriteAheadLog::open(other_spelling, small()).unwrap();
}
