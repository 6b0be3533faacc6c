//! Receivers of a chunk for many that speak the protocol by hand, honestly and not.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use octopii_transfer::{
    AckLevel, ChunkSource, Digest, Distribution, SendOptions, Topology, TransferError, TransferId,
    TransferResult,
};
use octopii_transport::{Acceptor, Endpoint, StreamKind};
use tokio::sync::Notify;

use crate::nodes::{Node, content, endpoint};
use crate::raw::{
    ACCEPT, ACK, AGAIN, Raw, accept_body, ack_body, answer_status, message, opening_with, read_offer,
};

const DONE: u8 = 5;
const NEED: u8 = 13;
const SIZE: usize = 100;

/// A sender, and one receiver by hand.
struct Scene {
    a: Node,
    receiver: Endpoint,
    acceptor: Acceptor,
}

fn scene() -> Scene {
    let (a, receiver) = (Node::new(1), endpoint(2));
    let acceptor = receiver.acceptor(StreamKind::Transfer).unwrap();
    Scene { a, receiver, acceptor }
}

impl Scene {
    /// Sends [`SIZE`] bytes as one of many, while the receiver does what it does.
    async fn send(
        self,
        options: SendOptions,
        receiving: impl AsyncFnOnce(&mut Acceptor),
    ) -> (TransferResult, Acceptor) {
        let Self { a, receiver, mut acceptor } = self;
        let source = ChunkSource::Memory(content(SIZE).into());
        let how = Distribution { topology: Topology::Chain, ..options.into() };
        let sending = a.transfer.send_to_all(&source, vec![receiver.local_addr()], how);
        let (mut results, ()) = tokio::join!(sending, receiving(&mut acceptor));
        (results.remove(0), acceptor)
    }
}

fn retrying(retries: u32) -> SendOptions {
    SendOptions { retries, ..SendOptions::new("file") }
}

/// Accepts, and reads until everything was said.
async fn take(acceptor: &mut Acceptor) -> (Raw, TransferId) {
    let mut raw = Raw::accept(acceptor).await;
    let id = read_offer(&mut raw).await;
    raw.write(&message(ACCEPT, &accept_body(0, b""))).await;
    while raw.read().await.0 != DONE {}
    (raw, id)
}

/// Takes everything and loses its connection before it has said a word about that.
async fn take_and_cut(acceptor: &mut Acceptor) -> TransferId {
    let (raw, id) = take(acceptor).await;
    raw.connection.close("cut");
    id
}

async fn take_and_acknowledge(acceptor: &mut Acceptor, body: &[u8]) {
    let (mut raw, _) = take(acceptor).await;
    raw.write(&message(ACK, body)).await;
    let _ = raw.send.finish();
    let _ = raw.send.stopped().await;
}

fn receiving(verified: u64) -> Vec<u8> {
    [&[1][..], &verified.to_le_bytes()].concat()
}

fn whole() -> Vec<u8> {
    ack_body(SIZE as u64, Digest::of(&content(SIZE)))
}

/// Others may supply a receiver with what is missing after the sender has lost it. It is asked until it knows, and not offered the
/// chunk a second time meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_was_lost_may_finish_all_the_same() {
    for retries in [0, 3] {
        let (result, _) = scene()
            .send(retrying(retries), async |acceptor| {
                let id = take_and_cut(acceptor).await;
                // Longer than one that does not answer is waited for. Nothing else comes meanwhile, no offer either.
                for verified in [0, 0, 0, 30, 30, 30, 60, 60] {
                    assert_eq!(answer_status(acceptor, &receiving(verified)).await, id);
                }
                assert_eq!(answer_status(acceptor, &[&[2][..], &whole()].concat()).await, id);
            })
            .await;
        assert!(result.success, "{result:?}");
    }
}

/// What cannot be known is not said to have failed.
#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_receiver_may_stay_unknown() {
    // It has restarted; it does not answer; it stands still.
    let answers: [Option<Vec<u8>>; 3] = [Some(vec![0]), None, Some(receiving(30))];
    for answer in answers {
        let options = SendOptions { idle_timeout: Duration::from_millis(1500), ..retrying(0) };
        let scene = scene();
        let receiver = scene.receiver.clone();
        let (result, _acceptor) = scene
            .send(options, async |acceptor| {
                take_and_cut(acceptor).await;
                let Some(answer) = answer else {
                    return receiver.close(Duration::ZERO).await;
                };
                // Until nobody asks any more.
                while let Ok(Some(incoming)) =
                    tokio::time::timeout(Duration::from_secs(1), acceptor.accept()).await
                {
                    let mut send = incoming.send;
                    let _ = send.write_all(&message(10, &answer)).await;
                    let _ = send.finish();
                }
            })
            .await;
        let error = result.error.expect("it never said that it has it");
        assert!(matches!(error, TransferError::OutcomeUnknown { .. }), "{error}");
    }
}

/// Only what has failed, or was forgotten before it was whole, is offered again.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_has_nothing_is_offered_it_again() {
    let failed = [&[3, 13, 0, 2, 0][..], b"no"].concat();
    for answer in [failed, vec![0]] {
        let (result, _) = scene()
            .send(retrying(3), async |acceptor| {
                let id = take_and_cut(acceptor).await;
                assert_eq!(answer_status(acceptor, &answer).await, id);
                take_and_acknowledge(acceptor, &whole()).await;
            })
            .await;
        assert!(result.success, "{result:?}");
    }
    let failed = [&[3, 13, 0, 2, 0][..], b"no"].concat();
    let (result, _) = scene()
        .send(retrying(0), async |acceptor| {
            take_and_cut(acceptor).await;
            answer_status(acceptor, &failed).await;
        })
        .await;
    let error = result.error.expect("it has failed");
    assert!(matches!(error, TransferError::Lost(_)), "{error}");
}

