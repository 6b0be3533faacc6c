//! Writes the inputs that the fuzzer of RPC begins with.

fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).expect("usage: rpc-seeds DIRECTORY"));
    for (n, seed) in octopii_rpc::fuzzing::seeds().into_iter().enumerate() {
        std::fs::write(dir.join(format!("seed-{n}")), seed).expect("the directory can be written");
    }
}
