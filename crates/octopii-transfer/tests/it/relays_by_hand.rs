//! Senders and relays of a relayed chunk that speak the protocol by hand, honestly and not.

use std::time::Duration;

use octopii_transfer::{Destination, Digest, TransferOptions};
use octopii_transport::{Acceptor, Endpoint, EndpointOptions, Limits, StreamError, StreamKind};
use octopii_vfs::{OpenMode, RealVfs, Vfs};

use crate::nodes::{Node, content, endpoint, endpoint_with, eventually, impatient, names, quick, read};
use crate::raw::{ACCEPT, ACK, AGAIN, FAIL, REFUSE, Raw, accept_body, done, message, repair};

const BLOCK: u32 = 4096;
const KEY: u128 = 0x0123_4567_89ab_cdef;
const NEED: u8 = 13;
const CONTENT: u8 = 15;

/// A sender and a relay by hand, and a real receiver between them.
struct Scene {
    sender: Endpoint,
    relay: Endpoint,
    fetches: Acceptor,
    node: Node,
}

fn scene() -> Scene {
    let (sender, relay) = (endpoint(1), endpoint(3));
    let node = Node::with(2, RealVfs::shared(), quick());
    node.receive_into("file", Destination::File { dir: node.inbox(), name: "f".into(), replace: false });
    node.receive_into("blob", Destination::Memory { limit: 100_000 });
    let fetches = relay.acceptor(StreamKind::Transfer).unwrap();
    Scene { sender, relay, fetches, node }
}

fn offer(id: u128, purpose: &str, size: usize) -> Vec<u8> {
    offer_with(id, purpose, size, BLOCK, None)
}

/// Of one that can be resumed, perhaps.
fn offer_with(id: u128, purpose: &str, size: usize, block: u32, resume: Option<[u8; 16]>) -> Vec<u8> {
    let body = [
        &[1 | 2 | 4 | if resume.is_some() { 8 } else { 0 }][..],
        &id.to_le_bytes(),
        &block.to_le_bytes(),
        &(size as u64).to_le_bytes(),
        &[purpose.len() as u8],
        &1u16.to_le_bytes(),
        &0u32.to_le_bytes(),
        purpose.as_bytes(),
        b"f",
        &KEY.to_le_bytes(),
        resume.as_ref().map_or(&[], |key| &key[..]),
    ]
    .concat();
    [&[1][..], &message(1, &body)].concat()
}

/// Vouches for the block at `offset` of `data`.
fn vouch(data: &[u8], offset: usize) -> Vec<u8> {
    let end = data.len().min(offset + BLOCK as usize);
    let len = (end - offset) as u32;
    let prefix = Digest::of(&data[..end]);
    message(11, &[&(offset as u64).to_le_bytes()[..], &len.to_le_bytes(), &prefix.0].concat())
}

fn vouch_for_all(data: &[u8]) -> Vec<u8> {
    (0..data.len()).step_by(BLOCK as usize).flat_map(|offset| vouch(data, offset)).collect()
}

fn supplied_by(relay: &Endpoint) -> Vec<u8> {
    let addr = relay.local_addr();
    let std::net::IpAddr::V4(ip) = addr.ip() else { panic!("an IPv4 address") };
    let body =
        [&[1][..], &relay.node_id().to_le_bytes(), &ip.to_ipv6_mapped().octets(), &addr.port().to_le_bytes()];
    message(12, &body.concat())
}

fn supplied_by_sender() -> Vec<u8> {
    message(12, &[0])
}

/// The data message of the block at `offset`.
fn block(data: &[u8], offset: usize) -> Vec<u8> {
    let end = data.len().min(offset + BLOCK as usize);
    crate::raw::data(&data[..offset], &data[offset..end])
}

fn content_message(data: &[u8], offset: usize) -> Vec<u8> {
    let end = data.len().min(offset + BLOCK as usize);
    message(CONTENT, &[&(offset as u64).to_le_bytes()[..], &data[offset..end]].concat())
}

impl Scene {
    async fn offered(&self, id: u128, purpose: &str, size: usize, shares: bool) -> Raw {
        let mut raw = Raw::open(&self.sender, self.node.addr()).await;
        raw.write(&offer(id, purpose, size)).await;
        let (tag, body) = raw.read().await;
        assert_eq!((tag, body[0]), (ACCEPT, u8::from(shares)));
        raw
    }

