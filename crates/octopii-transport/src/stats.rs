//! What can be told of a connection at one moment, and how it does.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::{CertificateHash, Connection, PeerIdentity};

/// A peer's connection, as it is now: one entry for each connection.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PeerStats {
    /// Who it is.
    pub peer: PeerIdentity,
    /// The hash of its certificate.
    pub certificate: CertificateHash,
    /// Its address.
    pub remote: SocketAddr,
    /// Whether this side dialled.
    pub dialled: bool,
    /// How long the connection has been open.
    pub open_for: Duration,
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Bytes that may be under way to the peer.
    pub congestion_window: u64,
    /// Largest UDP payload in use, in bytes.
    pub mtu: u16,
    /// UDP payload bytes sent.
    pub bytes_sent: u64,
    /// UDP payload bytes received.
    pub bytes_received: u64,
    /// Packets sent.
    pub packets_sent: u64,
    /// Packets judged lost.
    pub packets_lost: u64,
    /// Streams open now, in both directions.
    pub streams_open: usize,
    /// Streams opened so far, in both directions.
    pub streams_total: u64,
    /// Bytes sent in the last second.
    pub send_rate: u64,
    /// Bytes received in the last second.
    pub receive_rate: u64,
    /// The part of the packets sent in the last second that was judged lost, from 0 to 1.
    pub loss: f64,
    /// How long nothing has come from the peer, in steps of a second.
    pub silent_for: Duration,
    /// What that amounts to.
    pub health: Health,
}

/// How a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Health {
    /// Nothing to complain of.
    Good,
    /// More than one packet in twenty was lost in the last second.
    Lossy,
    /// Nothing has come for longer than two pings take: the peer, or the way to it, may be gone.
    Silent,
}

const LOSSY: f64 = 0.05;

/// The last second, and whether packets are being lost.
#[derive(Debug)]
pub(crate) struct Sampled {
    last: Mutex<Sample>,
    lossy: Lossy,
}

/// Whether packets are being lost on a way that is long enough for that to hold things up: asked for with each call.
#[derive(Debug, Default)]
struct Lossy {
    now: AtomicBool,
    /// Seconds in a row in which nothing was lost.
    clean: AtomicU32,
}

/// The part of the packets of a second that must be lost, and how many of them: a queue that overflows now and then is no bad way.
const LOSING: f64 = 0.01;
const LOSING_PACKETS: u64 = 2;
/// On shorter ways a lost packet is sent again before anybody notices.
const LOSING_RTT: Duration = Duration::from_millis(2);
/// So many seconds without a loss end it.
const CLEAN: u32 = 10;

impl Lossy {
    /// Takes a second into account. Only one task does.
    fn take(&self, lost: u64, loss: f64, rtt: Duration) {
        if lost >= LOSING_PACKETS && loss > LOSING && rtt > LOSING_RTT {
            self.now.store(true, Ordering::Relaxed);
        }
        let clean = if lost == 0 { self.clean.load(Ordering::Relaxed).saturating_add(1) } else { 0 };
        self.clean.store(clean, Ordering::Relaxed);
        if clean >= CLEAN {
            self.now.store(false, Ordering::Relaxed);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    heard: Instant,
    sent: u64,
    received: u64,
    packets: u64,
    lost: u64,
    send_rate: u64,
    receive_rate: u64,
    loss: f64,
}

/// How often rates are taken.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(1);

impl Sampled {
    pub(crate) fn new(now: Instant) -> Self {
        let last = Mutex::new(Sample {
            at: now,
            heard: now,
            sent: 0,
            received: 0,
            packets: 0,
            lost: 0,
            send_rate: 0,
            receive_rate: 0,
            loss: 0.0,
        });
        Self { last, lossy: Lossy::default() }
    }

    pub(crate) fn is_lossy(&self) -> bool {
        self.lossy.now.load(Ordering::Relaxed)
    }

    pub(crate) fn take(&self, quic: &quinn::Connection, now: Instant) {
        let stats = quic.stats();
        let mut sample = self.last.lock().expect("no panic while held");
        let millis = u64::try_from(now.duration_since(sample.at).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = |now: u64, before: u64| now.saturating_sub(before).saturating_mul(1000) / millis;
        let sent = stats.path.sent_packets.saturating_sub(sample.packets);
        let lost = stats.path.lost_packets.saturating_sub(sample.lost);
        // What is judged lost now may have been sent before.
        let loss = if sent == 0 { 0.0 } else { (lost as f64 / sent as f64).min(1.0) };
        self.lossy.take(lost, loss, stats.path.rtt);
        *sample = Sample {
            at: now,
            heard: if stats.udp_rx.bytes == sample.received { sample.heard } else { now },
            sent: stats.udp_tx.bytes,
            received: stats.udp_rx.bytes,
            packets: stats.path.sent_packets,
            lost: stats.path.lost_packets,
            send_rate: rate(stats.udp_tx.bytes, sample.sent),
            receive_rate: rate(stats.udp_rx.bytes, sample.received),
            loss,
        };
    }
}

pub(crate) fn describe(connection: &Connection, now: Instant, keep_alive: Duration) -> PeerStats {
    let (quic, state) = (connection.quic(), connection.state());
    let stats = quic.stats();
    let sample = *state.sampled.last.lock().expect("no panic while held");
    let silent_for =
        if stats.udp_rx.bytes == sample.received { now.duration_since(sample.heard) } else { Duration::ZERO };
    let health = if silent_for > keep_alive * 2 + SAMPLE_EVERY {
        Health::Silent
    } else if sample.loss > LOSSY {
        Health::Lossy
    } else {
        Health::Good
    };
    PeerStats {
        peer: state.peer,
        certificate: state.certificate,
        remote: connection.remote_addr(),
        dialled: state.dialled,
        open_for: now.duration_since(state.opened),
        rtt: stats.path.rtt,
        congestion_window: stats.path.cwnd,
        mtu: stats.path.current_mtu,
        bytes_sent: stats.udp_tx.bytes,
        bytes_received: stats.udp_rx.bytes,
        packets_sent: stats.path.sent_packets,
        packets_lost: stats.path.lost_packets,
        streams_open: connection.streams_open(),
        streams_total: state.activity.total(),
        send_rate: sample.send_rate,
        receive_rate: sample.receive_rate,
        loss: sample.loss,
        silent_for,
        health,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_lossy_from_a_share_of_losses_on_until_none_has_come_for_a_while() {
        let (near, far) = (Duration::from_millis(1), Duration::from_millis(50));
        let lossy = Lossy::default();
        let is = || lossy.now.load(Ordering::Relaxed);
        // Nothing, one packet of few, some of very many, and many where they are soon sent again.
        for (lost, loss, rtt) in [(0, 0.0, far), (1, 0.1, far), (100, 0.001, far), (100, 0.1, near)] {
            lossy.take(lost, loss, rtt);
            assert!(!is(), "{lost} {loss} {rtt:?}");
        }
        lossy.take(2, 0.02, far);
        assert!(is());
        // A single loss, and the time begins again.
        for _ in 0..2 {
            (1..CLEAN).for_each(|_| lossy.take(0, 0.0, far));
            assert!(is());
            lossy.take(1, 0.001, far);
        }
        (0..CLEAN).for_each(|_| lossy.take(0, 0.0, far));
        assert!(!is());
    }
}
