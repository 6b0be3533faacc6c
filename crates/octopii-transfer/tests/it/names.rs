//! Names are a stranger's choice.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use octopii_transfer::{
    ChunkSource, Destination, FailureCode, InboxPolicy, Offer, ReceivePolicy, Refusal, SendOptions,
    TransferError,
};

use crate::nodes::{BLOCK, Node, content, names, read};

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_takes_plain_names_only() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let long = "x".repeat(241);
    let hostile = [
        "",
        ".",
        "..",
        "../up",
        "/abs",
        "a/b",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "\u{202e}gpj",
        &long,
        ".octopii-00000000000000000000000000000000.part",
    ];
    for name in hostile {
        let options = SendOptions { name: Some(name.into()), ..SendOptions::new("file") };
        let error = a.transfer.send(b.addr(), &ChunkSource::Memory("x".into()), options).await.unwrap_err();
        assert!(
            matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::BadName),
            "{name:?}: {error}"
        );
        assert!(!error.to_string().contains(char::is_control));
    }
    assert_eq!(names(&b.inbox()), [""; 0]);
    assert_eq!(names(b.dir.path()), [""; 0], "not even the inbox was needed");
}

/// A policy that repeats the sender's name without a look at it must not lead out of its directory either.
#[tokio::test(flavor = "multi_thread")]
async fn a_careless_policy_is_held_to_its_directory() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.receive_into("file", Destination::File { dir: b.inbox(), name: "../escaped".into(), replace: true });
    let source = ChunkSource::Memory("x".into());
    let error = a.transfer.send(b.addr(), &source, SendOptions::new("file")).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::BadName),
        "{error}"
    );
    assert_eq!(names(b.dir.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_senders_of_one_name_at_once_are_both_safe() {
    let (a, b) = (Arc::new(Node::new(1)), Node::new(2));
    b.open_inbox();
    let tasks: Vec<_> = (0..8usize)
        .map(|i| {
            let (a, addr) = (Arc::clone(&a), b.addr());
            tokio::spawn(async move {
                let options = SendOptions { name: Some("same.bin".into()), ..SendOptions::new("file") };
                a.transfer.send(addr, &ChunkSource::Memory(content(1000 + i).into()), options).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut lengths: Vec<_> = names(&b.inbox())
        .iter()
        .map(|name| {
            assert!(name.starts_with("same"), "{name}");
            let bytes = read(&b.inbox().join(name));
            assert!(bytes == content(bytes.len()));
            bytes.len()
        })
        .collect();
    lengths.sort_unstable();
    assert_eq!(lengths, (1000..1008).collect::<Vec<_>>());
}

type Choice = dyn Fn(&Offer) -> Result<Destination, Refusal> + Send + Sync;

/// Accepts nobody before two have come.
struct Meeting {
    destination: Box<Choice>,
    come: Mutex<usize>,
    changed: Condvar,
}

impl ReceivePolicy for Meeting {
    fn accept(&self, offer: &Offer) -> Result<Destination, Refusal> {
        let mut come = self.come.lock().unwrap();
        *come += 1;
        self.changed.notify_all();
        let waited =
            self.changed.wait_timeout_while(come, Duration::from_secs(30), |come| *come < 2).unwrap();
        if waited.1.timed_out() {
            return Err(Refusal::rejected("nobody else has come"));
        }
        (self.destination)(offer)
    }

    fn received(&self, _: octopii_transfer::ReceivedChunk) {}
}

/// Under way at the same time to the same name, from two nodes. Whoever looks meanwhile never sees a mixture, or a part.
#[tokio::test(flavor = "multi_thread")]
async fn two_senders_to_one_place_never_mix() {
    for case in ["inbox", "numbered", "replacing"] {
        let (senders, b) = ([Node::new(1), Node::new(3)], Node::new(2));
        let (dir, inbox) = (b.inbox(), InboxPolicy::new(b.inbox()));
        let destination = move |offer: &Offer| match case {
            "inbox" => inbox.accept(offer),
            _ => Ok(Destination::File {
                dir: dir.clone(),
                name: "same.bin".into(),
                replace: case == "replacing",
            }),
        };
        let (come, changed) = (Mutex::new(0), Condvar::new());
        b.transfer.receive("file", Meeting { destination: Box::new(destination), come, changed });
        let contents = Arc::new([content(6 * BLOCK), content(7 * BLOCK + 1)]);
        let sending: Vec<_> = senders
            .into_iter()
            .zip(contents.iter())
            .map(|(node, content)| {
                let (source, to) = (ChunkSource::File(node.source("same.bin", content)), b.addr());
                tokio::spawn(async move {
                    let receipt = node.transfer.send(to, &source, SendOptions::new("file")).await.unwrap();
                    // Its directory has the source.
                    drop(node);
                    receipt
                })
            })
            .collect();
        let place = b.inbox().join("same.bin");
        while !sending.iter().all(tokio::task::JoinHandle::is_finished) {
            if place.exists() {
                let seen = read(&place);
                assert!(contents.contains(&seen), "{case}: {} bytes of neither", seen.len());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for sent in sending {
            sent.await.unwrap();
        }
        let mut there = names(&b.inbox());
        there.sort();
        if case == "replacing" {
            assert_eq!(there, ["same.bin"]);
            assert!(contents.contains(&read(&place)));
        } else {
            assert_eq!(there, ["same (1).bin", "same.bin"], "{case}");
            let (one, other) = (read(&place), read(&b.inbox().join("same (1).bin")));
            assert!(contents.contains(&one) && contents.contains(&other) && one != other, "{case}");
        }
    }
}

/// A link planted in the inbox is neither followed nor replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_planted_link_is_not_followed() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_inbox();
    let victim = b.source("victim", b"precious");
    octopii_vfs::create_dir_all_durable(&octopii_vfs::RealVfs, &b.inbox()).unwrap();
    std::os::unix::fs::symlink(&victim, b.inbox().join("f")).unwrap();
    let options = SendOptions { name: Some("f".into()), ..SendOptions::new("file") };
    a.transfer.send(b.addr(), &ChunkSource::Memory("new".into()), options).await.unwrap();
    assert_eq!(read(&victim), b"precious");
    assert_eq!(read(&b.inbox().join("f (1)")), b"new");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_inbox_can_limit_sizes() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.transfer.receive("file", InboxPolicy::new(b.inbox()).max_size(10));
    let send = |len| {
        let source = ChunkSource::Memory(content(len).into());
        let (a, addr) = (&a, b.addr());
        async move { a.transfer.send(addr, &source, SendOptions::new("file")).await }
    };
    let error = send(11).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Refused { refusal, .. } if refusal.code == FailureCode::TooLarge),
        "{error}"
    );
    let receipt = send(10).await.unwrap();
    assert_eq!(names(&b.inbox()), [format!("chunk-{}", receipt.id)], "memory has no name of its own");
}
