//! Whole nodes on loopback: what the front door promises.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and read what nodes wrote"
)]

mod asking;
mod beside;
mod cluster;
mod data_dir;
mod executors;
mod isolation;
mod joining;
mod peers;
mod rotating;
mod snippets;
mod succession;

use std::path::Path;

use octopii::{Config, IdentitySource};

/// A configuration whose authority lies in the test's own directory, not in the user's.
fn config(home: &Path, name: &str) -> Config {
    Config {
        identity: IdentitySource::LocalAuthority(home.join("authority")),
        ..Config::new(home.join(name))
    }
}
