//! The outside of a join token, by the words of its description: base 32 and a checksum.

const PREFIX: &str = "octopii-join-";
const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A text with the right checksum around any body.
pub fn text(body: &[u8]) -> String {
    let sum = ring::digest::digest(&ring::digest::SHA256, body);
    let bytes = [body, &sum.as_ref()[..4]].concat();
    let mut text = PREFIX.to_owned();
    for group in bytes.chunks(5) {
        let mut padded = [0; 8];
        padded[3..3 + group.len()].copy_from_slice(group);
        let bits = u64::from_be_bytes(padded);
        for i in 0..(group.len() * 8).div_ceil(5) {
            text.push(DIGITS[(bits >> (35 - 5 * i)) as usize & 31] as char);
        }
    }
    text
}

/// What is within a text, without its checksum.
pub fn body(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0u32, 0);
    for digit in text.strip_prefix(PREFIX)?.bytes() {
        bits = (bits << 5) | DIGITS.iter().position(|d| *d == digit)? as u32;
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes.truncate(bytes.len().checked_sub(4)?);
    Some(bytes)
}
