//! A verified connection to a peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use tokio::time::Instant;

use crate::activity::Activity;
use crate::socket::canonical;
use crate::stats::Sampled;
use crate::stream::lost;
use crate::{CertificateHash, PeerIdentity, RecvStream, SendStream, StreamError, StreamKind};

/// A connection to a peer whose certificate has been verified. Cloning gives another handle to the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: quinn::Connection,
    state: Arc<State>,
}

/// What handles to one connection share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) peer: PeerIdentity,
    pub(crate) certificate: CertificateHash,
    /// Whether this side dialled.
    pub(crate) dialled: bool,
    pub(crate) opened: Instant,
    pub(crate) activity: Arc<Activity>,
    pub(crate) sampled: Sampled,
    // 0: not told yet.
    instance: AtomicU64,
}

/// Figures of a connection at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// UDP payload bytes sent.
    pub bytes_sent: u64,
    /// UDP payload bytes received.
    pub bytes_received: u64,
    /// Packets judged lost.
    pub packets_lost: u64,
    /// Largest UDP payload in use, in bytes.
    pub mtu: u16,
}

impl Connection {
    pub(crate) fn new(
        inner: quinn::Connection,
        (peer, certificate): (PeerIdentity, CertificateHash),
        dialled: bool,
    ) -> Self {
        let now = Instant::now();
        let state = State {
            peer,
            certificate,
            dialled,
            opened: now,
            activity: Arc::default(),
            sampled: Sampled::new(now),
            instance: AtomicU64::new(0),
        };
        Self { inner, state: Arc::new(state) }
    }

    /// Which life of the peer this is: a restarted one has another.
    pub(crate) fn instance(&self) -> Option<u64> {
        Some(self.state.instance.load(Ordering::Relaxed)).filter(|instance| *instance != 0)
    }

    pub(crate) fn set_instance(&self, instance: u64) {
        self.state.instance.store(instance, Ordering::Relaxed);
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Streams open on it now, in both directions.
    pub fn streams_open(&self) -> usize {
        self.state.activity.open()
    }

    /// Opens a stream of this kind. The kind is sent at once, so the peer learns of the stream even before anything
    /// else is written. Waits while the peer's limit of open streams is reached. Cancel-safe.
    pub async fn open(&self, kind: StreamKind) -> Result<(SendStream, RecvStream), StreamError> {
        self.open_with(kind, BytesMut::new(), Bytes::new()).await
    }

    /// As [`open`](Self::open), and writes `first` and then `rest` at once behind the kind: one write instead of two, so
    /// that a small request leaves in one packet. `first` is copied, `rest` is not.
    pub async fn open_with(
        &self,
        kind: StreamKind,
        first: impl AsRef<[u8]>,
        rest: Bytes,
    ) -> Result<(SendStream, RecvStream), StreamError> {
        let (send, recv) = self.inner.open_bi().await.map_err(|e| lost(&e))?;
        let (sending, receiving) = self.state.activity.stream();
        let mut send = SendStream::new(send).counted(sending);
        send.prioritise(kind);
        let first = first.as_ref();
        let mut head = BytesMut::with_capacity(1 + first.len());
        head.put_u8(kind as u8);
        head.put_slice(first);
        if rest.is_empty() {
            send.write_chunk(head.freeze()).await?;
        } else {
            send.write_chunks(&mut [head.freeze(), rest]).await?;
        }
        Ok((send, RecvStream::new(recv).counted(receiving)))
    }

    /// Tells this connection from every other of this process that is open.
    pub fn id(&self) -> usize {
        self.inner.stable_id()
    }

    /// Who the peer is, from its certificate.
    pub fn peer(&self) -> &PeerIdentity {
        &self.state.peer
    }

    /// The hash of the peer's certificate, by which it alone can be revoked.
    pub fn certificate(&self) -> &CertificateHash {
        &self.state.certificate
    }

    /// The peer's address now.
    pub fn remote_addr(&self) -> SocketAddr {
        canonical(self.inner.remote_address())
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.inner.close_reason().is_some()
    }

    /// Waits until the connection is gone. Cancel-safe.
    pub async fn closed(&self) {
        self.inner.closed().await;
    }

    /// Ends the connection and everything on it.
    pub fn close(&self, reason: &str) {
        self.inner.close(0u32.into(), reason.as_bytes());
    }

    /// Whether packets that were sent on it are being lost, often enough and on a way long enough for what is behind them on the same stream
    /// to wait noticeably. It is found out once a second, and ends when nothing has been lost for ten. Costs nothing to ask.
    pub fn is_lossy(&self) -> bool {
        self.state.sampled.is_lossy()
    }

    /// Figures of this moment.
    pub fn stats(&self) -> ConnectionStats {
        let stats = self.inner.stats();
        ConnectionStats {
            rtt: stats.path.rtt,
            bytes_sent: stats.udp_tx.bytes,
            bytes_received: stats.udp_rx.bytes,
            packets_lost: stats.path.lost_packets,
            mtu: stats.path.current_mtu,
        }
    }

    pub(crate) fn quic(&self) -> &quinn::Connection {
        &self.inner
    }
}
