//! Everything here that reads bytes of a peer or of a disk, for the fuzzer outside the workspace (`fuzz/`).

use std::cell::RefCell;

use bytes::Bytes;

use crate::checkpoints;
use crate::compression::{Compressor, Decompressor};
use crate::framing::HEADER_LEN;
use crate::journal::{self, About};
use crate::outcomes;
use crate::pages::Pages;
use crate::tree::wire as tree;
use crate::wire::relay;
use crate::wire::{self, Header, ResumeKey, Tag};
use crate::{Digest, TransferId};

/// One message of a chunk's stream: what can be decoded is within its limits, and the same after another encoding.
pub fn message(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = Header::decode(*header) else { return };
    let Some(body) = body.get(..header.len) else { return };
    let same = |again: Vec<u8>| assert_eq!(again[HEADER_LEN..], *body, "{:?}", header.tag);
    match header.tag {
        Tag::Offer => {
            if let Ok(offer) = wire::decode_offer(body) {
                assert!(
                    offer.block_size.is_power_of_two()
                        && wire::CHECKPOINT.is_multiple_of(offer.block_size.into())
                );
                assert_eq!(wire::decode_offer(&wire::offer(&offer)[HEADER_LEN..]), Ok(offer));
            }
        }
        Tag::Accept => {
            if let Ok(acceptance) = wire::decode_accept(body) {
                assert!(acceptance.have.bytes.is_multiple_of(wire::CHECKPOINT));
                same(wire::accept(&acceptance));
            }
        }
        Tag::Refuse | Tag::Fail => {
            if let Ok(refusal) = wire::decode_refusal(body) {
                assert!(!refusal.message.contains(char::is_control));
                assert_eq!(wire::decode_refusal(&wire::refuse(&refusal)[HEADER_LEN..]), Ok(refusal));
            }
        }
        Tag::Done => drop(wire::decode_done(body).map(|(size, digest)| same(wire::done(size, digest)))),
        Tag::Progress => drop(wire::decode_progress(body).map(|verified| same(wire::progress(verified)))),
        Tag::Ack => drop(wire::decode_ack(body).map(|ack| same(wire::ack(&ack)))),
        Tag::Query => drop(wire::decode_query(body).map(|id| same(wire::query(id)))),
        Tag::Status => {
            if let Ok(status) = wire::decode_status(body) {
                assert_eq!(wire::decode_status(&wire::status(&status)[HEADER_LEN..]), Ok(status));
            }
        }
        Tag::Vouch => drop(relay::decode_vouch(body).map(|block| same(relay::vouch(&block)))),
        Tag::Supplier => drop(relay::decode_supplier(body)),
        Tag::Need => drop(relay::decode_need(body).map(|need| same(relay::need(&need)))),
        Tag::Fetch => drop(relay::decode_fetch(body).map(|(key, offset)| same(relay::fetch(key, offset)))),
        Tag::Again => {
            if let Ok(span) = wire::decode_again(body) {
                assert!(span.len > 0 && span.offset.checked_add(span.len.into()).is_some());
                same(wire::again(span));
            }
        }
        // Content is not decoded.
        Tag::Data | Tag::Content | Tag::Repair | Tag::Compressed => {}
        Tag::Sparse => sparse(body),
        Tag::SparseContent => sparse(body),
    }
}

/// A block with pages of zeroes: its offset, its length, its map, and more.
fn sparse(body: &[u8]) {
    let Some((len, rest)) = body.get(8..).and_then(<[u8]>::split_first_chunk) else { return };
    let len = u32::from_le_bytes(*len);
    let Some((map, content)) = Pages::map_len(len).ok().and_then(|map| rest.split_at_checked(map)) else {
        return;
    };
    let Ok(pages) = Pages::decode(len, map) else { return };
    assert!(pages.map() == map && pages.len() == len as usize && pages.content_len() < pages.len());
    let Some(content) = content.get(..pages.content_len()) else { return };
    let whole = pages.fill(content.chunks(700).map(Bytes::copy_from_slice).collect()).concat();
    assert_eq!(whole.len(), pages.len());
    // What is said to have content may be zeroes, too; never the other way round.
    let again = Pages::of(&whole);
    assert!(again.is_some_and(|again| again.content_len() <= pages.content_len()));
}

/// One message of a tree's stream; the first byte chooses the decoder, since headers would only be in the way.
pub fn tree_message(data: &[u8]) {
    let Some((which, body)) = data.split_first() else { return };
    match which % 11 {
        0 => drop(tree::decode_open(body)),
        1 => drop(tree::decode_ready(body)),
        2 => drop(tree::decode_refusal(body)),
        3 => drop((tree::decode_page(body, true), tree::decode_page(body, false))),
        4 => drop(tree::decode_verdicts(body)),
        5 => drop(tree::decode_pack(&Bytes::copy_from_slice(body))),
        6 => drop(tree::decode_results(body)),
        7 => drop(tree::decode_end(body)),
        8 => drop(tree::decode_unpack(body)),
        9 => drop(tree::decode_compressed(&Bytes::copy_from_slice(body))),
        _ => drop(tree::decode_done(body)),
    }
}

