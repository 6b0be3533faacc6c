//! A deserializer that has nothing to give, and learns from what it is asked for.
//!
//! A type says what it is made of only by asking for its parts, one after the other, and whatever it is given must please it before it asks for
//! the next. So each [`Run`] goes one way, from a type to one place inside it, gives what lies before that place some
//! value, notes what is asked for at the place, and breaks off.

use std::any::type_name;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use super::TypeInfo;
use super::fill::Fill;

/// A step from a type to one inside it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// Into an option, a sequence, a newtype, or a variant that holds one value.
    Inside,
    /// To a map's key.
    Key,
    /// To a map's value.
    Value,
    /// To a part of a tuple.
    Element(usize),
    /// To a struct's field.
    Field(&'static str),
    /// To what an enum is when it is this.
    Variant(&'static str),
}

/// What is done at the end of the way.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal<'a> {
    /// Noting what is asked for.
    Look,
    /// Giving a struct fields of these names, and seeing what it says to that.
    Give(&'a [&'static str]),
}

/// What was seen at the end of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Plain(TypeInfo),
    Optional,
    Sequence,
    Tuple(usize),
    /// With what it says that it expects.
    Map(String),
    Newtype {
        name: &'static str,
        key: &'static str,
    },
    /// `key` tells types of the same name apart.
    Struct {
        name: &'static str,
        key: &'static str,
        fields: &'static [&'static str],
    },
    Enum {
        name: &'static str,
        key: &'static str,
        variants: &'static [&'static str],
    },
    /// The name of a field, where a value was looked for.
    Identifier,
    UnitVariant,
    NewtypeVariant,
    TupleVariant(usize),
    StructVariant(&'static [&'static str]),
    /// What a struct said to the fields that it was given.
    Given(Result<(), Refused>),
}

/// Why a value did not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the end of the way")]
    Done,
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is there twice")]
    Duplicate(&'static str),
    #[error("not what it wants")]
    Other,
}

impl de::Error for Refused {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self::Other
    }

    fn missing_field(field: &'static str) -> Self {
        Self::Missing(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::Duplicate(field)
    }
}

/// What one run may ask for: a struct of structs of structs is given up, not filled.
const MAX_STEPS: u32 = 4096;
/// Longest text that is kept of what a type says that it expects, in bytes.
const MAX_EXPECTED: usize = 80;

/// One run to one place.
#[derive(Debug)]
pub(super) struct Run<'a> {
    path: &'a [Step],
    goal: Goal<'a>,
    /// What is given on the way differs with each attempt: not everything pleases every type.
    attempt: usize,
    varies: Cell<bool>,
    steps: Cell<u32>,
    seen: RefCell<Option<Seen>>,
}

/// What came of a run.
pub(super) struct Outcome {
    /// `None`: the place was not reached.
    pub(super) seen: Option<Seen>,
    /// What was asked for on the way.
    pub(super) steps: u32,
    /// Whether another attempt may see something else.
    pub(super) varies: bool,
}

/// Carries out a run through the type that it was made for.
pub(super) type Explore = fn(&Run<'_>);

/// Carries out a run through `T`.
pub(super) fn explore<T: DeserializeOwned>(run: &Run<'_>) {
    // Whatever was seen counts, not how it ends: most runs break off.
    let ended = catch_unwind(AssertUnwindSafe(|| T::deserialize(Probe { run, at: 0 }).is_ok()));
    if ended.is_err() {
        // A type that panics where it should refuse tells nothing.
        run.seen.replace(None);
    }
}

impl<'a> Run<'a> {
    /// Goes along `path`.
    pub(super) fn carry_out(explore: Explore, path: &'a [Step], goal: Goal<'a>, attempt: usize) -> Outcome {
        let run = Self {
            path,
            goal,
            attempt,
            steps: Cell::new(path.len() as u32 + 1),
            varies: Cell::new(false),
            seen: RefCell::default(),
        };
        explore(&run);
        Outcome { seen: run.seen.into_inner(), steps: run.steps.get(), varies: run.varies.get() }
    }

    /// The attempt that this is: another one would be given something else.
    pub(super) fn attempt(&self) -> usize {
        self.varies.set(true);
        self.attempt
    }

    /// Counts a step; fails when there were too many.
    pub(super) fn step(&self) -> Result<(), Refused> {
        self.steps.set(self.steps.get() + 1);
        if self.steps.get() > MAX_STEPS { Err(Refused::Other) } else { Ok(()) }
    }
}

/// What a type says that it expects, shortened.
pub(super) fn expected<'de, V: Visitor<'de>>(visitor: &V) -> String {
    let mut text = (visitor as &dyn Expected).to_string();
    text.truncate(text.floor_char_boundary(MAX_EXPECTED));
    text
}

#[derive(Clone, Copy)]
struct Probe<'a> {
    run: &'a Run<'a>,
    at: usize,
}

