//! A verified connection to a peer.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::socket::canonical;
use crate::stream::lost;
use crate::{CertificateHash, PeerIdentity, RecvStream, SendStream, StreamError, StreamKind};

/// A connection to a peer whose certificate has been verified. Cloning gives another handle to the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    inner: quinn::Connection,
    peer: PeerIdentity,
    certificate: CertificateHash,
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
    pub(crate) fn new(inner: quinn::Connection, peer: PeerIdentity, certificate: CertificateHash) -> Self {
        Self { inner, peer, certificate }
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
        let mut send = SendStream::new(send);
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
        Ok((send, RecvStream::new(recv)))
    }

    /// Who the peer is, from its certificate.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The hash of the peer's certificate, by which it alone can be revoked.
    pub fn certificate(&self) -> &CertificateHash {
        &self.certificate
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
