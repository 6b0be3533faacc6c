//! What was removed because the source no longer has it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use bytes::Bytes;

use super::{PAGE_BYTES, RECORDS, Tag, message, put_not_done};
use crate::framing::{Malformed, Reader};
use crate::tree::outcome::EntryOutcome;

/// Longest path of something removed, in bytes.
pub(super) const MAX_REMOVED: usize = 4096;

/// Messages on what was removed, or was not although it should have been; paths are from the tree's directory.
pub(crate) fn removed(outcomes: &[(PathBuf, EntryOutcome)]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let (mut body, mut count) = (Vec::new(), 0u16);
    for (path, outcome) in outcomes {
        let path = path.as_os_str().as_bytes();
        let path = fitting(path);
        body.extend_from_slice(&(path.len() as u16).to_le_bytes());
        body.extend_from_slice(path);
        match outcome {
            EntryOutcome::NotDone(why) => {
                body.push(1);
                put_not_done(&mut body, why);
            }
            _ => body.push(0),
        }
        count += 1;
        if body.len() >= PAGE_BYTES || usize::from(count) == RECORDS {
            messages.push(finish_removed(&mut body, &mut count));
        }
    }
    if count > 0 {
        messages.push(finish_removed(&mut body, &mut count));
    }
    messages
}

/// The path, or of one that is too long the longest directory above it that is not.
fn fitting(path: &[u8]) -> &[u8] {
    match path.get(..=MAX_REMOVED) {
        None => path,
        Some(longer) => &longer[..longer.iter().rposition(|byte| *byte == b'/').unwrap_or(0)],
    }
}

fn finish_removed(body: &mut Vec<u8>, count: &mut u16) -> Bytes {
    let message = message(Tag::Removed, |out| {
        out.extend_from_slice(&count.to_le_bytes());
        out.append(body);
    });
    *count = 0;
    message
}

pub(crate) fn decode_removed(body: &[u8]) -> Result<Vec<(PathBuf, EntryOutcome)>, Malformed> {
    let mut r = Reader(body);
    let count = r.records()?;
    let mut outcomes = Vec::with_capacity(count.min(body.len() / 3));
    for _ in 0..count {
        let len = usize::from(r.u16()?);
        if len > MAX_REMOVED {
            return Err(Malformed("a path has at most 4,096 bytes"));
        }
        let path = r.take(len)?.to_vec();
        // Applications get it, and may join it to their own.
        let is_plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..") && !name.contains(&0);
        if len > 0 && !path.split(|byte| *byte == b'/').all(is_plain) {
            return Err(Malformed("the path of something removed is one of plain names"));
        }
        let path = PathBuf::from(OsString::from_vec(path));
        let outcome = match r.u8()? {
            0 if len == 0 => return Err(Malformed("the tree's own directory is not removed")),
            0 => EntryOutcome::Removed,
            1 => EntryOutcome::NotDone(r.not_done()?),
            _ => return Err(Malformed("unknown outcome of a removal")),
        };
        outcomes.push((path, outcome));
    }
    r.end()?;
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::HEADER_LEN;

    fn told(path: &str) -> String {
        let messages = removed(&[(path.into(), EntryOutcome::Removed)]);
        let decoded = decode_removed(&messages[0][HEADER_LEN..]).unwrap();
        decoded[0].0.to_str().unwrap().to_owned()
    }

    /// Deep below what can be told of something may still be removed, and what has been must be told.
    #[test]
    fn a_path_that_is_too_long_is_told_by_what_is_above_it() {
        let dir = "d/".repeat(2046) + "dd";
        assert_eq!(dir.len(), 4094);
        assert_eq!(told(&dir), dir);
        assert_eq!(told(&format!("{dir}/x")), format!("{dir}/x"));
        for name in ["xy", "..x", "x/y"] {
            assert_eq!(
                told(&format!("{dir}/{name}")).len(),
                if name == "x/y" { 4096 } else { 4094 },
                "{name}"
            );
        }
    }
}
