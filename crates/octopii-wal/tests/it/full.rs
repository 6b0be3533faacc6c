//! Full disks, and arguments that are too large.

use octopii_wal::{Committer, Error, MAX_ENTRY, Options, WriteAheadLog};

use crate::crash::options;
use crate::disk::Disk;

#[test]
fn a_full_disk_is_a_typed_error_and_purging_makes_room() {
    for committer in [Committer::Caller, Committer::Thread] {
        let disk = Disk::default();
        let log = WriteAheadLog::open("/wal", Options { committer, ..options(&disk) }).unwrap();
        let topic = log.topic("t").unwrap();
        disk.set_capacity(Some(300 << 10));
        let mut acknowledged = 0;
        let error = loop {
            match topic.append(vec![acknowledged as u8; 5000]).and_then(|ticket| ticket.wait()) {
                Ok(()) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::StorageFull { .. }), "{error}");
        assert!(acknowledged > 20);
        // What failed is not there, the rest is; and the answer stays the same.
        assert_eq!(topic.next_index(), acknowledged);
        assert_eq!(topic.read(acknowledged - 1).unwrap().unwrap(), vec![(acknowledged - 1) as u8; 5000]);
        assert!(matches!(topic.append("x"), Err(Error::StorageFull { .. })));
        // Metadata and purges use the space that was kept for them.
        topic.set_metadata("key", "value").unwrap().wait().unwrap();
        let used = disk.used();
        topic.purge(acknowledged - 2).unwrap().wait().unwrap();
        assert!(disk.used() < used);
        for i in 0..10 {
            let ticket = topic.append("again").unwrap();
            assert_eq!(ticket.index(), Some(acknowledged + i));
            ticket.wait().unwrap();
        }
        drop((topic, log));
        let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
        let topic = log.topic("t").unwrap();
        assert_eq!((topic.first_index(), topic.next_index()), (acknowledged - 2, acknowledged + 10));
        assert_eq!(topic.metadata("key").unwrap(), "value");
    }
}

#[test]
fn space_freed_by_others_is_found() {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    disk.set_capacity(Some(10 << 10));
    let topic = log.topic("t").unwrap();
    assert!(matches!(topic.append("x").unwrap().wait(), Err(Error::StorageFull { .. })));
    disk.set_capacity(None);
    assert_eq!(topic.append("y").unwrap().index(), Some(0));
    log.close().unwrap();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    assert_eq!(log.topic("t").unwrap().read(0).unwrap().unwrap(), "y");
}

#[test]
fn the_largest_entry_goes_through_and_a_larger_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = WriteAheadLog::open(dir.path(), Options::default()).unwrap();
    let topic = log.topic("t").unwrap();
    let refused = topic.append(vec![0; MAX_ENTRY + 1]);
    assert!(matches!(refused, Err(Error::EntryTooLarge { len, limit: MAX_ENTRY }) if len == MAX_ENTRY + 1));
    let mut batch = log.batch();
    batch.append(&topic, "fits").append(&topic, vec![0; MAX_ENTRY + 1]);
    assert!(matches!(log.commit(batch), Err(Error::EntryTooLarge { .. })));
    assert_eq!(topic.next_index(), 0);
    topic.append("small").unwrap().wait().unwrap();
    topic.append(vec![3; MAX_ENTRY]).unwrap().wait().unwrap();
    topic.append("after").unwrap().wait().unwrap();
    drop((topic, log));
    let log = WriteAheadLog::open(dir.path(), Options::default()).unwrap();
    let topic = log.topic("t").unwrap();
    assert!(topic.read(1).unwrap().unwrap() == vec![3; MAX_ENTRY]);
    assert_eq!(topic.read(2).unwrap().unwrap(), "after");
}

#[test]
fn arguments_out_of_range_are_refused() {
    let disk = Disk::default();
    let log = WriteAheadLog::open("/wal", options(&disk)).unwrap();
    let topic = log.topic("t").unwrap();
    assert!(matches!(log.topic(""), Err(Error::InvalidLength { .. })));
    assert!(matches!(log.topic(&"x".repeat(256)), Err(Error::InvalidLength { .. })));
    assert!(matches!(topic.set_metadata("", "v"), Err(Error::InvalidLength { .. })));
    assert!(matches!(topic.set_metadata("k", vec![0; (64 << 10) + 1]), Err(Error::InvalidLength { .. })));
    assert!(matches!(topic.purge(u64::MAX), Err(Error::IndexTooLarge { .. })));
    topic.truncate(u64::MAX).unwrap().wait().unwrap();
    let other = WriteAheadLog::open("/other", options(&Disk::default())).unwrap();
    let mut batch = other.batch();
    batch.append(&topic, "stray");
    assert!(matches!(other.commit(batch), Err(Error::ForeignTopic { .. })));
    let small = Options { segment_size: 1, ..options(&disk) };
    assert!(WriteAheadLog::open("/small", small).is_err());
}
