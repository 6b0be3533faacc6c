//! Waiting for the next entry.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::cursor::Cursor;
use crate::error::Error;
use crate::options::{Committer, Durability};
use crate::shared::lock;
use crate::state::Waiter;
use crate::sync::{Condvar, Mutex, PoisonError};

/// Wakes one thread that waits for entries. Unlike `unpark` it can be waited for with a time limit that holds however often
/// it fires.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    mutex: Mutex<()>,
    fired: Condvar,
}

impl Signal {
    pub(crate) fn fire(&self) {
        // Whoever is about to wait looks for entries while holding the mutex, so it has either seen them or hears this.
        drop(lock(&self.mutex));
        self.fired.notify_all();
    }
}

/// What there is for a follower.
enum Step {
    Done(Result<(), Error>),
    /// Entries that nobody but the caller may commit.
    Commit,
    Waiting,
}

/// A follower that is or was registered; it no longer is when this is dropped.
struct Registration<'a> {
    cursor: &'a Cursor,
    id: Option<u64>,
}

impl Registration<'_> {
    /// Looks whether there is something to hand out, and if not, has `waiter` woken when there is.
    fn step(&mut self, waiter: impl FnOnce() -> Waiter) -> Step {
        let topic = self.cursor.topic();
        let shared = &topic.handle().shared;
        // Wakers are dropped only when the lock is free again, since that may run anything.
        let replaced;
        let wants_commit;
        {
            let mut state = shared.state();
            let (from, to) = self.cursor.available(&state);
            let next = state.topic(topic.id()).next();
            let outcome = if from < to { Some(Ok(())) } else { state.stopped.clone().map(Err) };
            wants_commit = from.max(to) < next;
            if let Some(outcome) = outcome {
                replaced = self.id.take().and_then(|id| state.topic_mut(topic.id()).followers.remove(&id));
                drop(state);
                drop(replaced);
                return Step::Done(outcome);
            }
            if wants_commit && shared.options.committer == Committer::Caller {
                return Step::Commit;
            }
            let id = *self.id.get_or_insert_with(|| {
                state.next_waiter += 1;
                state.next_waiter
            });
            replaced = state.topic_mut(topic.id()).followers.insert(id, waiter());
        }
        drop(replaced);
        if wants_commit {
            shared.kick();
        }
        Step::Waiting
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            let topic = self.cursor.topic();
            let removed = topic.handle().shared.state().topic_mut(topic.id()).followers.remove(&id);
            drop(removed);
        }
    }
}

impl Cursor {
    /// Blocks until [`Self::next_batch`] would hand something out.
    ///
    /// With [`Committer::Caller`] it commits what its topic has waiting: there is nobody else.
    ///
    /// # Errors
    /// Why the log has stopped, when there is nothing left to hand out: [`Error::Closed`], [`Error::Poisoned`].
    pub fn wait(&self) -> Result<(), Error> {
        self.wait_until(None).map(|_| ())
    }

    /// As [`Self::wait`], for about `limit` at most. Returns whether there is something to hand out.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_timeout(&self, limit: Duration) -> Result<bool, Error> {
        self.wait_until(Some(limit))
    }

    /// A future of the same, for any executor: done when [`Self::next_batch`] would hand something out, or with the error
    /// that the log has stopped with. Dropping it loses nothing.
    ///
    /// With [`Committer::Caller`] polling it commits what the topic has waiting, and blocks for as long as that takes.
    pub fn ready(&self) -> Ready<'_> {
        Ready { registration: Registration { cursor: self, id: None } }
    }

    fn wait_until(&self, limit: Option<Duration>) -> Result<bool, Error> {
        let mut registration = Registration { cursor: self, id: None };
        let signal = Arc::new(Signal::default());
        loop {
            let mut step = Step::Waiting;
            let mut is_waiting = |_: &mut ()| {
                step = registration.step(|| Waiter::Signal(Arc::clone(&signal)));
                matches!(step, Step::Waiting)
            };
            let guard = lock(&signal.mutex);
            match limit {
                None => {
                    let waited = signal.fired.wait_while(guard, &mut is_waiting);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                }
                Some(limit) => {
                    let waited = signal.fired.wait_timeout_while(guard, limit, &mut is_waiting);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                }
            }
            match step {
                Step::Done(outcome) => return outcome.map(|()| true),
                Step::Waiting => return Ok(false),
                // A failure either stops the log or takes back the entries waited for; the next step sees which.
                Step::Commit => drop(self.topic().handle().shared.commit_once()),
            }
        }
    }
}

/// The future of [`Cursor::ready`].
#[must_use = "futures do nothing unless polled"]
pub struct Ready<'a> {
    registration: Registration<'a>,
}

impl fmt::Debug for Ready<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ready").field("cursor", self.registration.cursor).finish_non_exhaustive()
    }
}

impl Future for Ready<'_> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.registration.step(|| Waiter::Task(cx.waker().clone())) {
                Step::Done(outcome) => return Poll::Ready(outcome),
                Step::Waiting => return Poll::Pending,
                // As above.
                Step::Commit => drop(self.registration.cursor.topic().handle().shared.commit_once()),
            }
        }
    }
}

/// Whether followers have their entries as soon as these are appended, or are to commit them themselves.
pub(crate) fn wakes_on_append(durability: Durability, committer: Committer) -> bool {
    durability != Durability::Synced || committer == Committer::Caller
}
