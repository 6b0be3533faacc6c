//! What a caller sends along with a request, and a handler beside its response.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

/// Most entries of one request's metadata.
pub const MAX_METADATA_ENTRIES: usize = 64;
/// Most bytes of one request's metadata: keys and values together.
pub const MAX_METADATA_BYTES: usize = 8 << 10;
/// Longest key in bytes.
const MAX_KEY: usize = 64;

/// Names and values that a caller sends along with a request (a tenant, a priority, a token of the application's own), or a
/// handler beside its response ([`Context::respond_with`](crate::Context::respond_with)).
///
/// At most [`MAX_METADATA_ENTRIES`] entries and [`MAX_METADATA_BYTES`] bytes. A name may occur more than once. Metadata is not
/// passed on to calls that a handler makes, nor from their responses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    entries: Vec<(String, Bytes)>,
    bytes: usize,
}

/// Metadata that does not travel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// The name is empty, too long, or has characters other than these.
    #[error("{0:?} is no metadata name: use up to 64 of a-z, 0-9, '-', '_' and '.'")]
    Name(String),
    /// There are too many entries or bytes.
    #[error(
        "more metadata than travels beside a request or response ({MAX_METADATA_ENTRIES} entries, {MAX_METADATA_BYTES} bytes): put it \
         into the body"
    )]
    TooMuch,
}

impl Metadata {
    /// No entries.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), bytes: 0 }
    }

    /// Adds an entry. Names have up to 64 of the characters a–z, 0–9, `-`, `_` and `.`; values are any bytes.
    pub fn insert(&mut self, name: &str, value: impl Into<Bytes>) -> Result<(), MetadataError> {
        let value = value.into();
        if !is_name(name.as_bytes()) {
            return Err(MetadataError::Name(name.chars().take(MAX_KEY + 1).collect()));
        }
        let bytes = self.bytes + name.len() + value.len();
        if self.entries.len() == MAX_METADATA_ENTRIES || bytes > MAX_METADATA_BYTES {
            return Err(MetadataError::TooMuch);
        }
        self.bytes = bytes;
        self.entries.push((name.to_owned(), value));
        Ok(())
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.get_all(name).next()
    }

    /// The first value of this name, if it is UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values of this name, in order.
    pub fn get_all(&self, name: &str) -> impl Iterator<Item = &Bytes> {
        self.entries.iter().filter(move |(n, _)| n == name).map(|(_, value)| value)
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Where a call puts the metadata that comes back: give it to [`CallOptions::response_metadata`](crate::CallOptions), and look
/// into it when the call has ended, well or not.
///
/// On a stream of responses, it holds what has come ahead of the responses taken so far, and everything when the stream has ended.
/// Each attempt of a call begins with none, so calls at the same time want one each. Cloning gives another handle to the same.
#[derive(Debug, Clone, Default)]
pub struct ResponseMetadata(Arc<Mutex<Metadata>>);

impl ResponseMetadata {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What has come so far.
    pub fn get(&self) -> Metadata {
        self.0.lock().expect("no panic while held").clone()
    }

    pub(crate) fn clear(&self) {
        *self.0.lock().expect("no panic while held") = Metadata::new();
    }

    pub(crate) fn add(&self, name: &str, value: Bytes) -> Result<(), MetadataError> {
        self.0.lock().expect("no panic while held").insert(name, value)
    }
}

fn is_name(name: &[u8]) -> bool {
    let legal = |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(c);
    (1..=MAX_KEY).contains(&name.len()) && name.iter().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_values_and_amounts_are_bounded() {
        let mut metadata = Metadata::new();
        for name in ["", "Tenant", "a b", "é", &"x".repeat(65)] {
            assert!(matches!(metadata.insert(name, "v"), Err(MetadataError::Name(_))), "{name}");
        }
        for _ in 0..MAX_METADATA_ENTRIES {
            metadata.insert("tenant", "acme").unwrap();
        }
        assert_eq!(metadata.insert("tenant", "acme"), Err(MetadataError::TooMuch));
        let mut metadata = Metadata::new();
        assert_eq!(metadata.insert("x", vec![0; MAX_METADATA_BYTES]), Err(MetadataError::TooMuch));
        metadata.insert("x", vec![0; MAX_METADATA_BYTES - 1]).unwrap();
        assert_eq!(metadata.insert("y", ""), Err(MetadataError::TooMuch));
    }

    #[test]
    fn the_first_of_several_values_is_told() {
        let mut metadata = Metadata::new();
        metadata.insert("tag", "one").unwrap();
        metadata.insert("tag", "two").unwrap();
        metadata.insert("bin", vec![0xff]).unwrap();
        assert_eq!(metadata.get_str("tag"), Some("one"));
        assert_eq!(metadata.get_all("tag").count(), 2);
        assert_eq!((metadata.get_str("bin"), metadata.get("none")), (None, None));
    }
}
