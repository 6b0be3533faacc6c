//! Real clusters on loopback: real endpoints with mutual TLS, real logs and real files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;
mod forged;
mod killed;
mod kv;
mod lifecycle;
mod membership;
mod names;
mod replication;
