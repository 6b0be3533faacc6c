//! What a handler knows of its call, and what the calls it makes inherit.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use octopii_transport::PeerIdentity;
use tokio::sync::Notify;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::Instant;

use crate::wire::put_entry;
use crate::{Encoding, Metadata, MetadataError, Shape, TraceContext};

/// What a handler knows of a call besides its request.
///
/// Calls that the handler makes with a [`Client`](crate::Client) inherit deadline and trace by themselves, as long as they are
/// made by the handler's own future; a task that it spawns gets them with [`Context::scope`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Context {
    /// Who calls, from the verified certificate.
    pub peer: PeerIdentity,
    /// Where the call came from.
    pub remote_addr: SocketAddr,
    /// When the caller stops waiting, or this server's own limit, whichever comes first.
    pub deadline: Instant,
    /// The method's name.
    pub method: String,
    /// Which sides of the call are streams.
    pub shape: Shape,
    /// How its bodies are written.
    pub encoding: Encoding,
    /// What the caller sent along.
    pub metadata: Metadata,
    /// The trace that the call belongs to, with the caller's span id.
    pub trace: Option<TraceContext>,
    /// Tells work that outlives the handler's future that nobody waits any more.
    pub cancellation: Cancellation,
}

impl Context {
    /// The time left until the deadline.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Runs `future` so that calls made in it inherit this call's deadline and trace. For tasks that a handler spawns.
    pub async fn scope<F: Future>(&self, future: F) -> F::Output {
        self.inherited().scope(future).await
    }

    /// Sends an entry of metadata back beside the response: ahead of the one response, or of a failure; on a stream of
    /// responses ahead of the next one or of the end. All that a call sends back has the bounds of [`Metadata`]. What is
    /// added after the end reaches nobody.
    pub fn respond_with(&self, name: &str, value: impl Into<Bytes>) -> Result<(), MetadataError> {
        self.cancellation.0.respond_with(name, value.into())
    }

    pub(crate) fn inherited(&self) -> Inherited {
        Inherited { deadline: self.deadline, trace: self.trace }
    }
}

/// What calls inherit from the call in whose handler they are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inherited {
    pub(crate) deadline: Instant,
    pub(crate) trace: Option<TraceContext>,
}

tokio::task_local! {
    static CURRENT: Inherited;
}

impl Inherited {
    pub(crate) fn scope<F: Future>(self, future: F) -> TaskLocalFuture<Self, F> {
        CURRENT.scope(self, future)
    }

    pub(crate) fn current() -> Option<Self> {
        CURRENT.try_with(|inherited| *inherited).ok()
    }
}

/// Whether a call has ended: answered, given up by its caller, or out of time. Cloning is cheap.
///
/// The handler's future is dropped by itself when the caller gives up; this is for work that it started elsewhere, such as
/// on a blocking thread.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<Ended>);

#[derive(Debug, Default)]
struct Ended {
    flag: AtomicBool,
    told: Notify,
    /// Whether there is anything in `metadata`: most calls send none, and then nobody takes its lock.
    responds: AtomicBool,
    metadata: Mutex<Responding>,
}

/// What goes back beside the response, and how much of it has gone.
#[derive(Debug, Default)]
struct Responding {
    metadata: Metadata,
    gone: usize,
}

impl Ended {
    fn respond_with(&self, name: &str, value: Bytes) -> Result<(), MetadataError> {
        self.metadata.lock().expect("no panic while held").metadata.insert(name, value)?;
        self.responds.store(true, Ordering::Release);
        Ok(())
    }
}

impl Cancellation {
    /// Whether the call has ended.
    pub fn is_cancelled(&self) -> bool {
        self.0.flag.load(Ordering::Acquire)
    }

    /// The metadata that has not gone back yet, as the extras of a response; `None`: there is none.
    pub(crate) fn take_metadata(&self) -> Option<BytesMut> {
        if !self.0.responds.load(Ordering::Acquire) {
            return None;
        }
        let mut responding = self.0.metadata.lock().expect("no panic while held");
        let mut extras = BytesMut::new();
        let entries = responding.metadata.iter().skip(responding.gone);
        let gone = entries.map(|(name, value)| put_entry(name, value, &mut extras)).count();
        responding.gone += gone;
        (gone > 0).then_some(extras)
    }

    /// Waits for the end of the call. Cancel-safe.
    pub async fn cancelled(&self) {
        loop {
            let mut told = std::pin::pin!(self.0.told.notified());
            told.as_mut().enable();
            if self.is_cancelled() {
                return;
            }
            told.await;
        }
    }
}

/// Ends its call when dropped.
pub(crate) struct EndOnDrop(pub(crate) Cancellation);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.0.flag.store(true, Ordering::Release);
        self.0.0.told.notify_waiters();
    }
}
