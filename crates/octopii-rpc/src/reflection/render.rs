//! Methods and their types as people read them, who are to write JSON.

use std::collections::BTreeMap;

use super::explore::MAX_PARTS;
use super::{FieldInfo, MethodInfo, TypeInfo, VariantContent};

/// Longest text that is made of one method, in bytes: what a peer tells may go round and round.
const MAX_TEXT: usize = 64 << 10;
/// Longest name that is shown, in characters.
const MAX_NAME: usize = 80;
/// Longest signature in Rust's notation that is shown, in characters.
const MAX_SIGNATURE: usize = 1000;
/// Types without names inside each other.
const MAX_DEPTH: usize = 24;

impl MethodInfo {
    /// The method, with what it takes and gives in JSON: `kv.put(key: string, ttl_ms?: u64) -> Reply`. A question mark is behind what
    /// may be left out. [`json_types`](Self::json_types) says what the names stand for.
    ///
    /// One line without control characters and of bounded length, whatever a peer has put into it.
    pub fn json_signature(&self) -> String {
        Renderer::new(self).signature()
    }

    /// What the names in [`json_signature`](Self::json_signature) stand for, one line each: `Reply = {index: u64, node?: string}`.
    /// Lines and lengths are as there.
    pub fn json_types(&self) -> Vec<String> {
        let mut renderer = Renderer::new(self);
        renderer.signature();
        renderer.definitions()
    }
}

struct Renderer<'a> {
    method: &'a MethodInfo,
    out: String,
    /// All that was written, also what was taken out since.
    written: usize,
    /// Types with names that occur, in the order in which they do, and how each is called.
    named: Vec<u32>,
    labels: BTreeMap<u32, String>,
    /// How often each name was given.
    given: BTreeMap<String, usize>,
}

impl<'a> Renderer<'a> {
    fn new(method: &'a MethodInfo) -> Self {
        Self {
            method,
            out: String::new(),
            written: 0,
            named: Vec::new(),
            labels: BTreeMap::new(),
            given: BTreeMap::new(),
        }
    }

    fn signature(&mut self) -> String {
        let method = self.method;
        self.name(&method.name);
        let Some(request) = method.request else {
            self.put(&shown(&method.signature, MAX_SIGNATURE));
            return std::mem::take(&mut self.out);
        };
        self.put("(");
        match (method.arguments.as_slice(), self.get(request)) {
            ([], Some(TypeInfo::Unit)) => {}
            ([name], _) => self.argument(name, method.streams_requests, request),
            (names @ [_, _, ..], Some(TypeInfo::Tuple(elements))) if names.len() == elements.len() => {
                for (at, (name, element)) in names.iter().zip(elements).enumerate() {
                    self.put(if at == 0 { "" } else { ", " });
                    self.argument(name, false, *element);
                }
            }
            _ => self.streamed(method.streams_requests, request),
        }
        self.put(") -> ");
        match method.response {
            Some(response) => self.streamed(method.streams_responses, response),
            None => {
                let response = method.signature.rsplit_once("-> ").map_or("?", |(_, response)| response);
                self.put(&shown(response, MAX_SIGNATURE));
            }
        }
        std::mem::take(&mut self.out)
    }

    fn definitions(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        // More come to it while they are written.
        let mut at = 0;
        while let Some(&number) = self.named.get(at) {
            at += 1;
            self.put(&self.labels.get(&number).cloned().unwrap_or_default());
            self.put(" = ");
            match self.get(number) {
                Some(TypeInfo::Newtype { inner, .. }) => self.kind(*inner, 1),
                Some(TypeInfo::Struct { fields, .. }) => self.fields(fields, 1),
                Some(TypeInfo::Enum { variants, open, .. }) => {
                    for (at, variant) in variants.iter().take(MAX_PARTS).enumerate() {
                        self.put(if at == 0 { "" } else { " | " });
                        if variant.content == VariantContent::Unit {
                            self.quoted(&variant.name);
                            continue;
                        }
                        self.put("{");
                        self.quoted(&variant.name);
                        self.put(": ");
                        match &variant.content {
                            VariantContent::Unit => self.put("null"),
                            VariantContent::Newtype(inner) => self.kind(*inner, 1),
                            VariantContent::Tuple(elements) => self.tuple(elements, 1),
                            VariantContent::Struct(fields) => self.fields(fields, 1),
                            VariantContent::Opaque => self.put("<unknown>"),
                        }
                        self.put("}");
                    }
                    self.put(if *open { " | <any other name>" } else { "" });
                }
                _ => self.put("<unknown>"),
            }
            lines.push(std::mem::take(&mut self.out));
            if self.is_full() {
                lines.push("…".to_owned());
                break;
            }
        }
        lines
    }

