//! One live connection per peer address: dialled once however many ask, redialled with jittered backoff.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rand::Rng;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::accept::{await_welcome, serve_streams, welcome};
use crate::activity::close_when_unused;
use crate::endpoint::Shared;
use crate::identity::cluster_name;
use crate::members::{REVOKED, Unwelcome};
use crate::{ConnectError, Connection, tls};

/// After a failed dial the next one waits this long, doubling up to [`BACKOFF_MAX`], each time shortened by a random
/// part up to a half so that peers do not redial in step.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Pool {
    links: Mutex<BTreeMap<SocketAddr, Link>>,
    // Wakes whoever waits out a backoff.
    adopted: Notify,
}

type Outcome = Option<Result<Connection, ConnectError>>;

#[derive(Debug)]
enum Link {
    Live(Connection),
    /// One dial is under way; whoever else asks waits for its outcome.
    Dialling {
        outcome: watch::Receiver<Outcome>,
        // Belongs to the dialling task: when that is gone, nobody must wait for it.
        done: Weak<watch::Sender<Outcome>>,
        task: AbortHandle,
        failures: u32,
    },
    /// The last dial failed; the next one may begin at `retry_at`.
    Failed {
        error: ConnectError,
        failures: u32,
        retry_at: Instant,
    },
}

/// Failed links are forgotten beyond this many, so that dialling many wrong addresses costs no memory.
const MAX_REMEMBERED: usize = 4096;

/// Dials under way at once. Peers may name addresses to dial, so one that nobody waits for any more gives way to another.
const MAX_DIALLING: usize = 1024;

impl Pool {
    /// Keeps a connection that a peer made to us: the peer dials from its own listening address, so it serves for calls
    /// in the other direction too. Whoever waits for a dial, or for the time to dial again, takes it at once.
    pub(crate) fn adopt(&self, shared: &Shared, addr: SocketAddr, connection: &Connection) {
        if connection.is_closed() {
            return;
        }
        let mut links = self.links.lock().expect("no panic while held");
        match links.get(&addr) {
            Some(Link::Live(older)) if !older.is_closed() => {
                let link = settle(shared, older, connection);
                links.insert(addr, link);
            }
            _ => {
                if let Some(Link::Dialling { done, .. }) = links.insert(addr, Link::Live(connection.clone()))
                    && let Some(done) = done.upgrade()
                {
                    done.send_replace(Some(Ok(connection.clone())));
                }
            }
        }
        self.adopted.notify_waiters();
    }

    /// Lets go of a connection that is gone.
    pub(crate) fn forget(&self, gone: &Connection) {
        let gone = gone.quic().stable_id();
        let mut links = self.links.lock().expect("no panic while held");
        links.retain(|_, link| !matches!(link, Link::Live(c) if c.quic().stable_id() == gone));
    }

    /// The live connection to `addr`, if there is one.
    pub(crate) fn live(&self, addr: SocketAddr) -> Option<Connection> {
        match self.links.lock().expect("no panic while held").get(&addr) {
            Some(Link::Live(connection)) if !connection.is_closed() => Some(connection.clone()),
            _ => None,
        }
    }

    /// The connection to `addr` that is used, if there is one. It may be lost and nobody have noticed yet: asking it would wait for its
    /// lock, for which packets compete.
    pub(crate) fn used(&self, addr: SocketAddr) -> Option<Connection> {
        match self.links.lock().expect("no panic while held").get(&addr) {
            Some(Link::Live(connection)) => Some(connection.clone()),
            _ => None,
        }
    }

