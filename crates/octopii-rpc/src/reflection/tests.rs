//! What is told of types, beside what their deserializers take.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserializer;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::*;
use crate::Encoding;

/// A method that takes a `Req` and gives a `Resp`, as it is told.
fn told<Req: DeserializeOwned, Resp: DeserializeOwned>() -> MethodInfo {
    let mut info = MethodInfo {
        name: "m".to_owned(),
        streams_requests: false,
        streams_responses: false,
        signature: String::new(),
        doc: String::new(),
        idempotent: false,
        json: true,
        arguments: Vec::new(),
        types: Vec::new(),
        request: None,
        response: None,
    };
    Explored { request: Some(explore::<Req>), response: Some(explore::<Resp>) }
        .tell(&mut info, &mut Budget::default());
    info
}

/// What a type is told to be: by itself, and the names in it.
fn shape<T: DeserializeOwned>() -> (String, Vec<String>) {
    let told = told::<(), T>();
    let signature = told.json_signature();
    (signature.strip_prefix("m() -> ").expect("no request").to_owned(), told.json_types())
}

fn is<T: DeserializeOwned>(expected: &str) {
    assert_eq!(shape::<T>(), (expected.to_owned(), Vec::new()));
}

fn is_named<T: DeserializeOwned>(expected: &str, types: &[&str]) {
    assert_eq!(shape::<T>(), (expected.to_owned(), types.iter().map(|t| (*t).to_owned()).collect()));
}

#[test]
fn names_of_types_lose_their_paths() {
    assert_eq!(brief_type_name::<u64>(), "u64");
    assert_eq!(brief_type_name::<()>(), "()");
    assert_eq!(brief_type_name::<(Option<String>, [u8; 4])>(), "(Option<String>, [u8; 4])");
    assert_eq!(brief_type_name::<BTreeMap<String, Vec<Shape>>>(), "BTreeMap<String, Vec<Shape>>");
}

