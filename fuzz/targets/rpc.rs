//! Any bytes as what a peer sends: no panic, no huge allocation, and what decodes survives being encoded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use octopii_fuzz::Limited;

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| octopii_rpc::fuzzing::decode(data));
