//! Telling it on: to every peer at once when it is new, and to every new peer.

use std::sync::Arc;

use tokio::time::timeout;

use super::{Authorities, Revocation, RevocationList, Verified};
use crate::endpoint::Shared;
use crate::{Connection, PeerRole, RecvStream, RevokeError, SendStream};

/// The kind of the streams on which it is told; the layers above never see them.
pub(crate) const TRUST: u8 = 0xff;

const MAX_FRAME: usize = RevocationList::MAX_WORDS * Revocation::LEN;

/// Tells one peer all that is known, if anything is. Nothing depends on it arriving: the peer is told by others too, and at the next
/// connection.
pub(crate) async fn tell(shared: Arc<Shared>, connection: Connection) {
    if !shared.members.is_anyone_revoked() {
        return;
    }
    let (bytes, _) = shared.members.revocations();
    let telling = async {
        let (send, recv) = connection.quic().open_bi().await.map_err(|e| crate::stream::lost(&e))?;
        let (mut send, mut recv) = (SendStream::new(send), RecvStream::new(recv));
        // Whoever has been revoked must not talk on for as long as a transfer takes.
        send.set_priority(PRIORITY);
        send.write_all(&[TRUST]).await?;
        send.write_frame(&bytes).await?;
        send.finish()?;
        // The peer ends the stream when it has taken the list.
        recv.read_frame(0).await
    };
    if let Ok(Err(e)) = timeout(shared.limits.handshake_timeout, telling).await {
        tracing::debug!(peer = connection.peer().node_id, "revocations were not told: {e}");
    }
}

const PRIORITY: i32 = 3;

/// Takes what a peer tells. Its word counts for nothing, the authority's signatures count.
pub(crate) async fn receive(
    shared: Arc<Shared>,
    mut send: SendStream,
    mut recv: RecvStream,
    from: Connection,
) {
    if from.peer().role == PeerRole::Client {
        return;
    }
    let reading = timeout(shared.limits.handshake_timeout, recv.read_frame(MAX_FRAME));
    let Ok(Ok(Some(bytes))) = reading.await else { return };
    let unknown = match shared.members.unknown(&bytes) {
        Ok(unknown) => unknown,
        Err(e) => return tracing::warn!(peer = from.peer().node_id, "revocations were not taken: {e}"),
    };
    let (signed, unsigned) = shared.members.authorities().verify(unknown, Authorities::MAX_UNSIGNED);
    if unsigned > 0 {
        // One that trusts other authorities than this node does, while they change; or one that makes them up.
        tracing::debug!(peer = from.peer().node_id, unsigned, "revocations that no authority has signed");
    }
    // An error means that the peer no longer listens.
    let _ = send.finish();
    // What cannot be kept is in force all the same, and the failure has been logged.
    let _ = apply(&shared, signed, Some(&from)).await;
}

/// Puts verified revocations in force: closes what they cover, tells every other peer, keeps them. In force and durable when it
/// returns, also if they were known before.
pub(crate) async fn apply(
    shared: &Arc<Shared>,
    entries: Vec<Verified>,
    from: Option<&Connection>,
) -> Result<(), RevokeError> {
    let (added, others) = shared.members.revoke(entries);
    for what in &added.new {
        tracing::warn!(?what, "revoked by the cluster's authority");
    }
    if !added.is_nothing() {
        for connection in others {
            if from.is_none_or(|from| from.quic().stable_id() != connection.quic().stable_id()) {
                shared.executor.spawn(tell(Arc::clone(shared), connection));
            }
        }
    }
    let kept = keep(shared).await;
    if added.refused > 0 {
        tracing::error!("{} revocations were not taken: {}", added.refused, RevokeError::Full);
        return Err(RevokeError::Full);
    }
    if added.ended > 0 {
        return Err(RevokeError::NotSigned);
    }
    kept
}

/// Keeps the list as it is now, unless just that is kept. Durable when it returns; what failed before is tried again.
pub(crate) async fn keep(shared: &Shared) -> Result<(), RevokeError> {
    let Some(keeper) = shared.keep_revocations.clone() else { return Ok(()) };
    // One at a time: whoever finds its entry in the list already waits here until that is durable, and a later call never puts
    // back an older list.
    let mut kept = shared.kept.lock().await;
    let (bytes, generation) = shared.members.revocations();
    if *kept == Some(generation) {
        return Ok(());
    }
    shared.executor.blocking(move || keeper.keep(&bytes)).await.map_err(|e| {
        tracing::error!("revocations are in force, but would be forgotten by a restart: {e}");
        RevokeError::NotKept(e.to_string())
    })?;
    *kept = Some(generation);
    Ok(())
}
