//! What a server offers, told to who asks.

use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::{Context, Router, Shape};

/// The method that lists all methods, itself included: no request, a `Vec<MethodInfo>`.
pub const METHODS: &str = "octopii.methods";

/// What is told of a method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodInfo {
    /// Its name, with the service's in front.
    pub name: String,
    /// Whether requests are a stream.
    pub streams_requests: bool,
    /// Whether responses are a stream.
    pub streams_responses: bool,
    /// What it takes and gives, as Rust writes it: `(account: String) -> u64`.
    pub signature: String,
    /// What it is for.
    pub doc: String,
    /// Whether carrying it out twice does no harm.
    pub idempotent: bool,
    /// Whether it takes JSON, so that `octopii call` can call it.
    pub json: bool,
}

impl MethodInfo {
    /// Which sides are streams.
    pub fn shape(&self) -> Shape {
        match (self.streams_requests, self.streams_responses) {
            (false, false) => Shape::Unary,
            (false, true) => Shape::ServerStream,
            (true, false) => Shape::ClientStream,
            (true, true) => Shape::Bidirectional,
        }
    }
}

impl Router {
    /// Describes a registered method better than its types' names do: what it takes and gives, what it is for, and
    /// whether it is idempotent. Does nothing if there is no such method.
    pub fn describe(&mut self, method: &str, signature: &str, doc: &str, idempotent: bool) -> &mut Self {
        if let Some(info) = self.info_mut(method) {
            // As `stringify!` and doc comments leave them.
            info.signature = signature.split_whitespace().collect::<Vec<_>>().join(" ").replace(" : ", ": ");
            info.doc = doc.lines().map(str::trim).collect::<Vec<_>>().join("\n").trim().to_owned();
            info.idempotent = idempotent;
        }
        self
    }

    /// Registers [`METHODS`], which tells of every method registered so far, and of itself.
    pub fn with_reflection(&mut self) -> &mut Self {
        let listed: Arc<OnceLock<Vec<MethodInfo>>> = Arc::default();
        let methods = Arc::clone(&listed);
        self.register(METHODS, move |_: Context, (): ()| {
            let methods = Arc::clone(&methods);
            async move { Ok(methods.get().cloned().unwrap_or_default()) }
        });
        self.describe(METHODS, "() -> Vec<MethodInfo>", "Lists the methods that can be called here.", true);
        listed.get_or_init(|| self.infos().cloned().collect());
        self
    }
}

/// A type's name without the paths.
pub(crate) fn brief_type_name<T>() -> String {
    let full = std::any::type_name::<T>();
    let mut brief = String::with_capacity(full.len());
    let mut word = String::new();
    let mut chars = full.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ':' if chars.peek() == Some(&':') => {
                chars.next();
                word.clear();
            }
            c if c.is_alphanumeric() || c == '_' => word.push(c),
            c => {
                brief.push_str(&word);
                word.clear();
                brief.push(c);
            }
        }
    }
    brief + &word
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn names_of_types_lose_their_paths() {
        assert_eq!(brief_type_name::<u64>(), "u64");
        assert_eq!(brief_type_name::<()>(), "()");
        assert_eq!(brief_type_name::<(Option<String>, [u8; 4])>(), "(Option<String>, [u8; 4])");
        assert_eq!(brief_type_name::<BTreeMap<String, Vec<Shape>>>(), "BTreeMap<String, Vec<Shape>>");
    }
}
