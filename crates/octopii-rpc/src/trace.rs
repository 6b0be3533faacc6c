//! Which trace a call belongs to, as the W3C's Trace Context recommendation says it.

use std::fmt;
use std::str::FromStr;

use rand::Rng;

/// The place of a call in a distributed trace: the `traceparent` of the W3C's Trace Context, level 1.
///
/// It travels with a request and on to the calls that its handler makes, each with a span id of its own. Octopii makes and
/// passes on ids; recording spans is the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

/// A text that is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent: it should look like 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
pub struct NotATraceparent;

const SAMPLED: u8 = 1;

impl TraceContext {
    /// The bytes on the wire: trace id, span id, flags.
    pub(crate) const LEN: usize = 25;

    /// Begins a trace, with random ids.
    pub fn begin(sampled: bool) -> Self {
        let mut context = Self { trace_id: [0; 16], span_id: [0; 8], flags: u8::from(sampled) };
        while context.trace_id == [0; 16] {
            context.trace_id = rand::rng().random();
        }
        context.child()
    }

    /// The same trace with a new span id: for a call made on behalf of this one.
    #[must_use]
    pub fn child(&self) -> Self {
        let mut span_id = [0; 8];
        while span_id == [0; 8] {
            span_id = rand::rng().random();
        }
        Self { span_id, ..*self }
    }

    /// The trace's id; never all zeroes.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The calling span's id; never all zeroes.
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// Whether the caller may have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..24].copy_from_slice(&self.span_id);
        bytes[24] = self.flags;
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace_id, rest) = bytes.split_first_chunk()?;
        let (span_id, flags) = rest.split_first_chunk()?;
        let &[flags] = flags else { return None };
        let context = Self { trace_id: *trace_id, span_id: *span_id, flags };
        (context.trace_id != [0; 16] && context.span_id != [0; 8]).then_some(context)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.span_id));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = NotATraceparent;

    /// Reads a `traceparent` header. Versions to come are read as far as this one goes, as the recommendation asks.
    fn from_str(text: &str) -> Result<Self, NotATraceparent> {
        let bytes = text.as_bytes();
        let dashes = bytes.len() >= 55 && [2, 35, 52].iter().all(|at| bytes[*at] == b'-');
        if !dashes || (bytes.len() > 55 && (&bytes[..2] == b"00" || bytes[55] != b'-')) {
            return Err(NotATraceparent);
        }
        let [version] = hex(&bytes[..2])?;
        if version == 0xff {
            return Err(NotATraceparent);
        }
        let mut all = Vec::with_capacity(Self::LEN);
        all.extend(hex::<16>(&bytes[3..35])?);
        all.extend(hex::<8>(&bytes[36..52])?);
        all.extend(hex::<1>(&bytes[53..55])?);
        Self::from_bytes(&all).ok_or(NotATraceparent)
    }
}

/// Lower-case digits only, as the recommendation wants them.
fn hex<const N: usize>(digits: &[u8]) -> Result<[u8; N], NotATraceparent> {
    let value = |c: u8| match c {
        b'0'..=b'9' => Ok(c - b'0'),
        b'a'..=b'f' => Ok(c - b'a' + 10),
        _ => Err(NotATraceparent),
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (value(pair[0])? << 4) | value(pair[1])?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_recommendations_example_survives() {
        let context: TraceContext = EXAMPLE.parse().unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!(TraceContext::from_bytes(&context.to_bytes()), Some(context));
        let child = context.child();
        assert_eq!(child.trace_id(), context.trace_id());
        assert_ne!(child.span_id(), context.span_id());
        let begun = TraceContext::begin(false);
        assert_eq!(begun.to_string().parse(), Ok(begun));
    }

    #[test]
    fn what_the_recommendation_forbids_is_refused() {
        let zero_trace = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let zero_span = "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01";
        let upper = "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01";
        let version_ff = "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let longer = format!("{EXAMPLE}-extra");
        let joined = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01extra";
        let multibyte = "00-0af7651916cd43dd8448eb211c8031é-b7ad6b7169203331-01";
        for bad in [
            zero_trace,
            zero_span,
            upper,
            version_ff,
            &longer,
            joined,
            multibyte,
            "",
            "00-",
            &EXAMPLE[..54],
            &EXAMPLE.replace('-', "_"),
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(NotATraceparent), "{bad}");
        }
        assert!(TraceContext::from_bytes(&[0; 25]).is_none());
        assert!(TraceContext::from_bytes(&[1; 24]).is_none());
        // A version to come may say more behind it.
        let later = format!("01{}-more", &EXAMPLE[2..]);
        assert!(later.parse::<TraceContext>().is_ok());
    }
}
