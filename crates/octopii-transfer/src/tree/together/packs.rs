//! Small files for several peers, packed into one chunk.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use octopii_vfs::DirHandle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::small::{Asked, Batch, Division};
use super::{Delivery, Group, Packs, Terms};
use crate::distribute::chain;
use crate::shared::Shared;
use crate::supply::Outgoing;
use crate::tree::content::{Job, Packer, RECORD_COST};
use crate::tree::sessions::{PACKS, chunk_meta};
use crate::tree::wire::{self, RECORDS, SMALL, Unpack};
use crate::{AckLevel, ChunkSource, SendOptions, TransferId};

/// When a first peer has a chunk or cannot get it, the others have as long again, and at least so long.
const GRACE: Duration = Duration::from_secs(5);

/// And in any case this many times as long as anything may be idle.
const PATIENCE: u32 = 10;

/// Packs one behind the other, as they would travel by themselves; their entries are counted from 0 in each.
#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    offset: u64,
    files: Range<usize>,
}

/// A chunk's place among those under way.
struct Place(Weak<Group>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(group) = self.0.upgrade() {
            group.lock().small.under_way -= 1;
            group.review();
        }
    }
}

impl Group {
    pub(super) fn ship_small(self: &Arc<Self>, batch: Batch) {
        let (Division { shared, direct, .. }, members) = {
            let mut state = self.lock();
            let attempts = &state.attempts;
            let division = batch.divide(|number| attempts.get(&number).is_some_and(|attempt| !attempt.alone));
            let members = division.members.iter();
            let members: Vec<_> =
                members.filter_map(|number| Some((*number, attempts.get(number)?.terms.clone()))).collect();
            state.small.under_way += usize::from(!division.shared.is_empty());
            (division, members)
        };
        for (attempt, jobs) in direct {
            self.deliver(attempt, Delivery::Direct { jobs, travelled: 0 });
        }
        if !shared.is_empty() {
            let place = Place(Arc::downgrade(self));
            let sending =
                send(Arc::downgrade(self), Arc::clone(&self.shared), (self.id, shared, members), place);
            self.spawn(sending);
        }
    }
}

