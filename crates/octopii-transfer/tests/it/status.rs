//! A lost acknowledgement can be asked for again, and a false one is not believed.

use std::time::Duration;

use octopii_transfer::{
    AckLevel, ChunkSource, Destination, Digest, FailureCode, Offer, ReceivePolicy, ReceivedChunk, Refusal,
    SendOptions, TransferError, TransferId, TransferOptions, TransferStatus,
};
use octopii_transport::{Acceptor, StreamKind};

use octopii_vfs::RealVfs;

use crate::nodes::{Node, content, endpoint, eventually, names, quick};
use crate::raw::{
    ACCEPT, ACK, Raw, accept_body, ack_body, acknowledge, answer_status, data, done, message, opening, query,
    read_offer,
};

/// A sender that loses its connection right after its last byte finds out that the receiver has everything.
#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_remembers_what_it_acknowledged() {
    let (a, b) = (Node::new(1), Node::new(2));
    let arrived = b.open_inbox();
    let id = TransferId(77);
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&opening(id.0, "file", Some(3), 4096)).await;
    raw.expect_accept().await;
    let under_way = a.transfer.status(b.addr(), id).await.unwrap();
    assert_eq!(under_way, TransferStatus::Receiving { verified: 0 });
    raw.write(&[data(b"", b"abc"), done(3, Digest::of(b"abc"))].concat()).await;
    raw.send.finish().unwrap();
    // Delivered, but the way back is cut.
    let _ = raw.send.stopped().await;
    raw.connection.close("cut");
    arrived.recv_timeout(Duration::from_secs(15)).unwrap();
    let mut status = TransferStatus::Unknown;
    for _ in 0..1000 {
        status = a.transfer.status(b.addr(), id).await.unwrap();
        if matches!(status, TransferStatus::Finished(_)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let TransferStatus::Finished(ack) = status else { panic!("{status:?}") };
    assert_eq!((ack.level, ack.size, ack.digest), (AckLevel::Durable, 3, Digest::of(b"abc")));
    assert_eq!(names(&b.inbox()), ["f"]);

    assert_eq!(a.transfer.status(b.addr(), TransferId(78)).await.unwrap(), TransferStatus::Unknown);
    let c = Node::new(3);
    assert_eq!(c.transfer.status(b.addr(), id).await.unwrap(), TransferStatus::Unknown, "not its transfer");
    let source = ChunkSource::Memory("other".into());
    let options = SendOptions { id: Some(id), ..SendOptions::new("file") };
    let error = a.transfer.send(b.addr(), &source, options).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::DuplicateId),
        "{error}"
    );
}

/// The acknowledgement is lost because the receiver dies right after it has stored the file.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_receiver_remembers_what_it_acknowledged() {
    let state = tempfile::tempdir().unwrap();
    let options = || TransferOptions { state_dir: Some(state.path().to_owned()), ..quick() };
    let (a, c) = (Node::new(1), Node::new(3));
    let b = Node::with(2, RealVfs::shared(), options());
    b.open_inbox();
    let id = TransferId(77);
    let send = SendOptions { id: Some(id), ..SendOptions::new("file") };
    let receipt = a.transfer.send(b.addr(), &ChunkSource::Memory("abc".into()), send).await.unwrap();
    b.endpoint.close(Duration::from_secs(5)).await;
    drop(b);
    let b = Node::with(2, RealVfs::shared(), options());
    let status = a.transfer.status(b.addr(), id).await.unwrap();
    let TransferStatus::Finished(ack) = status else { panic!("{status:?}") };
    assert_eq!((ack.level, ack.size, ack.digest), (AckLevel::Durable, 3, receipt.digest));
    assert_eq!(c.transfer.status(b.addr(), id).await.unwrap(), TransferStatus::Unknown, "not its transfer");
}

