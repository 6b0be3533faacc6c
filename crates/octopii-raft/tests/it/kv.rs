//! The key-value machine by itself.

use octopii_raft::{KvCommand, KvQuery, KvResponse, KvStore, StateMachine};

fn apply(store: &mut KvStore, command: KvCommand) -> KvResponse {
    KvResponse::decode(&store.apply(&command.encode()).unwrap()).unwrap()
}

fn put(store: &mut KvStore, key: &str, value: &str) -> KvResponse {
    apply(store, KvCommand::Put { key: key.into(), value: value.into() })
}

fn ask(store: &KvStore, query: KvQuery) -> KvResponse {
    KvResponse::decode(&store.query(&query.encode()).unwrap()).unwrap()
}

fn get(store: &KvStore, key: &str) -> Option<String> {
    match ask(store, KvQuery::Get { key: key.into() }) {
        KvResponse::Value(value) => value.map(|v| String::from_utf8(v).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn range(store: &KvStore, start: &str, end: Option<&str>, limit: u32) -> (Vec<String>, bool) {
    let query = KvQuery::Range { start: start.into(), end: end.map(Into::into), limit };
    match ask(store, query) {
        KvResponse::Entries { entries, more } => {
            (entries.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect(), more)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_are_put_replaced_and_deleted() {
    let mut store = KvStore::new();
    assert_eq!(put(&mut store, "a", "1"), KvResponse::Previous(None));
    assert_eq!(put(&mut store, "a", "2"), KvResponse::Previous(Some(b"1".to_vec())));
    assert_eq!(get(&store, "a").as_deref(), Some("2"));
    assert_eq!(
        apply(&mut store, KvCommand::Delete { key: b"a".to_vec() }),
        KvResponse::Previous(Some(b"2".to_vec()))
    );
    assert_eq!(apply(&mut store, KvCommand::Delete { key: b"a".to_vec() }), KvResponse::Previous(None));
    assert_eq!(get(&store, "a"), None);
}

#[test]
fn compare_and_set_changes_only_what_it_expects() {
    let mut store = KvStore::new();
    let mut cas = |expected: Option<&str>, value: Option<&str>| {
        let (expected, value) = (expected.map(Into::into), value.map(Into::into));
        match apply(&mut store, KvCommand::CompareAndSet { key: b"k".to_vec(), expected, value }) {
            KvResponse::Swapped { swapped, previous } => {
                (swapped, previous.map(|v| String::from_utf8(v).unwrap()))
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(cas(Some("x"), Some("y")), (false, None));
    assert_eq!(cas(None, Some("1")), (true, None));
    assert_eq!(cas(None, Some("2")), (false, Some("1".to_owned())));
    assert_eq!(cas(Some("1"), Some("2")), (true, Some("1".to_owned())));
    assert_eq!(cas(Some("2"), None), (true, Some("2".to_owned())));
    assert_eq!(cas(None, None), (true, None));
}

#[test]
fn ranges_are_sorted_and_limited() {
    let mut store = KvStore::new();
    for key in ["b", "a", "d", "c"] {
        put(&mut store, key, key);
    }
    let keys = |list: &[&str]| list.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>();
    assert_eq!(range(&store, "", None, 10), (keys(&["a", "b", "c", "d"]), false));
    assert_eq!(range(&store, "b", Some("d"), 10), (keys(&["b", "c"]), false));
    assert_eq!(range(&store, "", None, 3), (keys(&["a", "b", "c"]), true));
    assert_eq!(range(&store, "d", Some("a"), 3), (vec![], false), "an inverted range is empty");
    assert_eq!(range(&store, "", None, 0), (vec![], true));
    put(&mut store, "e", &"x".repeat(3 << 20));
    put(&mut store, "f", "after a large value");
    assert_eq!(range(&store, "e", None, 10), (keys(&["e"]), true), "an answer ends after about 1 MiB");
}

#[test]
fn what_cannot_be_a_command_is_refused_and_changes_nothing() {
    let mut store = KvStore::new();
    put(&mut store, "a", "1");
    let long = KvCommand::Put { key: vec![0; KvStore::KEY_LIMIT + 1], value: vec![] }.encode();
    for bad in [&b""[..], b"\xff", b"\x00\xff\xff\xff\xff", &long] {
        assert!(store.apply(bad).is_err());
        assert!(store.query(bad).is_err());
    }
    let mut trailing = KvCommand::Delete { key: b"a".to_vec() }.encode().to_vec();
    trailing.push(0);
    assert!(store.apply(&trailing).is_err());
    assert_eq!(get(&store, "a").as_deref(), Some("1"));
}

#[test]
fn a_capture_keeps_the_state_of_its_moment() {
    let mut store = KvStore::new();
    for i in 0..1000 {
        put(&mut store, &format!("{i:04}"), &format!("value {i}"));
    }
    let captured = store.capture();
    put(&mut store, "0000", "later");
    apply(&mut store, KvCommand::Delete { key: b"0999".to_vec() });
    let mut bytes = Vec::new();
    captured.write_to(&mut bytes).unwrap();
    let mut restored = KvStore::new();
    put(&mut restored, "gone", "x");
    restored.restore(&mut bytes.as_slice()).unwrap();
    assert_eq!(get(&restored, "0000").as_deref(), Some("value 0"));
    assert_eq!(get(&restored, "0999").as_deref(), Some("value 999"));
    assert_eq!(get(&restored, "gone"), None);
    assert!(KvStore::new().restore(&mut &bytes[..bytes.len() - 1]).is_err());
}
