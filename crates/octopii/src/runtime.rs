//! The isolated runtime: Octopii's own threads.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use octopii_transport::Executor;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;

/// Octopii's own threads: everything a node does runs here and never on the application's.
///
/// Cloning gives another handle to the same threads; nodes hold one, so the threads live as long as they are needed. The
/// last handle to go ends them without waiting, wherever that happens: in an async function, on one of the threads
/// themselves, or in a plain thread. Nothing here panics for being called inside another runtime.
#[derive(Debug, Clone)]
pub struct OctopiiRuntime {
    threads: Arc<Threads>,
    executor: Executor,
}

/// What the threads of an [`OctopiiRuntime`] are to be like.
#[derive(Clone)]
pub struct RuntimeOptions {
    /// Worker threads, at least one. Default 2.
    pub threads: usize,
    /// Threads for blocking work (disk, hashing) beside them, at the most; started when needed, ended after ten idle seconds.
    /// Default 64.
    pub blocking_threads: usize,
    /// What threads are called: this, a hyphen and a number. Default `octopii`.
    pub name: String,
    prepare: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl RuntimeOptions {
    /// Has every thread begin with this, workers and others: to set its priority or the processors that it may use, by the means
    /// of the operating system.
    #[must_use]
    pub fn on_thread_start(mut self, prepare: impl Fn() + Send + Sync + 'static) -> Self {
        self.prepare = Some(Arc::new(prepare));
        self
    }
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self { threads: 2, blocking_threads: MAX_BLOCKING_THREADS, name: "octopii".to_owned(), prepare: None }
    }
}

impl std::fmt::Debug for RuntimeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuntimeOptions")
            .field("threads", &self.threads)
            .field("blocking_threads", &self.blocking_threads)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Threads {
    // `None` for a wrapped handle, and after `shutdown`.
    owned: Mutex<Option<Runtime>>,
}

/// Threads for blocking work (disk, hashing) beside the workers, at the most. They end after ten idle seconds.
const MAX_BLOCKING_THREADS: usize = 64;

impl OctopiiRuntime {
    /// Starts `threads` worker threads (at least one), named `octopii-0` and so on, and up to 64 threads for blocking
    /// work, started when needed.
    ///
    /// # Panics
    ///
    /// If the operating system refuses the threads; see [`try_new`](Self::try_new).
    pub fn new(threads: usize) -> Self {
        Self::try_new(threads).expect("the operating system gives threads")
    }

    /// As [`new`](Self::new), with an error where that panics.
    pub fn try_new(threads: usize) -> io::Result<Self> {
        Self::with_options(RuntimeOptions { threads, ..RuntimeOptions::default() })
    }

    /// As [`new`](Self::new), with more to choose.
    pub fn with_options(options: RuntimeOptions) -> io::Result<Self> {
        let RuntimeOptions { threads, blocking_threads, name, prepare } = options;
        let counter = AtomicUsize::new(0);
        let mut builder = Builder::new_multi_thread();
        builder
            .worker_threads(threads.max(1))
            .max_blocking_threads(blocking_threads.max(1))
            .thread_name_fn(move || format!("{name}-{}", counter.fetch_add(1, Ordering::Relaxed)))
            .enable_all();
        if let Some(prepare) = prepare {
            builder.on_thread_start(move || prepare());
        }
        let runtime = builder.build()?;
        let executor = Executor::new(runtime.handle().clone());
        Ok(Self { threads: Arc::new(Threads { owned: Mutex::new(Some(runtime)) }), executor })
    }

    /// Uses threads that belong to someone else. Isolation is then the owner's affair, and so is the shutdown.
    pub fn from_handle(handle: Handle) -> Self {
        Self::from_executor(Executor::new(handle))
    }

    /// Uses an executor, such as a simulator's.
    pub fn from_executor(executor: Executor) -> Self {
        Self { threads: Arc::new(Threads { owned: Mutex::new(None) }), executor }
    }

    /// Runs `future` to its end, blocking the calling thread. What it spawns, and all that nodes do, runs on this
    /// runtime's threads; the future itself is polled on the calling thread, so it may borrow.
    ///
    /// Inside another runtime's async code this blocks one of that runtime's threads: legal, but await there instead.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let _entered = self.executor.handle().enter();
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut cx) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    }

    /// Runs `future` on this runtime's threads.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.executor.spawn(future)
    }

    /// Ends the threads, waiting at most `limit` for tasks to reach their next await and for blocking work to end.
    /// Works from anywhere, async code included (it blocks the caller for that long). Idempotent; does nothing to a
    /// wrapped handle. Shut nodes down first: their tasks are dropped here as they are.
    pub fn shutdown(&self, limit: Duration) {
        let Some(runtime) = self.threads.take() else { return };
        // tokio refuses to wait on a thread that runs async code; a thread of our own may always wait.
        let waiting = thread::Builder::new()
            .name("octopii-shutdown".to_owned())
            .spawn(move || runtime.shutdown_timeout(limit));
        // Without a thread the runtime was dropped with the closure; a panic there has nothing left to tell.
        if let Ok(waiting) = waiting {
            let _ = waiting.join();
        }
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }
}

impl Threads {
    fn take(&self) -> Option<Runtime> {
        self.owned.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.take() {
            runtime.shutdown_background();
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_on_threads_of_its_own() {
        let runtime = OctopiiRuntime::new(2);
        let name = runtime
            .block_on(async { runtime.spawn(async { thread::current().name().map(str::to_owned) }).await });
        let name = name.expect("the task ran").expect("the thread has a name");
        assert!(name.starts_with("octopii-"), "{name}");
    }

    /// The earlier Octopii's own quick start ended in a panic when its runtime was dropped in async code.
    #[tokio::test]
    async fn created_used_and_dropped_inside_async_code() {
        let runtime = OctopiiRuntime::new(1);
        assert_eq!(runtime.spawn(async { 1 }).await.expect("the task ran"), 1);
        assert_eq!(runtime.block_on(async { 2 }), 2);
        let other = runtime.clone();
        runtime.shutdown(Duration::from_secs(1));
        runtime.shutdown(Duration::from_secs(1));
        drop(runtime);
        drop(other);
        drop(OctopiiRuntime::new(1));
    }

    #[test]
    fn dropped_by_its_own_thread() {
        let runtime = OctopiiRuntime::new(1);
        let (done, ended) = std::sync::mpsc::channel();
        let handle = runtime.clone();
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(handle);
            // Reached: dropping the last handle on its own thread does not panic.
            let _ = done.send(());
        });
        drop(runtime);
        ended.recv_timeout(Duration::from_secs(5)).expect("the task ended without a panic");
    }
}
