//! When a command that goes on comes to its end.

use std::future::Future;
use std::io::Read;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::exit::Failure;
use crate::output::reader_left;

/// Asked by SIGHUP to read again what lies in files.
pub(crate) struct Reload(Signal);

pub(crate) fn reload_signal() -> Result<Reload, Failure> {
    listen(SignalKind::hangup()).map(Reload)
}

impl Reload {
    /// Ends with the next request. Cancel-safe.
    pub(crate) async fn asked(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::failed(format!("cannot listen for signals: {e}")))
}

/// Ends with Ctrl-C, SIGTERM, the departure of who reads the output, or (if asked) the end of standard input.
pub(crate) fn stop_signal(until_eof: bool) -> Result<impl Future<Output = ()>, Failure> {
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let (eof, at_eof) = oneshot::channel::<()>();
    if until_eof {
        // A thread of its own: reading standard input cannot be cancelled.
        std::thread::spawn(move || {
            let mut nothing = [0; 1024];
            while matches!(std::io::stdin().read(&mut nothing), Ok(n) if n > 0) {}
            drop(eof);
        });
    }
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = reader_left() => {}
            _ = at_eof, if until_eof => {}
        }
    })
}
