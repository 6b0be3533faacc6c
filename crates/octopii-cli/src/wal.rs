//! `octopii wal`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use octopii::RealVfs;
use octopii::wal::{Damage, Dumped, DumpedChange, DumpedRecord, Tail, dump, inspect, verify};
use serde_json::{Value, json};

use crate::args::{Wal, WalCommand, WalDump};
use crate::exit::Failure;
use crate::output::{Output, bytes};

/// Characters of an entry shown to people.
const SHOWN: usize = 60;

pub(crate) fn run(output: &Output, args: &Wal) -> Result<(), Failure> {
    match &args.command {
        WalCommand::Inspect { dir } => run_inspect(output, &find(dir)?),
        WalCommand::Verify { dir } => run_verify(output, &find(dir)?),
        WalCommand::Dump(args) => run_dump(output, &find(&args.dir)?, args),
    }
}

/// A node's data directory holds its log under `wal`.
fn find(dir: &Path) -> Result<PathBuf, Failure> {
    let inner = dir.join("wal");
    let dir = if inner.is_dir() { inner } else { dir.to_owned() };
    if dir.is_dir() {
        Ok(dir)
    } else {
        Err(Failure::failed(format!("{} is not a directory with a log", dir.display())))
    }
}

fn no_log(dir: &Path) -> Failure {
    Failure::failed(format!("{} holds no log", dir.display()))
}

fn tail_in_words(tail: Tail) -> String {
    match tail {
        Tail::Clean => "clean".to_owned(),
        Tail::Torn { offset } => {
            format!("an unfinished, never acknowledged write at byte {offset} of the last segment")
        }
    }
}

fn run_inspect(output: &Output, dir: &Path) -> Result<(), Failure> {
    let found = inspect(dir, &RealVfs::shared()).map_err(Failure::failed)?;
    if found.segments.is_empty() {
        return Err(no_log(dir));
    }
    let tail = tail_in_words(found.tail);
    let summary = json!({ "dir": dir, "segments": found.segments.len(), "bytes": found.bytes, "tail": tail });
    output.result(
        format_args!(
            "{}: {} segments, {}, tail {tail}",
            dir.display(),
            found.segments.len(),
            bytes(found.bytes)
        ),
        &summary,
    );
    for s in &found.segments {
        output.result(
            format_args!(
                "  segment {:>6}  {:>11} used of {:>11}  {:>8} frames  salt {:016x}",
                s.sequence,
                bytes(s.used),
                bytes(s.bytes),
                s.frames,
                s.salt
            ),
            &json!({
                "segment": s.sequence, "path": s.path, "used": s.used, "bytes": s.bytes, "frames": s.frames,
                "salt": format!("{:016x}", s.salt),
            }),
        );
    }
    for t in &found.topics {
        output.result(
            format_args!(
                "  topic {:<20}  entries {}..{}",
                t.name.escape_default().to_string(),
                t.first_index,
                t.next_index
            ),
            &json!({ "topic": t.name, "first": t.first_index, "next": t.next_index }),
        );
    }
    Ok(())
}

fn run_verify(output: &Output, dir: &Path) -> Result<(), Failure> {
    let found = verify(dir, &RealVfs::shared()).map_err(Failure::failed)?;
    if found.segments == 0 && found.damage.is_empty() {
        return Err(no_log(dir));
    }
    for damage in &found.damage {
        show_damage(output, damage);
    }
    let tail = tail_in_words(found.tail);
    output.result(
        format_args!(
            "{}: {} segments with {} frames and {} entries in {} are whole, {} to be indexed again, tail {tail}",
            dir.display(),
            found.segments,
            found.frames,
            found.entries,
            bytes(found.bytes),
            found.without_footer,
        ),
        &json!({
            "dir": dir, "segments": found.segments, "frames": found.frames, "entries": found.entries,
            "bytes": found.bytes, "without_footer": found.without_footer, "damaged": found.damage.len(), "tail": tail,
        }),
    );
    match found.damage.len() {
        0 => Ok(()),
        n => Err(Failure::failed(format!(
            "{n} damaged: restore the log from a replica or a backup; `octopii wal dump {}` shows what can be read",
            dir.display()
        ))),
    }
}

