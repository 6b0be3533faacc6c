//! The bytes of the tree protocol, as `docs/formats/tree.md` describes them.
//!
//! Pure encoding and decoding: nothing here reads a stream, and no decoder allocates more than a small multiple of what its
//! input is long.

mod entry;
mod pack;
mod removed;
mod unpack;

use std::ops::RangeInclusive;

use bytes::Bytes;

use self::entry::MAX_ENTRY;
pub(crate) use self::entry::{Entry, MAX_TARGET, put_entry};
use self::pack::WHOLE_LEN;
pub(crate) use self::pack::{
    MAX_PACK, Packed, begin_pack, compressed_pack, decode_compressed, decode_pack, finish_pack, put_packed,
};
use self::removed::MAX_REMOVED;
pub(crate) use self::removed::{decode_removed, removed};
use self::unpack::UNPACK_FIXED;
pub(crate) use self::unpack::{Unpack, decode_unpack, unpack};
use super::name::MAX_NAME;
use super::outcome::{EntryFailure, NotDone, Tally};
use crate::framing::{self, HEADER_LEN, MAX_MESSAGE, Malformed, Reader, body_len, cut, put_refusal};
use crate::{Digest, Refusal, TransferId};

/// First byte of every tree stream.
pub(crate) const VERSION: u8 = 1;
/// Files of at most this many bytes travel in packs; larger ones as chunk transfers of their own.
pub(crate) const SMALL: u64 = 1 << 20;
/// Entries in a page, at most.
pub(crate) const PAGE_ENTRIES: usize = 1024;
/// Bytes of a page from which on no further entry is added to it.
pub(crate) const PAGE_BYTES: usize = 128 << 10;
/// Records in a pack or among results, at most.
pub(crate) const RECORDS: usize = 4096;
/// Entries between the first that is not settled and the last that was told, at most.
pub(crate) const WINDOW: u64 = 32 << 10;
/// Longest reason for an entry that was not done, in bytes.
pub(crate) const MAX_REASON: usize = 160;

const MAX_PURPOSE: usize = crate::wire::MAX_PURPOSE;
const MAX_META: usize = crate::wire::MAX_META;
const MAX_NOT_DONE: usize = 2 + 1 + MAX_REASON;
const OPEN_FIXED: usize = 1 + 16 + 32 + 1 + 1 + 4;
const DONE_LEN: usize = 6 * 8 + 32;

const FLAG_CHECKSUM: u8 = 1;
const FLAG_DELETE: u8 = 2;
const FLAG_DRY_RUN: u8 = 4;
const FLAG_COMPRESSED: u8 = 8;

/// Of being ready: packs may come compressed.
const FLAG_DECOMPRESSES: u8 = 1;

/// The kinds of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    Open = 1,
    Ready = 2,
    Refuse = 3,
    Page = 4,
    Verdicts = 5,
    Pack = 6,
    Results = 7,
    End = 8,
    Done = 9,
    Fail = 10,
    Alive = 11,
    Removed = 12,
    Compressed = 13,
    Unpack = 14,
}

/// What precedes every body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) tag: Tag,
    /// Body length in bytes, within the tag's limit.
    pub(crate) len: usize,
}

/// The sender's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) id: TransferId,
    /// Names the source: what it made at a receiver, it may update there.
    pub(crate) source: [u8; 32],
    /// Every file's digest is told with its entry.
    pub(crate) checksum: bool,
    /// What the manifest does not name is removed.
    pub(crate) delete: bool,
    /// Nothing is done: only told.
    pub(crate) dry_run: bool,
    /// Packs would come compressed.
    pub(crate) compressed: bool,
    pub(crate) purpose: String,
    pub(crate) name: Vec<u8>,
    pub(crate) meta: Bytes,
}

/// The receiver's first message, if it takes the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Packs may come compressed.
    pub(crate) decompresses: bool,
    /// What the directory is called there.
    pub(crate) name: Vec<u8>,
}

