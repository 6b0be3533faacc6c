//! Every message survives its own encoding, its bytes are fixed, and no bytes make a decoder panic.

use bytes::Bytes;

use super::relay::RelayKey;
use super::*;
use crate::{Digest, FailureCode, Refusal, TransferId};

fn sample_offer() -> OfferBody {
    OfferBody {
        id: TransferId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        block_size: MAX_BLOCK,
        size: Some(5),
        purpose: "p".into(),
        name: Some("nm".into()),
        meta: Bytes::from_static(b"xyz"),
        relay: None,
        resume: Some(ResumeKey([0xab; 16])),
        ack: None,
        compressed: false,
        stored: None,
    }
}

fn split(message: &[u8]) -> (Header, &[u8]) {
    let header = Header::decode(message[..HEADER_LEN].try_into().unwrap()).unwrap();
    assert_eq!(header.len, message.len() - HEADER_LEN);
    (header, &message[HEADER_LEN..])
}

#[test]
fn offer_has_the_documented_bytes() {
    let bytes = offer(&sample_offer());
    let expected = [
        &[1, 58, 0, 0, 0][..],
        &[11],
        &[0x10, 0x0f, 0x0e, 0x0d, 0x0c, 0x0b, 0x0a, 0x09, 0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01],
        &[0, 0, 0x10, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0],
        &[1],
        &[2, 0],
        &[3, 0, 0, 0],
        b"pnmxyz",
        &[0xab; 16],
    ]
    .concat();
    assert_eq!(bytes, expected);
}

#[test]
fn messages_survive_their_encoding() {
    let bytes = offer(&sample_offer());
    assert_eq!(decode_offer(split(&bytes).1), Ok(sample_offer()));
    let bare = OfferBody { resume: None, size: None, name: None, meta: Bytes::new(), ..sample_offer() };
    let bytes = offer(&bare);
    assert_eq!(decode_offer(split(&bytes).1), Ok(bare));

    let relayed = OfferBody { relay: Some(RelayKey(3)), resume: None, ..sample_offer() };
    let bytes = offer(&relayed);
    assert_eq!(bytes[5], 7, "bit 2: a key follows");
    assert_eq!(bytes[bytes.len() - 16..], 3u128.to_le_bytes());
    assert_eq!(decode_offer(split(&bytes).1), Ok(relayed));
    assert!(decode_offer(&bytes[5..bytes.len() - 1]).is_err());

    for (level, bits) in [(AckLevel::Received, 1), (AckLevel::Verified, 2), (AckLevel::Durable, 3)] {
        let asking = OfferBody { ack: Some(level), ..sample_offer() };
        let bytes = offer(&asking);
        assert_eq!(bytes[5], 11 | bits << 5);
        assert_eq!(decode_offer(split(&bytes).1), Ok(asking));
        let body = Acknowledgement { level, size: 3, digest: Digest::of(b"a") };
        let bytes = ack(&body);
        assert_eq!((bytes[5], decode_ack(split(&bytes).1)), (bits, Ok(body)));
    }

    let compressed = OfferBody { compressed: true, ..sample_offer() };
    let bytes = offer(&compressed);
    assert_eq!(bytes[5], 11 | 16);
    assert_eq!(decode_offer(split(&bytes).1), Ok(compressed.clone()));
    let handed_on = OfferBody { relay: Some(RelayKey(3)), ..compressed };
    assert!(decode_offer(split(&offer(&handed_on)).1).is_err());
    let start = compressed_start(3, 9, 5);
    let expected = [&[18, 49, 0, 0, 0][..], &3u64.to_le_bytes(), &9u32.to_le_bytes()].concat();
    assert_eq!(start[..], expected);

    let both = OfferBody { relay: Some(RelayKey(3)), ..sample_offer() };
    assert_eq!(decode_offer(split(&offer(&both)).1), Ok(both));

    let have = Have { bytes: 3 * CHECKPOINT, prefix: Digest::of(b"x") };
    for shares in [false, true] {
        for have in [have, Have::nothing()] {
            let acceptance = Acceptance { shares, decompresses: !shares, have };
            assert_eq!(decode_accept(split(&accept(&acceptance)).1), Ok(acceptance));
        }
    }
    let between = Have { bytes: 3 * CHECKPOINT + 1, ..have };
    assert!(
        decode_accept(split(&accept(&Acceptance { shares: false, decompresses: false, have: between })).1)
            .is_err()
    );
    let span = Span { offset: 9, len: MAX_BLOCK };
    assert_eq!(decode_again(split(&again(span)).1), Ok(span));
    for bad in
        [Span { len: 0, ..span }, Span { len: MAX_BLOCK + 1, ..span }, Span { offset: u64::MAX, ..span }]
    {
        assert!(decode_again(split(&again(bad)).1).is_err());
    }
    assert_eq!(decode_progress(split(&progress(9)).1), Ok(9));
    let digest = Digest::of(b"a");
    assert_eq!(decode_done(split(&done(3, digest)).1), Ok((3, digest)));
    let body = Acknowledgement { level: AckLevel::Durable, size: 3, digest };
    assert_eq!(decode_ack(split(&ack(&body)).1), Ok(body));
    assert_eq!(decode_query(split(&query(TransferId(8))).1), Ok(TransferId(8)));
    let refusal = Refusal::new(FailureCode::Busy, "later");
    assert_eq!(decode_refusal(split(&refuse(&refusal)).1), Ok(refusal.clone()));
    assert_eq!(decode_refusal(split(&fail(&refusal)).1), Ok(refusal.clone()));
    for s in [
        TransferStatus::Unknown,
        TransferStatus::Receiving { verified: 4 },
        TransferStatus::Finished(body),
        TransferStatus::Failed(refusal),
    ] {
        assert_eq!(decode_status(split(&status(&s)).1), Ok(s));
    }
}

#[test]
fn lengths_are_checked_before_anything_is_read() {
    for tag in 0..=255u8 {
        let [a, b, c, d] = u32::MAX.to_le_bytes();
        assert!(Header::decode([tag, a, b, c, d]).is_err(), "tag {tag}");
    }
    let too_much = (DATA_PREFIX + MAX_BLOCK as usize + DATA_SUFFIX + 1) as u32;
    let [a, b, c, d] = too_much.to_le_bytes();
    assert!(Header::decode([Tag::Data as u8, a, b, c, d]).is_err());
}

#[test]
fn long_messages_are_cut_at_a_character() {
    let refusal = Refusal::rejected("é".repeat(2000));
    let decoded = decode_refusal(split(&refuse(&refusal)).1).unwrap();
    assert_eq!(decoded.message, "é".repeat(512));
}

#[test]
fn messages_from_a_peer_cannot_drive_a_terminal() {
    let refusal = Refusal::rejected("a\x1b[2Jb\n");
    assert_eq!(decode_refusal(split(&refuse(&refusal)).1).unwrap().message, "a [2Jb ");
}

#[test]
fn cut_and_changed_offers_are_errors_or_other_offers_never_panics() {
    let body = offer(&sample_offer())[HEADER_LEN..].to_vec();
    for cut in 0..body.len() {
        assert!(decode_offer(&body[..cut]).is_err());
    }
    let mut longer = body.clone();
    longer.push(0);
    assert!(decode_offer(&longer).is_err());
    for at in 0..body.len() {
        for value in [0, 1, 4, 0x7f, 0x80, 0xff] {
            let mut changed = body.clone();
            changed[at] = value;
            // Any outcome but a panic.
            let _ = decode_offer(&changed);
            let _ = decode_status(&changed);
            let _ = decode_refusal(&changed);
        }
    }
}
