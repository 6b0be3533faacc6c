//! What the traits promise, on the machine's own file system.

mod durable;
mod real;