#[test]
fn types_of_the_standard_library() {
    is::<u64>("u64");
    is::<i8>("i8");
    is::<f32>("f32");
    is::<u128>("u128");
    is::<bool>("bool");
    is::<char>("char");
    is::<String>("string");
    is::<()>("null");
    is::<Option<u8>>("u8 | null");
    is::<Vec<Option<u8>>>("(u8 | null)[]");
    is::<BTreeSet<String>>("string[]");
    is::<(u8, String, Vec<bool>)>("[u8, string, bool[]]");
    is::<[u8; 32]>("[u8; 32]");
    is::<BTreeMap<u64, Vec<String>>>("{[u64]: string[]}");
    is::<SocketAddr>("string<socket address>");
    // What comes after something that is not pleased by every text.
    is::<(SocketAddr, IpAddr, NonZeroU16, u8)>("[string<socket address>, string<IP address>, u16, u8]");
    is::<PathBuf>("string<path string>");
    is::<Box<u8>>("u8");
    is_named::<Duration>("Duration", &["Duration = {secs: u64, nanos: u32}"]);
    is_named::<Result<u8, String>>("Result", &[r#"Result = {"Ok": u8} | {"Err": string}"#]);
    is::<Value>("<any valid JSON value>");
    is::<IgnoredAny>("<anything at all>");
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only looked at")]
struct Entry {
    full_name: String,
    #[serde(alias = "alternative", alias = "zebra")]
    other: u8,
    maybe: Option<Vec<Entry>>,
    #[serde(default)]
    retries: u32,
    at: SocketAddr,
    #[serde(skip)]
    hidden: u8,
    kind: Kind,
    id: Id,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
enum Kind {
    Plain,
    Wrapped(Box<Entry>),
    Pair(u8, String),
    #[serde(rename = "with parts")]
    Parts {
        a: u8,
        b: Option<Kind2>,
    },
}

type Kind2 = Box<Kind>;

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Id(u64);

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Page<T> {
    items: Vec<T>,
    next: Option<u64>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Chain(Vec<Chain>);

#[test]
fn structs_and_enums_that_hold_themselves() {
    is_named::<Entry>(
        "Entry",
        &[
            "Entry = {fullName: string, other: u8, maybe?: Entry[], retries?: u32, at: string<socket address>, kind: Kind, id: Id}",
            r#"Kind = "Plain" | {"Wrapped": Entry} | {"Pair": [u8, string]} | {"with parts": {a: u8, b?: Kind}}"#,
            "Id = u64",
        ],
    );
    is_named::<Chain>("Chain", &["Chain = Chain[]"]);
    // The same name twice, for different types.
    is_named::<(Page<u8>, Page<String>, Page<u8>)>(
        "[Page, Page#2, Page]",
        &["Page = {items: u8[], next?: u64}", "Page#2 = {items: string[], next?: u64}"],
    );
    // As wide as it is deep.
    let (_, types) = shape::<Vec<TypeInfo>>();
    assert_eq!(types.len(), 4, "{types:?}");
}

/// What is said of a field is what the type does with JSON.
#[test]
fn what_may_be_left_out_may_be_left_out() {
    let whole = json!({
        "fullName": "x", "other": 1, "maybe": null, "retries": 1, "at": "1.2.3.4:5", "kind": "Plain", "id": 7
    });
    let info = told::<Entry, ()>();
    let Some(TypeInfo::Struct { fields, .. }) = info.types.get(info.request.unwrap() as usize) else {
        panic!("{info:?}")
    };
    let decodes = |value: &Value| Encoding::Json.decode::<Entry>(value.to_string().as_bytes()).is_ok();
    assert!(decodes(&whole));
    assert_eq!(fields.len(), whole.as_object().unwrap().len());
    assert_eq!(fields[1].aliases, ["alternative", "zebra"]);
    for field in fields {
        let mut less = whole.clone();
        less.as_object_mut().unwrap().remove(&field.name).expect("it is there");
        assert_eq!(field.required, Some(!decodes(&less)), "{}", field.name);
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only looked at")]
enum Untagged {
    Number(u8),
    Text(String),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
#[expect(dead_code, reason = "only looked at")]
enum Internal {
    A { x: u8 },
    B { y: String },
}

#[derive(Deserialize)]
#[serde(tag = "t", content = "c")]
#[expect(dead_code, reason = "only looked at")]
enum Adjacent {
    Nothing,
    Something(u8),
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Flat {
    a: u8,
    #[serde(flatten)]
    rest: BTreeMap<String, u64>,
}

/// Refuses everything.
struct Picky;

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Err(serde::de::Error::custom(text))
    }
}

struct Panicking;

impl<'de> Deserialize<'de> for Panicking {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<u8>::deserialize(deserializer);
        panic!("a type that panics, for a test: {:?}", text.is_ok());
    }
}

/// Takes some texts only, and not the first that comes to mind.
struct Host;

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Host;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a host and a port")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Host, E> {
                if text.contains(':') { Ok(Host) } else { Err(E::custom("no port")) }
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Listening {
    at: Host,
    name: Option<String>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Hard {
    picky: Picky,
    after: u8,
    maybe: Option<u8>,
}

#[test]
fn what_cannot_be_told_is_not_told() {
    is::<Untagged>("<any value>");
    is::<Internal>("<internally tagged enum Internal>");
    is::<Flat>("<struct Flat>");
    is::<Panicking>("<unknown>");
    is::<Option<Panicking>>("<unknown> | null");
    // The tag is there always, the content sometimes.
    is_named::<Adjacent>(
        "Adjacent",
        &["Adjacent = {t: Adjacent#2, c: <any value>}", r#"Adjacent#2 = "Nothing" | "Something""#],
    );
    is_named::<Listening>("Listening", &["Listening = {at: string<a host and a port>, name?: string}"]);
    // Nothing pleases the first field, so nobody knows which of the others must be there. What they hold is seen all the same.
    is_named::<Hard>("Hard", &["Hard = {picky: string, after: u8, maybe: u8 | null}"]);
    let info = told::<Hard, Adjacent>();
    let required: Vec<_> = info
        .types
        .iter()
        .filter_map(|t| match t {
            TypeInfo::Struct { fields, .. } => Some(fields.iter().map(|f| f.required)),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(required, [Some(true), None, None, Some(true), None]);
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Inner {
    id: u64,
    #[serde(flatten)]
    rest: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Outer {
    #[serde(default)]
    id: u64,
    inner: Inner,
}

#[derive(Deserialize)]
enum Level {
    Low,
    #[serde(other)]
    Else,
}

/// A field of the same name inside is another one; and a name that no variant has may be taken all the same.
#[test]
fn what_is_said_inside_is_not_said_outside() {
    let info = told::<Outer, Level>();
    let Some(TypeInfo::Struct { fields, .. }) = info.types.first() else { panic!("{info:?}") };
    assert_ne!(fields[0].required, Some(true), "{info:?}");
    assert_eq!(info.json_types()[1], r#"Level = "Low" | "Else" | <any other name>"#);
    let mut raw = told::<(), ()>();
    (raw.request, raw.signature) = (None, format!("({}) -> bytes", "bytes, ".repeat(100)));
    assert_eq!(raw.json_signature(), format!("m{}", raw.signature), "all of it");
}

/// However many methods there are, whoever asks first does not wait for long.
#[test]
fn what_is_told_of_all_methods_is_bounded() {
    type Deep = Wide<Wide<Wide<Wide<Wide<Wide<Wide<Wide<u8>>>>>>>>;
    let mut router = Router::new();
    for n in 0..200 {
        router.register(format!("m{n}"), |_: Context, _: Deep| async move { Ok(()) });
    }
    let infos = router.infos();
    assert!(infos.len() == 200 && infos.iter().filter(|info| info.request.is_some()).count() < 100);
    assert!(infos[199].json_signature().starts_with("m99(Wide<"), "{}", infos[199].json_signature());
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only looked at")]
struct Wide<T> {
    a: Box<T>,
    b: Box<T>,
    c: Box<T>,
    d: Box<T>,
}

#[test]
fn what_is_told_is_bounded() {
    let (told, types) = shape::<Wide<Wide<Wide<Wide<u8>>>>>();
    assert_eq!((told.as_str(), types.len()), ("Wide", 4), "{types:?}");
    assert_eq!(types[3], "Wide#4 = {a: u8, b: u8, c: u8, d: u8}");
    // A value of this has more than a million parts.
    let (told, types) = shape::<Wide<Wide<Wide<Wide<Wide<Wide<Wide<Wide<Wide<Wide<u8>>>>>>>>>>>();
    assert!(told == "Wide" && !types.is_empty(), "{types:?}");
    type Four<T> = (T, T, T, T);
    let info = told_of::<Four<Four<Four<Four<Four<Four<u8>>>>>>>();
    assert!(info.types.len() <= 1100, "{}", info.types.len());
    assert!(info.types.contains(&TypeInfo::Opaque("too large to be told".into())));
    type Five<T> = Vec<Vec<Vec<Vec<Vec<T>>>>>;
    let info = told_of::<Five<Five<Five<Five<Five<Five<u8>>>>>>>();
    assert!(info.types.contains(&TypeInfo::Opaque("nested too deep to be told".into())));
}

fn told_of<T: DeserializeOwned>() -> MethodInfo {
    told::<T, ()>()
}

/// A peer can say anything.
#[test]
fn what_a_peer_tells_is_shown_harmless_and_in_bounds() {
    let evil = "x\u{1b}[2J\u{9b}\n";
    let mut info = told::<(), ()>();
    info.name = evil.repeat(100);
    info.arguments = vec![evil.to_owned()];
    (info.request, info.response) = (Some(0), Some(u32::MAX));
    let field = |name: &str, holds| FieldInfo {
        name: name.to_owned(),
        aliases: Vec::new(),
        holds,
        required: Some(false),
    };
    let all = |number: u32| {
        vec![
            TypeInfo::Struct { name: evil.to_owned(), fields: vec![field(evil, 1), field("", 2)] },
            TypeInfo::Tuple(vec![2, 1, number]),
            TypeInfo::Map { key: 2, value: 1 },
            TypeInfo::Text(evil.repeat(1000)),
            TypeInfo::Opaque(evil.to_owned()),
            TypeInfo::Optional(number),
            TypeInfo::Sequence(number),
            TypeInfo::Newtype { name: String::new(), inner: number },
            TypeInfo::Enum {
                name: evil.to_owned(),
                open: true,
                variants: (0..9)
                    .map(|n| VariantInfo { name: evil.to_owned(), content: VariantContent::Newtype(n) })
                    .collect(),
            },
            TypeInfo::Tuple(vec![1; 100_000]),
        ]
    };
    // Each of them round and round, and beyond the end.
    for number in 0..12 {
        info.types = all(number);
        for request in 0..12 {
            info.request = Some(request);
            let lines = [vec![info.json_signature()], info.json_types()].concat();
            assert!(lines.iter().map(String::len).sum::<usize>() < 2 * (64 << 10), "{number} {request}");
            assert!(!lines.iter().any(|line| line.chars().any(char::is_control)), "{lines:?}");
        }
    }
}
