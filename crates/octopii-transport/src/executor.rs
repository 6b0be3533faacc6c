//! Where Octopii's tasks run.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// The runtime on which every task of an endpoint and of the layers above it runs, whatever thread asked for it.
///
/// Cloning is cheap. The executor does not keep its tokio runtime alive.
#[derive(Debug, Clone)]
pub struct Executor {
    handle: Handle,
    blocking: Blocking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocking {
    Pool,
    Inline,
}

impl Executor {
    /// Runs tasks on `handle`'s runtime and blocking work on its blocking pool.
    pub fn new(handle: Handle) -> Self {
        Self { handle, blocking: Blocking::Pool }
    }

    /// Runs tasks on `handle`'s runtime and blocking work in place, on the task that asks for it: nothing then happens
    /// on another thread, which is what a deterministic simulation needs. Not for production.
    pub fn simulated(handle: Handle) -> Self {
        Self { handle, blocking: Blocking::Inline }
    }

    /// Spawns a task.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.handle.spawn(future)
    }

    /// Runs `future` as a task and awaits it from any executor. Dropping the returned future cancels the task.
    ///
    /// `None` means that the runtime was shut down before the task finished.
    pub async fn run<F>(&self, future: F) -> Option<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let mut task = AbortOnDrop(self.handle.spawn(future));
        match (&mut task.0).await {
            Ok(output) => Some(output),
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            Err(_) => None,
        }
    }

    /// Runs blocking work (disk, hashing) off the async threads and waits for it.
    ///
    /// A panic of `work` is resumed here. Dropping the future does not stop work that has begun.
    pub async fn blocking<T, W>(&self, work: W) -> T
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        if self.blocking == Blocking::Inline {
            return work();
        }
        match self.handle.spawn_blocking(work).await {
            Ok(output) => output,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            // The runtime is shutting down and never began the work; this task is about to be dropped with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// Awaits `future` for at most `limit`; `None` when time ran out, or when this executor's runtime was shut down
    /// meanwhile. Works on any executor, since the timer is this one's.
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let own_task = tokio::task::try_id().is_some()
            && Handle::try_current().is_ok_and(|current| current.id() == self.handle.id());
        if own_task {
            return tokio::time::timeout(limit, future).await.ok();
        }
        // tokio's timers panic where their runtime is shut down under them: only its own tasks, which are dropped
        // before, are safe.
        tokio::select! {
            biased;
            output = future => Some(output),
            _ = self.run(async move { tokio::time::sleep(limit).await }) => None,
        }
    }

    /// The executor's clock.
    pub fn now(&self) -> tokio::time::Instant {
        let _entered = self.handle.enter();
        tokio::time::Instant::now()
    }

    /// When `limit` from now is over. A limit that no clock can count ends in the distant future.
    pub fn deadline(&self, limit: Duration) -> tokio::time::Instant {
        Self::after(self.now(), limit)
    }

    /// When `limit` from `now` is over, likewise.
    pub fn after(now: tokio::time::Instant, limit: Duration) -> tokio::time::Instant {
        now.checked_add(limit).unwrap_or(now + DISTANT)
    }

    /// Whether blocking work runs in place (see [`Executor::simulated`]).
    pub fn is_simulated(&self) -> bool {
        self.blocking == Blocking::Inline
    }

    /// The tokio handle behind this executor.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Thirty years: beyond it the clocks of some systems end.
const DISTANT: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// quinn's view of the executor: timers and drivers belong to it even when a call comes from another runtime's thread.
impl quinn::Runtime for Executor {
    fn new_timer(&self, deadline: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        let _entered = self.handle.enter();
        Box::pin(tokio::time::sleep_until(deadline.into()))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.handle.spawn(future);
    }

    fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let _entered = self.handle.enter();
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        let _entered = self.handle.enter();
        tokio::time::Instant::now().into_std()
    }
}
