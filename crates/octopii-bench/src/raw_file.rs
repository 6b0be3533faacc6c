//! A file and nothing else: what any log is measured against.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use crate::Outcome;
use crate::load::{Load, drive};

/// Bytes of the file. All of them have been written and synced before the clock runs; at the end the loop begins again
/// at the start. So no append extends the file, allocates a block or has the file system write metadata.
const SPACE: u64 = 64 << 20;

/// One writer: `pwrite` of `size` bytes, one right behind the other, each followed by `fdatasync` if it is to be `durable`.
pub fn appends(dir: &Path, size: usize, durable: bool, time: Duration) -> Outcome<Load> {
    let path = dir.join("raw.log");
    let file = zeroed(&path)?;
    let data = vec![7; size];
    let load = drive(1, time, if durable { 1 } else { 64 }, |_| {
        let (mut at, file, data) = (0, &file, &data);
        Ok(move || {
            if at + data.len() as u64 > SPACE {
                at = 0;
            }
            file.write_all_at(data, at)?;
            at += data.len() as u64;
            if durable {
                file.sync_data()?;
            }
            Ok(())
        })
    })?;
    std::fs::remove_file(path)?;
    Ok(load)
}

/// Writes a new file of `bytes` bytes, a MiB at a time, and syncs it once at the end.
pub fn whole(path: &Path, bytes: usize) -> Outcome<()> {
    let file = File::options().create_new(true).write(true).open(path)?;
    let block = vec![7; 1 << 20];
    for at in (0..bytes).step_by(block.len()) {
        file.write_all_at(&block[..block.len().min(bytes - at)], at as u64)?;
    }
    Ok(file.sync_data()?)
}

fn zeroed(path: &Path) -> Outcome<File> {
    let file = File::options().create(true).truncate(true).write(true).open(path)?;
    let zeroes = vec![0; 1 << 20];
    for at in (0..SPACE).step_by(zeroes.len()) {
        file.write_all_at(&zeroes, at)?;
    }
    file.sync_all()?;
    Ok(file)
}

/// Reads all files of a directory from beginning to end. Returns how many bytes there were.
pub fn scan(dir: &Path) -> Outcome<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    for path in files(dir)? {
        let (file, mut at) = (File::open(path)?, 0);
        loop {
            let n = file.read_at(&mut buffer, at)?;
            if n == 0 {
                break;
            }
            std::hint::black_box(&buffer[..n]);
            at += n as u64;
        }
        total += at;
    }
    Ok(total)
}

/// A file of `entries` records of `size` bytes, each behind its length and its CRC-32C.
pub fn write_records(path: &Path, entries: u64, size: usize) -> Outcome<()> {
    let mut record = (size as u32).to_le_bytes().to_vec();
    let data = vec![7; size];
    record.extend(crc32c::crc32c(&data).to_le_bytes());
    record.extend(data);
    let mut file = BufWriter::new(File::create(path)?);
    for _ in 0..entries {
        file.write_all(&record)?;
    }
    Ok(file.flush()?)
}

/// The least that reading a log takes: checks the records of [`write_records`] and hands them over one by one, each portion of
/// 1 MiB as a list of entries that share its memory. Returns how many there were.
pub fn read_records(path: &Path) -> Outcome<u64> {
    let (file, mut at, mut count) = (File::open(path)?, 0, 0);
    loop {
        let mut portion = vec![0; 1 << 20];
        let n = file.read_at(&mut portion, at)?;
        portion.truncate(n);
        let portion = Bytes::from(portion);
        let (mut used, mut entries) = (0, Vec::new());
        while let Some((head, rest)) = portion[used..].split_first_chunk::<8>() {
            let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
            let len = word(0) as usize;
            let Some(data) = rest.get(..len) else { break };
            if crc32c::crc32c(data) != word(4) {
                return Err("a record of the raw file is damaged".into());
            }
            entries.push((count, portion.slice(used + 8..used + 8 + len)));
            count += 1;
            used += 8 + len;
        }
        std::hint::black_box(&entries);
        if entries.is_empty() {
            return Ok(count);
        }
        at += used as u64;
    }
}

/// Bytes of disk that the files of a directory take, holes left out.
pub fn disk_usage(dir: &Path) -> Outcome<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut total = 0;
    for path in files(dir)? {
        total += std::fs::metadata(path)?.blocks() * 512;
    }
    Ok(total)
}

fn files(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let mut paths =
        std::fs::read_dir(dir)?.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
}