impl<'a> Probe<'a> {
    /// The step to be made from here; `None`: the place is reached.
    fn step(self) -> Option<Step> {
        self.run.path.get(self.at).copied()
    }

    fn next(self) -> Self {
        Self { at: self.at + 1, ..self }
    }

    /// Notes what was asked for, if this is the place. If it is not, the type is another one than it was, and nothing is known.
    fn end<T>(self, seen: impl FnOnce() -> Seen) -> Result<T, Refused> {
        if self.step().is_none() && matches!(self.run.goal, Goal::Look) {
            self.run.seen.replace(Some(seen()));
        }
        Err(Refused::Done)
    }

    fn plain<T>(self, info: TypeInfo) -> Result<T, Refused> {
        self.end(|| Seen::Plain(info))
    }

    /// Gives a struct its fields: those of the goal, or the one on the way.
    fn fields<'de, V: Visitor<'de>>(
        self,
        seen: Seen,
        give: impl FnOnce(Fields<'a>) -> Result<V::Value, Refused>,
    ) -> Result<V::Value, Refused> {
        match (self.step(), self.run.goal) {
            (None, Goal::Look) => self.end(|| seen),
            (None, Goal::Give(names)) => {
                let any = Given::Any(Fill::new(self.run));
                let outcome = give(Fields::new(names.to_vec(), any));
                self.run.seen.replace(Some(Seen::Given(outcome.map(drop))));
                Err(Refused::Done)
            }
            (Some(Step::Field(name)), _) => give(Fields::new(vec![name], Given::Probe(self.next()))),
            _ => Err(Refused::Other),
        }
    }

    fn elements<'de, V: Visitor<'de>>(self, visitor: V, len: usize) -> Result<V::Value, Refused> {
        match self.step() {
            None => self.end(|| Seen::Tuple(len)),
            Some(Step::Element(before)) => visitor.visit_seq(Elements { before, probe: Some(self.next()) }),
            _ => Err(Refused::Other),
        }
    }
}

macro_rules! plain {
    ($($method:ident => $info:ident),*) => {
        $(fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
            self.plain(TypeInfo::$info)
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Refused;

    plain! {
        deserialize_bool => Bool,
        deserialize_i8 => I8, deserialize_i16 => I16, deserialize_i32 => I32, deserialize_i64 => I64, deserialize_i128 => I128,
        deserialize_u8 => U8, deserialize_u16 => U16, deserialize_u32 => U32, deserialize_u64 => U64, deserialize_u128 => U128,
        deserialize_f32 => F32, deserialize_f64 => F64, deserialize_char => Char,
        deserialize_bytes => Bytes, deserialize_byte_buf => Bytes, deserialize_unit => Unit
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.plain(TypeInfo::Opaque(expected(&visitor)))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.plain(TypeInfo::Opaque(expected(&visitor)))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        let mut expected = expected(&visitor);
        if expected == "a string" || expected == "a borrowed string" {
            expected.clear();
        }
        self.plain(TypeInfo::Text(expected))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, _: V) -> Result<V::Value, Refused> {
        self.plain(TypeInfo::Unit)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        self.end(|| Seen::Identifier)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.step() {
            None => self.end(|| Seen::Optional),
            Some(Step::Inside) => visitor.visit_some(self.next()),
            Some(_) => Err(Refused::Other),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        match self.step() {
            None => self.end(|| Seen::Newtype { name, key: type_name::<V>() }),
            Some(Step::Inside) => visitor.visit_newtype_struct(self.next()),
            Some(_) => Err(Refused::Other),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.step() {
            None => self.end(|| Seen::Sequence),
            Some(Step::Inside) => visitor.visit_seq(Elements { before: 0, probe: Some(self.next()) }),
            Some(_) => Err(Refused::Other),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        self.elements(visitor, len)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.elements(visitor, len)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.step() {
            None => self.end(|| Seen::Map(expected(&visitor))),
            Some(Step::Key) => visitor.visit_map(Entry { probe: self.next(), key: true }),
            Some(Step::Value) => visitor.visit_map(Entry { probe: self.next(), key: false }),
            Some(_) => Err(Refused::Other),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let seen = Seen::Struct { name, key: type_name::<V>(), fields };
        self.fields::<V>(seen, |fields| visitor.visit_map(fields))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        match self.step() {
            None => self.end(|| Seen::Enum { name, key: type_name::<V>(), variants }),
            Some(Step::Variant(variant)) => visitor.visit_enum(Chosen { variant, probe: self.next() }),
            Some(_) => Err(Refused::Other),
        }
    }
}

/// Fields of a struct.
struct Fields<'a> {
    names: std::vec::IntoIter<&'static str>,
    given: Given<'a>,
}

/// What each field is given.
enum Given<'a> {
    Any(Fill<'a>),
    Probe(Probe<'a>),
}

impl<'a> Fields<'a> {
    fn new(names: Vec<&'static str>, given: Given<'a>) -> Self {
        Self { names: names.into_iter(), given }
    }
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refused> {
        let Some(name) = self.names.next() else { return Ok(None) };
        seed.deserialize(IntoDeserializer::<Refused>::into_deserializer(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        match &self.given {
            // What a value inside misses is not what this struct misses.
            Given::Any(fill) => seed.deserialize(*fill).map_err(|_| Refused::Other),
            Given::Probe(probe) => seed.deserialize(*probe),
        }
    }
}

/// Anything so often, and then the one on the way.
struct Elements<'a> {
    before: usize,
    probe: Option<Probe<'a>>,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        let Some(probe) = self.probe else { return Ok(None) };
        if self.before > 0 {
            self.before -= 1;
            return seed.deserialize(Fill::new(probe.run)).map(Some);
        }
        self.probe = None;
        seed.deserialize(probe).map(Some)
    }
}

/// One entry of a map, whose key or value is on the way.
struct Entry<'a> {
    probe: Probe<'a>,
    key: bool,
}

impl<'de> MapAccess<'de> for Entry<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refused> {
        self.probe.run.step()?;
        if self.key { seed.deserialize(self.probe) } else { seed.deserialize(Fill::new(self.probe.run)) }
            .map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        seed.deserialize(self.probe)
    }
}

/// An enum that is one of its variants.
struct Chosen<'a> {
    variant: &'static str,
    probe: Probe<'a>,
}

impl<'de, 'a> EnumAccess<'de> for Chosen<'a> {
    type Error = Refused;
    type Variant = Probe<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Probe<'a>), Refused> {
        let variant = seed.deserialize(IntoDeserializer::<Refused>::into_deserializer(self.variant))?;
        Ok((variant, self.probe))
    }
}

impl<'de> VariantAccess<'de> for Probe<'_> {
    type Error = Refused;

    fn unit_variant(self) -> Result<(), Refused> {
        self.end(|| Seen::UnitVariant)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Refused> {
        match self.step() {
            None => self.end(|| Seen::NewtypeVariant),
            Some(Step::Inside) => seed.deserialize(self.next()),
            Some(_) => Err(Refused::Other),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        match self.step() {
            None => self.end(|| Seen::TupleVariant(len)),
            Some(_) => self.elements(visitor, len),
        }
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.fields::<V>(Seen::StructVariant(fields), |fields| visitor.visit_map(fields))
    }
}