fn show_damage(output: &Output, damage: &Damage) {
    let topics: Vec<Value> = damage
        .topics
        .iter()
        .map(|(topic, lost)| json!({ "topic": topic, "first": lost.start, "next": lost.end }))
        .collect();
    output.result(
        format_args!("damaged: {}", damage.to_string().escape_debug()),
        &json!({ "damaged": damage.segment, "offset": damage.offset, "detail": damage.detail, "topics": topics }),
    );
}

fn run_dump(output: &Output, dir: &Path, args: &WalDump) -> Result<(), Failure> {
    let mut damaged = 0;
    let mut any = false;
    let visit = |item| {
        any = true;
        match item {
            Dumped::Record(record) if is_wanted(&record, args) => show_record(output, &record),
            Dumped::Record(_) => {}
            Dumped::Damaged(damage) => {
                damaged += 1;
                show_damage(output, &damage);
            }
        }
        if output.is_open() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    dump(dir, &RealVfs::shared(), visit).map_err(Failure::failed)?;
    match damaged {
        _ if !any => Err(no_log(dir)),
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} damaged places; everything else is shown"))),
    }
}

fn is_wanted(record: &DumpedRecord, args: &WalDump) -> bool {
    let is_in_range = match &record.change {
        DumpedChange::Entry { index, .. } => {
            (args.from.unwrap_or(0)..args.to.unwrap_or(u64::MAX)).contains(index)
        }
        _ => args.from.is_none() && args.to.is_none(),
    };
    is_in_range && args.topic.as_deref().is_none_or(|topic| topic == &*record.topic)
}

fn show_record(output: &Output, record: &DumpedRecord) {
    let hex = |data: &[u8]| data.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let text = |data: &[u8]| {
        let text = String::from_utf8_lossy(&data[..data.len().min(SHOWN)]).escape_debug().to_string();
        if data.len() > SHOWN { format!("\"{text}\"...") } else { format!("\"{text}\"") }
    };
    let (words, mut value) = match &record.change {
        DumpedChange::Entry { index, relocated, entry } => (
            format!(
                "{} {index}  {}  {}",
                if *relocated { "moved" } else { "entry" },
                bytes(entry.len() as u64),
                text(entry)
            ),
            json!({ "kind": "entry", "index": index, "relocated": relocated, "hex": hex(entry) }),
        ),
        DumpedChange::Truncate(from) => {
            (format!("truncate {from}"), json!({ "kind": "truncate", "from": from }))
        }
        DumpedChange::Purge(to) => (format!("purge {to}"), json!({ "kind": "purge", "to": to })),
        DumpedChange::Metadata { key, value } => (
            format!("metadata {} = {}", text(key), text(value)),
            json!({ "kind": "metadata", "key": String::from_utf8_lossy(key), "hex": hex(value) }),
        ),
        DumpedChange::Cursor { name, position } => (
            match position {
                Some(position) => format!("cursor {} at {position}", text(name)),
                None => format!("cursor {} removed", text(name)),
            },
            json!({ "kind": "cursor", "name": String::from_utf8_lossy(name), "position": position }),
        ),
        DumpedChange::Define => ("define".to_owned(), json!({ "kind": "define" })),
        DumpedChange::Bounds { first, next } => {
            (format!("bounds {first}..{next}"), json!({ "kind": "bounds", "first": first, "next": next }))
        }
        other => (format!("{other:?}"), json!({ "kind": "unknown" })),
    };
    if let Some(fields) = value.as_object_mut() {
        fields.insert("topic".to_owned(), json!(&*record.topic));
        fields.insert("segment".to_owned(), json!(record.segment));
        fields.insert("offset".to_owned(), json!(record.offset));
    }
    output.result(
        format_args!(
            "{:>4} {:>10}  {:<16} {words}",
            record.segment,
            record.offset,
            record.topic.escape_default().to_string()
        ),
        &value,
    );
}
