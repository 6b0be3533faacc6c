//! Appending without blocking a thread.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::batch::Batch;
use crate::error::Error;
use crate::log::Handle;
use crate::room::{Need, Place};
use crate::state::{Operation, State, Waiter};
use crate::ticket::Ticket;

/// The future of [`Topic::append_async`](crate::Topic::append_async) and
/// [`WriteAheadLog::commit_async`](crate::WriteAheadLog::commit_async): waits for room among what waits for the disk, and
/// gives the ticket.
///
/// Cancel safe: if it is dropped before it is ready, nothing was appended. It has its place in line from when it is polled
/// first, so one that is neither polled again nor dropped keeps those behind it waiting.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Appending {
    handle: Arc<Handle>,
    need: Need,
    place: Place,
    work: Result<Work, Option<Error>>,
}

/// What is to be queued.
#[derive(Debug)]
pub(crate) enum Work {
    Operation(Option<Operation>),
    Batch(Batch),
}

impl Work {
    fn run(&mut self, state: &mut State) -> Result<Option<u64>, Error> {
        match self {
            Self::Operation(operation) => Ok(operation.take().map(|operation| state.call(operation))),
            Self::Batch(batch) => batch.run(state),
        }
    }
}

impl Appending {
    pub(crate) fn new(handle: &Arc<Handle>, need: Need, work: Result<Work, Error>) -> Self {
        Self { handle: Arc::clone(handle), need, place: None, work: work.map_err(Some) }
    }
}

impl Future for Appending {
    type Output = Result<Ticket, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { handle, need, place, work } = &mut *self;
        let work = match work {
            Ok(work) => work,
            Err(error) => return Poll::Ready(Err(error.take().expect("polled after it was ready"))),
        };
        loop {
            match handle.shared.admit(need, place, || Waiter::Task(cx.waker().clone())) {
                Ok(Some(state)) => return Poll::Ready(handle.queue(state, |state| work.run(state))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            match handle.shared.hurry() {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => {
                    handle.shared.withdraw(place);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }
}

impl Drop for Appending {
    fn drop(&mut self) {
        self.handle.shared.withdraw(&mut self.place);
    }
}
