//! Taking a tree or refusing it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use octopii_transport::{Connection, Incoming};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::check::{Awaited, Checker};
use super::link::{finish, read_opening};
use super::policy::{TreeDestination, TreeOffer};
use super::receive::{Accepted, Work, receive};
use super::rehearsal::{Rehearsal, rehearse};
use super::root::{Claim, Root};
use super::sessions::{LARGE_AT_ONCE, PACKS_AT_ONCE, Packs, Session};
use super::wire::{self, Open};
use crate::compression::Decompressor;
use crate::shared::Shared;
use crate::{FailureCode, Refusal, TransferError};

/// A tree that is locked is waited for this long: whoever had it may be letting go of it. Its lock is free before its sender
/// hears of the end, but not before the sender of one that was cut off knows that, and in a process that begins another one the
/// lock is the other's, too, for a moment.
const LOCKED: Duration = Duration::from_secs(1);
/// And this long if it is the same sender's, who begins it again: it ends what it is making durable.
const ENDING: Duration = Duration::from_secs(10);
const LOCKED_PAUSE: Duration = Duration::from_millis(20);

/// Serves a stream that a peer opened for a tree.
pub(crate) async fn serve(shared: Arc<Shared>, incoming: Incoming) {
    let Incoming { mut send, mut recv, connection } = incoming;
    let limit = shared.options.offer_timeout;
    let opened = timeout(limit, read_opening(&mut recv)).await;
    let accepted = match opened.unwrap_or(Err(TransferError::Stalled { idle: limit })) {
        Ok(open) => accept(&shared, &connection, open).await,
        Err(e) => Err(e.to_peer()),
    };
    match accepted {
        Ok((Taken::ToReceive(accepted), slot)) => receive(&shared, *accepted, slot, send, recv).await,
        Ok((Taken::ToRehearse(rehearsal), slot)) => rehearse(&shared, *rehearsal, slot, send, recv).await,
        Err(refusal) => {
            // A peer that does not read its answer is not waited for longer than one that makes no offer.
            let answering = async {
                send.write_chunk(wire::refuse(&refusal)).await?;
                finish(&mut send).await
            };
            if let Ok(Err(e)) = timeout(limit, answering).await {
                tracing::debug!(peer = %connection.remote_addr(), "the answer did not get through: {e}");
            }
        }
    }
}

/// What is done with a tree that is not refused.
enum Taken {
    ToReceive(Box<Accepted>),
    ToRehearse(Box<Rehearsal>),
}

async fn accept(
    shared: &Arc<Shared>,
    connection: &Connection,
    open: Open,
) -> Result<(Taken, OwnedSemaphorePermit), Refusal> {
    let Open { id, source, checksum, delete, dry_run, compressed, purpose, name, meta } = open;
    let Some(policy) = shared.trees.policy(&purpose) else {
        return Err(Refusal::new(FailureCode::UnknownPurpose, "nothing here takes trees of this purpose"));
    };
    let Ok(slot) = Arc::clone(&shared.slots).try_acquire_owned() else {
        let message =
            format!("{} transfers are being received; try again later", shared.options.max_incoming);
        return Err(Refusal::new(FailureCode::Busy, message));
    };
    let (peer, remote_addr) = (*connection.peer(), connection.remote_addr());
    let name = PathBuf::from(OsString::from_vec(name));
    let offer = TreeOffer { id, delete, dry_run, purpose, name, meta, peer, remote_addr };
    let (asked, question) = (Arc::clone(&policy), offer.clone());
    let mut to = shared.executor.blocking(move || asked.accept(&question)).await?;
    // Set-id and sticky bits never come from outside.
    to.mode_mask &= 0o777;
    if delete && !to.delete {
        let message = "nothing is removed here: send it without that, or have the receiver allow it";
        return Err(Refusal::new(FailureCode::Rejected, message));
    }
    let claim = Claim { source, peer, delete };
    if dry_run {
        let (vfs, leave_free) = (Arc::clone(&shared.resources.vfs), shared.resources.leave_free);
        let looking = move || {
            let root = Root::look(&vfs, &to, &claim)?;
            let checker = Checker::new(&root, to, Arc::default(), vfs, leave_free, (delete, true))?;
            Ok::<_, TransferError>(Rehearsal { root, checker, checksum })
        };
        let rehearsal = shared.executor.blocking(looking).await.map_err(|e| e.to_peer())?;
        return Ok((Taken::ToRehearse(Box::new(rehearsal)), slot));
    }
    // A sender comes back before its lost connection is noticed here.
    let patience = if shared.trees.sessions.supersede(peer.node_id, id) { ENDING } else { LOCKED };
    let root = open_root(shared, &to, claim, patience).await.map_err(|e| {
        tracing::debug!(%id, "cannot receive a tree: {e}");
        e.to_peer()
    })?;
    let awaited = Arc::new(Awaited::default());
    let (vfs, leave_free) = (Arc::clone(&shared.resources.vfs), shared.resources.leave_free);
    let asked = Arc::clone(&awaited);
    let checking = move || {
        Checker::new(&root, to, asked, vfs, leave_free, (delete, false)).map(|checker| (root, checker))
    };
    let (root, checker) = shared.executor.blocking(checking).await.map_err(|e| e.to_peer())?;
    let packs = Arc::new(Packs::default());
    let (arrived, arrivals) = mpsc::unbounded_channel();
    let session = Session {
        awaited: Arc::clone(&awaited),
        dir: root.staging_dir(),
        arrived,
        superseded: Notify::new(),
        places: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        packs_places: Arc::new(Semaphore::new(PACKS_AT_ONCE)),
        packs: Arc::clone(&packs),
    };
    let session = shared.trees.sessions.register(peer.node_id, id, session);
    let session =
        session.ok_or_else(|| Refusal::new(FailureCode::DuplicateId, "a tree of this id is under way"))?;
    let decompressor = Some(()).filter(|()| compressed && shared.options.decompress);
    let decompressor = decompressor.and_then(|()| Decompressor::new());
    let work = Work::new(offer, policy, root, checker, (awaited, packs), decompressor);
    Ok((Taken::ToReceive(Box::new(Accepted { work, checksum, arrivals, session })), slot))
}

/// Opens the tree's directory, and waits a little for one that is locked.
async fn open_root(
    shared: &Arc<Shared>,
    to: &TreeDestination,
    claim: Claim,
    patience: Duration,
) -> Result<Root, TransferError> {
    let until = Instant::now() + patience;
    loop {
        let (service, to) = (Arc::clone(shared), to.clone());
        let opening = shared.executor.blocking(move || {
            let _held = service.trees.opening.lock().unwrap_or_else(PoisonError::into_inner);
            Root::open(&service.resources.vfs, &to, &claim)
        });
        match opening.await {
            Err(TransferError::Unacceptable(refusal))
                if refusal.code == FailureCode::Busy && Instant::now() < until =>
            {
                sleep(LOCKED_PAUSE).await;
            }
            other => return other,
        }
    }
}
