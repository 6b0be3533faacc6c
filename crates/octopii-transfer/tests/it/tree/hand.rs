//! The tree protocol spoken by hand, from `docs/formats/tree.md` alone: neither encoder nor decoder of the crate is used.

use octopii_transfer::{Digest, TransferId};
use octopii_transport::{Acceptor, Endpoint, StreamKind};

use crate::nodes::Node;
use crate::raw::{Raw, message};

pub(crate) const READY: u8 = 2;
pub(crate) const REFUSE: u8 = 3;
pub(crate) const VERDICTS: u8 = 5;
pub(crate) const RESULTS: u8 = 7;
pub(crate) const DONE: u8 = 9;
pub(crate) const FAIL: u8 = 10;
const ALIVE: u8 = 11;

/// A verdict or a result: 0, 1, 2 or 3, and the code of a reason.
pub(crate) type Told = (u8, u16);

pub(crate) struct Hand {
    raw: Raw,
    /// All entries so far, as they were sent.
    manifest: Vec<u8>,
    entries: u64,
}

impl Hand {
    pub(crate) async fn open(from: &Node, to: &Node) -> Self {
        Self::open_as(from, to, 7, "tree").await
    }

    pub(crate) async fn open_as(from: &Node, to: &Node, id: u128, name: &str) -> Self {
        let (hand, agreed) = Self::open_with(from, to, 0, id, name).await;
        assert_eq!(agreed, 0, "nothing else was offered");
        hand
    }

    /// With these flags. Gives back those of the answer.
    pub(crate) async fn open_with(from: &Node, to: &Node, flags: u8, id: u128, name: &str) -> (Self, u8) {
        let mut hand = Self::silent(&from.endpoint, to).await;
        let mut opening = opening(id, name.as_bytes());
        opening[6] = flags;
        hand.write(&opening).await;
        let (tag, body) = hand.read().await;
        assert_eq!((tag, &body[2..]), (READY, name.as_bytes()), "{}", String::from_utf8_lossy(&body));
        (hand, body[0])
    }

    pub(crate) async fn silent(from: &Endpoint, to: &Node) -> Self {
        Self::over(Raw::open_kind(StreamKind::Tree, from, to.addr()).await)
    }

    pub(crate) async fn accept(acceptor: &mut Acceptor) -> Self {
        let mut raw = Raw::accept(acceptor).await;
        raw.read_version().await;
        Self::over(raw)
    }

    fn over(raw: Raw) -> Self {
        Self { raw, manifest: Vec::new(), entries: 0 }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.raw.write(bytes).await;
    }

    /// The next message but signs of life.
    pub(crate) async fn read(&mut self) -> (u8, Vec<u8>) {
        self.raw.read_but(ALIVE).await
    }

    /// Whether the other side says of itself that it does anything, when it says that next.
    pub(crate) async fn works(&mut self) -> bool {
        loop {
            if let (ALIVE, body) = self.raw.read_but(0).await {
                assert!(body == [0] || body == [1], "{body:?}");
                return body == [1];
            }
        }
    }