/// What the receiver makes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Taken, and nothing more is needed: a directory, a line without content.
    Noted,
    /// A file that is there already.
    Unchanged,
    /// Content is needed; a result follows.
    Wanted,
    /// Not taken.
    Refused(NotDone),
}

/// What became of an entry that was wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) entry: u64,
    /// Durable, or why not.
    pub(crate) result: Result<(), NotDone>,
}

impl Header {
    pub(crate) fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let (tag, limit): (Tag, RangeInclusive<usize>) = match bytes[0] {
            1 => (Tag::Open, OPEN_FIXED..=OPEN_FIXED + MAX_PURPOSE + MAX_NAME + MAX_META),
            2 => (Tag::Ready, 2..=2 + MAX_NAME),
            3 => (Tag::Refuse, 4..=4 + MAX_MESSAGE),
            4 => (Tag::Page, 3..=2 + PAGE_BYTES + MAX_ENTRY),
            5 => (Tag::Verdicts, 11..=10 + PAGE_ENTRIES * (1 + MAX_NOT_DONE)),
            6 => (Tag::Pack, 2..=MAX_PACK),
            7 => (Tag::Results, 2..=2 + RECORDS * (8 + 1 + MAX_NOT_DONE)),
            8 => (Tag::End, 41..=41),
            9 => (Tag::Done, DONE_LEN..=DONE_LEN),
            10 => (Tag::Fail, 4..=4 + MAX_MESSAGE),
            11 => (Tag::Alive, 1..=1),
            12 => (Tag::Removed, 2..=2 + PAGE_BYTES + 2 + MAX_REMOVED + 1 + MAX_NOT_DONE),
            13 => (Tag::Compressed, WHOLE_LEN + 1..=WHOLE_LEN + MAX_PACK - 1),
            14 => (Tag::Unpack, UNPACK_FIXED..=UNPACK_FIXED + RECORDS * 8),
            _ => return Err(Malformed("unknown message tag in a tree")),
        };
        Ok(Self { tag, len: body_len(bytes, limit)? })
    }
}

fn message(tag: Tag, body: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    framing::message(tag as u8, body).into()
}

/// The version and the opening message. The caller has checked the lengths of purpose, name and meta.
pub(crate) fn opening(open: &Open) -> Bytes {
    let opening = message(Tag::Open, |out| {
        let flag = |set, flag| if set { flag } else { 0 };
        let (checksum, delete) = (flag(open.checksum, FLAG_CHECKSUM), flag(open.delete, FLAG_DELETE));
        let compressed = flag(open.compressed, FLAG_COMPRESSED);
        out.push(checksum | delete | flag(open.dry_run, FLAG_DRY_RUN) | compressed);
        out.extend_from_slice(&open.id.0.to_le_bytes());
        out.extend_from_slice(&open.source);
        out.push(open.purpose.len() as u8);
        out.push(open.name.len() as u8);
        out.extend_from_slice(&(open.meta.len() as u32).to_le_bytes());
        out.extend_from_slice(open.purpose.as_bytes());
        out.extend_from_slice(&open.name);
        out.extend_from_slice(&open.meta);
    });
    [&[VERSION][..], &opening].concat().into()
}

pub(crate) fn ready(Ready { decompresses, name }: &Ready) -> Bytes {
    message(Tag::Ready, |out| {
        out.push(if *decompresses { FLAG_DECOMPRESSES } else { 0 });
        put_name(out, name);
    })
}

pub(crate) fn refuse(refusal: &Refusal) -> Bytes {
    message(Tag::Refuse, |out| put_refusal(out, refusal))
}

pub(crate) fn fail(refusal: &Refusal) -> Bytes {
    message(Tag::Fail, |out| put_refusal(out, refusal))
}

/// A page of `count` entries that [`put_entry`] has written into `entries`.
pub(crate) fn page(count: usize, entries: &[u8]) -> Bytes {
    message(Tag::Page, |out| {
        out.extend_from_slice(&(count as u16).to_le_bytes());
        out.extend_from_slice(entries);
    })
}