/// A compressed block: two bytes of the length that it is said to have, and what may be a frame, or be made one.
pub fn compressed(data: &[u8]) {
    thread_local! {
        static BOTH: RefCell<Option<(Compressor, Decompressor)>> =
            RefCell::new(Compressor::new(1).zip(Decompressor::new()));
    }
    let Some((len, data)) = data.split_first_chunk() else { return };
    let len = usize::from(u16::from_le_bytes(*len)) + 1;
    BOTH.with_borrow_mut(|both| {
        let Some((compressor, decompressor)) = both else { return };
        let whole = Bytes::copy_from_slice(data);
        let parts = [whole.slice(..data.len() / 2), whole.slice(data.len() / 2..)];
        let content = decompressor.decompress(&[whole], len);
        assert!(content.as_ref().is_none_or(|content| content.len() == len));
        assert_eq!(decompressor.decompress(&parts, len), content);
        if let Some(frame) = compressor.compress(data) {
            assert!(frame.len() < data.len());
            assert_eq!(decompressor.decompress(&[frame], data.len()).as_deref(), Some(data));
        }
    });
}

fn about() -> About {
    About { key: ResumeKey([7; 16]), size: Some(1 << 40), block_size: 4096 }
}

/// A journal: records as they are, each behind two bytes of length, and each with the checksum that belongs to it, which no
/// random bytes would have.
pub fn journal(data: &[u8]) {
    let mut file = journal::encode_header(&about());
    let mut rest = data;
    while let Some((len, after)) = rest.split_first_chunk() {
        let (record, after) = after.split_at(usize::from(u16::from_le_bytes(*len)).min(after.len()));
        file.extend_from_slice(record);
        file.extend_from_slice(&checkpoints::checksum(&[&about().key.0, record]));
        rest = after;
    }
    for bytes in [&file[..], data] {
        if let Some((entries, end)) = journal::decode(bytes, &about()) {
            assert!(end <= bytes.len() && entries.len() <= bytes.len() / 36);
            let again = journal::encode_record(&about(), 0, &entries);
            let whole = [journal::encode_header(&about()), again].concat();
            assert_eq!(journal::decode(&whole, &about()), Some((entries, whole.len())));
        }
    }
    if let Some(record) = data.first_chunk() {
        // It has a checksum of its own.
        if let Some((_, outcome)) = outcomes::decode(record) {
            assert_eq!(outcome.acknowledgement().size, outcome.size);
        }
    }
}

/// Something of every kind, to begin with: the number of the function above, and its input.
pub fn seeds() -> Vec<(u8, Vec<u8>)> {
    let digest = Digest::of(b"seed");
    let offer = wire::OfferBody {
        id: TransferId(1),
        block_size: 4096,
        size: Some(5),
        purpose: "inbox".into(),
        name: Some("name".into()),
        meta: Bytes::from_static(b"meta"),
        relay: Some(relay::RelayKey(2)),
        resume: Some(ResumeKey([3; 16])),
        ack: Some(wire::AckLevel::Received),
        compressed: false,
        stored: Some(3),
    };
    let have = wire::Have { bytes: wire::CHECKPOINT, prefix: digest };
    let mut block = vec![0; 12_000];
    block[5000] = 1;
    let Some(pages) = Pages::of(&block) else { return Vec::new() };
    let messages = [
        wire::offer(&offer),
        wire::accept(&wire::Acceptance { shares: true, decompresses: true, have }),
        [wire::sparse_start(9, &pages), vec![1; pages.content_len()], digest.0.to_vec()].concat(),
        [wire::sparse_content_start(9, &pages), vec![1; pages.content_len()]].concat(),
        wire::done(5, digest),
        wire::progress(5),
        wire::again(wire::Span { offset: 4096, len: 4096 }),
        wire::query(TransferId(1)),
        wire::status(&wire::TransferStatus::Receiving { verified: 1 }),
        relay::fetch(relay::RelayKey(2), 4096),
    ];
    let entry = journal::Entry { chain: crate::digest::Chain([5; 32]), crc: 6 };
    let record = journal::encode_record(&about(), 0, &[entry; 3]);
    let record = &record[..record.len() - 8];
    let journal = [&(record.len() as u16).to_le_bytes()[..], record].concat();
    let mut seeds: Vec<_> = messages.into_iter().map(|message| (0, message)).collect();
    seeds.extend((0..11).map(|which| (1, vec![which; 64])));
    seeds.push((2, [&journal[..], &journal].concat()));
    let text: Vec<u8> = (0..500).flat_map(|n: u32| format!("line {}\n", n * n).into_bytes()).collect();
    for content in [&text[..], &text[..40], &[0; 3000]] {
        let frame = Compressor::new(1).and_then(|mut compressor| compressor.compress(content));
        let len = (content.len() as u16 - 1).to_le_bytes();
        seeds.push((3, [&len[..], &frame.unwrap_or_default()].concat()));
    }
    seeds
}
