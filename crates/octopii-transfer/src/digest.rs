//! SHA-256 of a chunk, and of every prefix of it that ends a block.

use std::fmt;

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
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

/// What SHA-256 carries from one 64-byte block to the next: with the length so far it is all that hashing needs to go on.
/// Eight little-endian words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain(pub(crate) [u8; Chain::LEN]);

impl Chain {
    pub(crate) const LEN: usize = 32;
}

/// SHA-256 takes this many bytes at a time; between them it can be interrupted.
const GRAIN: u64 = 64;

impl PrefixHasher {
    /// Where hashing can go on from here; `None` in the middle of 64 bytes.
    pub(crate) fn chain(&self) -> Option<Chain> {
        let state = self.0.serialize();
        let (words, rest) = state.split_first_chunk::<{ Chain::LEN }>()?;
        // The number of blocks, then how many bytes of the next one wait.
        (rest.get(8) == Some(&0)).then_some(Chain(*words))
    }

    /// A hasher that has seen `len` bytes and goes on from there; `None` unless they are a multiple of 64.
    pub(crate) fn after(chain: Chain, len: u64) -> Option<Self> {
        let mut state = SerializedState::<Sha256>::default();
        state[..Chain::LEN].copy_from_slice(&chain.0);
        state[Chain::LEN..Chain::LEN + 8].copy_from_slice(&(len / GRAIN).to_le_bytes());
        if !len.is_multiple_of(GRAIN) {
            return None;
        }
        Sha256::deserialize(&state).ok().map(Self)
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

    /// Journals keep these bytes: another release of the library must give the same ones.
    #[test]
    fn hashing_goes_on_from_a_chain() {
        let data: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        let mut hasher = PrefixHasher::default();
        hasher.update(&data[..640]);
        let chain = hasher.chain().unwrap();
        let mut other = PrefixHasher::after(chain, 640).unwrap();
        assert_eq!(other.prefix(), Digest::of(&data[..640]));
        other.update(&data[640..]);
        assert_eq!(other.prefix(), Digest::of(&data));
        assert_eq!(other.chain(), None, "in the middle of 64 bytes");
        assert!(PrefixHasher::after(chain, 641).is_none());
        // The initial words of FIPS 180-4, section 5.3.3.
        let initial = PrefixHasher::default().chain().unwrap();
        assert_eq!(initial.0[..8], [0x67, 0xe6, 0x09, 0x6a, 0x85, 0xae, 0x67, 0xbb]);
    }

    #[test]
    fn prints_as_sha256sum_does() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), expected);
    }
}