    /// A fetch that the receiver makes, and from where on.
    async fn fetched(&mut self) -> (Raw, u64) {
        let mut raw = Raw::accept(&mut self.fetches).await;
        let mut version = [0];
        raw.recv.read_exact(&mut version).await.unwrap();
        let (tag, body) = raw.read().await;
        assert_eq!((version, tag, &body[..16]), ([1], 14, &KEY.to_le_bytes()[..]));
        (raw, u64::from_le_bytes(body[16..].try_into().unwrap()))
    }
}

async fn expect_need(raw: &mut Raw, offset: u64, code: u16) {
    let (tag, body) = raw.read().await;
    let found =
        (tag, u64::from_le_bytes(body[..8].try_into().unwrap()), u16::from_le_bytes([body[8], body[9]]));
    assert_eq!(found, (NEED, offset, code));
}

/// A relay that sends wrong bytes, then one that vanishes, then the sender itself, with leftovers of an earlier order.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_gets_what_the_sender_vouches_for_whoever_supplies_it() {
    let mut scene = scene();
    let data = content(5 * BLOCK as usize + 10);
    let mut raw = scene.offered(1, "file", data.len(), true).await;
    raw.write(&[vouch_for_all(&data), done(data.len() as u64, Digest::of(&data))].concat()).await;
    raw.write(&supplied_by(&scene.relay)).await;
    let (mut feed, from) = scene.fetched().await;
    assert_eq!(from, 0);
    let mut wrong = data.clone();
    wrong[BLOCK as usize + 1] ^= 1;
    for offset in [0, BLOCK as usize, 2 * BLOCK as usize] {
        feed.write(&content_message(&wrong, offset)).await;
    }
    expect_need(&mut raw, BLOCK.into(), 10).await;
    // The block itself, and then another relay.
    raw.write(&[block(&data, BLOCK as usize), supplied_by(&scene.relay)].concat()).await;
    let (mut feed, from) = scene.fetched().await;
    assert_eq!(from, 2 * u64::from(BLOCK));
    feed.write(&content_message(&data, 2 * BLOCK as usize)).await;
    feed.send.finish().unwrap();
    expect_need(&mut raw, 3 * u64::from(BLOCK), 11).await;
    raw.write(&supplied_by(&scene.relay)).await;
    let (feed, from) = scene.fetched().await;
    assert_eq!(from, 3 * u64::from(BLOCK));
    drop(feed);
    let (tag, _) = raw.read().await;
    assert_eq!(tag, NEED);
    raw.write(&supplied_by_sender()).await;
    expect_need(&mut raw, 3 * u64::from(BLOCK), 14).await;
    // One block too early and one twice: left over.
    for offset in [4, 3, 3, 4, 5] {
        raw.write(&block(&data, offset * BLOCK as usize)).await;
    }
    let (tag, _) = raw.read().await;
    assert_eq!(tag, ACK);
    assert!(read(&scene.node.inbox().join("f")) == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_itself_is_refused() {
    let scene = scene();
    let data = content(3 * BLOCK as usize);
    let mut other = data.clone();
    other[0] ^= 1;
    let short = |n: usize| vouch(&data[..n], 0);
    let wrongs: [(&str, Vec<u8>, u16); 7] = [
        ("a gap", vouch(&data, BLOCK as usize), 7),
        ("twice", [vouch(&data, 0), vouch(&data, 0)].concat(), 7),
        (
            "a short block before another",
            [
                short(10),
                message(11, &[[10, 0, 0, 0, 0, 0, 0, 0].as_slice(), &BLOCK.to_le_bytes(), &[0; 32]].concat()),
            ]
            .concat(),
            7,
        ),
        ("another block than was vouched for", [vouch(&data, 0), block(&other, 0)].concat(), 7),
        (
            "an end before everything",
            [vouch(&data, 0), done(data.len() as u64, Digest::of(&data))].concat(),
            11,
        ),
        ("another size", [vouch_for_all(&data), done(1, Digest::of(&data))].concat(), 11),
        ("an unknown supplier", message(12, &[9]), 7),
    ];
    for (id, (what, bytes, code)) in wrongs.into_iter().enumerate() {
        let mut raw = scene.offered(id as u128, "file", data.len(), true).await;
        raw.write(&bytes).await;
        let (tag, body) = raw.read().await;
        assert_eq!((tag, u16::from_le_bytes([body[0], body[1]])), (FAIL, code), "{what}");
    }
    eventually("cleaning up", || names(&scene.node.inbox()).is_empty()).await;
}

/// What is vouched for takes memory until it is there: it is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_vouches_without_end() {
    let scene = scene();
    let blocks = 4097_usize;
    let mut raw = scene.offered(1, "file", (blocks + 5) * BLOCK as usize, true).await;
    let many: Vec<u8> = (0..blocks)
        .flat_map(|i| {
            let offset = i as u64 * u64::from(BLOCK);
            message(11, &[&offset.to_le_bytes()[..], &BLOCK.to_le_bytes(), &[0; 32]].concat())
        })
        .collect();
    raw.write(&many).await;
    raw.expect_failure(FAIL, 7).await;
}

