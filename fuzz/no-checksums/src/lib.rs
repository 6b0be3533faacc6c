//! The functions of `crc32c` that Octopii uses, with one result for everything.

/// 0.
pub fn crc32c(_data: &[u8]) -> u32 {
    0
}

/// 0.
pub fn crc32c_append(_crc: u32, _data: &[u8]) -> u32 {
    0
}