    /// The live connection to `addr`, dialling if there is none. Cancel-safe: the dial goes on for others.
    pub(crate) async fn connect(shared: &Arc<Shared>, addr: SocketAddr) -> Result<Connection, ConnectError> {
        loop {
            let mut adopted = pin!(shared.pool.adopted.notified());
            adopted.as_mut().enable();
            let mut outcome = match shared.pool.link(shared, addr) {
                Step::Live(connection) => return Ok(connection),
                Step::Wait(outcome) => outcome,
                Step::Refuse => return Err(ConnectError::TooManyDials { addr, limit: MAX_DIALLING }),
                Step::Sleep(until, error) => {
                    // Waiting out a short backoff serves the caller better than an old error.
                    if until.duration_since(Instant::now()) > shared.connect_timeout {
                        return Err(error);
                    }
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        () = adopted => {}
                    }
                    continue;
                }
            };
            return match outcome.wait_for(Option::is_some).await {
                Ok(result) => result.clone().expect("waited for some"),
                // The dialling task was dropped with its runtime.
                Err(_) => Err(ConnectError::EndpointClosed),
            };
        }
    }

    fn link(&self, shared: &Arc<Shared>, addr: SocketAddr) -> Step {
        let mut links = self.links.lock().expect("no panic while held");
        let failures = match links.get(&addr) {
            Some(Link::Live(connection)) if !connection.is_closed() => return Step::Live(connection.clone()),
            Some(Link::Dialling { outcome, .. }) => return Step::Wait(outcome.clone()),
            Some(Link::Failed { error, retry_at, .. }) if *retry_at > Instant::now() => {
                return Step::Sleep(*retry_at, error.clone());
            }
            Some(Link::Failed { failures, .. }) => *failures,
            Some(Link::Live(_)) | None => 0,
        };
        if links.len() >= MAX_REMEMBERED {
            links.retain(|_, link| {
                matches!(link, Link::Live(c) if !c.is_closed()) || matches!(link, Link::Dialling { .. })
            });
        }
        let dialling = links.values().filter(|link| matches!(link, Link::Dialling { .. })).count();
        if dialling >= MAX_DIALLING && !give_one_up(&mut links) {
            return Step::Refuse;
        }
        let (done, outcome) = watch::channel(None);
        let done = Arc::new(done);
        let told = Arc::downgrade(&done);
        let shared = Arc::clone(shared);
        let executor = shared.executor.clone();
        // It cannot end before its link is there: that takes the lock.
        let task = executor.spawn(async move {
            let result = dial(&shared, addr).await;
            shared.pool.dialled(&shared, addr, &result);
            if let Ok(connection) = &result {
                shared.executor.spawn(serve_streams(Arc::clone(&shared), connection.clone()));
            }
            // Unless the peer's own connection came first.
            done.send_if_modified(|outcome| {
                let first = outcome.is_none();
                outcome.get_or_insert(result);
                first
            });
        });
        let task = task.abort_handle();
        links.insert(addr, Link::Dialling { outcome: outcome.clone(), done: told, task, failures });
        Step::Wait(outcome)
    }

    fn dialled(&self, shared: &Shared, addr: SocketAddr, result: &Result<Connection, ConnectError>) {
        let mut links = self.links.lock().expect("no panic while held");
        if let (Some(Link::Live(older)), Ok(connection)) = (links.get(&addr), result)
            && !older.is_closed()
        {
            let link = settle(shared, older, connection);
            links.insert(addr, link);
            return;
        }
        let failures = match links.get(&addr) {
            Some(Link::Dialling { failures, .. }) => failures.saturating_add(1),
            // The peer has dialled meanwhile.
            Some(Link::Live(connection)) if result.is_err() && !connection.is_closed() => return,
            _ => 1,
        };
        let link = match result {
            Ok(connection) => Link::Live(connection.clone()),
            Err(error) => {
                let wait = backoff(failures).mul_f64(rand::rng().random_range(0.5..=1.0));
                Link::Failed { error: error.clone(), failures, retry_at: Instant::now() + wait }
            }
        };
        links.insert(addr, link);
    }
}

/// Ends a dial for which nobody waits, if there is one.
fn give_one_up(links: &mut BTreeMap<SocketAddr, Link>) -> bool {
    let unwanted = links.iter().find_map(|(&addr, link)| match link {
        // One of those who wait is the link itself.
        Link::Dialling { done, task, .. } => match done.upgrade() {
            Some(done) if done.receiver_count() > 1 => None,
            _ => Some((addr, task.clone())),
        },
        _ => None,
    });
    let Some((addr, task)) = unwanted else { return false };
    task.abort();
    links.remove(&addr);
    true
}

/// Which of two live connections to one address is used from now on. The other one ends when what is under way on it has ended.
///
/// Two nodes that dial each other at the same moment must keep the same one: the one that the node with the lower id has
/// dialled. That holds for two connections with one life of the peer only. A peer that was killed and came back dials anew, and
/// the older connection, which nobody answers any more, would otherwise be used until its idle timeout.
fn settle(shared: &Shared, older: &Connection, newer: &Connection) -> Link {
    let same_life =
        older.peer() == newer.peer() && older.instance().is_some() && older.instance() == newer.instance();
    let crossed = older.state().dialled != newer.state().dialled && shared.node_id != newer.peer().node_id;
    let ours_wins = shared.node_id < newer.peer().node_id;
    let (winner, loser) = if same_life && crossed && older.state().dialled == ours_wins {
        (older, newer)
    } else {
        (newer, older)
    };
    if winner.quic().stable_id() != loser.quic().stable_id() {
        shared.executor.spawn(close_when_unused(
            loser.clone(),
            SUPERSEDED_AFTER,
            b"superseded by another connection",
        ));
    }
    Link::Live(winner.clone())
}

