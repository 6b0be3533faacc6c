//! What a type is made of, found out place by place.

use std::cell::Cell;

use super::probe::{Explore, Goal, Outcome, Refused, Run, Seen, Step};
use super::{FieldInfo, TypeInfo, VariantContent, VariantInfo};

/// Types, fields and variants that are told of one method.
const MAX_ENTRIES: usize = 1024;
/// Fields of one struct or variants of one enum; larger ones are told by name.
pub(super) const MAX_PARTS: usize = 128;
/// Steps from a type to one inside it.
const MAX_DEPTH: usize = 24;
/// What may be asked for on all ways to all places of a method: finding out takes tens of milliseconds at the worst.
const MAX_STEPS: u32 = 1 << 19;
/// Ways of giving values on the way to a place.
const ATTEMPTS: usize = 4;

/// The types of a method.
pub(super) struct Types {
    /// `None`: of a type that is being looked at.
    types: Vec<Option<TypeInfo>>,
    /// Those with names, so that each is told once and one that holds itself has an end.
    named: Vec<(&'static str, u32)>,
    entries: usize,
    /// What has been asked for on all ways together.
    steps: Cell<u32>,
    most_steps: u32,
}

impl Types {
    /// None yet. As much of `steps` is taken to find out about them as one method may take.
    pub(super) fn new(steps: u32) -> Self {
        let most_steps = steps.min(MAX_STEPS);
        Self { types: Vec::new(), named: Vec::new(), entries: 0, steps: Cell::new(0), most_steps }
    }

    /// Finds out what a type is made of; gives its number.
    pub(super) fn explore(&mut self, explore: Explore) -> u32 {
        Explorer { types: self, explore, path: Vec::new() }.here()
    }

    pub(super) fn into_vec(self) -> Vec<TypeInfo> {
        self.types.into_iter().map(|info| info.unwrap_or(TypeInfo::Opaque(String::new()))).collect()
    }

    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    pub(super) fn steps(&self) -> u32 {
        self.steps.get()
    }

    fn is_full(&self) -> bool {
        self.entries >= MAX_ENTRIES || self.steps.get() > self.most_steps
    }

    fn push(&mut self, info: Option<TypeInfo>) -> u32 {
        self.entries += 1;
        self.types.push(info);
        self.types.len() as u32 - 1
    }

    /// Something that holds no other type is told once.
    fn plain(&mut self, info: TypeInfo) -> u32 {
        match self.types.iter().position(|known| known.as_ref() == Some(&info)) {
            Some(at) => at as u32,
            None => self.push(Some(info)),
        }
    }

    fn opaque(&mut self, told: impl Into<String>) -> u32 {
        self.plain(TypeInfo::Opaque(told.into()))
    }
}

struct Explorer<'a> {
    types: &'a mut Types,
    explore: Explore,
    /// From the type that is told to the place that is looked at.
    path: Vec<Step>,
}

