//! Streams reach the acceptor of their kind, whole and in order.

use bytes::Bytes;
use octopii_transport::{ClusterAuthority, StreamError, StreamKind};

use crate::endpoint;

#[tokio::test]
async fn each_kind_reaches_its_own_acceptor() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut acceptors: Vec<_> = StreamKind::ALL.iter().map(|k| (*k, b.acceptor(*k).unwrap())).collect();
    let connection = a.connect(b.local_addr()).await.unwrap();
    assert_eq!(connection.peer().node_id, 2);

    // Opened in the reverse order of the acceptors, all on one connection.
    let mut open = Vec::new();
    for kind in StreamKind::ALL.iter().rev() {
        let (mut send, recv) = connection.open(*kind).await.unwrap();
        send.write_frame(format!("{kind:?}").as_bytes()).await.unwrap();
        send.finish().unwrap();
        open.push((send, recv));
    }
    for (kind, acceptor) in &mut acceptors {
        let mut incoming = acceptor.accept().await.unwrap();
        let frame = incoming.recv.read_frame(100).await.unwrap().unwrap();
        assert_eq!(frame, format!("{kind:?}").as_bytes());
        assert_eq!(incoming.recv.read_frame(100).await.unwrap(), None);
        assert_eq!(incoming.connection.peer().node_id, 1);
    }
}

#[test]
fn kinds_have_the_bytes_that_the_wire_format_gives_them() {
    use StreamKind::{Message, Raft, Rpc, Transfer};
    assert_eq!([Message, Rpc, Transfer, Raft].map(|kind| kind as u8), [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_kind_nobody_accepts_is_refused() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let (_send, mut recv) = a.connect(b.local_addr()).await.unwrap().open(StreamKind::Rpc).await.unwrap();
    assert_eq!(recv.read_frame(100).await, Err(StreamError::Reset(1)));
}

#[tokio::test]
async fn an_abandoned_frame_is_an_error_not_a_short_message() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut acceptor = b.acceptor(StreamKind::Message).unwrap();
    let connection = a.connect(b.local_addr()).await.unwrap();

    let (mut send, _recv) = connection.open(StreamKind::Message).await.unwrap();
    send.write_all(&[10, 0, 0, 0, b'x']).await.unwrap();
    let mut incoming = acceptor.accept().await.unwrap();
    drop(send);
    assert_eq!(incoming.recv.read_frame(100).await, Err(StreamError::Reset(0)));

    // Finished properly, but in the middle of a frame.
    let (mut send, _recv) = connection.open(StreamKind::Message).await.unwrap();
    send.write_all(&[10, 0, 0, 0, b'x']).await.unwrap();
    send.finish().unwrap();
    let mut incoming = acceptor.accept().await.unwrap();
    assert_eq!(incoming.recv.read_frame(100).await, Err(StreamError::UnexpectedEnd));
}

#[tokio::test]
async fn frames_and_raw_bytes_share_a_stream() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut acceptor = b.acceptor(StreamKind::Transfer).unwrap();
    let (mut send, _recv) =
        a.connect(b.local_addr()).await.unwrap().open(StreamKind::Transfer).await.unwrap();
    let bulk = Bytes::from(vec![7; 300_000]);
    send.write_frame(b"head").await.unwrap();
    send.write_chunk(bulk.clone()).await.unwrap();
    send.write_frame(b"tail").await.unwrap();
    send.finish().unwrap();

    let mut incoming = acceptor.accept().await.unwrap();
    assert_eq!(incoming.recv.read_frame(10).await.unwrap().unwrap(), &b"head"[..]);
    let mut got = Vec::new();
    while got.len() < bulk.len() {
        got.extend_from_slice(&incoming.recv.read_chunk(bulk.len() - got.len()).await.unwrap().unwrap());
    }
    assert_eq!(got, bulk);
    assert_eq!(incoming.recv.read_frame(10).await.unwrap().unwrap(), &b"tail"[..]);
    assert_eq!(incoming.recv.read_frame(10).await.unwrap(), None);
}