/// Packs the files, sends the chunk, and tells each of the attempts what came of it.
async fn send(
    group: Weak<Group>,
    shared: Arc<Shared>,
    (tree, files, members): (TransferId, Vec<Asked>, Vec<(u64, Terms)>),
    _place: Place,
) {
    // Compressed only if everybody takes it.
    let compress = members.iter().map(|(_, terms)| terms.compress).min().flatten();
    let Some((_, terms)) = members.first() else { return };
    let (root, jobs) = (Arc::clone(&terms.root), files.iter().map(|asked| asked.job.clone()).collect());
    let Chunk { bytes, parts } = shared.executor.blocking(move || pack(root, compress, jobs)).await;
    let number: u64 = rand::random();
    tracing::debug!(files = files.len(), bytes = bytes.len(), peers = members.len(), "packs go in a chain");
    let idle = members.iter().map(|(_, terms)| terms.idle_timeout).min().unwrap_or(terms.idle_timeout);
    let options = SendOptions {
        meta: chunk_meta(tree, number),
        // A moment later it is unpacked, and what was in it made durable.
        ack: Some(AckLevel::Verified),
        resume: false,
        rate_limit: members.iter().filter_map(|(_, terms)| terms.rate_limit).min(),
        idle_timeout: idle,
        ..SendOptions::new(PACKS)
    };
    let takes = options
        .rate_limit
        .map_or(Duration::ZERO, |rate| Duration::from_secs(bytes.len() as u64 / rate.get()));
    let begun = Instant::now();
    let (addrs, mut left): (Vec<_>, Vec<_>) =
        members.into_iter().map(|(number, terms)| (terms.addr, Some(number))).unzip();
    let (tx, mut results) = mpsc::channel(addrs.len());
    let mut sending =
        Box::pin(chain(shared, Outgoing::Chunk(ChunkSource::Memory(bytes)), addrs, options, tx));
    let (told, mut all_told) = mpsc::channel(1);
    let direct = |attempt, travelled| {
        let own = files.iter().filter(|asked| asked.by.contains(&attempt));
        Delivery::Direct { jobs: own.map(|asked| asked.job.clone()).collect(), travelled }
    };
    let deliver = |attempt, delivery| {
        if let Some(group) = group.upgrade() {
            group.deliver(attempt, delivery);
        }
    };
    // Whoever only seems to be at work is not waited for without end; a limited rate takes its time.
    let mut until = begun + PATIENCE * idle + takes;
    let mut sent = false;
    loop {
        let result = tokio::select! {
            biased;
            result = results.recv() => result,
            () = &mut sending, if !sent => {
                sent = true;
                continue;
            }
            () = sleep_until(until) => break,
        };
        let Some((at, result)) = result else { break };
        let Some(attempt) = left[at].take() else { continue };
        // Whoever takes more than about twice as long as another goes alone.
        until = until.min(Instant::now() + idle.min(GRACE).max(begun.elapsed()));
        if result.success {
            let (messages, files) = tell(attempt, number, &files, &parts);
            let packs = Packs { messages, files, travelled: result.travelled, told: told.clone() };
            deliver(attempt, Delivery::Packs(packs));
        } else {
            tracing::debug!(peer = %result.peer, "packs are sent to it directly: {:?}", result.error);
            deliver(attempt, direct(attempt, result.travelled));
        }
    }
    // Whoever is left has kept the others waiting.
    drop(sending);
    for attempt in left.into_iter().flatten() {
        if let Some(group) = group.upgrade()
            && let Some(attempt) = group.lock().attempts.get_mut(&attempt)
        {
            tracing::info!(peer = %attempt.terms.addr, "is behind the others: small files go to it directly");
            attempt.alone = true;
        }
        deliver(attempt, direct(attempt, 0));
    }
    // The next chunk would not be taken before this one is unpacked; but nobody waits for one peer's disk for long.
    drop(told);
    let _ = timeout_at(until, all_told.recv()).await;
}

/// Blocks.
fn pack(root: DirHandle, compress: Option<i32>, jobs: Vec<Job>) -> Chunk {
    let mut packer = Packer::new(root, compress);
    let (mut bytes, mut parts, mut begin) = (BytesMut::new(), Vec::new(), 0);
    while begin < jobs.len() {
        let (mut together, mut size) = (Vec::new(), 0);
        while let Some(job) =
            jobs.get(begin + together.len()).filter(|_| size < SMALL && together.len() < RECORDS)
        {
            size += job.size + RECORD_COST;
            together.push(Job { entry: together.len() as u64, ..job.clone() });
        }
        parts.push(Part { offset: bytes.len() as u64, files: begin..begin + together.len() });
        begin += together.len();
        bytes.extend_from_slice(&packer.pack(&together).0);
    }
    Chunk { bytes: bytes.freeze(), parts }
}

/// What to tell an attempt that has the chunk; and how many files it has asked for.
fn tell(attempt: u64, chunk: u64, files: &[Asked], parts: &[Part]) -> (Vec<Bytes>, usize) {
    let (mut messages, mut count) = (Vec::new(), 0);
    for (at, Part { offset, files: range }) in parts.iter().enumerate() {
        let last = at + 1 == parts.len();
        let wanted = |asked: &Asked| asked.by.contains(&attempt).then_some(asked.job.entry);
        let mut entries: Vec<_> = files[range.clone()].iter().map(wanted).collect();
        let own = entries.iter().flatten().count();
        count += own;
        if own == 0 {
            entries.clear();
        }
        if own > 0 || last {
            messages.push(wire::unpack(&Unpack { chunk, offset: *offset, last, entries }));
        }
    }
    (messages, count)
}
