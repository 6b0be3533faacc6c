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

# Cut the power of a real ext4 under 64 writers of the log, as root: `just power-cuts 30`
power-cuts cuts="15": (_needs "mkfs.ext4" "e2fsprogs") (_needs "strace" "strace")
    if [ "$(id -u)" = 0 ]; then in_namespace="unshare --mount"; fi; \
    OCTOPII_WAL_CUTS={{cuts}} ${in_namespace-} cargo test -p octopii-wal --test it -- --ignored --nocapture --test-threads 1 power::

# Fail the log's system calls one at a time
strace-faults: (_needs "strace" "strace")
    cargo test -p octopii-wal --test it -- --ignored --nocapture strace::

# Explore interleavings of the log's threads: `just shuttle 100000`
shuttle schedules="2000":
    OCTOPII_SCHEDULES={{schedules}} RUSTFLAGS="--cfg shuttle" cargo test --release --target-dir target/shuttle -p octopii-wal --lib interleavings

# Kill senders, receivers and relays at random points of a file of 1 GiB: `just kills 20`
kills times="20" mib="1024":
    OCTOPII_KILLS={{times}} OCTOPII_KILL_MIB={{mib}} cargo test --release -p octopii-cli --test it -- --nocapture --test-threads 1 killed::after

# See by its system calls what a receiver has done before it acknowledges
transfer-syscalls: (_needs "strace" "strace")
    cargo test -p octopii-cli --test it -- --ignored --nocapture --test-threads 1 syscalls::

# Fuzz a target for so many seconds
fuzz target="wal" seconds="600":
    fuzz/run {{target}} {{seconds}}

# Take away the log's rules one at a time: each must be missed by the test named for it
mutants group="wal" *patches:
    mutants/run {{group}} {{patches}}

_needs command package:
    @command -v {{command}} >/dev/null || apt-get install -y {{package}} \
        || { echo "install {{package}}, for {{command}}"; exit 1; }

# Every figure of docs/BENCHMARKS.md
bench *args:
    cargo run --release -p octopii-bench -- {{args}}

# Our log beside others from the registry, a crate outside the workspace (from its folder: it has settings there)
bench-peers *args:
    cd crates/octopii-bench-peers && cargo run --release --locked --no-default-features --features logs --bin octopii-bench-peers -- {{args}}

# Our RPC beside tonic and tarpc, in the same crate
bench-rpc-peers *args:
    cd crates/octopii-bench-peers && cargo run --release --locked --no-default-features --features rpc --bin rpc-peers -- {{args}}

# Licences, sources and the direction of dependencies (needs cargo-deny)
deny:
    cargo deny check
