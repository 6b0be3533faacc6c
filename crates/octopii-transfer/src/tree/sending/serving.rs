//! Sending what a receiver asks for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Sending;
use crate::activity::Busy;
use crate::pace::Pace;
use crate::source::Beneath;
use crate::tree::content::{Job, Packer, RECORD_COST, Sent, send_large};
use crate::tree::link::enqueue;
use crate::tree::outcome::NotDone;
use crate::tree::sessions::{LARGE, LARGE_AT_ONCE, chunk_meta};
use crate::tree::together::{Delivery, Packs, Terms, Ticket};
use crate::tree::walk::nanoseconds;
use crate::tree::wire::{self, RECORDS, SMALL};
use crate::{SendOptions, TransferError};

/// Small files that are asked for together with others at a limited rate, in bytes.
const TOGETHER: u64 = 16 << 20;

/// The files of one attempt.
pub(super) struct Serving<'a> {
    sending: &'a Sending,
    out: mpsc::Sender<Bytes>,
    /// Made when it is first needed; away while it packs.
    packer: Option<Packer>,
    /// The level of packs, if the receiver takes compressed ones.
    compress: Option<i32>,
    pace: Pace,
    large: JoinSet<(u64, Result<Sent, NotDone>)>,
    places: Arc<Semaphore>,
    together: Option<Together>,
}

/// What is asked for together with other peers.
struct Together {
    ticket: Ticket,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// Small files of which it is not known yet what came of them.
    files: usize,
    /// As long as there are any: what they wait for is bounded by itself.
    working: Option<Busy>,
}

impl<'a> Serving<'a> {
    /// `compress`: the level, if the receiver takes compressed packs.
    pub(super) fn new(sending: &'a Sending, out: mpsc::Sender<Bytes>, compress: Option<i32>) -> Self {
        let options = &sending.options;
        let together = sending.seat.as_ref().map(|seat| {
            let (ticket, deliveries) = seat.enter(Terms {
                addr: sending.addr,
                root: Arc::clone(&sending.source.root),
                compress,
                rate_limit: options.rate_limit,
                idle_timeout: options.idle_timeout,
            });
            Together { ticket, deliveries, files: 0, working: None }
        });
        Self {
            sending,
            out,
            packer: None,
            compress,
            pace: Pace::new(options.rate_limit),
            large: JoinSet::new(),
            places: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            together,
        }
    }

