//! Any bytes as a log's directory: no panic, no hang, no huge allocation; and what opens can be used and opened again.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use octopii_fuzz::Limited;
use octopii_fuzz::image;
use octopii_fuzz::memory::Memory;
use octopii_wal::vfs::Vfs;
use octopii_wal::{Committer, Error, Options, WriteAheadLog, inspect};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

const DIR: &str = "/wal";

/// Topics looked at. A checkpoint may define thousands.
const TOPICS: usize = 16;
/// Bytes read from each.
const BYTES: usize = 1 << 20;

/// Bounds of each topic, with its metadata and consumers' places.
type Shape = Vec<(String, u64, u64, Vec<(String, u64)>)>;

fuzz_target!(|data: &[u8]| {
    let vfs: Arc<dyn Vfs> = Arc::new(Memory::new(image::decode(data)));
    let inspected = inspect(DIR, &vfs);
    let Ok(log) = open(&vfs) else { return };
    let inspected = inspected.expect("what opens can be inspected");
    let bounds: Vec<_> =
        inspected.topics.iter().map(|t| (t.name.clone(), t.first_index, t.next_index)).collect();
    let shape = shape(&log);
    let opened: Vec<_> = shape.iter().map(|(name, first, next, _)| (name.clone(), *first, *next)).collect();
    assert_eq!(bounds[..opened.len()], opened, "an inspection tells something else");
    for (name, ..) in &shape {
        // Entries may turn out to be damaged.
        let topic = log.topic(name).expect("it is there");
        let _ = topic.read_range(0..u64::MAX, BYTES);
        let _ = topic.read(topic.next_index().wrapping_sub(1));
    }
    let expected = work(&log, shape);
    drop(log);
    let log = open(&vfs).expect("what was open can be opened again");
    let Some(expected) = expected else { return };
    assert_eq!(self::shape(&log), expected, "a log that was closed changed");
});

fn open(vfs: &Arc<dyn Vfs>) -> Result<WriteAheadLog, octopii_wal::OpenError> {
    let options = Options {
        vfs: Arc::clone(vfs),
        committer: Committer::Caller,
        segment_size: 64 << 10,
        seed: Some(1),
        ..Options::default()
    };
    WriteAheadLog::open(DIR, options)
}

fn shape(log: &WriteAheadLog) -> Shape {
    let topics = log.topics().into_iter().take(TOPICS);
    let shape = topics.map(|name| {
        let topic = log.topic(&name).expect("it is there");
        (name, topic.first_index(), topic.next_index(), topic.cursors())
    });
    shape.collect()
}

/// Uses each topic a little. Returns the shape that follows, if the log takes operations.
fn work(log: &WriteAheadLog, shape: Shape) -> Option<Shape> {
    for (i, (name, ..)) in shape.iter().enumerate() {
        let topic = log.topic(name).expect("it is there");
        let outcome = (|| {
            let index = topic.append("an entry")?.index().expect("an entry has an index");
            topic.append("another")?.wait()?;
            assert_eq!(topic.read(index)?.as_deref(), Some(&b"an entry"[..]));
            match i % 3 {
                0 => topic.truncate(index + 1)?.wait(),
                1 => topic.purge(index)?.wait(),
                _ => topic.set_metadata("key", "value")?.wait(),
            }
        })();
        match outcome {
            Ok(()) => {}
            // A checkpoint of everything may be too large for this file system.
            Err(Error::StorageFull { .. } | Error::Poisoned { .. }) => return None,
            Err(other) => panic!("a log that opened cannot be used: {other}"),
        }
    }
    Some(self::shape(log))
}
