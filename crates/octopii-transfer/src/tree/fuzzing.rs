//! What the fuzz targets need of the decoders.

use bytes::Bytes;

use super::wire::{self, Entry, Header, Packed, Tag};
use crate::framing::HEADER_LEN;

/// Decodes one message, its header included, and checks what must hold for any bytes: a length within its tag's limit, and for
/// what decodes that encoding it again gives the same bytes. Panics if not.
pub fn decode_tree_message(bytes: &[u8], checksum: bool) {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_LEN>() else { return };
    let Ok(Header { tag, len }) = Header::decode(*header) else { return };
    let Some(body) = body.get(..len) else { return };
    let message = &bytes[..HEADER_LEN + len];
    match tag {
        Tag::Open => {
            if let Ok(open) = wire::decode_open(body) {
                assert_eq!(&wire::opening(&open)[1..], message);
            }
        }
        Tag::Ready => {
            if let Ok(ready) = wire::decode_ready(body) {
                assert_eq!(&wire::ready(&ready)[..], message);
            }
        }
        Tag::Page => {
            if let Ok(entries) = wire::decode_page(body, checksum) {
                let mut encoded = Vec::new();
                entries.iter().for_each(|entry| wire::put_entry(&mut encoded, entry));
                assert_eq!(&wire::page(entries.len(), &encoded)[..], message);
                entries.iter().for_each(check_names);
            }
        }
        Tag::Verdicts => {
            if let Ok((first, verdicts)) = wire::decode_verdicts(body) {
                let again = wire::verdicts(first, &verdicts);
                assert_eq!(wire::decode_verdicts(&again[HEADER_LEN..]).ok(), Some((first, verdicts)));
            }
        }
        Tag::Pack => {
            let body = Bytes::copy_from_slice(body);
            if let Ok(packed) = wire::decode_pack(&body) {
                let mut again = wire::begin_pack();
                for Packed { entry, content } in &packed {
                    let content = content.as_ref().map(|(digest, bytes)| (*digest, &bytes[..]));
                    wire::put_packed(&mut again, *entry, content);
                }
                let again = wire::finish_pack(again, packed.len());
                assert_eq!(wire::decode_pack(&again.slice(HEADER_LEN..)).ok(), Some(packed));
            }
        }
        Tag::Results => {
            if let Ok(outcomes) = wire::decode_results(body) {
                let again = wire::results(&outcomes);
                assert_eq!(wire::decode_results(&again[HEADER_LEN..]).ok(), Some(outcomes));
            }
        }
        Tag::End => {
            if let Ok((entries, manifest, all_told)) = wire::decode_end(body) {
                assert_eq!(&wire::end(entries, manifest, all_told)[..], message);
            }
        }
        Tag::Done => {
            if let Ok((tally, manifest)) = wire::decode_done(body) {
                assert_eq!(&wire::done(&tally, manifest)[..], message);
            }
        }
        Tag::Refuse | Tag::Fail => {
            if let Ok(refusal) = wire::decode_refusal(body) {
                assert!(!refusal.message.contains(char::is_control));
            }
        }
        Tag::Removed => {
            if let Ok(outcomes) = wire::decode_removed(body) {
                let again = wire::removed(&outcomes);
                let decoded = again.iter().map(|message| wire::decode_removed(&message[HEADER_LEN..]));
                let decoded = decoded.collect::<Result<Vec<_>, _>>().map(|parts| parts.concat());
                assert_eq!(decoded.ok(), Some(outcomes));
            }
        }
        Tag::Compressed => {
            if let Ok((len, frame)) = wire::decode_compressed(&Bytes::copy_from_slice(body)) {
                assert!(frame.len() < len && len <= wire::MAX_PACK);
                let whole = vec![0; HEADER_LEN + len];
                assert_eq!(&wire::compressed_pack(&whole, &frame)[..], message);
            }
        }
        Tag::Unpack => {
            if let Ok(unpack) = wire::decode_unpack(body) {
                assert_eq!(&wire::unpack(&unpack)[..], message);
            }
        }
        Tag::Alive => {
            if let Ok(works) = wire::decode_alive(body) {
                assert_eq!(&wire::alive(works)[..], message);
            }
        }
    }
}

/// Whatever passes as a name is one plain component, and shows without control characters.
fn check_names(entry: &Entry) {
    use std::os::unix::ffi::OsStrExt;
    let (Entry::File { name, .. }
    | Entry::Directory { name }
    | Entry::Link { name, .. }
    | Entry::LeftOut { name, .. }) = entry
    else {
        return;
    };
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(name));
    assert!(!super::shown_path(path).contains(char::is_control));
    if super::name::check_entry_name(name).is_ok() {
        let mut components = path.components();
        assert!(
            matches!(components.next(), Some(std::path::Component::Normal(own)) if own.as_bytes() == name)
        );
        assert!(components.next().is_none());
    }
    if let Entry::Link { target, .. } = entry
        && super::name::stays_inside(target, 3)
    {
        // Three directories below the root, no step of it leaves the root.
        let mut depth = 3i32;
        for part in target.split(|b| *b == b'/') {
            depth += match part {
                b".." => -1,
                b"." => 0,
                _ => 1,
            };
            assert!(depth >= 0);
        }
    }
}
