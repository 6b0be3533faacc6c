//! Any bytes as a message of a chunk's or a tree's stream, as a compressed block, or as a journal: no panic, no huge allocation, nothing out of its
//! limits, and what was understood is understood in the same way again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octopii_fuzz::Limited;
use octopii_transfer::fuzzing;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| {
    let Some((which, data)) = data.split_first() else { return };
    match which {
        0 => fuzzing::message(data),
        1 => fuzzing::tree_message(data),
        3 => fuzzing::compressed(data),
        _ => fuzzing::journal(data),
    }
});
