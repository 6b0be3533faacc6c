//! A damaged block is asked for again, and only that one.

use std::time::Duration;

use octopii_transfer::{
    ChunkSource, Destination, Digest, FailureCode, SendOptions, TransferError, TransferId,
};
use octopii_transport::StreamKind;
use octopii_vfs::{OpenMode, RealVfs, Vfs};

use crate::nodes::{BLOCK, Node, content, endpoint, eventually, names, read};
use crate::raw::{
    ACCEPT, ACK, AGAIN, FAIL, Raw, accept_body, ack_body, data, done, message, opening, opening_with, query,
    read_offer, repair,
};

const SMALL: usize = 4096;

fn ask(offset: usize, len: usize) -> Vec<u8> {
    [&(offset as u64).to_le_bytes()[..], &(len as u32).to_le_bytes()].concat()
}

/// All of `content` in small blocks, those of `damaged` with a flipped bit.
fn blocks(content: &[u8], damaged: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, block) in content.chunks(SMALL).enumerate() {
        let mut bytes = data(&content[..i * SMALL], block);
        if damaged.contains(&i) {
            bytes[5 + 8 + block.len() / 2] ^= 1;
        }
        out.extend_from_slice(&bytes);
    }
    out
}

fn receiver() -> Node {
    let node = Node::new(2);
    node.receive_into("blob", Destination::Memory { limit: 100_000 });
    node.receive_into("file", Destination::File { dir: node.inbox(), name: "f".into(), replace: false });
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn each_damaged_block_is_asked_for_by_itself() {
    let (hostile, node) = (endpoint(1), receiver());
    let content = content(10_000);
    for (n, damaged) in [&[0][..], &[1], &[2], &[0, 1, 2], &[0, 2]].into_iter().enumerate() {
        for purpose in ["file", "blob"] {
            let id = n as u128 * 2 + u128::from(purpose == "file");
            let mut raw = Raw::open(&hostile, node.addr()).await;
            raw.write(&opening(id, purpose, Some(10_000), SMALL as u32)).await;
            raw.expect_accept().await;
            raw.write(&blocks(&content, damaged)).await;
            raw.write(&done(10_000, Digest::of(&content))).await;
            for &i in damaged {
                let block = &content[i * SMALL..content.len().min((i + 1) * SMALL)];
                assert_eq!(raw.read().await, (AGAIN, ask(i * SMALL, block.len())), "{purpose} {damaged:?}");
                // Once more in vain.
                raw.write(&repair(i * SMALL, &vec![0; block.len()])).await;
                assert_eq!(raw.read().await, (AGAIN, ask(i * SMALL, block.len())));
                raw.write(&repair(i * SMALL, block)).await;
            }
            let (tag, body) = raw.read().await;
            assert_eq!(tag, ACK);
            assert_eq!(body[1..], ack_body(10_000, Digest::of(&content))[1..]);
        }
        let name = if n == 0 { "f".to_owned() } else { format!("f ({n})") };
        assert!(read(&node.inbox().join(name)) == content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_stays_damaged_is_given_up() {
    let (hostile, node) = (endpoint(1), receiver());
    let content = content(10_000);
    let mut raw = Raw::open(&hostile, node.addr()).await;
    raw.write(&opening(1, "file", Some(10_000), SMALL as u32)).await;
    raw.expect_accept().await;
    raw.write(&blocks(&content, &[1])).await;
    for _ in 0..3 {
        assert_eq!(raw.read().await.0, AGAIN);
        raw.write(&repair(SMALL, &[0; SMALL])).await;
    }
    raw.expect_failure(FAIL, 10).await;
    assert_eq!(names(&node.inbox()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asked_for_is_not_the_protocol() {
    let (hostile, node) = (endpoint(1), receiver());
    let content = content(10_000);
    let unasked = [
        ("before any damage", repair(0, &content[..SMALL])),
        ("of another place", [blocks(&content, &[0]), repair(SMALL, &content[SMALL..2 * SMALL])].concat()),
        ("of another length", [blocks(&content, &[0]), repair(0, &content[..SMALL - 1])].concat()),
        ("of a length out of range", message(17, &[0; 8])),
    ];
    for (i, (what, bytes)) in unasked.into_iter().enumerate() {
        let mut raw = Raw::open(&hostile, node.addr()).await;
        raw.write(&opening(i as u128, "file", Some(10_000), SMALL as u32)).await;
        raw.expect_accept().await;
        raw.write(&bytes).await;
        let mut answer = raw.read().await;
        if answer.0 == AGAIN {
            answer = raw.read().await;
        }
        assert_eq!((answer.0, answer.1[0]), (FAIL, 7), "{what}");
        assert_eq!(names(&node.inbox()), [""; 0], "{what}");
    }
}

/// A sender whose blocks never fit is not listened to for ever.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_damaged_blocks_are_given_up() {
    let (hostile, node) = (endpoint(1), receiver());
    let content = content(300 * SMALL);
    let mut raw = Raw::open(&hostile, node.addr()).await;
    raw.write(&opening(1, "file", None, SMALL as u32)).await;
    raw.expect_accept().await;
    raw.write(&blocks(&content, &(0..300).collect::<Vec<_>>())).await;
    let mut asked = 0;
    loop {
        let (tag, body) = raw.read().await;
        if tag == FAIL {
            assert_eq!(body[0], 10);
            break;
        }
        assert_eq!((tag, &body[..]), (AGAIN, &ask(asked * SMALL, SMALL)[..]));
        raw.write(&repair(asked * SMALL, &content[asked * SMALL..(asked + 1) * SMALL])).await;
        asked += 1;
    }
    assert_eq!(asked, 256);
    assert_eq!(names(&node.inbox()), [""; 0]);
}

/// A receiver by hand that asks for blocks of what it got.
#[tokio::test(flavor = "multi_thread")]
async fn the_sender_sends_again_what_it_is_asked_for() {
    let (a, by_hand) = (Node::new(1), endpoint(2));
    let content = content(3 * BLOCK + 10);
    let mut acceptor = by_hand.acceptor(StreamKind::Transfer).unwrap();
    let expected = content.clone();
    let receiving = tokio::spawn(async move {
        let mut raw = Raw::accept(&mut acceptor).await;
        read_offer(&mut raw).await;
        raw.write(&message(2, &accept_body(0, b""))).await;
        let mut before = 0;
        for len in [BLOCK, BLOCK, BLOCK, 10] {
            let (tag, body) = raw.read().await;
            assert_eq!((tag, body.len()), (4, 8 + len + 32));
            before += len;
        }
        assert_eq!(raw.read().await.0, 5);
        for (offset, len) in [(BLOCK, BLOCK), (3 * BLOCK, 10), (0, BLOCK)] {
            raw.write(&message(AGAIN, &ask(offset, len))).await;
            let (tag, body) = raw.read().await;
            assert_eq!((tag, &body[..8]), (17, &(offset as u64).to_le_bytes()[..]));
            assert!(body[8..] == expected[offset..offset + len]);
        }
        raw.write(&message(ACK, &ack_body(before as u64, Digest::of(&expected)))).await;
        raw.send.finish().unwrap();
        let _ = raw.send.stopped().await;
    });
    let source = ChunkSource::File(a.source("f", &content));
    a.transfer.send(by_hand.local_addr(), &source, SendOptions::new("file")).await.unwrap();
    receiving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changed_before_it_is_read_again_is_an_error() {
    let content = content(2 * BLOCK);
    for case in ["changed in secret", "beyond the end"] {
        let (a, by_hand) = (Node::new(1), endpoint(2));
        let path = a.source("f", &content);
        let mut acceptor = by_hand.acceptor(StreamKind::Transfer).unwrap();
        let changing = path.clone();
        tokio::spawn(async move {
            let mut raw = Raw::accept(&mut acceptor).await;
            read_offer(&mut raw).await;
            raw.write(&message(2, &accept_body(0, b""))).await;
            while raw.read().await.0 != 5 {}
            let mut offset = 0;
            if case == "beyond the end" {
                offset = 2 * BLOCK;
            } else {
                let modified = RealVfs.open(&changing, OpenMode::Read).unwrap().modified().unwrap().unwrap();
                let file = RealVfs.open(&changing, OpenMode::ReadWrite).unwrap();
                file.write_all_at(b"X", 7).unwrap();
                let hiding = std::fs::OpenOptions::new().write(true).open(&changing).unwrap();
                hiding.set_modified(modified).unwrap();
            }
            raw.write(&message(AGAIN, &ask(offset, BLOCK))).await;
            let _ = raw.send.stopped().await;
        });
        let error = a
            .transfer
            .send(by_hand.local_addr(), &ChunkSource::File(path), SendOptions::new("file"))
            .await
            .unwrap_err();
        match case {
            "beyond the end" => assert!(matches!(error, TransferError::Protocol(_)), "{error}"),
            _ => assert!(matches!(error, TransferError::SourceChanged(_)), "{error}"),
        }
    }
}

/// Damage in the middle of a connection that is then lost: nothing is left of what cannot be gone on with.
#[tokio::test(flavor = "multi_thread")]
async fn damage_that_cannot_be_repaired_any_more_leaves_nothing() {
    let (hostile, node) = (endpoint(1), receiver());
    let content = content(10_000);
    let mut raw = Raw::open(&hostile, node.addr()).await;
    raw.write(&opening(1, "file", Some(10_000), SMALL as u32)).await;
    raw.expect_accept().await;
    raw.write(&blocks(&content, &[1])).await;
    raw.write(&done(10_000, Digest::of(&content))).await;
    assert_eq!(raw.read().await.0, AGAIN);
    raw.connection.close("cut");
    eventually("the cleaning", || names(&node.inbox()).is_empty()).await;
    let honest = Node::new(3);
    let source = ChunkSource::Memory("abc".into());
    let options = SendOptions { timeout: Some(Duration::from_secs(20)), ..SendOptions::new("file") };
    honest.transfer.send(node.addr(), &source, options).await.unwrap();
    let refused = honest.transfer.send(node.addr(), &source, SendOptions::new("none")).await.unwrap_err();
    assert!(
        matches!(&refused, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::UnknownPurpose)
    );
}

/// The same of content that can be resumed: what was good stays, and whoever asks hears that trying again is of use.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_before_a_repair_costs_only_the_damaged_block() {
    let (hostile, node) = (endpoint(1), receiver());
    let content = content(6 * BLOCK);
    let (key, id) = (Some([7; 16]), TransferId(1));
    let offer = |id| opening_with(id, key, "file", Some(content.len() as u64), BLOCK as u32);
    let mut raw = Raw::open(&hostile, node.addr()).await;
    raw.write(&offer(id.0)).await;
    raw.expect_accept().await;
    for (i, block) in content.chunks(BLOCK).enumerate() {
        let mut bytes = data(&content[..i * BLOCK], block);
        bytes[100] ^= u8::from(i == 5);
        raw.write(&bytes).await;
    }
    raw.write(&done(content.len() as u64, Digest::of(&content))).await;
    assert_eq!(raw.read().await, (AGAIN, ask(5 * BLOCK, BLOCK)));
    raw.connection.close("cut");
    let mut ended = false;
    for _ in 0..1000 {
        let mut asking = Raw::open(&hostile, node.addr()).await;
        asking.write(&query(id)).await;
        let (tag, body) = asking.read().await;
        assert_eq!(tag, 10);
        if body[0] == 3 {
            assert_eq!(body[1], 13, "stalled: {}", String::from_utf8_lossy(&body[5..]));
            ended = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(ended);
    let mut raw = Raw::open(&hostile, node.addr()).await;
    raw.write(&offer(2)).await;
    let kept = &content[..4 * BLOCK];
    assert_eq!(raw.read().await, (ACCEPT, accept_body(kept.len() as u64, kept)));
}

/// All of it was handed over, and the connection was lost before all of it had left.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_after_the_last_block_is_worth_another_attempt() {
    let (a, by_hand) = (Node::new(1), endpoint(2));
    let content = content(BLOCK);
    let mut acceptor = by_hand.acceptor(StreamKind::Transfer).unwrap();
    let digest = Digest::of(&content);
    let receiving = tokio::spawn(async move {
        let mut raw = Raw::accept(&mut acceptor).await;
        read_offer(&mut raw).await;
        raw.write(&message(2, &accept_body(0, b""))).await;
        while raw.read().await.0 != 5 {}
        raw.connection.close("cut");
        let mut asked = Raw::accept(&mut acceptor).await;
        asked.recv.read_exact(&mut [0]).await.unwrap();
        assert_eq!(asked.read().await.0, 9);
        let refusal = [&[13, 0, 4, 0][..], b"lost"].concat();
        asked.write(&message(10, &[&[3][..], &refusal].concat())).await;
        asked.send.finish().unwrap();
        let mut raw = Raw::accept(&mut acceptor).await;
        read_offer(&mut raw).await;
        raw.write(&message(2, &accept_body(0, b""))).await;
        while raw.read().await.0 != 5 {}
        raw.write(&message(ACK, &ack_body(BLOCK as u64, digest))).await;
        raw.send.finish().unwrap();
        let _ = raw.send.stopped().await;
    });
    let options = SendOptions { retries: 1, ..SendOptions::new("file") };
    let source = ChunkSource::Memory(content.into());
    a.transfer.send(by_hand.local_addr(), &source, options).await.unwrap();
    receiving.await.unwrap();
}
