//! A directory of sparse files as a short string of bytes, which a fuzzer can change piece by piece.
//!
//! A sequence of chunks: a byte for the file and flags, two for the place in units of 32 bytes, two for the length, then the
//! content. Files are zero where no chunk is.

use std::collections::BTreeMap;

/// The chunk is the file's name.
const NAME: u8 = 0x40;
/// The file ends here, and not at the next page.
const UNALIGNED: u8 = 0x80;
const FILE: u8 = 0x07;
const UNIT: usize = 32;
const PAGE: usize = 4096;
const MAX_CHUNK: usize = 8191;

pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct File {
    name: Option<String>,
    content: Vec<u8>,
}

pub fn decode(mut data: &[u8]) -> Files {
    let mut files: BTreeMap<u8, File> = BTreeMap::new();
    while let Some((&[flags, a, b, c, d], rest)) = data.split_first_chunk() {
        let at = usize::from(u16::from_le_bytes([a, b])) * UNIT;
        let len = (usize::from(u16::from_le_bytes([c, d])) % (MAX_CHUNK + 1)).min(rest.len());
        let (chunk, rest) = rest.split_at(len);
        data = rest;
        let file = files.entry(flags & FILE).or_default();
        if flags & NAME != 0 {
            let name = String::from_utf8_lossy(chunk).replace('/', "");
            file.name = Some(name).filter(|name| !name.is_empty());
            continue;
        }
        let end = at + len;
        if file.content.len() < end {
            let unit = if flags & UNALIGNED != 0 { 1 } else { PAGE };
            file.content.resize(end.next_multiple_of(unit), 0);
        }
        file.content[at..end].copy_from_slice(chunk);
    }
    let name = |number| format!("{:016x}.wal", u64::from(number) + 1);
    files
        .into_iter()
        .map(|(number, file)| (file.name.unwrap_or_else(|| name(number)), file.content))
        .collect()
}

/// Encodes up to eight files, the last ones.
pub fn encode(files: &Files) -> Vec<u8> {
    let mut out = Vec::new();
    let skip = files.len().saturating_sub(usize::from(FILE) + 1);
    for (number, (name, content)) in files.iter().skip(skip).enumerate() {
        let number = number as u8;
        chunk(&mut out, number | NAME, 0, name.as_bytes());
        let end = content.len();
        // The last chunk is there even if it is zero, for the length.
        let units = end.div_ceil(UNIT);
        let mut unit = 0;
        while unit < units {
            let used = |unit: usize| {
                unit + 1 == units
                    || content[unit * UNIT..((unit + 1) * UNIT).min(end)].iter().any(|b| *b != 0)
            };
            let start = unit;
            while unit < units && used(unit) && (unit - start + 1) * UNIT <= MAX_CHUNK {
                unit += 1;
            }
            if start == unit {
                unit += 1;
                continue;
            }
            chunk(&mut out, number | UNALIGNED, start, &content[start * UNIT..(unit * UNIT).min(end)]);
        }
    }
    out
}

fn chunk(out: &mut Vec<u8>, flags: u8, unit: usize, content: &[u8]) {
    out.push(flags);
    out.extend((unit as u16).to_le_bytes());
    out.extend((content.len() as u16).to_le_bytes());
    out.extend(content);
}