    /// Says again and again that it is there, and does nothing.
    pub(crate) async fn idle(&mut self) {
        loop {
            self.write(&message(ALIVE, &[0])).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// Tells one page.
    pub(crate) async fn tell(&mut self, entries: &[Vec<u8>]) {
        let body = entries.concat();
        self.manifest.extend_from_slice(&body);
        self.entries += entries.len() as u64;
        let count = (entries.len() as u16).to_le_bytes();
        self.write(&message(4, &[&count[..], &body].concat())).await;
    }

    /// Tells one page and reads the verdicts on it.
    pub(crate) async fn page(&mut self, entries: &[Vec<u8>]) -> Vec<Told> {
        self.tell(entries).await;
        let (tag, body) = self.read().await;
        assert_eq!(tag, VERDICTS, "{}", String::from_utf8_lossy(&body));
        assert_eq!(u16::from_le_bytes([body[8], body[9]]) as usize, entries.len());
        let mut rest = &body[10..];
        entries.iter().map(|_| told(&mut rest, 3)).collect()
    }

    pub(crate) async fn results(&mut self) -> Vec<(u64, Told)> {
        let (tag, body) = self.read().await;
        assert_eq!(tag, RESULTS, "{}", String::from_utf8_lossy(&body));
        let mut rest = &body[2..];
        let count = u16::from_le_bytes([body[0], body[1]]);
        (0..count)
            .map(|_| {
                let entry = u64::from_le_bytes(rest[..8].try_into().unwrap());
                rest = &rest[8..];
                (entry, told(&mut rest, 1))
            })
            .collect()
    }

    pub(crate) async fn pack(&mut self, records: &[Vec<u8>]) {
        self.write(&packs(records)).await;
    }

    /// A compressed pack that is said to be `len` bytes long.
    pub(crate) async fn compressed(&mut self, len: usize, frame: &[u8]) {
        self.write(&message(13, &[&(len as u32).to_le_bytes()[..], frame].concat())).await;
    }

    pub(crate) async fn finish_manifest(&mut self) {
        let body = [&self.entries.to_le_bytes()[..], &Digest::of(&self.manifest).0, &[0]].concat();
        self.write(&message(8, &body)).await;
    }

    pub(crate) async fn expect_fail(&mut self, code: u16) {
        loop {
            let (tag, body) = self.read().await;
            if tag == FAIL || tag == REFUSE {
                let text = String::from_utf8_lossy(&body[4..]);
                assert_eq!(u16::from_le_bytes([body[0], body[1]]), code, "{text}");
                return;
            }
            assert!([VERDICTS, RESULTS].contains(&tag), "{tag}");
        }
    }

    /// Five counts.
    pub(crate) async fn expect_done(&mut self) -> [u64; 5] {
        loop {
            let (tag, body) = self.read().await;
            if tag == RESULTS {
                continue;
            }
            assert_eq!(tag, DONE, "{}", String::from_utf8_lossy(&body));
            assert_eq!(body[40..48], [0; 8], "nothing was to be removed");
            assert_eq!(body[48..], Digest::of(&self.manifest).0);
            return std::array::from_fn(|n| u64::from_le_bytes(body[n * 8..n * 8 + 8].try_into().unwrap()));
        }
    }
}

/// A pack as it travels by itself or in a chunk.
pub(crate) fn packs(records: &[Vec<u8>]) -> Vec<u8> {
    message(6, &[&(records.len() as u16).to_le_bytes()[..], &records.concat()].concat())
}

/// To open a pack of a chunk: the entry of each file, or 2^64 - 1.
pub(crate) fn unpack(chunk: u64, offset: u64, last: bool, entries: &[u64]) -> Vec<u8> {
    let start = [&chunk.to_le_bytes()[..], &offset.to_le_bytes(), &[u8::from(last)]].concat();
    let entries = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>();
    message(14, &[&start[..], &(entries.len() as u16 / 8).to_le_bytes(), &entries].concat())
}

/// A record of a pack: the file will not come.
pub(crate) fn given_up(entry: u64) -> Vec<u8> {
    [&entry.to_le_bytes()[..], &[1, 5, 0, 0]].concat()
}

fn told(rest: &mut &[u8], with_reason: u8) -> Told {
    let kind = rest[0];
    *rest = &rest[1..];
    if kind != with_reason {
        return (kind, 0);
    }
    let (code, len) = (u16::from_le_bytes([rest[0], rest[1]]), rest[2] as usize);
    *rest = &rest[3 + len..];
    (kind, code)
}

/// Version and opening of a tree of this name, always from the same source.
pub(crate) fn opening(id: u128, name: &[u8]) -> Vec<u8> {
    let body =
        [&[0][..], &id.to_le_bytes(), &[9; 32], &[4, name.len() as u8], &0u32.to_le_bytes(), b"tree", name]
            .concat();
    [&[1][..], &message(1, &body)].concat()
}

fn named(kind: u8, name: &[u8]) -> Vec<u8> {
    [&[kind, name.len() as u8][..], name].concat()
}

fn time() -> [u8; 12] {
    let mut time = [0; 12];
    time[..8].copy_from_slice(&1_000_000_000i64.to_le_bytes());
    time
}

pub(crate) fn file(name: &[u8], size: u64) -> Vec<u8> {
    file_with(name, size, 0o644, time())
}

pub(crate) fn file_with(name: &[u8], size: u64, mode: u16, time: [u8; 12]) -> Vec<u8> {
    [&named(1, name)[..], &mode.to_le_bytes(), &time, &size.to_le_bytes()].concat()
}

pub(crate) fn directory(name: &[u8]) -> Vec<u8> {
    named(2, name)
}

pub(crate) fn end() -> Vec<u8> {
    [&[3][..], &0o755u16.to_le_bytes(), &time()].concat()
}

pub(crate) fn link(name: &[u8], target: &[u8]) -> Vec<u8> {
    [&named(4, name)[..], &(target.len() as u16).to_le_bytes(), target].concat()
}

pub(crate) fn content(entry: u64, content: &[u8]) -> Vec<u8> {
    content_with(entry, content, Digest::of(content))
}

pub(crate) fn content_with(entry: u64, content: &[u8], digest: Digest) -> Vec<u8> {
    [&entry.to_le_bytes()[..], &[0], &digest.0, &(content.len() as u32).to_le_bytes(), content].concat()
}

/// Verdicts by hand: the number of the first entry and a byte each.
pub(crate) fn verdicts(first: u64, verdicts: &[u8]) -> Vec<u8> {
    let count = (verdicts.len() as u16).to_le_bytes();
    message(VERDICTS, &[&first.to_le_bytes()[..], &count, verdicts].concat())
}

pub(crate) fn results(entries: &[u64]) -> Vec<u8> {
    let records: Vec<u8> = entries.iter().flat_map(|n| [&n.to_le_bytes()[..], &[0]].concat()).collect();
    message(RESULTS, &[&(entries.len() as u16).to_le_bytes()[..], &records].concat())
}

pub(crate) fn large_meta(id: TransferId, entry: u64) -> bytes::Bytes {
    [&id.0.to_le_bytes()[..], &entry.to_le_bytes()].concat().into()
}
