//! Large files that several peers ask for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Group, Outlook};
use crate::SendOptions;
use crate::distribute::chain;
use crate::source::Beneath;
use crate::supply::Outgoing;
use crate::tree::content::Sent;

/// A file as the peers were told of it.
type Key = (u64, PathBuf, u64, i128);

/// A peer's wish for a file.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) attempt: u64,
    pub(super) addr: SocketAddr,
    pub(super) options: SendOptions,
    /// Who waits for it.
    pub(super) asked: oneshot::Sender<Shipped>,
}

/// What came of a file that goes to several.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shipped {
    /// The peer has it.
    Arrived(Sent),
    /// Nobody else wants it, or it did not get there.
    Alone {
        /// Bytes of it that left here for this peer in vain.
        travelled: u64,
    },
}

#[derive(Debug, Default)]
pub(super) struct Large(BTreeMap<Key, Gathering>);

#[derive(Debug)]
pub(super) struct Gathering {
    entry: u64,
    file: Beneath,
    since: Instant,
    asking: Vec<Asking>,
}

impl Large {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn ask(&mut self, entry: u64, file: Beneath, asking: Asking) {
        let key = (entry, file.path.clone(), file.len, file.modified_ns);
        let fresh = || Gathering { entry, file, since: Instant::now(), asking: Vec::new() };
        self.0.entry(key).or_insert_with(fresh).asking.push(asking);
    }

    /// What the attempt has asked for; its wish is to be dropped by the caller.
    pub(super) fn forget(&mut self, attempt: u64) -> Vec<Asking> {
        let mut forgotten = Vec::new();
        for file in self.0.values_mut() {
            forgotten.extend(file.asking.extract_if(.., |asking| asking.attempt == attempt));
        }
        self.0.retain(|_, file| !file.asking.is_empty());
        forgotten
    }

    /// Takes out what need not wait any longer.
    pub(super) fn ready(&mut self, outlook: &Outlook, members: usize) -> Vec<Gathering> {
        let is_ready = |key: &Key, file: &mut Gathering| {
            file.asking.len() >= members || outlook.is_due(key.0, file.since)
        };
        self.0.extract_if(.., is_ready).map(|(_, file)| file).collect()
    }
}

impl Gathering {
    pub(super) fn entry(&self) -> u64 {
        self.entry
    }

    /// Whether it goes although it is not known who else wants it.
    pub(super) fn is_late(&self, outlook: &Outlook) -> bool {
        self.entry >= outlook.low && outlook.now >= self.since + outlook.patience
    }
}

impl Group {
    pub(super) fn ship_large(&self, Gathering { file, asking, .. }: Gathering) {
        if asking.len() < 2 {
            asking.into_iter().for_each(|Asking { asked, .. }| tell(asked, Shipped::Alone { travelled: 0 }));
            return;
        }
        tracing::debug!(path = %file.path.display(), peers = asking.len(), "a large file goes in a chain");
        let shared = Arc::clone(&self.shared);
        self.spawn(async move {
            let Some(first) = asking.first() else { return };
            // Each peer's own attempt tries again. What they share must suit all of them.
            let all = || asking.iter().map(|asking| &asking.options);
            let options = SendOptions {
                retries: 0,
                rate_limit: all().filter_map(|options| options.rate_limit).min(),
                idle_timeout: all()
                    .map(|options| options.idle_timeout)
                    .fold(first.options.idle_timeout, Duration::min),
                ..first.options.clone()
            };
            let told: Vec<_> =
                asking.iter().map(|asking| (asking.addr, asking.options.progress.clone())).collect();
            let (addrs, mut asked): (Vec<_>, Vec<_>) =
                asking.into_iter().map(|Asking { addr, asked, .. }| (addr, Some(asked))).unzip();
            let resumed: Arc<Vec<_>> = Arc::new(addrs.iter().map(|_| AtomicU64::new(0)).collect());
            let noted = Arc::clone(&resumed);
            let progress = move |now: crate::Progress| {
                if let Some(at) = told.iter().position(|(addr, _)| *addr == now.peer) {
                    noted[at].store(now.resumed, Ordering::Relaxed);
                    told[at].1.iter().for_each(|progress| progress(now));
                }
            };
            let options = SendOptions { progress: Some(Arc::new(progress)), ..options };
            let (tx, mut results) = mpsc::channel(addrs.len());
            let sending = chain(shared, Outgoing::Beneath(file), addrs, options, tx);
            let telling = async {
                while let Some((at, result)) = results.recv().await {
                    let resumed = resumed[at].load(Ordering::Relaxed);
                    let sent = Sent { resumed, travelled: result.travelled };
                    let shipped = match result.success {
                        true => Shipped::Arrived(sent),
                        false => Shipped::Alone { travelled: result.travelled },
                    };
                    asked[at].take().into_iter().for_each(|asked| tell(asked, shipped));
                }
            };
            tokio::join!(sending, telling);
        });
    }
}

fn tell(asked: oneshot::Sender<Shipped>, shipped: Shipped) {
    // An error means that the peer's tree has ended meanwhile.
    let _ = asked.send(shipped);
}
