//! Typed values as bytes. The one place that names bincode and JSON.
//!
//! bincode 2.0.1 is final: its format is frozen, which is what a wire and disk format wants.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Turns values into bytes and back.
pub trait Codec {
    /// Encodes a value.
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError>;

    /// Decodes exactly one value from all of `bytes`. The bytes are hostile until decoded: a length in them never
    /// allocates more than the decode limit.
    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError>;
}

/// bincode 2 in its standard configuration: little endian, variable-length integers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bincode;

/// JSON, as `octopii call` writes it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json;

/// How the bodies of a call are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// The method's own: [`Bincode`] for typed handlers, what they please for handlers of raw bytes.
    #[default]
    Native,
    /// [`Json`], which every typed handler understands as well.
    Json,
}

impl Encoding {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Native => 0,
            Self::Json => 1,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Native, Self::Json].into_iter().find(|e| e.to_byte() == byte)
    }

    pub(crate) fn encode<T: Serialize + ?Sized>(self, value: &T) -> Result<Bytes, CodecError> {
        Ok(match self {
            Self::Native => Bincode::encode(&value)?.into(),
            Self::Json => Json::encode(&value)?.into(),
        })
    }

    pub(crate) fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, CodecError> {
        match self {
            Self::Native => Bincode::decode(bytes),
            Self::Json => Json::decode(bytes),
        }
    }
}

/// A value that does not encode, or bytes that are no such value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value cannot be encoded.
    #[error("cannot encode: {0}")]
    Encode(String),
    /// The bytes are not such a value.
    #[error("cannot decode: {0}")]
    Decode(String),
    /// The value ended before the bytes did.
    #[error("cannot decode: {0} bytes left over")]
    Trailing(usize),
}

/// Memory that decoding one value may claim, in bytes.
const DECODE_LIMIT: usize = 64 << 20;

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODE_LIMIT>()
}

impl Codec for Bincode {
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
        bincode::serde::encode_to_vec(value, bincode::config::standard())
            .map_err(|e| CodecError::Encode(e.to_string()))
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        let (value, used) = bincode::serde::decode_from_slice(bytes, config())
            .map_err(|e| CodecError::Decode(e.to_string()))?;
        if used == bytes.len() { Ok(value) } else { Err(CodecError::Trailing(bytes.len() - used)) }
    }
}

impl Codec for Json {
    fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
        serde_json::to_vec(value).map_err(|e| CodecError::Encode(e.to_string()))
    }

    fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
        serde_json::from_slice(bytes).map_err(|e| CodecError::Decode(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Golden {
        Unit,
        Pair(u64, String),
        Fields { list: Vec<u16>, maybe: Option<bool> },
    }

    /// The format is frozen: nodes of different releases and files of different years must understand each other.
    #[test]
    fn golden_vectors() {
        let vectors: [(Golden, &[u8]); 4] = [
            (Golden::Unit, &[0]),
            (Golden::Pair(7, "hé".into()), &[1, 7, 3, b'h', 0xc3, 0xa9]),
            (Golden::Pair(300, String::new()), &[1, 251, 44, 1, 0]),
            (Golden::Fields { list: vec![1, 65535], maybe: Some(true) }, &[2, 2, 1, 251, 255, 255, 1, 1]),
        ];
        for (value, bytes) in vectors {
            assert_eq!(Bincode::encode(&value).unwrap(), bytes, "{value:?}");
            assert_eq!(Bincode::decode::<Golden>(bytes).unwrap(), value);
        }
    }

    #[test]
    fn hostile_lengths_do_not_allocate() {
        // A vector that announces 2^63 bytes, and one just under the address space.
        for len in [[253, 0, 0, 0, 0, 0, 0, 0, 0x80], [253, 255, 255, 255, 255, 255, 255, 255, 0x7f]] {
            assert!(Bincode::decode::<Vec<u8>>(&len).is_err());
        }
        assert_eq!(Bincode::decode::<u8>(&[1, 2]), Err(CodecError::Trailing(1)));
        assert!(Bincode::decode::<String>(&[2, 0xff, 0xff]).is_err());
    }
}