/// A connection that was superseded is closed when nothing has been open on it for so long: the peer, which settles on the same
/// one, may have opened a stream just before.
const SUPERSEDED_AFTER: Duration = Duration::from_secs(3);

/// The longest wait after so many failures in a row.
pub(crate) fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

enum Step {
    Live(Connection),
    Wait(watch::Receiver<Outcome>),
    /// As many dials as there may be are under way, and all are waited for.
    Refuse,
    Sleep(Instant, ConnectError),
}

async fn dial(shared: &Shared, addr: SocketAddr) -> Result<Connection, ConnectError> {
    let config = shared.credentials().client.clone();
    let connecting =
        shared.quic.connect_with(config, addr, &cluster_name(shared.cluster)).map_err(|e| match e {
            quinn::ConnectError::EndpointStopping => ConnectError::EndpointClosed,
            other => ConnectError::InvalidAddress { addr, reason: other.to_string() },
        })?;
    let admitted = async {
        let quic = connecting.await?;
        welcome(&quic, shared.instance).await?;
        let instance = await_welcome(&quic).await?;
        Ok((quic, instance))
    };
    let (quic, instance) = match timeout(shared.connect_timeout, admitted).await {
        Ok(Ok(admitted)) => admitted,
        Ok(Err(e)) => return Err(connect_error(addr, &e)),
        Err(_) => return Err(ConnectError::Unreachable(addr)),
    };
    match tls::peer(&quic, &shared.credentials().identity) {
        Ok(found) if found.0.cluster == shared.cluster => {
            let connection = Connection::new(quic, found, true);
            connection.set_instance(instance);
            let unwelcome = match shared.members.enter(&connection) {
                Ok(()) => return Ok(connection),
                Err(unwelcome) => unwelcome,
            };
            connection.quic().close(0u32.into(), b"");
            Err(match unwelcome {
                Unwelcome::Revoked => {
                    ConnectError::NotTrusted { addr, reason: "it has been revoked".to_owned() }
                }
                Unwelcome::TooMany => ConnectError::Refused {
                    addr,
                    reason: "there are too many connections to this node".to_owned(),
                },
            })
        }
        Ok(_) => {
            quic.close(0u32.into(), b"");
            Err(ConnectError::NotTrusted { addr, reason: "it is a node of another cluster".to_owned() })
        }
        Err(e) => {
            quic.close(0u32.into(), b"");
            Err(ConnectError::NotTrusted { addr, reason: e.to_string() })
        }
    }
}

/// TLS alerts travel as QUIC error codes 0x100 + alert (RFC 9001, section 4.8).
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

fn connect_error(addr: SocketAddr, e: &quinn::ConnectionError) -> ConnectError {
    let code = match e {
        quinn::ConnectionError::TransportError(e) => Some(u64::from(e.code)),
        quinn::ConnectionError::ConnectionClosed(close) => Some(u64::from(close.error_code)),
        quinn::ConnectionError::ApplicationClosed(close) if close.error_code == REVOKED.into() => {
            let reason = "this node's certificate has been revoked".to_owned();
            return ConnectError::NotTrusted { addr, reason };
        }
        _ => None,
    };
    match (e, code) {
        (_, Some(NO_APPLICATION_PROTOCOL)) | (quinn::ConnectionError::VersionMismatch, _) => {
            ConnectError::WireVersion(addr)
        }
        (_, Some(code)) if (0x100..0x200).contains(&code) => {
            ConnectError::NotTrusted { addr, reason: e.to_string() }
        }
        (quinn::ConnectionError::TimedOut, _) => ConnectError::Unreachable(addr),
        (quinn::ConnectionError::LocallyClosed, _) => ConnectError::EndpointClosed,
        _ => ConnectError::Refused { addr, reason: e.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_begins_at_50_ms_and_doubles_up_to_2_s() {
        let waits: Vec<_> = (1..9).map(|failures| backoff(failures).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}
