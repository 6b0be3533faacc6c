//! The protocols spoken by hand: messages on a stream; and those of chunks, from `docs/formats/transfer.md` alone: neither encoder nor decoder of the crate is used.

use std::net::SocketAddr;
use std::time::Duration;

use octopii_transfer::{Digest, TransferId};
use octopii_transport::{Acceptor, Connection, Endpoint, RecvStream, SendStream, StreamKind};
use tokio::time::timeout;

pub(crate) const ACCEPT: u8 = 2;
pub(crate) const REFUSE: u8 = 3;
pub(crate) const ACK: u8 = 7;
pub(crate) const FAIL: u8 = 8;
pub(crate) const AGAIN: u8 = 16;

pub(crate) struct Raw {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Raw {
    pub(crate) async fn open(from: &Endpoint, to: SocketAddr) -> Self {
        Self::open_kind(StreamKind::Transfer, from, to).await
    }

    pub(crate) async fn open_kind(kind: StreamKind, from: &Endpoint, to: SocketAddr) -> Self {
        let connection = from.connect(to).await.unwrap();
        let (send, recv) = connection.open(kind).await.unwrap();
        Self { connection, send, recv }
    }

    pub(crate) async fn accept(acceptor: &mut Acceptor) -> Self {
        let incoming = timeout(Duration::from_secs(15), acceptor.accept()).await.unwrap().unwrap();
        Self { connection: incoming.connection, send: incoming.send, recv: incoming.recv }
    }

    /// A peer that gives up early no longer reads; that is not what a test is about.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = self.send.write_all(bytes).await;
    }

    /// The next message of a chunk but signs of life.
    pub(crate) async fn read(&mut self) -> (u8, Vec<u8>) {
        self.read_but(6).await
    }

    /// The version, which begins every stream.
    pub(crate) async fn read_version(&mut self) {
        let mut version = [0];
        self.recv.read_exact(&mut version).await.unwrap();
        assert_eq!(version, [1]);
    }

    /// The next message of another tag.
    pub(crate) async fn read_but(&mut self, skipped: u8) -> (u8, Vec<u8>) {
        let reading = async {
            loop {
                let mut header = [0; 5];
                self.recv.read_exact(&mut header).await.unwrap();
                let len = u32::from_le_bytes(header[1..].try_into().unwrap());
                let mut body = vec![0; len as usize];
                self.recv.read_exact(&mut body).await.unwrap();
                if header[0] != skipped {
                    return (header[0], body);
                }
            }
        };
        timeout(Duration::from_secs(15), reading).await.expect("an answer within 15 s")
    }

    pub(crate) async fn expect_failure(&mut self, tag: u8, code: u16) {
        let (got, body) = self.read().await;
        assert_eq!(
            (got, u16::from_le_bytes([body[0], body[1]])),
            (tag, code),
            "{}",
            String::from_utf8_lossy(&body[4..])
        );
    }

    pub(crate) async fn expect_accept(&mut self) {
        let (tag, body) = self.read().await;
        assert_eq!((tag, &body[..]), (ACCEPT, &accept_body(0, b"")[..]));
    }
}

/// Of a receiver that has the first `have` bytes, which are `content`.
pub(crate) fn accept_body(have: u64, content: &[u8]) -> Vec<u8> {
    let digest = Digest::of(content).0;
    [&[0][..], &have.to_le_bytes(), if have > 0 { &digest } else { &[] }].concat()
}

pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32).to_le_bytes(), body].concat()
}

/// Version and offer of a chunk named "f".
pub(crate) fn opening(id: u128, purpose: &str, size: Option<u64>, block: u32) -> Vec<u8> {
    opening_with(id, None, purpose, size, block)
}

/// Of one that can be resumed.
pub(crate) fn opening_with(
    id: u128,
    key: Option<[u8; 16]>,
    purpose: &str,
    size: Option<u64>,
    block: u32,
) -> Vec<u8> {
    let flags = 2 | u8::from(size.is_some()) | if key.is_some() { 8 } else { 0 };
    let body = [
        &[flags][..],
        &id.to_le_bytes(),
        &block.to_le_bytes(),
        &size.unwrap_or(0).to_le_bytes(),
        &[purpose.len() as u8],
        &1u16.to_le_bytes(),
        &0u32.to_le_bytes(),
        purpose.as_bytes(),
        b"f",
        key.as_ref().map_or(&[], |key| &key[..]),
    ]
    .concat();
    [&[1][..], &message(1, &body)].concat()
}

/// A data message with the right digest of `before` and `content`.
pub(crate) fn data(before: &[u8], content: &[u8]) -> Vec<u8> {
    let prefix = Digest::of(&[before, content].concat());
    message(4, &[&(before.len() as u64).to_le_bytes()[..], content, &prefix.0].concat())
}

/// A block that was asked for again.
pub(crate) fn repair(offset: usize, content: &[u8]) -> Vec<u8> {
    message(17, &[&(offset as u64).to_le_bytes()[..], content].concat())
}

pub(crate) fn done(size: u64, digest: Digest) -> Vec<u8> {
    message(5, &[&size.to_le_bytes()[..], &digest.0].concat())
}

/// As acknowledgement (7) or as the body of a status.
pub(crate) fn ack_body(size: u64, digest: Digest) -> Vec<u8> {
    [&[3][..], &size.to_le_bytes(), &digest.0].concat()
}

pub(crate) fn query(id: TransferId) -> Vec<u8> {
    [&[1][..], &message(9, &id.0.to_le_bytes())].concat()
}

/// Reads the version and an offer; returns its id.
pub(crate) async fn read_offer(raw: &mut Raw) -> TransferId {
    raw.read_version().await;
    let (tag, body) = raw.read().await;
    assert_eq!(tag, 1);
    TransferId(u128::from_le_bytes(body[1..17].try_into().unwrap()))
}

/// Takes a whole chunk, and acknowledges it with this body.
pub(crate) async fn acknowledge(acceptor: &mut Acceptor, body: &[u8]) {
    let mut raw = Raw::accept(acceptor).await;
    read_offer(&mut raw).await;
    raw.write(&message(ACCEPT, &accept_body(0, b""))).await;
    while raw.read().await.0 != 5 {}
    raw.write(&message(ACK, body)).await;
    raw.send.finish().unwrap();
    let _ = raw.send.stopped().await;
}

/// What a hand-made receiver answers when it is asked for the status.
pub(crate) async fn answer_status(acceptor: &mut Acceptor, body: &[u8]) -> TransferId {
    let mut raw = Raw::accept(acceptor).await;
    raw.read_version().await;
    let (tag, asked) = raw.read().await;
    assert_eq!(tag, 9);
    raw.write(&message(10, body)).await;
    raw.send.finish().unwrap();
    let _ = raw.send.stopped().await;
    TransferId(u128::from_le_bytes(asked[..].try_into().unwrap()))
}
