//! Reading entries back.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use octopii_vfs::FileHandle;

use crate::error::{Damage, Error};
use crate::format::record::{self, HEADER_LEN, RecordHeader, RecordKind};
use crate::format::segment::file_name;
use crate::index::Location;
use crate::shared::Shared;
use crate::state::Source;

/// Neighbouring entries are fetched together up to this many bytes.
const TOGETHER: usize = 256 << 10;
/// Where entries are to be found is looked up for this many at a time, so that writers are not kept waiting.
const LOOK_UP: usize = 4096;

struct Place {
    index: u64,
    source: Source,
    file: Option<(FileHandle, u64)>,
}

pub(crate) fn range(
    shared: &Shared,
    topic: u32,
    range: Range<u64>,
    max_bytes: usize,
) -> Result<Vec<(u64, Bytes)>, Error> {
    let mut out = Vec::new();
    let mut budget = Some(max_bytes);
    let mut from = range.start;
    while let Some(left) = budget {
        let (places, rest) = look_up(shared, topic, from..range.end, left, out.is_empty());
        let Some(last) = places.last() else { break };
        from = last.index + 1;
        budget = rest;
        let mut at = 0;
        while at < places.len() {
            at += fetch(shared, topic, &places[at..], &mut out)?;
        }
    }
    Ok(out)
}

/// Finds the entries of `range` that fit into `budget`. Returns what is left of it, or `None` when the next one does not
/// fit.
fn look_up(
    shared: &Shared,
    topic: u32,
    range: Range<u64>,
    mut budget: usize,
    mut at_least_one: bool,
) -> (Vec<Place>, Option<usize>) {
    let state = shared.state();
    let topic = state.topic(topic);
    let mut places = Vec::new();
    for index in range.start.max(topic.first())..range.end.min(topic.next()) {
        if places.len() == LOOK_UP {
            return (places, Some(budget));
        }
        let Some(source) = topic.find(index) else { break };
        let (len, file) = match &source {
            Source::Memory(entry) => (entry.len(), None),
            Source::Disk(at) => (at.len as usize, shared.segment(&state, at.segment)),
        };
        if len > budget && !std::mem::take(&mut at_least_one) {
            return (places, None);
        }
        at_least_one = false;
        budget = budget.saturating_sub(len);
        places.push(Place { index, source, file });
    }
    let rest = if places.is_empty() { None } else { Some(budget) };
    (places, rest)
}

/// Reads the first of `places` and those that lie right behind it. Returns how many.
fn fetch(shared: &Shared, topic: u32, places: &[Place], out: &mut Vec<(u64, Bytes)>) -> Result<usize, Error> {
    let first = match &places[0].source {
        Source::Memory(entry) => {
            out.push((places[0].index, entry.clone()));
            return Ok(1);
        }
        Source::Disk(at) => *at,
    };
    let Some((file, salt)) = &places[0].file else {
        return Err(damaged(shared, topic, places[0].index, first, "its segment is missing"));
    };
    let mut count = 1;
    let mut end = first.offset as usize + HEADER_LEN + first.len as usize;
    for place in &places[1..] {
        let Source::Disk(at) = &place.source else { break };
        let next_end = at.offset as usize + HEADER_LEN + at.len as usize;
        // Between neighbours lie other topics' records and the padding of pages.
        let is_near = at.segment == first.segment && at.offset as usize >= end;
        if !is_near || next_end - first.offset as usize > TOGETHER {
            break;
        }
        end = next_end;
        count += 1;
    }
    let mut bytes = vec![0; end - first.offset as usize];
    file.read_exact_at(&mut bytes, u64::from(first.offset)).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            damaged(shared, topic, places[0].index, first, "its segment ends before it")
        }
        _ => Error::Io { operation: "read entries", reason: Arc::new(e) },
    })?;
    let bytes = Bytes::from(bytes);
    for place in &places[..count] {
        let Source::Disk(at) = &place.source else { break };
        let start = (at.offset - first.offset) as usize;
        let record = &bytes[start..start + HEADER_LEN + at.len as usize];
        let expected = RecordHeader { kind: RecordKind::Append, topic, index: place.index, len: at.len };
        if RecordHeader::decode(record) != Some(expected) || !record::is_intact(record, *salt) {
            return Err(damaged(shared, topic, place.index, *at, "it does not match its checksum"));
        }
        let entry = start + HEADER_LEN..start + record.len();
        // A small entry must not keep its neighbours in memory.
        let entry = if count == 1 { bytes.slice(entry) } else { Bytes::copy_from_slice(&bytes[entry]) };
        out.push((place.index, entry));
    }
    Ok(count)
}

fn damaged(shared: &Shared, topic: u32, index: u64, at: Location, detail: &str) -> Error {
    let name = shared.state().topic(topic).name.to_string();
    Error::Damaged(Arc::new(Damage {
        segment: shared.dir.join(file_name(at.segment)),
        offset: u64::from(at.offset),
        detail: format!("cannot read an entry: {detail}"),
        topics: vec![(name, index..index + 1)],
    }))
}
