//! The `octopii` command.
fn main() {}
