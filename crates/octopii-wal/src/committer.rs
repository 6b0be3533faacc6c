//! The committing thread.

use std::io;
use std::sync::Arc;

use crate::options::Durability;
use crate::shared::Shared;
use crate::sync::atomic::Ordering;
use crate::sync::thread::{self, JoinHandle};

/// Starts the thread. It ends when the log closes, after everything is durable.
pub(crate) fn spawn(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let for_thread = Arc::clone(shared);
    let handle = thread::Builder::new().name("octopii-wal".to_owned()).spawn(move || run(&for_thread))?;
    shared.thread.get_or_init(|| handle.thread().clone());
    Ok(handle)
}

fn run(shared: &Shared) {
    loop {
        // A failure stops the log, and everyone concerned has been told.
        while shared.is_urgent() && shared.commit_once().is_ok() {}
        if shared.closing.load(Ordering::Acquire) {
            return;
        }
        match shared.options.durability {
            Durability::Interval(patience) if shared.has_queued() => {
                thread::park_timeout(patience);
                // If it was woken early, it syncs early.
                let _ = shared.commit_once();
            }
            // `unpark` before `park` makes it return at once, so nothing that was queued since is missed.
            _ => thread::park(),
        }
    }
}
