//! A file and nothing else, with one writer.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use octopii_bench::load::Load;
use octopii_bench::{Outcome, raw_file};

use crate::workload::{ENTRIES, ENTRY, Workload};

pub(crate) fn append(dir: &Path, workload: &Workload) -> Outcome<Load> {
    raw_file::appends(dir, workload.size, workload.durable, workload.time)
}

pub(crate) fn fill(dir: &Path) -> Outcome<()> {
    let mut file = BufWriter::new(File::create(dir.join("raw.log"))?);
    for _ in 0..ENTRIES {
        file.write_all(&[7; ENTRY])?;
    }
    file.into_inner()?.sync_all()?;
    Ok(())
}

pub(crate) fn read(dir: &Path) -> Outcome<u64> {
    Ok(raw_file::scan(dir)? / ENTRY as u64)
}
