//! A deserializer that gives any value that a type may take, so that the type goes on to ask for what comes after it.

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, SeqAccess, VariantAccess, Visitor,
};

use super::probe::{Refused, Run, expected};

/// How deep values lie in values that are given.
const MAX_DEPTH: usize = 16;

#[derive(Debug, Clone, Copy)]
pub(super) struct Fill<'a> {
    run: &'a Run<'a>,
    depth: usize,
}

impl<'a> Fill<'a> {
    pub(super) fn new(run: &'a Run<'a>) -> Self {
        Self { run, depth: 0 }
    }

    /// For what lies in this.
    fn deeper(self) -> Result<Self, Refused> {
        self.run.step()?;
        if self.depth == MAX_DEPTH { Err(Refused::Other) } else { Ok(Self { depth: self.depth + 1, ..self }) }
    }

    fn several<'de, V: Visitor<'de>>(self, visitor: V, len: usize) -> Result<V::Value, Refused> {
        visitor.visit_seq(Several { left: len, fill: self.deeper()? })
    }
}

/// A text that a type may take: the standard library's are known, others try their luck.
fn text(run: &Run<'_>, expected: &str) -> &'static str {
    match expected {
        "a string" | "a borrowed string" | "path string" => "",
        "socket address" | "IPv4 socket address" => "0.0.0.0:0",
        "IPv6 socket address" => "[::]:0",
        "IP address" | "IPv4 address" => "0.0.0.0",
        "IPv6 address" => "::",
        _ => ["", "127.0.0.1:1", "1", "a"][run.attempt() % 4],
    }
}

macro_rules! given {
    ($($method:ident => $visit:ident($value:expr)),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            self.run.step()?;
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Fill<'_> {
    type Error = Refused;

    // One, not zero: there are numbers that must not be zero.
    given! {
        deserialize_bool => visit_bool(false),
        deserialize_i8 => visit_i8(1), deserialize_i16 => visit_i16(1), deserialize_i32 => visit_i32(1),
        deserialize_i64 => visit_i64(1), deserialize_i128 => visit_i128(1),
        deserialize_u8 => visit_u8(1), deserialize_u16 => visit_u16(1), deserialize_u32 => visit_u32(1),
        deserialize_u64 => visit_u64(1), deserialize_u128 => visit_u128(1),
        deserialize_f32 => visit_f32(1.0), deserialize_f64 => visit_f64(1.0), deserialize_char => visit_char('a'),
        deserialize_identifier => visit_str(""),
        deserialize_bytes => visit_bytes(b""), deserialize_byte_buf => visit_bytes(b"")
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.run.step()?;
        match self.run.attempt() {
            0 => visitor.visit_unit(),
            1 => visitor.visit_u64(1),
            _ => {
                let text = text(self.run, &expected(&visitor));
                visitor.visit_str(text)
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.run.step()?;
        let text = text(self.run, &expected(&visitor));
        visitor.visit_str(text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.run.step()?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.run.step()?;
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self.deeper()?)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.several(visitor, 0)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        self.several(visitor, len)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.several(visitor, len)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.run.step()?;
        visitor.visit_map(serde::de::value::MapDeserializer::new(std::iter::empty::<((), ())>()))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        // By position: among the names may be several of one field.
        self.several(visitor, fields.len())
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let last = variants.len().saturating_sub(1);
        let variant = variants.get(if last == 0 { 0 } else { self.run.attempt().min(last) });
        let variant = *variant.ok_or(Refused::Other)?;
        visitor.visit_enum(AnyVariant { variant, fill: self.deeper()? })
    }
}

struct Several<'a> {
    left: usize,
    fill: Fill<'a>,
}

impl<'de> SeqAccess<'de> for Several<'_> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(self.fill).map(Some)
    }
}

/// Some variant of an enum.
struct AnyVariant<'a> {
    variant: &'static str,
    fill: Fill<'a>,
}

impl<'de, 'a> EnumAccess<'de> for AnyVariant<'a> {
    type Error = Refused;
    type Variant = Fill<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Fill<'a>), Refused> {
        let variant = seed.deserialize(IntoDeserializer::<Refused>::into_deserializer(self.variant))?;
        Ok((variant, self.fill))
    }
}

impl<'de> VariantAccess<'de> for Fill<'_> {
    type Error = Refused;

    fn unit_variant(self) -> Result<(), Refused> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Refused> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Refused> {
        self.several(visitor, len)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.several(visitor, fields.len())
    }
}
