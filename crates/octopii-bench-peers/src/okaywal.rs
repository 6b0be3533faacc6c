//! okaywal: one stream of entries; a writer's topic is in no way visible to it.
//!
//! It is made to be checkpointed: whenever a segment is full, its entries are handed over and the file is used again. Here
//! the hand-over does nothing, which costs it no time and lets it write where it has written before, as none of the
//! others can that keep all that was appended.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use octopii_bench::Outcome;
use octopii_bench::load::{Load, drive};
use okaywal::{
    Configuration, Entry, EntryId, LogManager, LogVoid, ReadChunkResult, SegmentReader, WriteAheadLog,
};

use crate::workload::{ENTRIES, ENTRY, Workload};

pub(crate) fn append(dir: &Path, workload: &Workload) -> Outcome<Load> {
    let log = Configuration::default_for(dir.join("log"))
        .preallocate_bytes(16 << 20)
        .checkpoint_after_bytes(15 << 20)
        .buffer_bytes(128 << 10)
        .open(LogVoid)?;
    let data = vec![7; workload.size];
    drive(workload.writers, workload.time, workload.every(), |_| {
        let (log, data) = (&log, &data);
        Ok(move || {
            let mut entry = log.begin_entry()?;
            entry.write_chunk(data)?;
            entry.commit()?;
            Ok(())
        })
    })
}

/// One segment that is never checkpointed.
fn kept(dir: &Path) -> Configuration {
    Configuration::default_for(dir.join("log")).checkpoint_after_bytes(u64::MAX).buffer_bytes(128 << 10)
}

pub(crate) fn fill(dir: &Path) -> Outcome<()> {
    // Each entry is synced, so many write at once.
    const THREADS: u64 = 64;
    let log = kept(dir).preallocate_bytes(256 << 20).open(LogVoid)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|n| {
                let log = &log;
                scope.spawn(move || {
                    for _ in (n..ENTRIES).step_by(THREADS as usize) {
                        let mut entry = log.begin_entry()?;
                        entry.write_chunk(&[7; ENTRY])?;
                        entry.commit()?;
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a writer panicked"))
    })?;
    Ok(())
}

#[derive(Debug)]
struct Reader(Arc<AtomicU64>);

impl LogManager for Reader {
    fn recover(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        while let ReadChunkResult::Chunk(mut chunk) = entry.read_chunk()? {
            std::hint::black_box(chunk.read_all()?);
            if !chunk.check_crc()? {
                return Err(io::Error::other("an entry is damaged"));
            }
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn checkpoint_to(&mut self, _: EntryId, _: &mut SegmentReader, _: &WriteAheadLog) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn read(dir: &Path) -> Outcome<u64> {
    let count = Arc::new(AtomicU64::new(0));
    let _log = kept(dir).open(Reader(Arc::clone(&count)))?;
    Ok(count.load(Ordering::Relaxed))
}
