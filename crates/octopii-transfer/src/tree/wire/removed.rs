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
        // The kernel takes no longer ones.
        let path = &path[..path.len().min(MAX_REMOVED)];
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
        if len == 0 || len > MAX_REMOVED {
            return Err(Malformed("a path has 1 to 4,096 bytes"));
        }
        let path = PathBuf::from(OsString::from_vec(r.take(len)?.to_vec()));
        let outcome = match r.u8()? {
            0 => EntryOutcome::Removed,
            1 => EntryOutcome::NotDone(r.not_done()?),
            _ => return Err(Malformed("unknown outcome of a removal")),
        };
        outcomes.push((path, outcome));
    }
    r.end()?;
    Ok(outcomes)
}
