//! Whether a request in JSON is what a method takes, as far as its peer tells; and what is wrong with it otherwise.
//!
//! Everything that a peer tells is taken with care: types may go round and round or not exist. What is not known is let through, and left to
//! the peer.

use octopii::{FieldInfo, MethodInfo, TypeInfo, VariantContent};
use serde_json::{Map, Value};

use crate::exit::Failure;

/// Longest description of what a method takes that stands in an error, in characters.
const MAX_TOLD: usize = 2000;
/// Longest name or value that stands in an error, in characters.
const MAX_SHOWN: usize = 60;
/// Fields or variants of one type; of more nothing is checked.
const MAX_PARTS: usize = 1024;
/// Types inside each other.
const MAX_DEPTH: usize = 256;

/// The request as it travels: arguments that were given by name are put in their places.
pub(super) fn request(method: &MethodInfo, typed: Value) -> Result<Value, Failure> {
    let request = arguments(method, typed).map_err(|problem| unfit(method, &problem))?;
    let fit = Fit { types: &method.types };
    match method.request.map(|number| fit.check(number, &request, &mut Vec::new(), 0)) {
        Some(Err(problem)) => Err(unfit(method, &problem)),
        Some(Ok(())) | None => Ok(request),
    }
}

fn unfit(method: &MethodInfo, problem: &str) -> Failure {
    Failure::failed(format!("the request does not fit: {problem}; {}", takes(method)))
}

/// What a method takes, in a line.
pub(super) fn takes(method: &MethodInfo) -> String {
    let mut told = format!("the method is {}", method.json_signature());
    for (at, line) in method.json_types().iter().enumerate() {
        told.push_str(if at == 0 { " where " } else { ", " });
        told.push_str(line);
    }
    short(&told, MAX_TOLD)
}

/// Puts arguments that were given by name in order. Only several are told apart by names.
fn arguments(method: &MethodInfo, typed: Value) -> Result<Value, String> {
    let names = &method.arguments;
    let count = match method.request.and_then(|number| method.types.get(number as usize)) {
        Some(TypeInfo::Tuple(elements)) if names.len() > 1 && elements.len() == names.len() => names.len(),
        _ => return Ok(typed),
    };
    match typed {
        Value::Object(mut given) => {
            let mut placed = Vec::with_capacity(count);
            for name in names {
                let value =
                    given.remove(name).ok_or_else(|| format!("the argument {} is missing", quoted(name)))?;
                placed.push(value);
            }
            match given.keys().next() {
                Some(other) => Err(format!("there is no argument {}", quoted(other))),
                None => Ok(Value::Array(placed)),
            }
        }
        Value::Array(given) if given.len() < count => {
            Err(format!("the argument {} is missing", quoted(&names[given.len()])))
        }
        Value::Array(given) if given.len() > count => {
            Err(format!("there are {} arguments instead of {count}", given.len()))
        }
        Value::Array(given) => Ok(Value::Array(given)),
        other => Err(format!("{} is not an array or object of {count} arguments", brief(&other))),
    }
}

struct Fit<'a> {
    types: &'a [TypeInfo],
}

/// From the request to a value inside it.
enum Part<'a> {
    Field(&'a str),
    Element(usize),
}