/// Each supplier may be dialled: nobody has a receiver dial without end.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_names_suppliers_without_end() {
    let mut scene = scene();
    let data = content(BLOCK as usize);
    let mut raw = scene.offered(1, "file", data.len(), true).await;
    for _ in 0..1000 {
        raw.write(&supplied_by(&scene.relay)).await;
    }
    // It has done what it was told: at least the latest is asked.
    scene.fetched().await;
    raw.write(&supplied_by(&scene.relay)).await;
    loop {
        let (tag, body) = raw.read().await;
        if tag == FAIL {
            assert_eq!(body[..2], [7, 0]);
            break;
        }
        assert_eq!(tag, NEED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_knows_the_key_may_fetch() {
    let scene = scene();
    let data = content(2 * BLOCK as usize + 7);
    let fetch = |key: u128, offset: u64| {
        [&[1][..], &message(14, &[&key.to_le_bytes()[..], &offset.to_le_bytes()].concat())].concat()
    };
    let mut raw = scene.offered(1, "file", data.len(), true).await;
    for (key, offset) in [(KEY + 1, 0), (KEY, 1), (KEY, u64::MAX)] {
        let mut stranger = Raw::open(&scene.relay, scene.node.addr()).await;
        stranger.write(&fetch(key, offset)).await;
        stranger.expect_failure(REFUSE, 2).await;
    }
    let mut friend = Raw::open(&scene.relay, scene.node.addr()).await;
    friend.write(&fetch(KEY, 0)).await;
    for offset in [0, BLOCK as usize, 2 * BLOCK as usize] {
        raw.write(&block(&data, offset)).await;
        // As soon as it is there and verified, and while the rest is not.
        let (tag, body) = friend.read().await;
        let end = data.len().min(offset + BLOCK as usize);
        assert_eq!((tag, &body[..8]), (CONTENT, &(offset as u64).to_le_bytes()[..]));
        assert_eq!(&body[8..], &data[offset..end]);
    }
    raw.write(&done(data.len() as u64, Digest::of(&data))).await;
    let (tag, _) = raw.read().await;
    assert_eq!(tag, ACK);
    // Also afterwards, until the sender has no more use for it. Taken away at the end, it would be gone by then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut late = Raw::open(&scene.relay, scene.node.addr()).await;
    late.write(&fetch(KEY, u64::from(BLOCK))).await;
    assert_eq!(late.read().await.0, CONTENT);
    drop(raw);
    let begun = tokio::time::Instant::now();
    loop {
        let mut late = Raw::open(&scene.relay, scene.node.addr()).await;
        late.write(&fetch(KEY, 0)).await;
        if late.read().await.0 == REFUSE {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "it can still be fetched");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_in_memory_is_not_shared_and_needs_no_relay() {
    let scene = scene();
    let data = content(2 * BLOCK as usize);
    let mut raw = scene.offered(1, "blob", data.len(), false).await;
    raw.write(&[block(&data, 0), block(&data, BLOCK as usize)].concat()).await;
    raw.write(&done(data.len() as u64, Digest::of(&data))).await;
    assert_eq!(raw.read().await.0, ACK);
}

/// Whoever fetches and takes nothing is given up, and does not keep others from fetching for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_nobody_reads_ends() {
    let mut scene = scene();
    let options = TransferOptions { max_incoming: 1, ..impatient() };
    scene.node = Node::with(4, RealVfs::shared(), options);
    scene.node.receive_into(
        "file",
        Destination::File { dir: scene.node.inbox(), name: "f".into(), replace: false },
    );
    let data = content(64 * BLOCK as usize);
    let mut raw = scene.offered(1, "file", data.len(), true).await;
    for offset in (0..data.len()).step_by(BLOCK as usize) {
        raw.write(&block(&data, offset)).await;
    }
    raw.write(&done(data.len() as u64, Digest::of(&data))).await;
    assert_eq!(raw.read().await.0, ACK);
    let limits = Limits { stream_window: 64 << 10, ..Limits::default() };
    let slow = endpoint_with(5, EndpointOptions { limits, ..EndpointOptions::default() });
    let fetch = [&[1][..], &message(14, &[&KEY.to_le_bytes()[..], &0u64.to_le_bytes()].concat())].concat();
    let mut fetching = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::open(&slow, scene.node.addr()).await;
        raw.write(&fetch).await;
        assert_eq!(raw.read().await.0, CONTENT);
        fetching.push(raw);
    }
    // One place is taken by the chunk itself, which is kept at hand.
    let mut third = Raw::open(&slow, scene.node.addr()).await;
    third.write(&fetch).await;
    third.expect_failure(REFUSE, 6).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for mut raw in fetching {
        let mut rest = vec![0; data.len() / 2];
        let read = raw.recv.read_exact(&mut rest).await;
        assert!(matches!(read, Err(StreamError::Reset(12))), "{read:?}");
    }
    let mut again = Raw::open(&slow, scene.node.addr()).await;
    again.write(&fetch).await;
    assert_eq!(again.read().await.0, CONTENT);
}

/// Who fetches what is not there yet and leaves gives the place back at once, not with the next block.
#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_while_there_is_nothing_to_fetch_keeps_no_place() {
    let mut scene = scene();
    scene.node = Node::with(4, RealVfs::shared(), TransferOptions { max_incoming: 1, ..quick() });
    scene.node.receive_into(
        "file",
        Destination::File { dir: scene.node.inbox(), name: "f".into(), replace: false },
    );
    let data = content(BLOCK as usize);
    let mut raw = scene.offered(1, "file", data.len(), true).await;
    let fetch = [&[1][..], &message(14, &[&KEY.to_le_bytes()[..], &0u64.to_le_bytes()].concat())].concat();
    let fetched = async || {
        let mut raw = Raw::open(&scene.relay, scene.node.addr()).await;
        raw.write(&fetch).await;
        raw
    };
    let mut waiting = Vec::new();
    let refused = loop {
        let mut raw = fetched().await;
        match tokio::time::timeout(Duration::from_millis(300), raw.read()).await {
            Ok((tag, _)) => break tag,
            Err(_) => waiting.push(raw),
        }
        assert!(waiting.len() <= 3, "there are three places");
    };
    assert_eq!((refused, waiting.len()), (REFUSE, 3));
    drop(waiting);
    let begun = tokio::time::Instant::now();
    let mut late = loop {
        let mut late = fetched().await;
        if tokio::time::timeout(Duration::from_millis(300), late.read()).await.is_err() {
            break late;
        }
        assert!(begun.elapsed() < Duration::from_secs(15), "their places are taken");
    };
    raw.write(&block(&data, 0)).await;
    assert_eq!(late.read().await.0, CONTENT);
}

/// One byte now and then is no repair, as it is no block.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_trickles_is_given_up() {
    let mut scene = scene();
    let options = TransferOptions { idle_timeout: Duration::from_millis(300), ..quick() };
    scene.node = Node::with(4, RealVfs::shared(), options);
    scene.node.receive_into(
        "file",
        Destination::File { dir: scene.node.inbox(), name: "f".into(), replace: false },
    );
    let mut raw = scene.offered(1, "file", BLOCK as usize, true).await;
    let all = repair(0, &content(BLOCK as usize));
    let (start, content) = all.split_at(5 + 8);
    raw.write(start).await;
    let send = &mut raw.send;
    let trickling = async {
        for byte in content.chunks(1) {
            if send.write_all(byte).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), trickling).await.expect("it is given up");
    raw.expect_failure(FAIL, 13).await;
}

