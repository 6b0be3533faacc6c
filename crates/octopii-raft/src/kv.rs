//! The built-in state machine: a sorted key-value store.

use std::io;
use std::io::{Read, Write};
use std::ops::Bound;

use bytes::Bytes;
use imbl::OrdMap;
use octopii_rpc::{Bincode, Codec};
use serde::{Deserialize, Serialize};

use crate::state_machine::{Rejected, SnapshotSource, StateMachine};

/// A sorted key-value store in memory. Commands are [`KvCommand`]s, queries are [`KvQuery`]s, answers [`KvResponse`]s.
///
/// Keys are at most [`KvStore::KEY_LIMIT`] bytes long. Capturing a snapshot takes constant time.
#[derive(Debug, Clone, Default)]
pub struct KvStore {
    entries: OrdMap<Vec<u8>, Bytes>,
}

/// A change to a [`KvStore`], to be encoded with [`encode`](KvCommand::encode) and proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvCommand {
    /// Sets `key` to `value`. Answered by [`KvResponse::Previous`].
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Removes `key`, if it is there. Answered by [`KvResponse::Previous`].
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// Sets `key` to `value` (or removes it, with `None`) if its value now is `expected` (`None`: if it is absent).
    /// Answered by [`KvResponse::Swapped`].
    CompareAndSet {
        /// The key.
        key: Vec<u8>,
        /// What the value must be for the change to happen.
        expected: Option<Vec<u8>>,
        /// The value it gets.
        value: Option<Vec<u8>>,
    },
}

/// A question to a [`KvStore`], to be encoded with [`encode`](KvQuery::encode) and queried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvQuery {
    /// The value of `key`. Answered by [`KvResponse::Value`].
    Get {
        /// The key.
        key: Vec<u8>,
    },
    /// The entries from `start` (inclusive) to `end` (exclusive; `None`: to the last key), in key order. Answered by
    /// [`KvResponse::Entries`].
    Range {
        /// The first key of interest.
        start: Vec<u8>,
        /// The first key beyond it.
        end: Option<Vec<u8>>,
        /// At most this many entries; an answer also ends after about 1 MiB.
        limit: u32,
    },
}

/// What a [`KvStore`] answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvResponse {
    /// The change was made; the key's value before it.
    Previous(Option<Vec<u8>>),
    /// Whether the comparison held and the change was made, and the key's value before it.
    Swapped {
        /// Whether the change was made.
        swapped: bool,
        /// The value found.
        previous: Option<Vec<u8>>,
    },
    /// The key's value, if it has one.
    Value(Option<Vec<u8>>),
    /// Entries in key order.
    Entries {
        /// Keys and values.
        entries: Vec<(Vec<u8>, Vec<u8>)>,
        /// Whether there are more in the range: ask again from just after the last key.
        more: bool,
    },
}

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a key-value {what}: encode it with octopii_raft::Kv{what}::encode")]
pub struct KvDecodeError {
    what: &'static str,
}

macro_rules! encoding {
    ($kind:ident, $what:literal) => {
        impl $kind {
            /// The bytes to send.
            pub fn encode(&self) -> Bytes {
                Bincode::encode(self).expect("these types always encode").into()
            }

            /// Reads what [`encode`](Self::encode) wrote.
            pub fn decode(bytes: &[u8]) -> Result<Self, KvDecodeError> {
                Bincode::decode(bytes).map_err(|_| KvDecodeError { what: $what })
            }
        }
    };
}
encoding!(KvCommand, "Command");
encoding!(KvQuery, "Query");
encoding!(KvResponse, "Response");

impl KvStore {
    /// The longest key, in bytes.
    pub const KEY_LIMIT: usize = 64 << 10;

    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Option<Bytes> {
        match value {
            Some(value) => self.entries.insert(key, value.into()),
            None => self.entries.remove(&key),
        }
    }

    fn range(&self, start: &[u8], end: Option<&[u8]>, limit: u32) -> KvResponse {
        let mut entries = Vec::new();
        let mut bytes = 0;
        if end.is_some_and(|end| end <= start) {
            return KvResponse::Entries { entries, more: false };
        }
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        for (key, value) in self.entries.range::<_, [u8]>((Bound::Included(start), upper)) {
            if entries.len() >= limit as usize || bytes >= RANGE_BYTES {
                return KvResponse::Entries { entries, more: true };
            }
            bytes += key.len() + value.len();
            entries.push((key.clone(), value.to_vec()));
        }
        KvResponse::Entries { entries, more: false }
    }
}

const RANGE_BYTES: usize = 1 << 20;

impl StateMachine for KvStore {
    fn apply(&mut self, command: &[u8]) -> Result<Bytes, Rejected> {
        let command = KvCommand::decode(command).map_err(Rejected::new)?;
        let (KvCommand::Put { key, .. } | KvCommand::Delete { key } | KvCommand::CompareAndSet { key, .. }) =
            &command;
        check_key(key)?;
        let response = match command {
            KvCommand::Put { key, value } => {
                KvResponse::Previous(self.set(key, Some(value)).map(|v| v.to_vec()))
            }
            KvCommand::Delete { key } => KvResponse::Previous(self.set(key, None).map(|v| v.to_vec())),
            KvCommand::CompareAndSet { key, expected, value } => {
                let previous = self.entries.get(&key).map(|v| v.to_vec());
                let swapped = previous == expected;
                if swapped {
                    self.set(key, value);
                }
                KvResponse::Swapped { swapped, previous }
            }
        };
        Ok(response.encode())
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, Rejected> {
        let response = match KvQuery::decode(query).map_err(Rejected::new)? {
            KvQuery::Get { key } => KvResponse::Value(self.entries.get(&key).map(|v| v.to_vec())),
            KvQuery::Range { start, end, limit } => self.range(&start, end.as_deref(), limit),
        };
        Ok(response.encode())
    }

    fn capture(&self) -> Box<dyn SnapshotSource> {
        Box::new(Captured(self.entries.clone()))
    }

    fn restore(&mut self, snapshot: &mut dyn Read) -> io::Result<()> {
        let mut entries = OrdMap::new();
        for _ in 0..read_len(snapshot)? {
            let key = read_bytes(snapshot)?;
            let value = read_bytes(snapshot)?;
            entries.insert(key, value.into());
        }
        self.entries = entries;
        Ok(())
    }
}

fn check_key(key: &[u8]) -> Result<(), Rejected> {
    if key.len() > KvStore::KEY_LIMIT {
        return Err(Rejected::new(format_args!(
            "the key is {} bytes long; the limit is {}",
            key.len(),
            KvStore::KEY_LIMIT
        )));
    }
    Ok(())
}

/// Entry count, then per entry key length, key, value length, value; counts and lengths are 8 bytes, little-endian.
struct Captured(OrdMap<Vec<u8>, Bytes>);

impl SnapshotSource for Captured {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.0.len() as u64).to_le_bytes())?;
        for (key, value) in &self.0 {
            for part in [key.as_slice(), value] {
                out.write_all(&(part.len() as u64).to_le_bytes())?;
                out.write_all(part)?;
            }
        }
        Ok(())
    }
}

fn read_len(from: &mut dyn Read) -> io::Result<u64> {
    let mut len = [0; 8];
    from.read_exact(&mut len)?;
    Ok(u64::from_le_bytes(len))
}

fn read_bytes(mut from: &mut dyn Read) -> io::Result<Vec<u8>> {
    let len = read_len(from)?;
    let mut bytes = Vec::new();
    // `take` grows the buffer with what really arrives, whatever the length claims.
    if (&mut from).take(len).read_to_end(&mut bytes)? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
