//! The decoders of what comes from peers, for the fuzzer: none panics, and what decodes means the same when it is encoded
//! again.

use bytes::{Buf, BufMut, Bytes};

use crate::wire::{self, ForCaller, Head, OnLane, Request, Response};
use crate::{Bincode, Codec, Context, Json, Metadata, MethodInfo, Router, TraceContext};

/// Decodes `data` as whatever its first byte says.
pub fn decode(data: &[u8]) {
    let Some((what, data)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(data);
    match what % 8 {
        0 => request(bytes),
        1 => response(bytes),
        2 => match OnLane::decode(bytes) {
            Some(OnLane::Call(_, request)) => self::request(request),
            Some(OnLane::Cancel(_)) | None => {}
        },
        3 => match wire::decode_lane_response(bytes) {
            Some((_, ForCaller::Last(response))) => again(response),
            Some((_, ForCaller::Part(_))) | None => {}
        },
        4 => {
            if let Some(trace) = std::str::from_utf8(data).ok().and_then(|text| text.parse().ok()) {
                let again: TraceContext = trace;
                assert_eq!(again.to_string().parse(), Ok(again), "a trace changed");
            }
        }
        5 => extras(bytes),
        7 => methods(data),
        _ => {
            // A type with everything in it: lengths, options, strings, nesting.
            type Everything = Vec<(Option<String>, Vec<u64>, Result<i8, (bool, char)>)>;
            if let Ok(value) = Bincode::decode::<Everything>(data) {
                let encoded = Bincode::encode(&value).expect("what was decoded can be encoded");
                assert_eq!(Bincode::decode::<Everything>(&encoded), Ok(value), "a value changed");
            }
            // An error is as good as a value; a panic is not.
            let _ = Json::decode::<Everything>(data);
        }
    }
}

fn request(frame: Bytes) {
    let Ok(Request { head, body }) = Request::decode(frame) else { return };
    let same = Head {
        method: head.method.as_str(),
        shape: head.shape,
        encoding: head.encoding,
        deadline: head.deadline,
        trace: head.trace,
        metadata: &head.metadata,
    };
    let mut encoded = same.encode(body.len()).expect("what was decoded can be encoded");
    encoded.put_slice(&body);
    assert_eq!(encoded.get_u32_le() as usize, encoded.len());
    let again = Request::decode(encoded.freeze()).expect("what was encoded can be decoded");
    assert_eq!((again.head, again.body), (head, body), "a request changed");
}

/// What comes back beside a response: whatever is taken of it is within the bounds, and means the same when it is sent again.
fn extras(bytes: Bytes) {
    let mut metadata = Metadata::new();
    // Of what is malformed, the beginning.
    wire::read_response_extras(bytes, |name, value| metadata.insert(name, value));
    let mut encoded = bytes::BytesMut::new();
    for (name, value) in metadata.iter() {
        wire::put_entry(name, value, &mut encoded);
    }
    let mut again = Metadata::new();
    let read = wire::read_response_extras(encoded.freeze(), |name, value| again.insert(name, value));
    assert!(read && again == metadata, "metadata changed");
}

/// What a peer tells of its methods is shown in bounds, and drives no terminal.
fn methods(data: &[u8]) {
    let Ok(methods) = Bincode::decode::<Vec<MethodInfo>>(data) else { return };
    let encoded = Bincode::encode(&methods).expect("what was decoded can be encoded");
    assert_eq!(Bincode::decode(&encoded).as_ref(), Ok(&methods), "a description changed");
    for method in &methods {
        let lines = [vec![method.json_signature()], method.json_types()].concat();
        assert!(lines.iter().all(|line| !line.chars().any(char::is_control)), "{lines:?}");
        assert!(lines.iter().map(String::len).sum::<usize>() < 256 << 10, "{} lines", lines.len());
    }
}

fn response(frame: Bytes) {
    again(Response::decode(frame));
}

fn again(response: Response) {
    if let Response::Failed(status) = response {
        let encoded = wire::failure_frame(&status).slice(4..);
        let Response::Failed(again) = Response::decode(encoded) else {
            panic!("a failure became something else")
        };
        assert_eq!((again.code, again.advice), (status.code, status.advice), "a failure changed");
    }
}

/// Inputs to begin with: one of each.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut metadata = Metadata::new();
    metadata.insert("tenant", "acme").expect("a legal entry");
    let head = Head {
        method: "bank.balance",
        shape: crate::Shape::Bidirectional,
        encoding: crate::Encoding::Json,
        deadline: std::time::Duration::from_secs(1),
        trace: Some(TraceContext::begin(true)),
        metadata: &metadata,
    };
    let request = head.encode(0).expect("a legal head").split_off(4);
    let status = crate::Status::new(crate::Code::NotFound, "no")
        .with_advice(crate::Advice::After(std::time::Duration::from_secs(1)));
    let failure = wire::failure_frame(&status).slice(4..);
    let mut extras = bytes::BytesMut::new();
    wire::put_entry("served-by", b"node 7", &mut extras);
    let numbered = |tag: &[u8], rest: &[u8]| [tag, &7u32.to_le_bytes(), rest].concat();
    let trace = TraceContext::begin(true).to_string();
    let mut router = Router::new();
    router.register("x", |_: Context, all: (Option<String>, Result<u8, Vec<bool>>)| async move { Ok(all) });
    router.with_reflection();
    let methods = Bincode::encode(&router.infos()).expect("descriptions can be encoded");
    [
        [&[0][..], &request].concat(),
        [&[1][..], &failure].concat(),
        numbered(&[2, 0], &request),
        numbered(&[3], &failure),
        [&[4][..], trace.as_bytes()].concat(),
        [&[5][..], &extras].concat(),
        vec![6, 1, 1, 1, b'x', 2, 1, 2, 0, 3],
        [&[7][..], &methods].concat(),
        b"\x06[[\"x\",[1,2],{\"Ok\":3}]]".to_vec(),
    ]
    .into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_the_fuzzer_begins_with_decodes_and_so_does_each_beginning_of_it() {
        for seed in super::seeds() {
            (0..=seed.len()).for_each(|cut| super::decode(&seed[..cut]));
        }
    }
}