/// Verdicts on the entries of one page, the first of which is entry `first`.
pub(crate) fn verdicts(first: u64, verdicts: &[Verdict]) -> Bytes {
    message(Tag::Verdicts, |out| {
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&(verdicts.len() as u16).to_le_bytes());
        for verdict in verdicts {
            match verdict {
                Verdict::Noted => out.push(0),
                Verdict::Unchanged => out.push(1),
                Verdict::Wanted => out.push(2),
                Verdict::Refused(why) => {
                    out.push(3);
                    put_not_done(out, why);
                }
            }
        }
    })
}

/// At most [`RECORDS`] of them.
pub(crate) fn results(outcomes: &[Outcome]) -> Bytes {
    message(Tag::Results, |out| {
        out.extend_from_slice(&(outcomes.len() as u16).to_le_bytes());
        for Outcome { entry, result } in outcomes {
            out.extend_from_slice(&entry.to_le_bytes());
            match result {
                Ok(()) => out.push(0),
                Err(why) => {
                    out.push(1);
                    put_not_done(out, why);
                }
            }
        }
    })
}

/// `all_told`: everything at the source has an entry.
pub(crate) fn end(entries: u64, manifest: Digest, all_told: bool) -> Bytes {
    message(Tag::End, |out| {
        out.extend_from_slice(&entries.to_le_bytes());
        out.extend_from_slice(&manifest.0);
        out.push(u8::from(!all_told));
    })
}

pub(crate) fn done(tally: &Tally, manifest: Digest) -> Bytes {
    message(Tag::Done, |out| {
        let Tally { stored, stored_bytes, unchanged, directories, not_done, removed } = *tally;
        for n in [stored, stored_bytes, unchanged, directories, not_done, removed] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&manifest.0);
    })
}

/// `works`: whether anything was done since the last message.
pub(crate) fn alive(works: bool) -> Bytes {
    message(Tag::Alive, |out| out.push(u8::from(works)))
}

fn put_name(out: &mut Vec<u8>, name: &[u8]) {
    out.push(name.len() as u8);
    out.extend_from_slice(name);
}

fn put_not_done(out: &mut Vec<u8>, why: &NotDone) {
    let text = cut(&why.message, MAX_REASON);
    out.extend_from_slice(&why.failure.to_u16().to_le_bytes());
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn decode_open(body: &[u8]) -> Result<Open, Malformed> {
    let mut r = Reader(body);
    let flags = r.u8()?;
    if flags & !(FLAG_CHECKSUM | FLAG_DELETE | FLAG_DRY_RUN | FLAG_COMPRESSED) != 0 {
        return Err(Malformed("reserved flags are set in the opening"));
    }
    let id = TransferId(u128::from_le_bytes(r.array()?));
    let source = r.array()?;
    let (purpose, name) = (r.u8()? as usize, r.u8()? as usize);
    let meta = r.u32()? as usize;
    if purpose > MAX_PURPOSE || meta > MAX_META {
        return Err(Malformed("a field of the opening is too long"));
    }
    let purpose = r.text(purpose)?;
    let name = r.take(name)?.to_vec();
    let meta = Bytes::copy_from_slice(r.take(meta)?);
    r.end()?;
    let (checksum, delete) = (flags & FLAG_CHECKSUM != 0, flags & FLAG_DELETE != 0);
    let (dry_run, compressed) = (flags & FLAG_DRY_RUN != 0, flags & FLAG_COMPRESSED != 0);
    Ok(Open { id, source, checksum, delete, dry_run, compressed, purpose, name, meta })
}

pub(crate) fn decode_ready(body: &[u8]) -> Result<Ready, Malformed> {
    let mut r = Reader(body);
    let flags = r.u8()?;
    if flags & !FLAG_DECOMPRESSES != 0 {
        return Err(Malformed("reserved flags are set in the answer to an opening"));
    }
    let name = r.name()?;
    r.end()?;
    Ok(Ready { decompresses: flags & FLAG_DECOMPRESSES != 0, name })
}

pub(crate) fn decode_refusal(body: &[u8]) -> Result<Refusal, Malformed> {
    let mut r = Reader(body);
    let refusal = r.refusal()?;
    r.end()?;
    Ok(refusal)
}

pub(crate) fn decode_page(body: &[u8], checksum: bool) -> Result<Vec<Entry>, Malformed> {
    let mut r = Reader(body);
    let count = r.u16()? as usize;
    if count == 0 || count > PAGE_ENTRIES {
        return Err(Malformed("a page has 1 to 1,024 entries"));
    }
    let entries = (0..count).map(|_| r.entry(checksum)).collect::<Result<Vec<_>, _>>()?;
    r.end()?;
    Ok(entries)
}

pub(crate) fn decode_verdicts(body: &[u8]) -> Result<(u64, Vec<Verdict>), Malformed> {
    let mut r = Reader(body);
    let first = r.u64()?;
    let count = r.u16()? as usize;
    if count == 0 || count > PAGE_ENTRIES {
        return Err(Malformed("verdicts are on 1 to 1,024 entries"));
    }
    let verdict = |r: &mut Reader<'_>| {
        Ok(match r.u8()? {
            0 => Verdict::Noted,
            1 => Verdict::Unchanged,
            2 => Verdict::Wanted,
            3 => Verdict::Refused(r.not_done()?),
            _ => return Err(Malformed("unknown verdict")),
        })
    };
    let verdicts = (0..count).map(|_| verdict(&mut r)).collect::<Result<Vec<_>, _>>()?;
    r.end()?;
    Ok((first, verdicts))
}

