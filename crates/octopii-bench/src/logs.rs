//! `octopii-wal` under load.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use octopii_wal::{Durability, Options, Topic, WriteAheadLog};

use crate::Outcome;
use crate::load::{Load, drive};

/// With one topic for all writers, or one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topics {
    /// All writers append to the same topic.
    Shared,
    /// Each writer has a topic of its own.
    Own,
}

/// One way of appending to a new log.
#[derive(Debug, Clone, Copy)]
pub struct Appends {
    /// Bytes of an entry.
    pub size: usize,
    /// Threads, each of which waits for its entry before it appends the next.
    pub writers: usize,
    /// Whose topics.
    pub topics: Topics,
    /// What an append waits for.
    pub durability: Durability,
    /// Bytes after which a writer purges all it has appended to its own topic; `None`: it keeps everything.
    pub purge_after: Option<u64>,
}

impl Appends {
    /// Appends for `time` to a log in a new directory in `dir`, which is removed again.
    pub fn run(self, dir: &Path, time: Duration) -> Outcome<Load> {
        let home = tempfile::tempdir_in(dir)?;
        let log =
            WriteAheadLog::open(home.path(), Options { durability: self.durability, ..Options::default() })?;
        let name = |n| if self.topics == Topics::Own { format!("topic-{n}") } else { "topic".to_owned() };
        let topics = (0..self.writers).map(|n| log.topic(&name(n))).collect::<Result<Vec<_>, _>>()?;
        // The first segment is made before the clock runs, as the raw file is.
        topics[0].append(vec![7; self.size])?.wait()?;
        let data = Bytes::from(vec![7; self.size]);
        let durable = self.durability == Durability::Synced;
        drive(self.writers, time, if durable { 1 } else { 64 }, |n| {
            let (topic, data, mut kept) = (&topics[n], data.clone(), 0);
            Ok(move || {
                let ticket = topic.append(data.clone())?;
                // Without durability there is nothing to wait for.
                if durable {
                    ticket.wait()?;
                }
                kept += data.len() as u64;
                if self.purge_after.is_some_and(|limit| kept >= limit) {
                    topic.purge(topic.next_index())?.wait()?;
                    kept = 0;
                }
                Ok(())
            })
        })
    }
}

/// A log in `dir` with one topic of `entries` entries of `size` bytes, closed in good order. Returns the bytes of its files.
pub fn fill(dir: &Path, entries: u64, size: usize) -> Outcome<u64> {
    let options = Options { durability: Durability::None, ..Options::default() };
    let log = WriteAheadLog::open(dir, options)?;
    let (topic, data) = (log.topic("topic")?, Bytes::from(vec![7; size]));
    for _ in 0..entries {
        // Closing makes it durable.
        let _ticket = topic.append(data.clone())?;
    }
    log.close()?;
    crate::raw_file::scan(dir)
}

/// Opens the log that [`fill`] made.
pub fn open(dir: &Path) -> Outcome<(WriteAheadLog, Topic)> {
    let log = WriteAheadLog::open(dir, Options::default())?;
    let topic = log.topic("topic")?;
    Ok((log, topic))
}

/// Reads all entries of a topic, in portions of 1 MiB. Returns how many there were.
pub fn read_all(topic: &Topic) -> Outcome<u64> {
    let (mut at, mut count) = (topic.first_index(), 0);
    loop {
        let entries = topic.read_range(at..u64::MAX, 1 << 20)?;
        let Some((last, _)) = entries.last() else { return Ok(count) };
        at = last + 1;
        count += std::hint::black_box(&entries).len() as u64;
    }
}