/// Damage on the receiver's disk is repaired by the sender although a relay errs meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_errs_does_not_get_in_the_way_of_repairs() {
    const BLOCK: usize = 256 << 10;
    let mut scene = scene();
    let data = content(24 * BLOCK);
    let vouch = |from: usize| -> Vec<u8> {
        let block = |i: usize| {
            let prefix = Digest::of(&data[..(i + 1) * BLOCK]);
            let offset = ((i * BLOCK) as u64).to_le_bytes();
            message(11, &[&offset[..], &(BLOCK as u32).to_le_bytes(), &prefix.0].concat())
        };
        (from..24).flat_map(block).collect()
    };
    let block = |i: usize| crate::raw::data(&data[..i * BLOCK], &data[i * BLOCK..(i + 1) * BLOCK]);
    let offer = |id| offer_with(id, "file", data.len(), BLOCK as u32, Some([9; 16]));
    let mut raw = Raw::open(&scene.sender, scene.node.addr()).await;
    raw.write(&offer(1)).await;
    assert_eq!(raw.read().await.0, ACCEPT);
    for i in 0..20 {
        raw.write(&block(i)).await;
    }
    // The 21st is never supplied: everything before it is there when the receiver asks for it.
    raw.write(&supplied_by(&scene.relay)).await;
    let (feed, from) = scene.fetched().await;
    assert_eq!(from, 20 * BLOCK as u64);
    drop(feed);
    assert_eq!(raw.read().await.0, NEED);
    raw.connection.close("cut");
    let inbox = scene.node.inbox();
    let part = || names(&inbox).into_iter().find(|name| name.ends_with(".part"));
    eventually("keeping", || part().is_some_and(|name| RealVfs.lock(&inbox.join(name)).is_ok())).await;
    let file = RealVfs.open(&inbox.join(part().unwrap()), OpenMode::ReadWrite).unwrap();
    file.write_all_at(b"damaged", 3 * BLOCK as u64).unwrap();
    let mut raw = Raw::open(&scene.sender, scene.node.addr()).await;
    raw.write(&offer(2)).await;
    let mut accepted = accept_body(16 * BLOCK as u64, &data[..16 * BLOCK]);
    accepted[0] = 1;
    assert_eq!(raw.read().await, (ACCEPT, accepted));
    let damaged = [&(3 * BLOCK as u64).to_le_bytes()[..], &(BLOCK as u32).to_le_bytes()].concat();
    assert_eq!(raw.read().await, (AGAIN, damaged));
    raw.write(&[vouch(16), done(data.len() as u64, Digest::of(&data)), supplied_by(&scene.relay)].concat())
        .await;
    let (mut feed, _) = scene.fetched().await;
    feed.write(&message(CONTENT, &[&(16 * BLOCK as u64).to_le_bytes()[..], &vec![1; BLOCK]].concat())).await;
    expect_need(&mut raw, 16 * BLOCK as u64, 10).await;
    raw.write(&repair(3 * BLOCK, &data[3 * BLOCK..4 * BLOCK])).await;
    for i in 16..24 {
        raw.write(&block(i)).await;
    }
    assert_eq!(raw.read().await.0, ACK);
    assert!(read(&inbox.join("f")) == data);
}

/// A relay under another identity than the sender named gets no chance.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_must_be_who_the_sender_says() {
    let scene = scene();
    let data = content(BLOCK as usize);
    let mut raw = scene.offered(1, "file", data.len(), true).await;
    let addr = scene.relay.local_addr();
    let std::net::IpAddr::V4(ip) = addr.ip() else { panic!("an IPv4 address") };
    let body = [&[1][..], &77u64.to_le_bytes(), &ip.to_ipv6_mapped().octets(), &addr.port().to_le_bytes()];
    raw.write(&message(12, &body.concat())).await;
    let (tag, body) = raw.read().await;
    assert_eq!((tag, &body[..8]), (NEED, &[0; 8][..]));
    raw.write(&[crate::raw::data(b"", &data), done(data.len() as u64, Digest::of(&data))].concat()).await;
    assert_eq!(raw.read().await.0, ACK);
}
