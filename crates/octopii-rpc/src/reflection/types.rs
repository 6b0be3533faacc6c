//! What types are made of, as JSON writes them.

use serde::{Deserialize, Serialize};

/// What a type is made of. Other types are named by their number in [`MethodInfo::types`](crate::MethodInfo::types), so that a type
/// can hold itself; who takes a list from a peer must expect numbers beyond its end and chains without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TypeInfo {
    /// Nothing: `null`.
    Unit,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    I8,
    /// A whole number.
    I16,
    /// A whole number.
    I32,
    /// A whole number.
    I64,
    /// A whole number.
    I128,
    /// A whole number that is not negative.
    U8,
    /// A whole number that is not negative.
    U16,
    /// A whole number that is not negative.
    U32,
    /// A whole number that is not negative.
    U64,
    /// A whole number that is not negative.
    U128,
    /// A number.
    F32,
    /// A number.
    F64,
    /// A string of one character.
    Char,
    /// A string; what it must hold, such as `socket address`, or nothing if that is anything.
    Text(String),
    /// An array of numbers up to 255, or a string.
    Bytes,
    /// The type, or `null`.
    Optional(u32),
    /// An array of any length.
    Sequence(u32),
    /// An array of exactly these.
    Tuple(Vec<u32>),
    /// An object with any keys.
    Map {
        /// What the keys hold; in JSON they are strings.
        key: u32,
        /// What belongs to them.
        value: u32,
    },
    /// A type written as the one that it wraps.
    Newtype {
        /// Its name.
        name: String,
        /// What it wraps.
        inner: u32,
    },
    /// An object.
    Struct {
        /// Its name.
        name: String,
        /// What it holds.
        fields: Vec<FieldInfo>,
    },
    /// One of several: `"Name"`, or `{"Name": content}`.
    Enum {
        /// Its name.
        name: String,
        /// What it may be.
        variants: Vec<VariantInfo>,
        /// Whether it takes names of others, too, and makes one of these of them.
        open: bool,
    },
    /// Something that does not tell what it is made of; what it says that it expects, or nothing.
    Opaque(String),
}

/// A field of a struct.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldInfo {
    /// Its name.
    pub name: String,
    /// Other names under which it is taken as well.
    pub aliases: Vec<String>,
    /// What it holds.
    pub holds: u32,
    /// Whether it must be there. `None`: not known.
    pub required: Option<bool>,
}

/// One of the things that an enum may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantInfo {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub content: VariantContent,
}

/// What a variant of an enum holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VariantContent {
    /// Nothing: it is written as its name alone.
    Unit,
    /// One value.
    Newtype(u32),
    /// An array of exactly these.
    Tuple(Vec<u32>),
    /// An object.
    Struct(Vec<FieldInfo>),
    /// Something that does not tell what it is made of.
    Opaque,
}
