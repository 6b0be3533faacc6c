//! One log entry as bytes: the same on disk and on the wire.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind: 0 blank, 1 command, 2 membership |
//! | 8 | log index |
//! | 8 | term of the leader that wrote it |
//! | 8 | node id of that leader |
//! | rest | command: client (16), sequence (8), settled (8), the application's bytes; membership: bincode |
//!
//! Integers are little-endian. Integrity is the log's and the transport's business.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;

use crate::group::{Command, Entry, LeaderId, LogId};
use crate::session::ProposalId;
use crate::wire;

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

const HEADER: usize = 1 + 8 + 8 + 8;
const PROPOSAL: usize = 16 + 8 + 8;

pub(crate) fn encode(entry: &Entry) -> Bytes {
    let (kind, rest) = match &entry.payload {
        EntryPayload::Blank => (BLANK, 0),
        EntryPayload::Normal(command) => (COMMAND, PROPOSAL + command.payload.len()),
        EntryPayload::Membership(_) => (MEMBERSHIP, 256),
    };
    let mut out = BytesMut::with_capacity(HEADER + rest);
    out.put_u8(kind);
    out.put_u64_le(entry.log_id.index);
    out.put_u64_le(entry.log_id.leader_id.term);
    out.put_u64_le(entry.log_id.leader_id.node_id);
    match &entry.payload {
        EntryPayload::Blank => {}
        EntryPayload::Normal(command) => put_command(&mut out, command),
        EntryPayload::Membership(membership) => {
            out.put_slice(&wire::encode(&wire::Membership::from(membership)));
        }
    }
    out.freeze()
}

/// Decodes an entry; the application's bytes go on sharing `bytes`.
pub(crate) fn decode(mut bytes: Bytes) -> io::Result<Entry> {
    if bytes.len() < HEADER {
        return Err(invalid("an entry is shorter than its header"));
    }
    let kind = bytes.get_u8();
    let index = bytes.get_u64_le();
    let leader_id = LeaderId { term: bytes.get_u64_le(), node_id: bytes.get_u64_le() };
    let payload = match kind {
        BLANK if bytes.is_empty() => EntryPayload::Blank,
        COMMAND => EntryPayload::Normal(get_command(bytes)?),
        MEMBERSHIP => EntryPayload::Membership(wire::decode::<wire::Membership>(&bytes)?.try_into()?),
        _ => return Err(invalid("an entry of unknown kind; was it written by a newer version?")),
    };
    Ok(Entry { log_id: LogId { leader_id, index }, payload })
}

/// A command alone, as it travels from the proposing node to the leader.
pub(crate) fn encode_command(command: &Command) -> Bytes {
    let mut out = BytesMut::with_capacity(PROPOSAL + command.payload.len());
    put_command(&mut out, command);
    out.freeze()
}

/// Reads what [`encode_command`] wrote.
pub(crate) fn get_command(mut bytes: Bytes) -> io::Result<Command> {
    if bytes.len() < PROPOSAL {
        return Err(invalid("a command is shorter than its header"));
    }
    let id =
        ProposalId { client: bytes.get_u128_le(), sequence: bytes.get_u64_le(), settled: bytes.get_u64_le() };
    Ok(Command { id, payload: bytes })
}

fn put_command(out: &mut BytesMut, command: &Command) {
    out.put_u128_le(command.id.client);
    out.put_u64_le(command.id.sequence);
    out.put_u64_le(command.id.settled);
    out.put_slice(&command.payload);
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::group::Membership;
    use crate::member::Member;

    fn round_trip(payload: EntryPayload<Command, u64, Member>) {
        let entry =
            Entry { log_id: LogId { leader_id: LeaderId { term: 3, node_id: 9 }, index: 77 }, payload };
        assert_eq!(decode(encode(&entry)).unwrap(), entry);
    }

    #[test]
    fn entries_survive_encoding() {
        let id = ProposalId { client: u128::MAX - 5, sequence: 6, settled: 2 };
        round_trip(EntryPayload::Blank);
        round_trip(EntryPayload::Normal(Command { id, payload: Bytes::from_static(b"put") }));
        round_trip(EntryPayload::Normal(Command { id, payload: Bytes::new() }));
        let nodes = BTreeMap::from([(1, Member::default()), (2, Member::default()), (3, Member::default())]);
        let membership = Membership::new(vec![BTreeSet::from([1, 2])], nodes).unwrap();
        round_trip(EntryPayload::Membership(membership));
    }

    #[test]
    fn addresses_of_members_are_kept_as_they_are_and_hostile_ones_refused() {
        let entry = |addr: &str| {
            let member = |addr: &str| Member { addr: addr.parse().unwrap(), incarnation: 5 };
            let membership =
                Membership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, member(addr))])).unwrap();
            let log_id = LogId { leader_id: LeaderId { term: 3, node_id: 9 }, index: 77 };
            Entry { log_id, payload: EntryPayload::Membership(membership) }
        };
        for addr in ["10.0.0.1:4701", "[2001:db8::1]:4701", "node-1.octopii.svc:4400", "Node_1.:1"] {
            let bytes = encode(&entry(addr));
            assert_eq!(decode(bytes.clone()).unwrap(), entry(addr));
            assert!(bytes.windows(addr.len()).any(|part| part == addr.as_bytes()), "as its text: {addr}");
        }
        // The same number of bytes, so that nothing but the name is wrong.
        let good = encode(&entry("node:4400"));
        let at = good.windows(9).position(|part| part == b"node:4400").unwrap();
        for wrong in
            [b"n\x1bde:4400", b"n de:4400", b"node:0000", b"node-4400", b"n\xffde:4400", b"n\0de:4400"]
        {
            let mut bytes = good.to_vec();
            bytes[at..at + 9].copy_from_slice(wrong);
            assert!(decode(bytes.into()).is_err(), "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn a_command_is_laid_out_as_documented() {
        let id = ProposalId { client: 1, sequence: 2, settled: 3 };
        let entry = Entry {
            log_id: LogId { leader_id: LeaderId { term: 5, node_id: 6 }, index: 4 },
            payload: EntryPayload::Normal(Command { id, payload: Bytes::from_static(b"x") }),
        };
        let mut expected = vec![1, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, b'x']);
        assert_eq!(encode(&entry), expected);
    }

    #[test]
    fn damaged_entries_are_refused() {
        for bytes in [&[][..], &[0; 24], &[0; 26], &[3; 40], &[1; 40], &[2; 40]] {
            assert!(decode(Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }
}