/// The file is there: who heard that it is not would send it a second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_panics_over_what_has_arrived_changes_nothing_about_that() {
    struct Panics(Destination);
    impl ReceivePolicy for Panics {
        fn accept(&self, _: &Offer) -> Result<Destination, Refusal> {
            Ok(self.0.clone())
        }
        fn received(&self, chunk: ReceivedChunk) {
            panic!("on purpose, over {} bytes", chunk.size);
        }
    }
    let state = tempfile::tempdir().unwrap();
    let options = || TransferOptions { state_dir: Some(state.path().to_owned()), ..quick() };
    let (a, b) = (Node::new(1), Node::with(2, RealVfs::shared(), options()));
    let inbox = b.inbox();
    let destination = Destination::File { dir: inbox.clone(), name: "f".into(), replace: false };
    b.transfer.receive("file", Panics(destination));
    let id = TransferId(77);
    let send = SendOptions { id: Some(id), retries: 2, ..SendOptions::new("file") };
    let receipt = a.transfer.send(b.addr(), &ChunkSource::Memory("abc".into()), send).await.unwrap();
    assert_eq!(names(&inbox), ["f"]);
    let finished = |status: TransferStatus| matches!(status, TransferStatus::Finished(ack) if ack.digest == receipt.digest);
    assert!(finished(a.transfer.status(b.addr(), id).await.unwrap()));
    b.endpoint.close(Duration::from_secs(5)).await;
    let b = Node::with(2, RealVfs::shared(), options());
    assert!(finished(a.transfer.status(b.addr(), id).await.unwrap()));
}

