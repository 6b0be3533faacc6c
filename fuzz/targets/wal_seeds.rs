//! Writes logs of several kinds into a directory, as the fuzzer's first inputs.

use std::path::PathBuf;
use std::sync::Arc;

use octopii_fuzz::image;
use octopii_fuzz::memory::Memory;
use octopii_wal::vfs::Vfs;
use octopii_wal::{Committer, Error, Options, Ticket, WriteAheadLog};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = PathBuf::from(std::env::args().nth(1).ok_or("usage: wal-seeds DIRECTORY")?);
    std::fs::create_dir_all(&corpus)?;
    let scripts: [fn(&WriteAheadLog) -> Result<(), Error>; 5] =
        [one_entry, changes, segments, purged, consumers];
    for (i, script) in scripts.into_iter().enumerate() {
        let vfs = Arc::new(Memory::default());
        let log = open(Arc::<Memory>::clone(&vfs))?;
        script(&log)?;
        log.sync()?.wait()?;
        std::fs::write(corpus.join(format!("live-{i}")), image::encode(&vfs.files()))?;
        log.close()?;
        std::fs::write(corpus.join(format!("closed-{i}")), image::encode(&vfs.files()))?;
        let log = open(Arc::<Memory>::clone(&vfs))?;
        log.topic("late")?.append("e")?.wait()?;
        std::fs::write(corpus.join(format!("opened-again-{i}")), image::encode(&vfs.files()))?;
    }
    Ok(())
}

fn open(vfs: Arc<dyn Vfs>) -> Result<WriteAheadLog, octopii_wal::OpenError> {
    let options = Options {
        vfs,
        committer: Committer::Caller,
        segment_size: 64 << 10,
        seed: Some(1),
        ..Options::default()
    };
    WriteAheadLog::open("/wal", options)
}

fn one_entry(log: &WriteAheadLog) -> Result<(), Error> {
    log.topic("t")?.append("an entry")?.wait()
}

fn changes(log: &WriteAheadLog) -> Result<(), Error> {
    let (a, b) = (log.topic("a")?, log.topic("b")?);
    (0..5).try_for_each(|i| a.append(vec![i; 30])?.wait())?;
    a.truncate(3)?.wait()?;
    a.set_metadata("vote", "7")?.wait()?;
    let mut batch = log.batch();
    batch.append(&a, "x").append(&b, "y").append(&b, "z").purge(&a, 1).set_metadata(&b, "k", "v");
    log.commit(batch).and_then(Ticket::wait)?;
    b.purge(100)?.wait()?;
    b.append("after the purge")?.wait()
}

/// Zeroes take no room in an input.
fn segments(log: &WriteAheadLog) -> Result<(), Error> {
    let (a, b) = (log.topic("a")?, log.topic("b")?);
    (0..12).try_for_each(|_| {
        a.append(vec![0; 9000])?.wait()?;
        b.append("short")?.wait()
    })
}

fn purged(log: &WriteAheadLog) -> Result<(), Error> {
    segments(log)?;
    log.topic("a")?.purge(11)?.wait()?;
    log.topic("b")?.purge(6)?.wait()?;
    segments(log)
}

fn consumers(log: &WriteAheadLog) -> Result<(), Error> {
    let a = log.topic("a")?;
    (0..5).try_for_each(|i| a.append(vec![i; 10])?.wait())?;
    let mut cursor = a.cursor("consumer")?;
    cursor.next_batch(25)?;
    cursor.ack(cursor.position())?.wait()?;
    a.cursor("another")?.ack(1)?.wait()?;
    a.remove_cursor("another")?.wait()?;
    a.purge_acknowledged()?.wait()
}
