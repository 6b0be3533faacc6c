//! The receiving side of a dry run: says what would be done, and does nothing.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;
use octopii_transport::{RecvStream, SendStream};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::check::{Checked, Checker};
use super::foresight::cannot_tell;
use super::link::{Message, enqueue, read_messages, say_last, write_messages};
use super::outcome::Ledger;
use super::pulse::Pulse;
use super::receive::{QUEUE, REMOVED_AT_ONCE};
use super::removal::{Extras, Removal};
use super::root::Root;
use super::wire::{self, Ready, Tag};
use crate::shared::{AbortOnDrop, Shared};
use crate::{Digest, TransferError};

/// A tree that is only asked about.
pub(super) struct Rehearsal {
    pub(super) root: Root,
    pub(super) checker: Checker,
    pub(super) checksum: bool,
}

/// Answers the sender's questions until it has told everything.
pub(super) async fn rehearse(
    shared: &Arc<Shared>,
    rehearsal: Rehearsal,
    slot: OwnedSemaphorePermit,
    send: SendStream,
    mut recv: RecvStream,
) {
    let (out, queued) = mpsc::channel(QUEUE);
    let idle = shared.options.idle_timeout;
    let pulse = Arc::new(Pulse::default());
    let writing = AbortOnDrop(shared.executor.spawn(write_messages(send, queued, Arc::clone(&pulse))));
    let (messages, incoming) = mpsc::channel(QUEUE);
    let outcome = tokio::select! {
        biased;
        outcome = answer(shared, rehearsal, &pulse, &out, incoming) => outcome,
        error = read_messages(&mut recv, messages, &pulse) => Err(error),
        error = pulse.stalled(idle) => Err(error),
    };
    let last = outcome.unwrap_or_else(|error| {
        let refusal = error.to_peer();
        recv.stop(u32::from(refusal.code.to_u16()));
        wire::fail(&refusal)
    });
    drop(slot);
    say_last(out, last, writing, idle).await;
}

/// Gives back the last message.
async fn answer(
    shared: &Arc<Shared>,
    Rehearsal { mut root, mut checker, checksum }: Rehearsal,
    pulse: &Pulse,
    out: &mpsc::Sender<Bytes>,
    mut incoming: mpsc::Receiver<Message>,
) -> Result<Bytes, TransferError> {
    let (mut manifest, mut ledger) = (Sha256::new(), Ledger::default());
    // Nothing is packed.
    let name = root.path.as_os_str().as_bytes().to_vec();
    enqueue(out, wire::ready(&Ready { decompresses: false, name })).await?;
    let manifest = loop {
        let Some(Message { tag, body }) = incoming.recv().await else {
            // The reader has failed, and is about to say so.
            return std::future::pending().await;
        };
        match tag {
            Tag::Page => {
                let entries = wire::decode_page(&body, checksum)?;
                manifest.update(&body[2..]);
                let check = move || {
                    let checked = checker.page(&root, entries);
                    (root, checker, checked)
                };
                let working = pulse.working();
                let checked;
                (root, checker, checked) = shared.executor.blocking(check).await;
                drop(working);
                let Checked { first, verdicts, settled, .. } = checked?;
                settled.iter().for_each(|(path, outcome)| ledger.settle(path, outcome));
                enqueue(out, wire::verdicts(first, &verdicts)).await?;
            }
            Tag::End => {
                let (entries, told, all_told) = wire::decode_end(&body)?;
                let own = Digest(manifest.finalize().into());
                if !checker.is_complete() || entries != checker.next() || told != own {
                    return Err(TransferError::Protocol("the manifest is not what was told"));
                }
                if !all_told {
                    checker.extras = Extras::default();
                }
                break own;
            }
            _ => return Err(TransferError::Protocol("unexpected message in a dry run")),
        }
    };
    if ledger.tally.not_done == 0 {
        let extras = std::mem::take(&mut checker.extras);
        let mut removal = Removal::new(Arc::clone(&root.base), extras, true);
        loop {
            let step = move || (removal.step(REMOVED_AT_ONCE), removal);
            let working = pulse.working();
            let mut outcomes;
            (outcomes, removal) = shared.executor.blocking(step).await;
            drop(working);
            if let Some(closed) = removal.closed {
                return Err(cannot_tell(closed.strip_prefix(&root.path).unwrap_or(&closed)));
            }
            if outcomes.is_empty() {
                break;
            }
            for (path, outcome) in &mut outcomes {
                if let Ok(within) = path.strip_prefix(&root.path) {
                    *path = within.to_owned();
                }
                ledger.settle(path, outcome);
            }
            for message in wire::removed(&outcomes) {
                enqueue(out, message).await?;
            }
        }
    }
    Ok(wire::done(&ledger.tally, manifest))
}
