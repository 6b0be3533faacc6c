//! A durable, topic-isolated write-ahead log with group commit.
//!
//! Entries go to named topics; all topics of a log share one stream of segment files, so one `fdatasync` commits what
//! the writers of every topic are waiting for. There is no async runtime in here: a [`Ticket`] can be waited for by a
//! thread or awaited in any executor.
//!
//! ```
//! use octopii_wal::{Options, WriteAheadLog};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let log = WriteAheadLog::open(dir.path().join("wal"), Options::default())?;
//! let orders = log.topic("orders")?;
//! let ticket = orders.append("three pieces")?;
//! assert_eq!(ticket.index(), Some(0));
//! ticket.wait()?; // durable from here on
//! assert_eq!(orders.read(0)?.unwrap(), "three pieces");
//! # Ok(())
//! # }
//! ```
//!
//! A [`Cursor`] is a consumer's place in a topic, kept in the log, for reading at least once, at most once or exactly
//! once; it can wait for entries to come.
//!
//! # What is guaranteed
//!
//! With [`Durability::Synced`], the default, and a disk that keeps what it has confirmed:
//!
//! - **After a crash of the process or a power cut** every operation whose ticket was fulfilled is there. Of the others a
//!   prefix is there, in the order in which they were called: none before an operation that is missing. A [`Batch`] is
//!   there as a whole or not at all. What was there after one recovery is there after the next.
//! - **On a full disk** operations fail with [`Error::StorageFull`] and are not in the log; nothing acknowledged is
//!   touched. Purging, truncating and metadata still work as long as the space kept for them in the segment lasts (an
//!   eighth of the segment, at most 64 KiB), and appending works again when there is space.
//! - **When a write or a sync fails** everything not yet acknowledged fails with [`Error::Poisoned`] and may or may not be
//!   there after the log is opened again. A failed sync is never tried again.
//! - **A flipped bit or a missing segment** is an error that names the place, [`OpenError::Damaged`] or, in a sealed segment
//!   when the entry is read, [`Error::Damaged`], and never wrong data. [`verify`] finds it beforehand. One exception: in a log that was *not* closed in good order, damage within
//!   the very last commit looks like a write that was interrupted, and that commit is dropped.
//! - **Two logs on one directory** cannot be: the second one gets [`OpenError::Locked`].
//!
//! The bytes on disk are described in `docs/formats/wal.md` of the repository, the rest in `docs/WAL.md`.

// The integration tests' disk knows the crate by its name.
#[cfg(all(test, shuttle))]
extern crate self as octopii_wal;

mod appending;
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod batch;
mod committer;
mod cursor;
mod delay;
mod dump;
mod error;
mod follow;
mod format;
mod index;
mod inspect;
#[cfg(all(test, shuttle))]
mod interleavings;
mod log;
mod options;
mod read;
mod reclaim;
mod recovery;
mod replay;
mod room;
mod scan;
mod seal;
mod shared;
mod spares;
mod state;
mod sync;
mod ticket;
mod topic;
mod verify;
mod writer;

pub use appending::Appending;
pub use batch::Batch;
pub use cursor::Cursor;
pub use delay::CommitDelay;
pub use dump::{Dumped, DumpedChange, DumpedRecord, dump};
pub use error::{Damage, Error, OpenError};
pub use follow::Ready;
pub use inspect::{Inspection, SegmentInfo, TopicInfo, inspect};
pub use log::{Stats, WriteAheadLog};
pub use octopii_vfs as vfs;
pub use options::{Committer, Durability, MAX_ENTRY, MAX_INDEX, Options};
pub use reclaim::Laggard;
pub use recovery::Tail;
pub use ticket::{Durable, Ticket};
pub use topic::Topic;
pub use verify::{Verification, verify};
