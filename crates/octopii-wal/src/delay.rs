//! Time that a commit takes in a simulator.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What [`Ticket::durable`](crate::Ticket::durable) waits for before it commits, with
/// [`Committer::Caller`](crate::Committer::Caller).
///
/// On a simulated disk a sync takes no time, so whoever acknowledges an operation before it is synced would never be
/// caught in between. A delay by the simulator's clock opens that gap.
#[derive(Clone)]
pub struct CommitDelay {
    begin: Arc<dyn Fn() -> Delaying + Send + Sync>,
}

pub(crate) type Delaying = Pin<Box<dyn Future<Output = ()> + Send>>;

impl CommitDelay {
    /// Waits for the future that `begin` makes, anew for each ticket.
    pub fn new<F>(begin: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { begin: Arc::new(move || Box::pin(begin())) }
    }

    pub(crate) fn begin(&self) -> Delaying {
        (self.begin)()
    }
}

impl fmt::Debug for CommitDelay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitDelay").finish_non_exhaustive()
    }
}