/// However often it finds fault, the sender does not read and send for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_always_wants_more_is_given_up() {
    let need = message(NEED, &[&0u64.to_le_bytes()[..], &14u16.to_le_bytes()].concat());
    let again = message(AGAIN, &[&0u64.to_le_bytes()[..], &10u32.to_le_bytes()].concat());
    for (request, most) in [(need, 1000), (again, 256)] {
        let (result, _) = scene()
            .send(retrying(0), async |acceptor| {
                let (mut raw, _) = take(acceptor).await;
                // One at a time, so that none takes another's place.
                for _ in 0..most {
                    raw.write(&request).await;
                    assert!(matches!(raw.read().await.0, 4 | 17));
                }
                raw.write(&request).await;
                let mut rest = [0; 5];
                assert!(raw.recv.read_exact(&mut rest).await.is_err(), "it was answered once more");
            })
            .await;
        let error = result.error.expect("there is an end to it");
        assert!(matches!(error, TransferError::Protocol(_)), "{error}");
    }
}

/// What one receiver is told is of no use against another.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_cannot_take_anothers_transfer_over() {
    let Scene { a, receiver, mut acceptor } = scene();
    let other = Node::new(3);
    let _inbox = other.open_inbox();
    let data = content(6 << 20);
    let (target, began) = (other.addr(), Arc::new(Notify::new()));
    let told = Arc::clone(&began);
    let options = SendOptions {
        name: Some("f".into()),
        // The other one is not finished before somebody tries to take over.
        rate_limit: NonZeroU64::new(2 << 20),
        progress: Some(Arc::new(move |p| {
            if p.peer == target && p.verified > 0 {
                told.notify_one();
            }
        })),
        ..retrying(1)
    };
    let how = Distribution { topology: Topology::Chain, ..options.into() };
    let source = ChunkSource::Memory(data.clone().into());
    let sending = a.transfer.send_to_all(&source, vec![receiver.local_addr(), target], how);
    let taking_over = async {
        let mut raw = Raw::accept(&mut acceptor).await;
        raw.read_version().await;
        let (_, offer) = raw.read().await;
        assert_eq!(offer[0] & 8, 8, "it can be resumed");
        let key = offer[offer.len() - 16..].try_into().unwrap();
        raw.write(&message(ACCEPT, &accept_body(0, b""))).await;
        began.notified().await;
        let mut thief = Raw::open(&receiver, target).await;
        thief.write(&opening_with(9, Some(key), "file", Some(data.len() as u64), 256 << 10)).await;
        thief.expect_accept().await;
        while raw.read().await.0 != DONE {}
        raw.write(&message(ACK, &ack_body(data.len() as u64, Digest::of(&data)))).await;
        let _ = raw.send.finish();
        let _ = raw.send.stopped().await;
    };
    let (results, ()) = tokio::join!(sending, taking_over);
    assert!(results.iter().all(|result| result.success), "{results:?}");
}

/// A receiver that acknowledges less than it was asked for, or something else than it was sent, has not done what it was asked
/// for.
#[tokio::test(flavor = "multi_thread")]
async fn a_false_acknowledgement_of_many_is_not_believed() {
    let right = Digest::of(&content(SIZE));
    let body = |level: u8, size: u64, digest: Digest| [&[level][..], &size.to_le_bytes(), &digest.0].concat();
    let size = SIZE as u64;
    let cases = [
        (body(3, size, right), true, false),
        (body(2, size, right), false, false),
        (body(1, size, right), false, false),
        (body(3, size - 1, right), false, true),
        (body(3, 0, right), false, true),
        (body(3, size, Digest::of(b"")), false, true),
    ];
    for (body, is_right, is_other) in cases {
        let options = SendOptions { ack: Some(AckLevel::Durable), ..retrying(0) };
        let (result, _) =
            scene().send(options, async |acceptor| take_and_acknowledge(acceptor, &body).await).await;
        assert_eq!(result.success, is_right, "{result:?}");
        let Some(error) = result.error else { continue };
        match error {
            TransferError::DigestMismatch(_) => assert!(is_other, "{error}"),
            TransferError::Protocol(_) => assert!(!is_other, "{error}"),
            error => panic!("{error}"),
        }
    }
    // Asked what became of it, it is believed no more.
    for (body, is_other) in [(body(2, size, right), false), (body(3, size, Digest::of(b"")), true)] {
        let options = SendOptions { ack: Some(AckLevel::Durable), ..retrying(0) };
        let (result, _) = scene()
            .send(options, async |acceptor| {
                take_and_cut(acceptor).await;
                answer_status(acceptor, &[&[2][..], &body].concat()).await;
            })
            .await;
        let error = result.error.expect("it is no acknowledgement");
        assert_eq!(matches!(error, TransferError::DigestMismatch(_)), is_other, "{error}");
        assert_eq!(matches!(error, TransferError::Protocol(_)), !is_other, "{error}");
    }
}