impl Fit<'_> {
    fn check<'v>(
        &self,
        number: u32,
        value: &'v Value,
        at: &mut Vec<Part<'v>>,
        depth: usize,
    ) -> Result<(), String> {
        let Some(info) = self.types.get(number as usize).filter(|_| depth < MAX_DEPTH) else { return Ok(()) };
        let depth = depth + 1;
        let wrong = |wanted: &str| Err(format!("{} is {} instead of {wanted}", place(at), brief(value)));
        let fits = |fits: bool, wanted: &str| if fits { Ok(()) } else { wrong(wanted) };
        let signed = |bits: u32| value.as_i64().is_some_and(|n| bits == 64 || n >> (bits - 1) == n >> 63);
        let unsigned = |bits: u32| value.as_u64().is_some_and(|n| bits == 64 || n >> bits == 0);
        match (info, value) {
            (TypeInfo::Unit, _) => fits(value.is_null(), "null"),
            (TypeInfo::Bool, _) => fits(value.is_boolean(), "true or false"),
            (TypeInfo::I8, _) => fits(signed(8), "an i8"),
            (TypeInfo::I16, _) => fits(signed(16), "an i16"),
            (TypeInfo::I32, _) => fits(signed(32), "an i32"),
            (TypeInfo::I64, _) => fits(signed(64), "an i64"),
            (TypeInfo::U8, _) => fits(unsigned(8), "a u8"),
            (TypeInfo::U16, _) => fits(unsigned(16), "a u16"),
            (TypeInfo::U32, _) => fits(unsigned(32), "a u32"),
            (TypeInfo::U64, _) => fits(unsigned(64), "a u64"),
            (TypeInfo::I128 | TypeInfo::U128 | TypeInfo::F32 | TypeInfo::F64, _) => {
                fits(value.is_number(), "a number")
            }
            (TypeInfo::Char, _) => {
                let one = value.as_str().is_some_and(|text| text.chars().count() == 1);
                fits(one, "a string of one character")
            }
            (TypeInfo::Text(_), _) => fits(value.is_string(), "a string"),
            (TypeInfo::Bytes, _) => fits(value.is_string() || value.is_array(), "an array of numbers"),
            (TypeInfo::Optional(_), Value::Null) => Ok(()),
            (TypeInfo::Optional(inner), _) | (TypeInfo::Newtype { inner, .. }, _) => {
                self.check(*inner, value, at, depth)
            }
            (TypeInfo::Sequence(inner), Value::Array(values)) => {
                self.elements(values.iter().map(|value| (*inner, value)), at, depth)
            }
            (TypeInfo::Sequence(_), _) => wrong("an array"),
            (TypeInfo::Tuple(elements), Value::Array(values)) => {
                if values.len() > elements.len() {
                    return wrong(&format!("an array of {} values", elements.len()));
                }
                self.elements(elements.iter().copied().zip(values), at, depth)
            }
            (TypeInfo::Tuple(elements), _) => wrong(&format!("an array of {} values", elements.len())),
            (TypeInfo::Map { value: inner, .. }, Value::Object(entries)) => {
                for (key, value) in entries {
                    at.push(Part::Field(key));
                    self.check(*inner, value, at, depth)?;
                    at.pop();
                }
                Ok(())
            }
            (TypeInfo::Map { .. }, _) => wrong("an object"),
            (TypeInfo::Struct { fields, .. }, Value::Object(given)) => self.fields(fields, given, at, depth),
            // Fields one after the other, without their names: they are taken so, too.
            (TypeInfo::Struct { .. }, Value::Array(_)) => Ok(()),
            (TypeInfo::Struct { .. }, _) => wrong("an object"),
            (TypeInfo::Enum { variants, open, .. }, _) => {
                let (name, content) = match value {
                    Value::String(name) => (name, &Value::Null),
                    Value::Object(given) if given.len() == 1 => match given.iter().next() {
                        Some(only) => only,
                        None => return Ok(()),
                    },
                    _ => return wrong("a variant's name, or an object with one as its key"),
                };
                if variants.len() > MAX_PARTS {
                    return Ok(());
                }
                let Some(variant) = variants.iter().find(|variant| variant.name == *name) else {
                    if *open {
                        return Ok(());
                    }
                    return Err(format!("{} has no variant {}", place(at), quoted(name)));
                };
                at.push(Part::Field(name));
                match (&variant.content, content) {
                    (VariantContent::Unit, Value::Null) | (VariantContent::Opaque, _) => {}
                    (VariantContent::Unit, other) => {
                        return Err(format!("{} holds nothing, and is {}", place(at), brief(other)));
                    }
                    (VariantContent::Newtype(inner), _) => self.check(*inner, content, at, depth)?,
                    (VariantContent::Tuple(elements), Value::Array(values)) => {
                        self.elements(elements.iter().copied().zip(values), at, depth)?;
                    }
                    (VariantContent::Struct(fields), Value::Object(given)) => {
                        self.fields(fields, given, at, depth)?;
                    }
                    (VariantContent::Struct(_), Value::Array(_)) => {}
                    (VariantContent::Tuple(_), other) => {
                        return Err(format!("{} is {} instead of an array", place(at), brief(other)));
                    }
                    (VariantContent::Struct(_), other) => {
                        return Err(format!("{} is {} instead of an object", place(at), brief(other)));
                    }
                    // What a later release's peer may tell.
                    _ => {}
                }
                at.pop();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn elements<'v>(
        &self,
        elements: impl Iterator<Item = (u32, &'v Value)>,
        at: &mut Vec<Part<'v>>,
        depth: usize,
    ) -> Result<(), String> {
        for (place, (number, value)) in elements.enumerate() {
            at.push(Part::Element(place));
            self.check(number, value, at, depth)?;
            at.pop();
        }
        Ok(())
    }

    fn fields<'v>(
        &self,
        fields: &[FieldInfo],
        given: &'v Map<String, Value>,
        at: &mut Vec<Part<'v>>,
        depth: usize,
    ) -> Result<(), String> {
        if fields.len() > MAX_PARTS {
            return Ok(());
        }
        let is = |field: &FieldInfo, name: &String| field.name == *name || field.aliases.contains(name);
        // A misspelt name is at once unknown and missing; that it is unknown tells more.
        for (name, value) in given {
            let Some(field) = fields.iter().find(|field| is(field, name)) else {
                return Err(format!("{} has no field {}", place(at), quoted(name)));
            };
            at.push(Part::Field(name));
            self.check(field.holds, value, at, depth)?;
            at.pop();
        }
        let missing =
            |field: &&FieldInfo| field.required == Some(true) && !given.keys().any(|name| is(field, name));
        match fields.iter().find(missing) {
            Some(field) => Err(format!("{} lacks the field {}", place(at), quoted(&field.name))),
            None => Ok(()),
        }
    }
}

/// Where a value is in the request.
fn place(at: &[Part<'_>]) -> String {
    let mut place = String::new();
    for part in at {
        match part {
            Part::Field(name) => {
                place.push_str(if place.is_empty() { "" } else { "." });
                place.push_str(&short(name, MAX_SHOWN));
            }
            Part::Element(number) => place.push_str(&format!("[{number}]")),
        }
    }
    if place.is_empty() { "the request".to_owned() } else { short(&place, 4 * MAX_SHOWN) }
}

fn brief(value: &Value) -> String {
    short(&value.to_string(), MAX_SHOWN)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", short(name, MAX_SHOWN))
}

fn short(text: &str, most: usize) -> String {
    let mut short: String = text.chars().take(most).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use octopii::VariantInfo;
    use serde_json::json;

    use super::*;

    fn field(name: &str, holds: u32, required: Option<bool>) -> FieldInfo {
        let aliases = vec![format!("{name}_too")];
        FieldInfo { name: name.to_owned(), aliases, holds, required }
    }

    fn variant(name: &str, content: VariantContent) -> VariantInfo {
        VariantInfo { name: name.to_owned(), content }
    }

    fn method(arguments: &[&str], types: Vec<TypeInfo>) -> MethodInfo {
        MethodInfo {
            name: "kv.put".to_owned(),
            streams_requests: false,
            streams_responses: false,
            signature: String::new(),
            doc: String::new(),
            idempotent: false,
            json: true,
            arguments: arguments.iter().map(|name| (*name).to_owned()).collect(),
            types,
            request: Some(0),
            response: None,
        }
    }

    fn put() -> MethodInfo {
        let fields = vec![
            field("key", 1, Some(true)),
            field("ttl", 2, Some(false)),
            field("tags", 3, Some(false)),
            field("mode", 4, None),
        ];
        let variants = vec![
            variant("Plain", VariantContent::Unit),
            variant("Deep", VariantContent::Newtype(0)),
            variant("Pair", VariantContent::Tuple(vec![5, 1])),
            variant("Parts", VariantContent::Struct(vec![field("n", 5, Some(true))])),
        ];
        method(
            &[],
            vec![
                TypeInfo::Struct { name: "Put".to_owned(), fields },
                TypeInfo::Text(String::new()),
                TypeInfo::Optional(5),
                TypeInfo::Sequence(6),
                TypeInfo::Enum { name: "Mode".to_owned(), variants, open: false },
                TypeInfo::U8,
                TypeInfo::I16,
            ],
        )
    }

    #[test]
    fn what_is_wrong_is_named() {
        let put = put();
        for (typed, problem) in [
            (json!({ "kye": "x" }), r#"the request has no field "kye""#),
            (json!({}), r#"the request lacks the field "key""#),
            (json!("x"), r#"the request is "x" instead of an object"#),
            (json!({ "key": 7 }), "key is 7 instead of a string"),
            (json!({ "key": "x", "ttl": 256 }), "ttl is 256 instead of a u8"),
            (json!({ "key": "x", "ttl": -1 }), "ttl is -1 instead of a u8"),
            (json!({ "key": "x", "tags": [1, -32769] }), "tags[1] is -32769 instead of an i16"),
            (json!({ "key": "x", "tags": [1.5] }), "tags[0] is 1.5 instead of an i16"),
            (json!({ "key": "x", "mode": "Plane" }), r#"mode has no variant "Plane""#),
            (json!({ "key": "x", "mode": { "Plain": 1 } }), "mode.Plain holds nothing, and is 1"),
            (json!({ "key": "x", "mode": { "Deep": {} } }), r#"mode.Deep lacks the field "key""#),
            (json!({ "key": "x", "mode": { "Pair": ["x", "x"] } }), r#"mode.Pair[0] is "x" instead of a u8"#),
            (json!({ "key": "x", "mode": { "Parts": {} } }), r#"mode.Parts lacks the field "n""#),
        ] {
            let failure = request(&put, typed.clone()).unwrap_err().to_string();
            assert!(failure.contains(problem), "{typed}: {failure}");
            assert!(failure.contains("kv.put(Put) -> "), "{failure}");
            assert!(failure.contains("Put = {key: string, ttl?: u8, tags?: i16[], mode: Mode}"), "{failure}");
        }
    }

    #[test]
    fn what_may_be_right_is_let_through() {
        let put = put();
        for typed in [
            json!({ "key": "x" }),
            json!({ "key_too": "x", "ttl": null, "tags": [-32768, 32767], "mode": "Plain" }),
            json!({ "key": "x", "ttl": 255, "mode": { "Plain": null } }),
            json!({ "key": "x", "mode": { "Deep": { "key": "y" } } }),
            json!(["x", 1, [], "Plain"]),
        ] {
            assert_eq!(request(&put, typed.clone()).unwrap(), typed);
        }
        let open = TypeInfo::Enum { name: "Open".to_owned(), variants: Vec::new(), open: true };
        assert_eq!(request(&method(&[], vec![open]), json!("Other")).unwrap(), json!("Other"));
        // Types that are not told, hold themselves without end, or do not exist.
        for types in [
            vec![],
            vec![TypeInfo::Opaque(String::new())],
            vec![TypeInfo::Optional(0)],
            vec![TypeInfo::Optional(9)],
            vec![TypeInfo::Newtype { name: String::new(), inner: 0 }],
        ] {
            assert_eq!(request(&method(&["a", "b"], types), json!(7)).unwrap(), json!(7));
        }
    }

    #[test]
    fn several_arguments_are_given_in_order_or_by_name() {
        let add = method(&["a", "b"], vec![TypeInfo::Tuple(vec![1, 2]), TypeInfo::U8, TypeInfo::Bool]);
        for typed in [json!([1, true]), json!({ "b": true, "a": 1 })] {
            assert_eq!(request(&add, typed).unwrap(), json!([1, true]));
        }
        for (typed, problem) in [
            (json!([1]), r#"the argument "b" is missing"#),
            (json!({ "b": true }), r#"the argument "a" is missing"#),
            (json!({ "b": true, "a": 1, "c": 1 }), r#"there is no argument "c""#),
            (json!([1, true, 3]), "3 arguments instead of 2"),
            (json!(null), "null is not an array or object of 2 arguments"),
            (json!([1, 2]), "[1] is 2 instead of true or false"),
        ] {
            let failure = request(&add, typed).unwrap_err().to_string();
            assert!(failure.contains(problem), "{failure}");
        }
    }
}
