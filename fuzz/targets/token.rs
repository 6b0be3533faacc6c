//! Any text as a join token, and any bytes as what is inside one, as an issued certificate and as a revocation: no panic, nothing
//! huge, and whatever is taken is written back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octopii_fuzz::{Limited, token};
use octopii_transport::{Certified, JoinToken, Revocation};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    match which % 4 {
        0 => check(&String::from_utf8_lossy(data)),
        // Behind the checksum, where random text never gets.
        1 => check(&token::text(data)),
        2 => {
            if let Ok(certified) = Certified::from_bytes(data) {
                assert_eq!(certified.to_bytes(), data);
            }
        }
        _ => {
            if let Ok(revocation) = Revocation::from_bytes(data) {
                assert_eq!(revocation.to_bytes(), data);
            }
        }
    }
});

fn check(text: &str) {
    let Ok(token) = text.parse::<JoinToken>() else { return };
    assert_eq!(token.expose(), text, "two spellings of one token");
    assert!((1..=JoinToken::MAX_ADDRESSES).contains(&token.addresses().len()));
    // Derived from it without a panic.
    let _ = (token.verifier(), token.expires(), token.role());
}