/// Whom it refuses it need not remember: that would take the place of what it has told others.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_not_remembered() {
    let (a, c) = (Node::new(1), Node::new(3));
    let b = Node::with(2, RealVfs::shared(), TransferOptions { remembered: 2, ..quick() });
    b.transfer.receive("file", |offer: &Offer| match offer.name.as_deref() {
        Some("f") => Ok(Destination::Memory { limit: 100 }),
        _ => Err(Refusal::rejected("no")),
    });
    let named =
        |id, name: &str| SendOptions { id: Some(id), name: Some(name.into()), ..SendOptions::new("file") };
    let source = ChunkSource::Memory("abc".into());
    for sender in [&a, &c] {
        sender.transfer.send(b.addr(), &source, named(TransferId(1), "f")).await.unwrap();
    }
    for id in 2..6 {
        c.transfer.send(b.addr(), &source, named(TransferId(id), "g")).await.unwrap_err();
        assert_eq!(c.transfer.status(b.addr(), TransferId(id)).await.unwrap(), TransferStatus::Unknown);
    }
    for sender in [&a, &c] {
        let status = sender.transfer.status(b.addr(), TransferId(1)).await.unwrap();
        assert!(matches!(status, TransferStatus::Finished(_)), "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_receiver_remembers_what_failed() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let id = TransferId(5);
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&opening(id.0, "file", Some(3), 4096)).await;
    raw.expect_accept().await;
    raw.send.reset(0);
    eventually("the receiver's cleaning up", || names(&b.inbox()).is_empty()).await;
    for _ in 0..1000 {
        if let TransferStatus::Failed(refusal) = a.transfer.status(b.addr(), id).await.unwrap() {
            assert_eq!(refusal.code, FailureCode::Cancelled);
            let options = SendOptions { id: Some(id), ..SendOptions::new("file") };
            a.transfer.send(b.addr(), &ChunkSource::Memory("again".into()), options).await.unwrap();
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the failure was forgotten");
}

/// Takes a whole transfer and cuts the connection instead of acknowledging it.
async fn take_and_cut(acceptor: &mut Acceptor) -> TransferId {
    let mut raw = Raw::accept(acceptor).await;
    let id = read_offer(&mut raw).await;
    raw.write(&message(ACCEPT, &accept_body(0, b""))).await;
    assert_eq!(raw.read().await.0, 4);
    assert_eq!(raw.read().await.0, 5);
    raw.connection.close("cut");
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_asks_when_the_acknowledgement_is_lost() {
    let receiving = [&[1][..], &0u64.to_le_bytes()].concat();
    let digest = Digest::of(b"abc");
    let finished = [&[2][..], &ack_body(3, digest)].concat();
    let other = [&[2][..], &ack_body(3, Digest::of(b"abd"))].concat();
    let failed = [&[3, 10, 0, 2, 0][..], b"no"].concat();
    type Check = fn(Result<octopii_transfer::Receipt, TransferError>);
    let cases: [(&[u8], Check); 4] = [
        (&finished, |r| assert_eq!(r.unwrap().digest, Digest::of(b"abc"))),
        (&other, |r| assert!(matches!(r, Err(TransferError::DigestMismatch(_))))),
        (&failed, |r| assert!(matches!(r, Err(TransferError::DigestMismatch(_))))),
        (&[0], |r| assert!(matches!(r, Err(TransferError::OutcomeUnknown { .. })))),
    ];
    for (answer, check) in cases {
        let (a, receiver) = (Node::new(1), endpoint(2));
        let mut acceptor = receiver.acceptor(StreamKind::Transfer).unwrap();
        let (answer, receiving) = (answer.to_vec(), receiving.clone());
        let taking = tokio::spawn(async move {
            let id = take_and_cut(&mut acceptor).await;
            assert_eq!(answer_status(&mut acceptor, &receiving).await, id);
            assert_eq!(answer_status(&mut acceptor, &answer).await, id);
        });
        let source = ChunkSource::Memory("abc".into());
        check(a.transfer.send(receiver.local_addr(), &source, SendOptions::new("file")).await);
        taking.await.unwrap();
    }
}

/// Under an id of the caller's, a second attempt may meet the first one, which the receiver has not given up yet.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_meets_the_one_before_is_made_again() {
    let (a, receiver) = (Node::new(1), endpoint(2));
    let mut acceptor = receiver.acceptor(StreamKind::Transfer).unwrap();
    let id = TransferId(77);
    let refused = [&8u16.to_le_bytes()[..], &2u16.to_le_bytes(), b"no"].concat();
    let receiving = async {
        for attempt in 0..3 {
            let mut raw = Raw::accept(&mut acceptor).await;
            assert_eq!(read_offer(&mut raw).await, id);
            if attempt == 0 {
                // Before anything was sent: what was sent to its end would be asked for.
                raw.send.reset(0);
            } else {
                raw.write(&message(3, &refused)).await;
                let _ = raw.send.finish();
                let _ = raw.send.stopped().await;
            }
        }
        acknowledge(&mut acceptor, &ack_body(3, Digest::of(b"abc"))).await;
    };
    let options = SendOptions { id: Some(id), retries: 5, ..SendOptions::new("file") };
    let source = ChunkSource::Memory("abc".into());
    let (sent, ()) = tokio::join!(a.transfer.send(receiver.local_addr(), &source, options), receiving);
    assert_eq!(sent.unwrap().id, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_acknowledgement_is_not_believed() {
    let content = content(100);
    let right = Digest::of(&content);
    for (size, digest) in [(100, Digest::of(b"")), (99, right), (0, right)] {
        let (a, receiver) = (Node::new(1), endpoint(2));
        let mut acceptor = receiver.acceptor(StreamKind::Transfer).unwrap();
        let body = ack_body(size, digest);
        tokio::spawn(async move { acknowledge(&mut acceptor, &body).await });
        let source = ChunkSource::Memory(content.clone().into());
        let error =
            a.transfer.send(receiver.local_addr(), &source, SendOptions::new("file")).await.unwrap_err();
        assert!(matches!(error, TransferError::DigestMismatch(_)), "{error}");
    }
}

/// An acknowledgement before anything was sent proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_acknowledgement_is_not_believed() {
    let (a, receiver) = (Node::new(1), endpoint(2));
    let mut acceptor = receiver.acceptor(StreamKind::Transfer).unwrap();
    let content = content(32 << 20);
    let digest = Digest::of(&content);
    tokio::spawn(async move {
        let mut raw = Raw::accept(&mut acceptor).await;
        read_offer(&mut raw).await;
        raw.write(
            &[message(ACCEPT, &accept_body(0, b"")), message(ACK, &ack_body(32 << 20, digest))].concat(),
        )
        .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(raw);
    });
    let source = ChunkSource::Memory(content.into());
    let error = a.transfer.send(receiver.local_addr(), &source, SendOptions::new("file")).await.unwrap_err();
    assert!(matches!(error, TransferError::Protocol(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_by_hand_are_answered() {
    let (a, b) = (Node::new(1), Node::new(2));
    let mut raw = Raw::open(&a.endpoint, b.addr()).await;
    raw.write(&query(TransferId(1))).await;
    assert_eq!(raw.read().await, (10, vec![0]));
}
