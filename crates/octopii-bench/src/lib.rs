//! What every measurement of a log shares: driving writers, the raw file that is the reference, a log of our own, tables.
#![expect(clippy::disallowed_methods, reason = "measures real time on real files")]

pub mod load;
pub mod logs;
pub mod raw_file;
pub mod report;

/// A result whose error is only ever told.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
