//! What a receiver says while a chunk arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use octopii_transport::{SendStream, StreamError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use crate::wire::relay::Need;
use crate::wire::{self, Span};

/// How often the sender hears how far its chunk has got.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// What goes back to the sender.
pub(crate) struct Answers {
    pub(crate) verified: Arc<AtomicU64>,
    pub(crate) needed: mpsc::Receiver<Need>,
    pub(crate) wanted: mpsc::Receiver<Span>,
    pub(crate) last: oneshot::Receiver<Vec<u8>>,
}

/// The way back: the acceptance, signs of life, what is needed, and the last word. If there is no last word the stream is
/// reset.
pub(crate) async fn respond(
    mut send: SendStream,
    acceptance: Vec<u8>,
    answers: Answers,
) -> Result<(), StreamError> {
    let Answers { verified, mut needed, mut wanted, mut last } = answers;
    send.write_all(&acceptance).await?;
    loop {
        tokio::select! {
            biased;
            message = &mut last => {
                let Ok(message) = message else { return Ok(()) };
                answer_and_finish(&mut send, &message).await?;
                // Until the last word has arrived, this transfer is not over: see `Transfer::drain`.
                return send.stopped().await.map(|_| ());
            }
            Some(need) = needed.recv() => send.write_all(&wire::relay::need(&need)).await?,
            Some(span) = wanted.recv() => send.write_all(&wire::again(span)).await?,
            () = sleep(PROGRESS_PERIOD) => {
                send.write_all(&wire::progress(verified.load(Ordering::Relaxed))).await?;
            }
        }
    }
}

pub(crate) async fn answer_and_finish(send: &mut SendStream, answer: &[u8]) -> Result<(), StreamError> {
    send.write_all(answer).await?;
    send.finish()
}