    /// Sends the files that were asked for, until all is settled.
    pub(super) async fn run(mut self) -> Result<(), TransferError> {
        let sending = self.sending;
        let portion = self.pace.step(SMALL as usize) as u64;
        loop {
            let changed = sending.changed.notified();
            // A limited rate is kept by one at a time.
            let is_waiting = self.together.as_ref().is_some_and(|together| together.files > 0);
            let one_is_enough =
                sending.options.rate_limit.is_some() && (is_waiting || !self.large.is_empty());
            let together = self.together.as_ref().map(|_| TOGETHER);
            let (small, big, at_end) = match one_is_enough {
                true => (Vec::new(), None, false),
                false => sending.lock().take_jobs(together.unwrap_or(portion)),
            };
            if !small.is_empty() {
                match &mut self.together {
                    Some(together) => {
                        together.files += small.len();
                        together.working.get_or_insert_with(|| sending.pulse.working());
                        together.ticket.ask(small);
                    }
                    None => self.pack(small).await?,
                }
                continue;
            }
            if let Some(job) = big {
                // Fails only if it is closed, which it never is.
                if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                    let outcome = self.send_large(job);
                    // Its chunk has an idle time of its own.
                    let working = sending.pulse.working();
                    let handle = sending.shared.executor.handle();
                    self.large.spawn_on(
                        async move {
                            let outcome = outcome.await;
                            drop((place, working));
                            outcome
                        },
                        handle,
                    );
                    continue;
                }
                sending.lock().jobs.push_front(job);
            }
            if at_end && self.large.is_empty() {
                return Ok(());
            }
            let taken = sending.lock().taken();
            if let Some(together) = &self.together {
                together.ticket.told(taken);
            }
            tokio::select! {
                biased;
                Some(ended) = self.large.join_next(), if !self.large.is_empty() => {
                    let (entry, outcome) = ended.map_err(|_| TransferError::ShuttingDown)?;
                    self.large_ended(entry, outcome).await?;
                }
                Some(delivery) = delivered(&mut self.together) => self.delivered(delivery, portion).await?,
                () = changed => {}
            }
        }
    }

    /// Sends small files in a pack.
    async fn pack(&mut self, jobs: Vec<Job>) -> Result<(), TransferError> {
        let sending = self.sending;
        // What is sent at a limited rate is not late.
        let working = sending.pulse.working();
        let packer = self.packer.take();
        let (root, compress) = (Arc::clone(&sending.source.root), self.compress);
        let packing = move || {
            let mut packer = packer.unwrap_or_else(|| Packer::new(root, compress));
            (packer.pack(&jobs), packer)
        };
        let ((pack, travels), packer) = sending.shared.executor.blocking(packing).await;
        self.packer = Some(packer);
        self.pace.take(travels as usize).await;
        sending.lock().ledger.travelled += travels;
        drop(working);
        enqueue(&self.out, pack).await
    }

    /// Goes on with small files that were asked for together with others.
    async fn delivered(&mut self, delivery: Delivery, portion: u64) -> Result<(), TransferError> {
        let files = match &delivery {
            Delivery::Packs(packs) => packs.files,
            Delivery::Direct { jobs, .. } => jobs.len(),
        };
        if let Some(together) = &mut self.together {
            together.files = together.files.saturating_sub(files);
            if together.files == 0 {
                together.working = None;
            }
        }
        match delivery {
            Delivery::Packs(Packs { messages, travelled, told, .. }) => {
                self.sending.lock().ledger.travelled += travelled;
                for message in messages {
                    enqueue(&self.out, message).await?;
                }
                drop(told);
            }
            Delivery::Direct { jobs, travelled } => {
                self.sending.lock().ledger.travelled += travelled;
                let (mut pack, mut bytes) = (Vec::new(), 0);
                for job in jobs {
                    bytes += job.size + RECORD_COST;
                    pack.push(job);
                    if bytes >= portion || pack.len() == RECORDS {
                        self.pack(std::mem::take(&mut pack)).await?;
                        bytes = 0;
                    }
                }
                if !pack.is_empty() {
                    self.pack(pack).await?;
                }
            }
        }
        Ok(())
    }

    fn send_large(&self, job: Job) -> impl Future<Output = (u64, Result<Sent, NotDone>)> + Send + use<> {
        let sending = self.sending;
        let file = Beneath {
            root: Arc::clone(&sending.source.root),
            root_path: sending.source.path.clone(),
            path: job.path,
            len: job.size,
            modified_ns: nanoseconds(job.modified),
        };
        let verified = Arc::clone(&sending.verified);
        let options = SendOptions {
            meta: chunk_meta(sending.id, job.entry),
            compress: sending.options.compress,
            rate_limit: sending.options.rate_limit,
            idle_timeout: sending.options.idle_timeout,
            retries: sending.options.retries,
            progress: Some(Arc::new(move |now| {
                verified.fetch_max(now.verified.saturating_sub(now.resumed), Ordering::Relaxed);
            })),
            ..SendOptions::new(LARGE)
        };
        // What peers hand on to one another is not compressed block by block.
        let together = self.together.as_ref().filter(|_| sending.options.compress.is_none());
        let asked =
            together.map(|together| together.ticket.ask_large(job.entry, file.clone(), options.clone()));
        let (shared, addr) = (Arc::clone(&sending.shared), sending.addr);
        async move {
            let in_vain = match asked {
                Some(asked) => match asked.await {
                    Ok(sent) => return (job.entry, Ok(sent)),
                    Err(travelled) => travelled,
                },
                None => 0,
            };
            let sent = send_large(shared, addr, file, options).await;
            (job.entry, sent.map(|sent| Sent { travelled: sent.travelled + in_vain, ..sent }))
        }
    }

    async fn large_ended(&self, entry: u64, outcome: Result<Sent, NotDone>) -> Result<(), TransferError> {
        self.sending.pulse.work();
        match outcome {
            // The success itself is told by the receiver.
            Ok(Sent { resumed, travelled }) => {
                let mut state = self.sending.lock();
                state.ledger.resumed_bytes += resumed;
                state.ledger.travelled += travelled;
                Ok(())
            }
            Err(why) => {
                let mut pack = wire::begin_pack();
                wire::put_packed(&mut pack, entry, Err(&why));
                enqueue(&self.out, wire::finish_pack(pack, 1)).await
            }
        }
    }
}

async fn delivered(together: &mut Option<Together>) -> Option<Delivery> {
    match together {
        Some(together) => together.deliveries.recv().await,
        None => std::future::pending().await,
    }
}
