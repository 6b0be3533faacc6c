//! How a node without a certificate gets one: a token that pins the authority, a proof that discloses nothing, a door apart from
//! the members'.

mod base32;
mod door;
mod joiner;
mod message;
mod token;

pub use door::{Admission, Applicant};
pub(crate) use door::{Door, is_joiner};
pub use joiner::join;
pub use message::JoinRefusal;
pub(crate) use token::is_address;
pub use token::{JoinToken, TokenVerifier};

/// The wire version of joining, apart from the members' so that neither side can be taken for the other.
const ALPN: &[u8] = b"octopii-join/1";

/// The connection id that a joiner's first packet is sent to begins with this: the one thing that can be seen before a
/// handshake has begun, and so before anything has been spent on it. Not a secret, and no proof of anything.
const MARK: [u8; 8] = *b"\x8foctojoi";

/// What both sides sign and check is bound to their connection by this (RFC 8446, section 7.5): a proof that someone in the
/// middle receives is worth nothing on the connection that he has to the other side.
const BINDING_LABEL: &[u8] = b"EXPORTER-octopii-join-1";

fn binding(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let mut binding = [0; 32];
    connection.export_keying_material(&mut binding, BINDING_LABEL, b"").ok()?;
    Some(binding)
}
