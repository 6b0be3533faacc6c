# Everyday commands; `just` lists them.

default:
    @just --list

# What continuous integration runs
ci:
    bash .ci/run

# Format, lints and docs
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# The tests
test:
    cargo test

# Simulate many more seeds: `just simulate 0..500`
simulate seeds="0..200":
    OCTOPII_SEEDS={{seeds}} cargo test --release -p octopii-sim

# The test suite again and again, to find flakes
repeat times="10":
    for i in $(seq {{times}}); do cargo test -q || exit 1; done

# Every figure of docs/BENCHMARKS.md
bench *args:
    cargo run --release -p octopii-bench -- {{args}}

# Licences, sources and the direction of dependencies (needs cargo-deny)
deny:
    cargo deny check
