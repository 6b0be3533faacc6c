//! Senders and receivers that do not keep to the protocol, or want what is not theirs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use octopii_transfer::{
    ChunkSource, Digest, ExistingTree, FailureCode, SendOptions, TransferError, TransferId, TreeInbox,
    TreeLimits, TreeOptions,
};
use octopii_transport::StreamKind;

use super::hand::{
    self, FAIL, Hand, READY, content, content_with, directory, end, file, file_with, link, opening, results,
    verdicts,
};
use super::put;
use crate::nodes::{Node, endpoint, impatient, names};
use crate::raw::message;

/// A sender and a receiver; beside the inbox lies what must not be touched.
fn nodes() -> (Node, Node) {
    nodes_with(|inbox| inbox)
}

fn nodes_with(adjust: impl FnOnce(TreeInbox) -> TreeInbox) -> (Node, Node) {
    let (a, b) = (Node::new(1), Node::new(2));
    b.open_trees(adjust);
    put(b.dir.path(), "outside/precious", b"precious");
    (a, b)
}

fn untouched(b: &Node) {
    assert_eq!(names(&b.dir.path().join("outside")), ["precious"]);
    assert_eq!(fs::read(b.dir.path().join("outside/precious")).unwrap(), b"precious");
    assert_eq!(names(b.dir.path()), ["inbox", "outside"]);
}

