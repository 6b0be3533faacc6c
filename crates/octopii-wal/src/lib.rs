//! A durable, topic-isolated write-ahead log with group commit.

mod batch;
mod committer;
mod error;
mod format;
mod index;
mod inspect;
mod log;
mod options;
mod read;
mod recovery;
mod scan;
mod shared;
mod state;
mod ticket;
mod topic;
mod writer;

pub use batch::Batch;
pub use error::{Damage, Error, OpenError};
pub use inspect::{Inspection, SegmentInfo, TopicInfo, inspect};
pub use log::{Stats, WriteAheadLog};
pub use octopii_vfs as vfs;
pub use options::{Committer, Durability, MAX_ENTRY, MAX_INDEX, Options};
pub use recovery::Tail;
pub use ticket::{Durable, Ticket};
pub use topic::Topic;