    fn get(&self, number: u32) -> Option<&'a TypeInfo> {
        self.method.types.get(number as usize)
    }

    fn argument(&mut self, name: &str, stream: bool, number: u32) {
        self.name(name);
        // An argument has its place among the others: it cannot be left out, but it can be null.
        self.put(": ");
        self.streamed(stream, number);
    }

    fn streamed(&mut self, stream: bool, number: u32) {
        self.put(if stream { "stream " } else { "" });
        self.kind(number, 0);
    }

    /// A type, by its name if it has one.
    fn kind(&mut self, number: u32, depth: usize) {
        if self.is_full() || depth > MAX_DEPTH {
            return self.put("…");
        }
        let plain = match self.get(number) {
            None => "<unknown>",
            Some(TypeInfo::Unit) => "null",
            Some(TypeInfo::Bool) => "bool",
            Some(TypeInfo::I8) => "i8",
            Some(TypeInfo::I16) => "i16",
            Some(TypeInfo::I32) => "i32",
            Some(TypeInfo::I64) => "i64",
            Some(TypeInfo::I128) => "i128",
            Some(TypeInfo::U8) => "u8",
            Some(TypeInfo::U16) => "u16",
            Some(TypeInfo::U32) => "u32",
            Some(TypeInfo::U64) => "u64",
            Some(TypeInfo::U128) => "u128",
            Some(TypeInfo::F32) => "f32",
            Some(TypeInfo::F64) => "f64",
            Some(TypeInfo::Char) => "char",
            Some(TypeInfo::Bytes) => "bytes",
            Some(TypeInfo::Text(what)) if what.is_empty() => "string",
            Some(TypeInfo::Text(what)) => {
                self.put("string<");
                self.text(what);
                ">"
            }
            Some(TypeInfo::Opaque(what)) if what.is_empty() => "<unknown>",
            Some(TypeInfo::Opaque(what)) => {
                self.put("<");
                self.text(what);
                ">"
            }
            Some(TypeInfo::Optional(inner)) => {
                self.kind(*inner, depth + 1);
                " | null"
            }
            Some(TypeInfo::Sequence(inner)) => {
                let several = matches!(self.get(*inner), Some(TypeInfo::Optional(_)));
                self.put(if several { "(" } else { "" });
                self.kind(*inner, depth + 1);
                if several { ")[]" } else { "[]" }
            }
            Some(TypeInfo::Tuple(elements)) => return self.tuple(elements, depth + 1),
            Some(TypeInfo::Map { key, value }) => {
                self.put("{[");
                self.kind(*key, depth + 1);
                self.put("]: ");
                self.kind(*value, depth + 1);
                "}"
            }
            Some(
                TypeInfo::Newtype { name, .. } | TypeInfo::Struct { name, .. } | TypeInfo::Enum { name, .. },
            ) => {
                let label = self.label(number, name);
                return self.put(&label);
            }
        };
        self.put(plain);
    }

    fn tuple(&mut self, elements: &[u32], depth: usize) {
        self.put("[");
        match elements {
            [first, rest @ ..]
                if (3..MAX_PARTS).contains(&rest.len()) && rest.iter().all(|other| other == first) =>
            {
                self.kind(*first, depth);
                self.put(&format!("; {}", elements.len()));
            }
            _ => {
                for (at, element) in elements.iter().take(MAX_PARTS).enumerate() {
                    self.put(if at == 0 { "" } else { ", " });
                    self.kind(*element, depth);
                }
                self.put(if elements.len() > MAX_PARTS { ", …" } else { "" });
            }
        }
        self.put("]");
    }

    fn fields(&mut self, fields: &[FieldInfo], depth: usize) {
        self.put("{");
        for (at, field) in fields.iter().take(MAX_PARTS).enumerate() {
            self.put(if at == 0 { "" } else { ", " });
            self.name(&field.name);
            let left_out = field.required == Some(false);
            self.put(if left_out { "?: " } else { ": " });
            match self.get(field.holds) {
                // What may be left out may be null as well.
                Some(TypeInfo::Optional(inner)) if left_out => self.kind(*inner, depth),
                _ => self.kind(field.holds, depth),
            }
        }
        self.put(if fields.len() > MAX_PARTS { ", …" } else { "" });
        self.put("}");
    }

    /// What a type with a name is called. Several may have the same.
    fn label(&mut self, number: u32, name: &str) -> String {
        if let Some(label) = self.labels.get(&number) {
            return label.clone();
        }
        let mut label = shown(name, MAX_NAME);
        let given = self.given.entry(label.clone()).or_default();
        *given += 1;
        if *given > 1 {
            label = format!("{label}#{given}");
        }
        self.named.push(number);
        self.labels.insert(number, label.clone());
        label
    }

    fn is_full(&self) -> bool {
        self.written > MAX_TEXT
    }

    fn put(&mut self, text: &str) {
        self.written += text.len();
        self.out.push_str(text);
    }

    /// A name, in quotes where it would not be one word.
    fn name(&mut self, name: &str) {
        let word = |c: char| c.is_alphanumeric() || "_.-".contains(c);
        if !name.is_empty() && name.chars().all(word) { self.text(name) } else { self.quoted(name) }
    }

    fn quoted(&mut self, name: &str) {
        self.put("\"");
        self.text(name);
        self.put("\"");
    }

    fn text(&mut self, text: &str) {
        self.put(&shown(text, MAX_NAME));
    }
}

/// A text from elsewhere: not too much of it, and its control characters are shown, not obeyed.
fn shown(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for c in text.chars().take(most) {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}