/// What is left beside the trees, of all of them.
fn hidden(b: &Node) -> Vec<String> {
    let dir = b.inbox().join(".octopii-trees");
    let mut all: Vec<_> = names(&dir).iter().flat_map(|tree| names(&dir.join(tree))).collect();
    all.dedup();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_elsewhere_or_drive_a_terminal_are_refused_one_by_one() {
    let (a, b) = nodes();
    let mut hand = Hand::open(&a, &b).await;
    let mut hostile: Vec<&[u8]> = vec![
        b"",
        b".",
        b"..",
        b"/etc/passwd",
        b"../outside/precious",
        b"a/b",
        b"a\0b",
        b"\x1b[2J",
        b"a\nb",
        b"\x7f",
        b"\xc2\x9b31m",
        b".octopii-trees",
        b".octopii-0.part",
        b"d/../../outside",
    ];
    hostile.sort_unstable();
    // The empty name cannot follow any other: it would be out of order.
    let first: Vec<_> = hostile[1..].iter().map(|name| file(name, 1)).collect();
    assert_eq!(hand.page(&first).await, vec![(3, 1); first.len()]);
    // As directories, with what is in them.
    let mut hand = Hand::open_as(&a, &b, 8, "second").await;
    let entries: Vec<_> =
        hostile[1..].iter().flat_map(|name| [directory(name), file(b"f", 1), end()]).collect();
    let expected: Vec<_> = hostile[1..].iter().flat_map(|_| [(3, 1), (3, 11), (0, 0)]).collect();
    assert_eq!(hand.page(&entries).await, expected);
    assert_eq!(hand.page(&[file("\u{e9}".as_bytes(), 0), end()]).await, [(2, 0), (2, 0)]);
    hand.pack(&[content(entries.len() as u64, b"")]).await;
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [1, 0, 0, 1, 2 * 13]);
    assert_eq!(names(&b.inbox().join("second")), ["\u{e9}"]);
    untouched(&b);
    for name in [&b".."[..], b".", b"", b"a/b", b"/tmp", b"\x1b[2J", b".octopii-trees", &[b'x'; 241]] {
        let mut hand = Hand::silent(&a.endpoint, &b).await;
        hand.write(&opening(9, name)).await;
        hand.expect_fail(3).await;
    }
    untouched(&b);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_protocol_ends_the_tree() {
    let (a, b) = nodes();
    let wanted = [file(b"f", 3), end()];
    let long_second = file_with(b"f", 1, 0o644, [0xff; 12]);
    let pages: [&[Vec<u8>]; 10] = [
        &[file(b"b", 0), file(b"a", 0)],
        &[file(b"a", 0), file(b"a", 0)],
        &[file(b"a", 0), directory(b"a")],
        &[file(b"", 0)],
        &[end(), file(b"a", 0)],
        &[end(), end()],
        &[file(b"f", 1 << 63)],
        &[file(b"f", u64::MAX)],
        &[file_with(b"f", 1, 0o4755, [0; 12])],
        &[long_second],
    ];
    for (n, page) in (100..).zip(pages) {
        let mut hand = Hand::open_as(&a, &b, n, &n.to_string()).await;
        hand.tell(page).await;
        hand.expect_fail(7).await;
    }
    let short = b"abc";
    let packs: [&[Vec<u8>]; 6] = [
        &[hand::given_up(2)],
        &[hand::given_up(u64::MAX)],
        &[content(1, short)],
        &[content(2, short)],
        &[content(0, short), content(0, short)],
        &[content(u64::MAX, short)],
    ];
    for (n, pack) in (200..).zip(packs) {
        let mut hand = Hand::open_as(&a, &b, n, &n.to_string()).await;
        hand.page(&wanted).await;
        hand.pack(pack).await;
        hand.expect_fail(7).await;
    }
    let mut raw: Vec<Vec<u8>> = vec![
        message(99, b""),
        message(1, &[0; 55]),
        message(4, &[0, 0, 0]),
        message(4, &[255, 255, 0]),
        message(4, &[1, 0, 1, 200, b'x']),
        message(6, &[255, 255]),
        message(7, &[0, 0]),
        message(9, &[0; 80]),
        message(8, &[0; 41]),
    ];
    raw.push([&[6][..], &u32::MAX.to_le_bytes()].concat());
    for (n, bytes) in (300..).zip(raw) {
        let mut hand = Hand::open_as(&a, &b, n, &n.to_string()).await;
        hand.write(&bytes).await;
        hand.expect_fail(7).await;
    }
    let mut other = Hand::silent(&a.endpoint, &b).await;
    other.write(&[2]).await;
    other.expect_fail(9).await;
    // The manifest that was told is not the one that was meant.
    let mut hand = Hand::open(&a, &b).await;
    hand.page(&[end()]).await;
    hand.write(&message(8, &[&1u64.to_le_bytes()[..], &[0; 33]].concat())).await;
    hand.expect_fail(10).await;
    assert_eq!(hidden(&b), ["lock", "owner"].repeat(hidden(&b).len() / 2));
    untouched(&b);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_about_a_file_costs_that_file() {
    let (a, b) = nodes();
    let mut hand = Hand::open(&a, &b).await;
    let entries = [
        file(b"a", 3),
        file(b"b", 3),
        file(b"c", 3),
        file(b"d", 3),
        file(b"e", 1 << 62),
        file(b"f", (1 << 20) + 1),
        end(),
    ];
    let verdicts = hand.page(&entries).await;
    assert_eq!(verdicts, [(2, 0), (2, 0), (2, 0), (2, 0), (3, 4), (2, 0), (2, 0)]);
    let oversized = vec![0; 1 << 20];
    hand.pack(&[
        content(0, b"four"),
        content(1, b""),
        content_with(2, b"abc", Digest::of(b"xyz")),
        content(3, b"abc"),
        content(5, &oversized),
    ])
    .await;
    let failed = hand.results().await;
    assert_eq!(failed, [(0, (1, 7)), (1, (1, 7)), (2, (1, 6)), (5, (1, 3))]);
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [1, 3, 0, 1, 5]);
    assert_eq!(names(&b.inbox().join("tree")), ["d"]);
    assert_eq!(hidden(&b), ["lock", "owner"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn depth_number_and_bytes_are_limited() {
    let limits = TreeLimits { entries: 40, bytes: 100, depth: 3 };
    let (a, b) = nodes_with(|inbox| inbox.limits(limits));
    let mut hand = Hand::open(&a, &b).await;
    let mut entries: Vec<_> = (0..4).map(|_| directory(b"d")).collect();
    entries.extend([directory(b"e"), file(b"f", 0), end(), end(), end(), end(), end()]);
    let verdicts = hand.page(&entries).await;
    assert_eq!(verdicts[..7], [(0, 0), (0, 0), (0, 0), (3, 3), (3, 11), (3, 11), (0, 0)]);
    assert_eq!(verdicts[7..], [(0, 0), (2, 0), (2, 0), (2, 0)]);
    assert_eq!(hand.page(&[file(b"f", 90), file(b"g", 11), file(b"h", 10)]).await, [(2, 0), (3, 3), (2, 0)]);
    let many: Vec<_> = (0..30).map(|n| file(format!("x{n:02}").as_bytes(), 0)).collect();
    let verdicts = hand.page(&many).await;
    assert_eq!((verdicts[25], verdicts[26]), ((2, 0), (3, 3)), "14 were told before");
}

/// What is refused is remembered as well, until it ends: a directory within a refused one has bounds of its own.
#[tokio::test(flavor = "multi_thread")]
async fn refused_directories_cannot_be_nested_without_end() {
    let (a, b) = nodes();
    let mut hand = Hand::open(&a, &b).await;
    let mut nested = vec![directory(b".octopii-mine")];
    nested.extend((1..128).map(|_| directory(b"d")));
    let verdicts = hand.page(&nested).await;
    assert_eq!((verdicts[0], &verdicts[1..]), ((3, 1), &[(3, 11); 127][..]));
    assert_eq!(hand.page(&[file(b"f", 0)]).await, [(3, 11)]);
    hand.tell(&[directory(b"g")]).await;
    hand.expect_fail(7).await;

    let mut hand = Hand::open_as(&a, &b, 8, "long").await;
    let mut nested = vec![directory(b".octopii-mine")];
    nested.extend((0..15).map(|_| directory(&[b'd'; 255])));
    assert_eq!(hand.page(&nested).await.len(), 16);
    assert_eq!(hand.page(&[directory(&[b'd'; 241]), file(&[b'f'; 255], 0)]).await, [(3, 11); 2]);
    hand.tell(&[directory(&[b'd'; 255])]).await;
    hand.expect_fail(7).await;
    assert_eq!(hidden(&b), ["lock", "owner"].repeat(2));
    untouched(&b);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_without_its_files_does_not_grow_without_end() {
    let (a, b) = nodes();
    let mut hand = Hand::open(&a, &b).await;
    for page in 0..33 {
        let entries: Vec<_> =
            (0..1024).map(|n| file(format!("{:06}", page * 1024 + n).as_bytes(), 1)).collect();
        if page < 32 {
            assert_eq!(hand.page(&entries).await, vec![(2, 0); 1024]);
        } else {
            hand.tell(&entries).await;
            hand.expect_fail(7).await;
        }
    }
}

/// Whoever may write into the destination plants links there in the middle of a transfer. Nothing is written through them.
#[tokio::test(flavor = "multi_thread")]
async fn links_planted_meanwhile_lead_nowhere() {
    let (a, b) = nodes_with(|inbox| inbox.existing(ExistingTree::Update));
    let (tree, outside) = (b.inbox().join("tree"), b.dir.path().join("outside"));
    // A directory of the tree becomes a link, before its files arrive.
    let mut hand = Hand::open(&a, &b).await;
    let entries = [directory(b"d"), file(b"precious", 4), end(), file(b"f", 4), end()];
    assert_eq!(hand.page(&entries).await, [(0, 0), (2, 0), (2, 0), (2, 0), (2, 0)]);
    fs::remove_dir(tree.join("d")).unwrap();
    symlink(&outside, tree.join("d")).unwrap();
    // The name of a file becomes one.
    symlink(outside.join("precious"), tree.join("f")).unwrap();
    hand.pack(&[content(1, b"evil"), content(3, b"good")]).await;
    hand.finish_manifest().await;
    let done = hand.expect_done().await;
    assert_eq!(done, [1, 4, 0, 1, 2], "the file and the mode of the directory were not done");
    assert_eq!(fs::read(tree.join("f")).unwrap(), b"good");
    assert!(!tree.join("f").is_symlink());
    assert_eq!(outside.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
    untouched(&b);

    // They are there from the beginning: refused, with all that should go through them.
    let mut hand = Hand::open_as(&a, &b, 8, "tree").await;
    let verdicts = hand.page(&[directory(b"d"), file(b"precious", 4), end(), file(b"f", 4)]).await;
    assert_eq!(verdicts, [(3, 2), (3, 11), (0, 0), (1, 0)]);
    drop(hand);

    // The tree itself becomes one.
    let mut hand = Hand::open_as(&a, &b, 9, "other").await;
    hand.page(&[file(b"precious", 4), end()]).await;
    fs::remove_dir(b.inbox().join("other")).unwrap();
    symlink(&outside, b.inbox().join("other")).unwrap();
    hand.pack(&[content(0, b"evil")]).await;
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [0, 0, 0, 0, 2]);
    let mut hand = Hand::silent(&a.endpoint, &b).await;
    hand.write(&opening(10, b"other")).await;
    hand.expect_fail(2).await;
    untouched(&b);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_made_only_if_wanted_and_only_inside() {
    let (a, b) = nodes();
    let hostile: [&[u8]; 6] = [b"/etc/passwd", b"../outside", b"..", b"d/../../outside", b"", b"a\0b"];
    let targets = |good: &[u8]| -> Vec<_> {
        let all = hostile.iter().copied().chain([good]);
        (0..).zip(all).map(|(n, target): (u32, _)| link(n.to_string().as_bytes(), target)).collect()
    };
    let mut hand = Hand::open(&a, &b).await;
    assert_eq!(hand.page(&targets(b"x")).await, vec![(3, 9); 7]);
    drop(hand);
    b.open_trees(|inbox| inbox.links(true));
    let mut hand = Hand::open_as(&a, &b, 8, "with links").await;
    let verdicts = hand.page(&[&targets(b"x")[..], &[end()]].concat()).await;
    assert_eq!(verdicts, [&[(3, 9); 6][..], &[(2, 0), (2, 0)]].concat());
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [1, 0, 0, 1, 6]);
    assert_eq!(names(&b.inbox().join("with links")), ["6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_not_replaced_by_another_kind() {
    let (a, b) = nodes_with(|inbox| inbox.existing(ExistingTree::Update));
    put(&b.inbox(), "tree/dir/mine", b"");
    put(&b.inbox(), "tree/file", b"mine");
    let mut hand = Hand::open(&a, &b).await;
    let verdicts = hand.page(&[file(b"dir", 1), directory(b"file"), file(b"x", 1), end(), end()]).await;
    assert_eq!(verdicts, [(3, 2), (3, 2), (3, 11), (0, 0), (2, 0)]);
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [0, 0, 0, 1, 3]);
    assert_eq!(names(&b.inbox().join("tree/dir")), ["mine"]);
    assert_eq!(fs::read(b.inbox().join("tree/file")).unwrap(), b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_come_only_if_they_were_asked_for() {
    let (a, b) = nodes();
    let mut hand = Hand::open(&a, &b).await;
    let size = (1 << 20) + 5;
    assert_eq!(hand.page(&[file(b"large", size), file(b"small", 5), end()]).await, [(2, 0); 3]);
    let send = |id: u128, entry, len: u64| {
        let meta = hand::large_meta(TransferId(id), entry);
        let options = SendOptions { meta, ..SendOptions::new("octopii.tree") };
        let source = ChunkSource::Memory(vec![1; len as usize].into());
        let (transfer, addr) = (a.transfer.clone(), b.addr());
        async move { transfer.send(addr, &source, options).await }
    };
    for (id, entry, len) in [(8, 0, size), (7, 1, 5), (7, 2, size), (7, 9, size), (7, 0, size + 1), (7, 0, 5)]
    {
        let error = send(id, entry, len).await.unwrap_err();
        let refused = matches!(&error, TransferError::Refused { refusal, .. }
            if matches!(refusal.code, FailureCode::Rejected | FailureCode::SizeMismatch));
        assert!(refused, "{id} {entry} {len}: {error}");
    }
    send(7, 0, size).await.unwrap();
    assert!(send(7, 0, size).await.is_err(), "it came already");
    // Its sender has not heard of that, and gives it up.
    hand.pack(&[hand::given_up(0), content(1, b"small")]).await;
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [2, size + 5, 0, 1, 0]);
    assert_eq!(fs::read(b.inbox().join("tree/large")).unwrap(), vec![1; size as usize]);
    assert_eq!(hidden(&b), ["lock", "owner"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_is_being_received_is_not_begun_again() {
    let (a, b) = nodes();
    let mut hand = Hand::open(&a, &b).await;
    let mut second = Hand::silent(&a.endpoint, &b).await;
    second.write(&opening(8, b"tree")).await;
    second.expect_fail(6).await;
    hand.page(&[end()]).await;
    hand.finish_manifest().await;
    assert_eq!(hand.expect_done().await, [0, 0, 0, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_falls_silent_is_given_up_and_the_tree_is_free_again() {
    let (a, b) = (Node::new(1), Node::with(2, octopii_vfs::RealVfs::shared(), impatient()));
    b.open_trees(|inbox| inbox);
    let mut hand = Hand::open(&a, &b).await;
    hand.page(&[file(b"f", 3)]).await;
    hand.expect_fail(13).await;
    let mut second = Hand::open_as(&a, &b, 9, "tree").await;
    second.page(&[end()]).await;
    second.finish_manifest().await;
    assert_eq!(second.expect_done().await, [0, 0, 0, 1, 0]);
}

/// A receiver that claims what is not so is not believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_makes_things_up_is_found_out() {
    let a = Node::new(1);
    put(&a.tree(), "f", b"abc");
    let done = |counts: [u64; 5]| {
        let counts: Vec<u8> = counts.iter().flat_map(|n| n.to_le_bytes()).collect();
        message(9, &[&counts[..], &[0; 8 + 32]].concat())
    };
    // The tree has two entries: the file, and the root's end.
    let answers: [Vec<u8>; 13] = [
        verdicts(1, &[2, 2]),
        verdicts(0, &[2, 2, 2]),
        verdicts(0, &[0, 2]),
        verdicts(0, &[2, 1]),
        results(&[2]),
        results(&[0]),
        [verdicts(0, &[2]), verdicts(0, &[2])].concat(),
        [verdicts(0, &[2]), verdicts(0, &[1])].concat(),
        [verdicts(0, &[2, 2]), verdicts(1, &[0])].concat(),
        [verdicts(0, &[2, 2]), results(&[0]), results(&[0])].concat(),
        done([1, 3, 0, 1, 0]),
        [verdicts(0, &[2, 2]), results(&[0, 1]), done([1, 3, 0, 1, 0])].concat(),
        message(FAIL, &[7, 0, 200, 0]),
    ];
    for answer in answers {
        let b = endpoint(2);
        let mut acceptor = b.acceptor(StreamKind::Tree).unwrap();
        let addr = b.local_addr();
        let answering = async {
            let mut hand = Hand::accept(&mut acceptor).await;
            hand.read().await;
            hand.write(&message(READY, b"\0\x04tree")).await;
            // Both entries are told before anything is said of them.
            hand.read().await;
            hand.write(&answer).await;
            hand
        };
        let sending = a.transfer.send_tree(addr, a.tree(), TreeOptions::new("tree"));
        let (result, _hand) = tokio::join!(sending, answering);
        let error = result.unwrap_err();
        assert!(matches!(error, TransferError::Protocol(_)), "{answer:?}: {error}");
    }
}
