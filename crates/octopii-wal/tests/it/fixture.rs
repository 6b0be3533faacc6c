//! A log that is the same byte for byte whenever it is made, to be kept as an example of its format:
//! `OCTOPII_WAL_FIXTURE=<directory> cargo test -p octopii-wal --test it fixture` writes it.

use std::path::Path;

use octopii_wal::vfs::{RealVfs, write_file_durable};
use octopii_wal::{Committer, Options};

use crate::disk::{Coin, Disk};
use crate::model::{self, Model, script};
use crate::session::{History, Session};

/// A closed log of several segments that has been purged, truncated and opened more than once, and what it holds.
pub(crate) fn fixture() -> (Disk, Model) {
    let (disk, mut history) = (Disk::default(), History::new());
    for seed in 1..=3 {
        let options = Options {
            segment_size: 32 << 10,
            committer: Committer::Caller,
            seed: Some(seed),
            ..Options::default()
        };
        let mut session = Session::open(&disk, options, &mut history).unwrap_or_else(|e| panic!("{e}"));
        session.run(&script(&mut Coin(seed), 40)).unwrap_or_else(|e| panic!("{e}"));
        session.log().close().unwrap();
    }
    let model = history.last().clone();
    (disk.image(), model)
}

#[test]
fn the_fixture_is_the_same_whenever_it_is_made() {
    let (disk, model) = fixture();
    assert!(disk.contents().len() >= 3 && model.len() >= 3, "{}", model::summary(&model));
    assert!(disk.contents() == fixture().0.contents());
    if let Some(dir) = std::env::var_os("OCTOPII_WAL_FIXTURE") {
        for (path, bytes) in disk.contents() {
            write_file_durable(&RealVfs, &Path::new(&dir).join(path.file_name().unwrap()), &bytes).unwrap();
        }
    }
}
