//! `octopii wal`.

use octopii::RealVfs;
use octopii::wal::{Tail, inspect};
use serde_json::json;

use crate::args::{Wal, WalCommand};
use crate::exit::Failure;
use crate::output::{Output, bytes};

pub(crate) fn run(output: &Output, args: &Wal) -> Result<(), Failure> {
    let WalCommand::Inspect { dir } = &args.command;
    // A node's data directory holds its log under `wal`.
    let inner = dir.join("wal");
    let dir = if inner.is_dir() { &inner } else { dir };
    if !dir.is_dir() {
        return Err(Failure::failed(format!("{} is not a directory with a log", dir.display())));
    }
    let found = inspect(dir, &RealVfs::shared()).map_err(Failure::failed)?;
    if found.segments.is_empty() {
        return Err(Failure::failed(format!("{} holds no log", dir.display())));
    }
    let tail = match found.tail {
        Tail::Clean => "clean".to_owned(),
        Tail::Torn { offset } => {
            format!("an unfinished, never acknowledged write at byte {offset} of the last segment")
        }
    };
    let summary = json!({ "dir": dir, "segments": found.segments.len(), "bytes": found.bytes, "tail": tail });
    output.result(
        format_args!(
            "{}: {} segments, {}, every record verified, tail {tail}",
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