pub(crate) fn decode_results(body: &[u8]) -> Result<Vec<Outcome>, Malformed> {
    let mut r = Reader(body);
    let count = r.records()?;
    let mut outcomes = Vec::with_capacity(count.min(body.len() / 9));
    for _ in 0..count {
        let entry = r.u64()?;
        let result = match r.u8()? {
            0 => Ok(()),
            1 => Err(r.not_done()?),
            _ => return Err(Malformed("unknown result")),
        };
        outcomes.push(Outcome { entry, result });
    }
    r.end()?;
    Ok(outcomes)
}

pub(crate) fn decode_end(body: &[u8]) -> Result<(u64, Digest, bool), Malformed> {
    let mut r = Reader(body);
    let (entries, manifest) = (r.u64()?, Digest(r.array()?));
    let all_told = match r.u8()? {
        0 => true,
        1 => false,
        _ => return Err(Malformed("something has no entry, or everything has one")),
    };
    r.end()?;
    Ok((entries, manifest, all_told))
}

pub(crate) fn decode_done(body: &[u8]) -> Result<(Tally, Digest), Malformed> {
    let mut r = Reader(body);
    let tally = Tally {
        stored: r.u64()?,
        stored_bytes: r.u64()?,
        unchanged: r.u64()?,
        directories: r.u64()?,
        not_done: r.u64()?,
        removed: r.u64()?,
    };
    let manifest = Digest(r.array()?);
    r.end()?;
    Ok((tally, manifest))
}

pub(crate) fn decode_alive(body: &[u8]) -> Result<bool, Malformed> {
    match body {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Malformed("a sign of life says whether anything is done, or not")),
    }
}

impl Reader<'_> {
    fn records(&mut self) -> Result<usize, Malformed> {
        let count = self.u16()? as usize;
        if count <= RECORDS { Ok(count) } else { Err(Malformed("more than 4,096 records in a message")) }
    }

    fn name(&mut self) -> Result<Vec<u8>, Malformed> {
        let len = self.u8()? as usize;
        Ok(self.take(len)?.to_vec())
    }

    fn not_done(&mut self) -> Result<NotDone, Malformed> {
        let failure = EntryFailure::from_u16(self.u16()?);
        let len = self.u8()? as usize;
        if len > MAX_REASON {
            return Err(Malformed("a reason is too long"));
        }
        // It ends up on somebody's terminal.
        let message = self.text(len)?.replace(char::is_control, " ");
        Ok(NotDone { failure, message })
    }
}
