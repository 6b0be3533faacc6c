//! What a server offers, told to who asks.

mod explore;
mod fill;
mod probe;
mod render;
#[cfg(test)]
mod tests;
mod types;

use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::explore::Types;
use self::probe::{Explore, explore};
pub use self::types::{FieldInfo, TypeInfo, VariantContent, VariantInfo};
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
    /// The names of its arguments. Several travel as a tuple; none are told where there is no service's definition.
    pub arguments: Vec<String>,
    /// What `request` and `response` are made of, as JSON writes them.
    pub types: Vec<TypeInfo>,
    /// The number of the request's type in `types`; `None`: it is not told.
    pub request: Option<u32>,
    /// The number of the response's type in `types`; `None`: it is not told. It is told by how it is read.
    pub response: Option<u32>,
}

/// How the types of a method are found out, when somebody asks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Explored {
    request: Option<Explore>,
    response: Option<Explore>,
}

impl Explored {
    pub(crate) fn takes<Req: DeserializeOwned>(&mut self) {
        self.request = Some(explore::<Req>);
    }

    pub(crate) fn gives<Resp: DeserializeOwned>(&mut self) {
        self.response = Some(explore::<Resp>);
    }

    /// Adds to `info` what the types are made of, as far as `left` goes, of which it takes what that needs.
    fn tell(self, info: &mut MethodInfo, left: &mut Budget) {
        if left.entries == 0 || left.steps == 0 {
            return;
        }
        let mut types = Types::new(left.steps);
        info.request = self.request.map(|explore| types.explore(explore));
        info.response = self.response.map(|explore| types.explore(explore));
        left.entries = left.entries.saturating_sub(types.entries());
        left.steps = left.steps.saturating_sub(types.steps());
        info.types = types.into_vec();
    }
}

/// What is told of all methods together, and what finding it out may take: beyond, methods are told without their types.
struct Budget {
    /// Types, fields and variants.
    entries: usize,
    /// Questions of deserializers: tens of milliseconds at the worst, once.
    steps: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { entries: 1 << 16, steps: 1 << 20 }
    }
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

    /// Names the arguments of a registered method: one, or as many as the tuple has that it takes. Does nothing if there is no
    /// such method.
    pub fn describe_arguments(&mut self, method: &str, names: &[&str]) -> &mut Self {
        if let Some(info) = self.info_mut(method) {
            info.arguments = names.iter().map(|name| (*name).to_owned()).collect();
        }
        self
    }

    /// Says what a registered method answers with, so that its parts can be told as those of requests are. A response that is only
    /// written and never read here is told by its name without this. Does nothing if there is no such method.
    pub fn describe_response<Resp: DeserializeOwned>(&mut self, method: &str) -> &mut Self {
        if let Some(explored) = self.explored_mut(method) {
            explored.gives::<Resp>();
        }
        self
    }

    /// What is told of each method, by name. Finding out what types are made of takes some microseconds for each of their parts.
    pub fn infos(&self) -> Vec<MethodInfo> {
        told(self.described())
    }

    /// Registers [`METHODS`], which tells of every method registered so far, and of itself.
    pub fn with_reflection(&mut self) -> &mut Self {
        let listed: Arc<OnceLock<Listed>> = Arc::default();
        let methods = Arc::clone(&listed);
        self.register(METHODS, move |_: Context, (): ()| {
            let methods = Arc::clone(&methods);
            async move { Ok(methods.get().map(Listed::infos).unwrap_or_default()) }
        });
        self.describe(METHODS, "() -> Vec<MethodInfo>", "Lists the methods that can be called here.", true);
        self.describe_response::<Vec<MethodInfo>>(METHODS);
        listed.get_or_init(|| Listed { methods: self.described().collect(), infos: OnceLock::new() });
        self
    }
}

/// What is told. Types are looked into when somebody asks for the first time.
struct Listed {
    methods: Vec<(MethodInfo, Explored)>,
    infos: OnceLock<Vec<MethodInfo>>,
}

impl Listed {
    fn infos(&self) -> Vec<MethodInfo> {
        self.infos.get_or_init(|| told(self.methods.iter().cloned())).clone()
    }
}

/// Looks into the types of methods.
fn told(methods: impl Iterator<Item = (MethodInfo, Explored)>) -> Vec<MethodInfo> {
    let mut left = Budget::default();
    let told = |(mut info, explored): (MethodInfo, Explored)| {
        explored.tell(&mut info, &mut left);
        info
    };
    methods.map(told).collect()
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
