//! One directory to many peers: a tree for each, which share what several of them lack.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::options::TreeOptions;
use super::outcome::TreeReport;
use super::send::send_opened;
use super::source::Opened;
use super::together::Group;
use crate::shared::Shared;
use crate::{TransferError, TransferId};

/// Peers to which a directory is sent at the same time; each may take as much memory as a tree of its own.
const AT_ONCE: usize = 32;

/// Sends the tree at `path` to every peer, as `options` say for each. One result per peer, in their order.
pub(crate) async fn send_to_all(
    shared: Arc<Shared>,
    path: PathBuf,
    peers: Vec<(SocketAddr, TreeOptions)>,
) -> Vec<Result<TreeReport, TransferError>> {
    // Once for all: what some of them share must be the same directory, whatever takes its name meanwhile.
    let vfs = Arc::clone(&shared.resources.vfs);
    let opened = match shared.executor.blocking(move || Opened::open(&vfs, path)).await {
        Ok(opened) => opened,
        Err(error) => return peers.iter().map(|_| Err(error.clone().into())).collect(),
    };
    // What goes in a chain is announced to all in the same words, the tree's id among them.
    let id = TransferId::random();
    let group = Group::new(Arc::clone(&shared), id);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    let mut results: Vec<_> = peers.iter().map(|_| Err(TransferError::ShuttingDown)).collect();
    let (mut known, several) = (Vec::new(), peers.len() > 1);
    let mut begun = Vec::new();
    for (addr, mut options) in peers {
        // Whoever is named twice, is to have an id of the caller's or is the only one is sent to alone.
        let joins = several && options.id.is_none() && !known.contains(&addr);
        known.push(addr);
        if joins {
            options.id = Some(id);
        }
        let place = Arc::clone(&places).try_acquire_owned().ok();
        // Whoever has a place is waited for by the others, from the beginning.
        let seat = place.as_ref().filter(|_| joins).map(|_| group.join());
        begun.push((addr, options, joins, place, seat));
    }
    for (at, (addr, options, joins, place, seat)) in begun.into_iter().enumerate() {
        let (shared, opened) = (Arc::clone(&shared), opened.clone());
        let (group, places) = (Arc::clone(&group), Arc::clone(&places));
        let handle = shared.executor.handle().clone();
        tasks.spawn_on(
            async move {
                let (_place, seat) = match place {
                    Some(place) => (Some(place), seat),
                    // Fails only if it is closed, which it never is.
                    None => (places.acquire_owned().await.ok(), joins.then(|| group.join())),
                };
                (at, Box::pin(send_opened(shared, addr, opened, options, seat)).await)
            },
            &handle,
        );
    }
    while let Some(joined) = tasks.join_next().await {
        if let Ok((at, result)) = joined {
            results[at] = result;
        }
    }
    results
}
