//! Writes messages and journals into a directory, as the fuzzer's first inputs.

use std::path::PathBuf;

use octopii_transfer::fuzzing;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = PathBuf::from(std::env::args().nth(1).ok_or("usage: transfer-seeds DIRECTORY")?);
    std::fs::create_dir_all(&corpus)?;
    for (n, (which, seed)) in fuzzing::seeds().into_iter().enumerate() {
        std::fs::write(corpus.join(format!("seed-{n}")), [&[which], &seed[..]].concat())?;
    }
    Ok(())
}
