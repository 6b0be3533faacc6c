//! One-way messages.

use std::time::Duration;

use bytes::Bytes;
use octopii_rpc::{Code, Messenger, MessengerOptions};

use octopii_transport::{Limits, StreamKind};

use crate::{SOON, pair, pair_with};

#[tokio::test]
async fn sending_returns_when_the_application_took_the_message() {
    let (a, b) = pair();
    let (a, at_b) = (
        Messenger::start(&a, MessengerOptions::default()).unwrap(),
        Messenger::start(&b, MessengerOptions::default()).unwrap(),
    );
    let to = b.local_addr();
    let sending = tokio::spawn(async move { a.send(to, Bytes::from_static(b"hello"), SOON).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!sending.is_finished(), "acknowledged although nobody has taken it");
    let message = at_b.recv_from(1).await;
    assert_eq!((message.peer.node_id, &message.payload[..]), (1, &b"hello"[..]));
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_message_whose_sender_gave_up_is_not_delivered() {
    let (a, b) = pair();
    let (a, at_b) = (
        Messenger::start(&a, MessengerOptions::default()).unwrap(),
        Messenger::start(&b, MessengerOptions::default()).unwrap(),
    );
    let status =
        a.send(b.local_addr(), Bytes::from_static(b"late"), Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(status.code, Code::DeadlineExceeded);
    let (second, taken) = tokio::join!(a.send(b.local_addr(), Bytes::from_static(b"second"), SOON), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        at_b.recv().await
    });
    second.unwrap();
    assert_eq!(taken.payload, &b"second"[..]);
}

#[tokio::test]
async fn a_full_inbox_slows_senders_down_and_loses_nothing() {
    let (a, b) = pair();
    let options = MessengerOptions { queue: 2, ..MessengerOptions::default() };
    let (a, at_b) =
        (Messenger::start(&a, MessengerOptions::default()).unwrap(), Messenger::start(&b, options).unwrap());
    let to = b.local_addr();
    let sends: Vec<_> = (0..20u8)
        .map(|n| {
            let a = a.clone();
            tokio::spawn(async move { a.send(to, Bytes::from(vec![n]), SOON).await })
        })
        .collect();
    let mut got: Vec<u8> = Vec::new();
    for _ in 0..20 {
        got.push(at_b.recv().await.payload[0]);
    }
    for send in sends {
        send.await.unwrap().unwrap();
    }
    got.sort_unstable();
    assert_eq!(got, (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn messages_too_long_and_peers_without_an_inbox_are_told() {
    let (a, b) = pair();
    let to = b.local_addr();
    let a = Messenger::start(&a, MessengerOptions::default()).unwrap();
    let status = a.send(to, Bytes::from_static(b"x"), SOON).await.unwrap_err();
    assert_eq!(status.code, Code::Unavailable, "{status}");
    let _b =
        Messenger::start(&b, MessengerOptions { max_message: 10, ..MessengerOptions::default() }).unwrap();
    let status = a.send(to, Bytes::from(vec![0; 11]), SOON).await.unwrap_err();
    assert_eq!(status.code, Code::InvalidArgument, "{status}");
}

/// A sender that takes no acknowledgement must not keep the place of a message that was taken.
#[tokio::test]
async fn an_acknowledgement_that_nobody_reads_takes_no_room() {
    let (a, b) = pair_with(Limits { stream_window: 1, ..Limits::default() }, Limits::default());
    let options = MessengerOptions { queue: 1, ..MessengerOptions::default() };
    let at_b = Messenger::start(&b, options).unwrap();
    let connection = a.connect(b.local_addr()).await.unwrap();
    let mut unread = Vec::new();
    for n in 0..5 {
        let (mut send, recv) = connection.open(StreamKind::Message).await.unwrap();
        send.write_frame(&[n]).await.unwrap();
        let message = tokio::time::timeout(SOON, at_b.recv()).await.expect("no room");
        assert_eq!(message.payload, [n][..]);
        unread.push((send, recv));
    }
}

/// Otherwise every stream of every peer could put a whole message into memory beside the inbox.
#[tokio::test]
async fn nothing_is_read_before_there_is_room() {
    let (a, b) = pair_with(Limits::default(), Limits { stream_window: 64 << 10, ..Limits::default() });
    let options = MessengerOptions { queue: 1, ..MessengerOptions::default() };
    let at_b = Messenger::start(&b, options).unwrap();
    let connection = a.connect(b.local_addr()).await.unwrap();
    let whole = vec![7; 1 << 20];
    let (mut first, _recv) = connection.open(StreamKind::Message).await.unwrap();
    first.write_frame(&whole).await.unwrap();
    let (mut second, _recv) = connection.open(StreamKind::Message).await.unwrap();
    let mut writing = std::pin::pin!(second.write_frame(&whole));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut writing).await;
    assert!(early.is_err(), "read although the inbox is full");
    at_b.recv().await;
    writing.await.unwrap();
    at_b.recv().await;
}

#[tokio::test]
async fn senders_learn_at_once_that_the_inbox_is_gone() {
    let (a, b) = pair();
    let a = Messenger::start(&a, MessengerOptions::default()).unwrap();
    let options = MessengerOptions { queue: 1, ..MessengerOptions::default() };
    let at_b = Messenger::start(&b, options).unwrap();
    let to = b.local_addr();
    // One waits in the inbox, one for room in it.
    let sends: Vec<_> = (0..2)
        .map(|_| {
            let a = a.clone();
            tokio::spawn(async move { a.send(to, Bytes::from_static(b"never taken"), SOON).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(at_b);
    for send in sends {
        let status = send.await.unwrap().unwrap_err();
        assert_eq!(status.code, Code::Unavailable, "{status}");
    }
}

#[tokio::test]
async fn a_message_that_stops_half_way_gives_its_place_back() {
    let (a, b) = pair();
    let receive_timeout = Duration::from_millis(100);
    let at_b =
        Messenger::start(&b, MessengerOptions { queue: 1, receive_timeout, ..MessengerOptions::default() })
            .unwrap();
    let connection = a.connect(b.local_addr()).await.unwrap();
    let (mut half, _recv) = connection.open(StreamKind::Message).await.unwrap();
    half.write_all(&[100, 0, 0, 0, 1]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let a = Messenger::start(&a, MessengerOptions::default()).unwrap();
    let (sent, taken) = tokio::join!(
        a.send(b.local_addr(), Bytes::from_static(b"whole"), SOON),
        tokio::time::timeout(SOON, at_b.recv())
    );
    sent.unwrap();
    assert_eq!(taken.unwrap().payload, &b"whole"[..]);
}
