//! SHA-256 of a chunk, and of every prefix of it that ends a block.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest. Displays as the 64 hexadecimal digits that `sha256sum` prints.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(Sha256::digest(data).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// The running digest of the bytes seen so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct PrefixHasher(Sha256);

impl PrefixHasher {
    pub(crate) fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of everything so far; costs one compression, whatever came before.
    pub(crate) fn prefix(&self) -> Digest {
        Digest(self.0.clone().finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_the_digests_of_the_prefixes() {
        let data: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        let mut hasher = PrefixHasher::default();
        assert_eq!(hasher.prefix(), Digest::of(b""));
        for (i, part) in data.chunks(100).enumerate() {
            hasher.update(part);
            assert_eq!(hasher.prefix(), Digest::of(&data[..(i + 1) * 100]));
        }
    }

    #[test]
    fn prints_as_sha256sum_does() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), expected);
    }
}