impl Explorer<'_> {
    /// What is at the end of the path.
    fn here(&mut self) -> u32 {
        if self.path.len() > MAX_DEPTH {
            return self.types.opaque("nested too deep to be told");
        }
        if self.types.is_full() {
            return self.types.opaque("too large to be told");
        }
        let Some(seen) = self.look() else { return self.types.opaque("") };
        match seen {
            Seen::Plain(info) => self.types.plain(info),
            Seen::Optional => self.holding(None, |it| TypeInfo::Optional(it.at(Step::Inside))),
            Seen::Sequence => self.holding(None, |it| TypeInfo::Sequence(it.at(Step::Inside))),
            Seen::Tuple(len) if len <= MAX_PARTS => {
                self.holding(None, |it| TypeInfo::Tuple(it.elements(len)))
            }
            Seen::Tuple(len) => self.types.opaque(format!("an array of {len} values")),
            Seen::Map(expected) => {
                self.path.push(Step::Key);
                let key = self.look();
                self.path.pop();
                if key == Some(Seen::Identifier) {
                    // A struct into which another one is flattened: its fields cannot be told from any others.
                    return self.types.opaque(expected);
                }
                self.holding(None, |it| TypeInfo::Map { key: it.at(Step::Key), value: it.at(Step::Value) })
            }
            // Formats give names like these to what only they understand.
            Seen::Newtype { name, .. } | Seen::Struct { name, .. } | Seen::Enum { name, .. }
                if name.starts_with('$') =>
            {
                self.types.opaque("")
            }
            Seen::Newtype { name, key } => self.holding(Some(key), |it| {
                let inner = it.at(Step::Inside);
                TypeInfo::Newtype { name: name.to_owned(), inner }
            }),
            Seen::Struct { name, key, fields } if fields.len() <= MAX_PARTS => {
                self.holding(Some(key), |it| {
                    let fields = it.fields(fields);
                    TypeInfo::Struct { name: name.to_owned(), fields }
                })
            }
            Seen::Enum { name, key, variants } if variants.len() <= MAX_PARTS => {
                self.holding(Some(key), |it| {
                    let (variants, open) = (it.variants(variants), it.is_open());
                    TypeInfo::Enum { name: name.to_owned(), variants, open }
                })
            }
            Seen::Struct { name, .. } => self.types.opaque(format!("struct {name}")),
            Seen::Enum { name, .. } => self.types.opaque(format!("enum {name}")),
            Seen::Identifier
            | Seen::UnitVariant
            | Seen::NewtypeVariant
            | Seen::TupleVariant(_)
            | Seen::StructVariant(_)
            | Seen::Given(_) => self.types.opaque(""),
        }
    }

    /// A type that holds others: it has its number before they are looked at, since it may be among them.
    fn holding(&mut self, key: Option<&'static str>, info: impl FnOnce(&mut Self) -> TypeInfo) -> u32 {
        if let Some(key) = key
            && let Some((_, known)) = self.types.named.iter().find(|(known, _)| *known == key)
        {
            return *known;
        }
        let number = self.types.push(None);
        self.types.named.extend(key.map(|key| (key, number)));
        let info = info(self);
        self.types.types[number as usize] = Some(info);
        number
    }

    fn at(&mut self, step: Step) -> u32 {
        self.path.push(step);
        let number = self.here();
        self.path.pop();
        number
    }

    fn elements(&mut self, len: usize) -> Vec<u32> {
        (0..len).map(|element| self.at(Step::Element(element))).collect()
    }

    fn fields(&mut self, names: &'static [&'static str]) -> Vec<FieldInfo> {
        self.types.entries += names.len();
        let known: Vec<_> = names.iter().map(|name| (*name, self.known_as(name))).collect();
        let names: Vec<_> =
            known.iter().filter(|(name, known_as)| name == known_as).map(|(n, _)| *n).collect();
        let mut fields = Vec::with_capacity(names.len());
        for name in &names {
            let others: Vec<_> = names.iter().copied().filter(|other| other != name).collect();
            let aliases = known.iter().filter(|(alias, known_as)| known_as == name && alias != name);
            fields.push(FieldInfo {
                name: (*name).to_owned(),
                aliases: aliases.map(|(alias, _)| (*alias).to_owned()).collect(),
                required: self.is_required(name, &others),
                holds: self.at(Step::Field(name)),
            });
        }
        fields
    }

    /// The name of the field that is meant by a name: some have several.
    fn known_as(&self, name: &'static str) -> &'static str {
        let seen = self.attempts(Goal::Give(&[name, name])).find_map(|seen| match seen {
            Some(Seen::Given(Err(Refused::Duplicate(field)))) => Some(field),
            _ => None,
        });
        seen.unwrap_or(name)
    }

    /// Whether a struct wants this field, or does without.
    fn is_required(&self, name: &'static str, others: &[&'static str]) -> Option<bool> {
        let mut required = None;
        for seen in self.attempts(Goal::Give(others)) {
            let now = match seen {
                Some(Seen::Given(Ok(()))) => false,
                Some(Seen::Given(Err(Refused::Missing(field)))) if field == name => true,
                _ => continue,
            };
            if required.is_some_and(|before| before != now) {
                // It depends on the others.
                return None;
            }
            required = Some(now);
        }
        required
    }

    fn variants(&mut self, names: &'static [&'static str]) -> Vec<VariantInfo> {
        self.types.entries += names.len();
        let mut variants = Vec::with_capacity(names.len());
        for name in names {
            self.path.push(Step::Variant(name));
            let content = match self.look() {
                Some(Seen::UnitVariant) => VariantContent::Unit,
                Some(Seen::NewtypeVariant) => VariantContent::Newtype(self.at(Step::Inside)),
                Some(Seen::TupleVariant(len)) if len <= MAX_PARTS => {
                    VariantContent::Tuple(self.elements(len))
                }
                Some(Seen::StructVariant(fields)) if fields.len() <= MAX_PARTS => {
                    VariantContent::Struct(self.fields(fields))
                }
                _ => VariantContent::Opaque,
            };
            self.path.pop();
            variants.push(VariantInfo { name: (*name).to_owned(), content });
        }
        variants
    }

    /// Whether an enum takes a name that none of its variants has.
    fn is_open(&mut self) -> bool {
        self.path.push(Step::Variant("no variant has this name"));
        let open = self.look().is_some();
        self.path.pop();
        open
    }

    fn look(&self) -> Option<Seen> {
        self.attempts(Goal::Look).flatten().next()
    }

    /// What is seen in one attempt after the other, as long as another one may see something else.
    fn attempts(&self, goal: Goal<'_>) -> impl Iterator<Item = Option<Seen>> {
        let mut next = Some(0);
        std::iter::from_fn(move || {
            let attempt = next.take().filter(|_| !self.types.is_full())?;
            let Outcome { seen, steps, varies } = Run::carry_out(self.explore, &self.path, goal, attempt);
            self.types.steps.set(self.types.steps.get().saturating_add(steps));
            next = Some(attempt + 1).filter(|next| varies && *next < ATTEMPTS);
            Some(seen)
        })
    }
}
