//! Messages of a chunk whose content comes from another of its receivers.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use octopii_transport::NodeId;

use super::{Malformed, Reader, Tag, message};
use crate::{Digest, FailureCode};

/// Bytes of a [`RelayKey`].
pub(super) const KEY_LEN: usize = 16;

/// Who knows it may fetch the content of one distribution from its receivers. Chosen at random by the sender and told to the
/// receivers only, hence not shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RelayKey(pub(crate) u128);

/// Where a receiver is to get content from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Supplier {
    /// From the sender itself, as soon as it knows from where on.
    Sender,
    /// From this receiver of the same chunk.
    Receiver { node: NodeId, addr: SocketAddr },
}

/// What the sender vouches for: a block, without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vouched {
    pub(crate) offset: u64,
    pub(crate) len: u32,
    /// Of everything up to the block's end.
    pub(crate) prefix: Digest,
}

/// A receiver has no supplier any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// From here on.
    pub(crate) offset: u64,
    pub(crate) why: FailureCode,
}

impl RelayKey {
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for RelayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayKey(..)")
    }
}

pub(crate) fn vouch(block: &Vouched) -> Vec<u8> {
    message(Tag::Vouch as u8, |out| {
        out.extend_from_slice(&block.offset.to_le_bytes());
        out.extend_from_slice(&block.len.to_le_bytes());
        out.extend_from_slice(&block.prefix.0);
    })
}

pub(crate) fn supplier(supplier: &Supplier) -> Vec<u8> {
    message(Tag::Supplier as u8, |out| match supplier {
        Supplier::Sender => out.push(0),
        Supplier::Receiver { node, addr } => {
            let ip = match addr.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            out.push(1);
            out.extend_from_slice(&node.to_le_bytes());
            out.extend_from_slice(&ip.octets());
            out.extend_from_slice(&addr.port().to_le_bytes());
        }
    })
}

pub(crate) fn need(need: &Need) -> Vec<u8> {
    message(Tag::Need as u8, |out| {
        out.extend_from_slice(&need.offset.to_le_bytes());
        out.extend_from_slice(&need.why.to_u16().to_le_bytes());
    })
}

pub(crate) fn fetch(key: RelayKey, offset: u64) -> Vec<u8> {
    message(Tag::Fetch as u8, |out| {
        out.extend_from_slice(&key.0.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
    })
}

pub(crate) fn decode_vouch(body: &[u8]) -> Result<Vouched, Malformed> {
    let mut r = Reader(body);
    let offset = u64::from_le_bytes(r.array()?);
    let out = Vouched { offset, len: u32::from_le_bytes(r.array()?), prefix: Digest(r.array()?) };
    r.end()?;
    Ok(out)
}

pub(crate) fn decode_supplier(body: &[u8]) -> Result<Supplier, Malformed> {
    let mut r = Reader(body);
    let out = match r.u8()? {
        0 => Supplier::Sender,
        1 => {
            let node = NodeId::from_le_bytes(r.array()?);
            let ip = Ipv6Addr::from(r.array::<16>()?).to_canonical();
            Supplier::Receiver { node, addr: SocketAddr::new(ip, u16::from_le_bytes(r.array()?)) }
        }
        _ => return Err(Malformed("unknown kind of supplier")),
    };
    r.end()?;
    Ok(out)
}

pub(crate) fn decode_need(body: &[u8]) -> Result<Need, Malformed> {
    let mut r = Reader(body);
    let offset = u64::from_le_bytes(r.array()?);
    let out = Need { offset, why: FailureCode::from_u16(u16::from_le_bytes(r.array()?)) };
    r.end()?;
    Ok(out)
}

pub(crate) fn decode_fetch(body: &[u8]) -> Result<(RelayKey, u64), Malformed> {
    let mut r = Reader(body);
    let key = RelayKey(u128::from_le_bytes(r.array()?));
    let offset = u64::from_le_bytes(r.array()?);
    r.end()?;
    Ok((key, offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Header;

    fn body(message: &[u8], tag: Tag) -> &[u8] {
        let (head, body) = message.split_first_chunk().unwrap();
        assert_eq!(Header::decode(*head), Ok(Header { tag, len: body.len() }));
        body
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else_is() {
        let block = Vouched { offset: 1 << 40, len: 262_144, prefix: Digest::of(b"x") };
        let bytes = vouch(&block);
        assert_eq!(decode_vouch(body(&bytes, Tag::Vouch)), Ok(block));
        assert!(decode_vouch(&bytes[5..48]).is_err());

        let need_of = Need { offset: 7, why: FailureCode::DigestMismatch };
        assert_eq!(decode_need(body(&need(&need_of), Tag::Need)), Ok(need_of));

        let bytes = fetch(RelayKey(5), 9);
        assert_eq!(decode_fetch(body(&bytes, Tag::Fetch)), Ok((RelayKey(5), 9)));

        for addr in ["10.1.2.3:4433", "[2001:db8::1]:9"] {
            let from = Supplier::Receiver { node: 77, addr: addr.parse().unwrap() };
            let bytes = supplier(&from);
            assert_eq!(decode_supplier(body(&bytes, Tag::Supplier)), Ok(from));
            assert!(decode_supplier(&bytes[5..bytes.len() - 1]).is_err());
        }
        assert_eq!(decode_supplier(body(&supplier(&Supplier::Sender), Tag::Supplier)), Ok(Supplier::Sender));
        assert!(decode_supplier(&[2]).is_err());
        assert!(decode_supplier(&[0, 0]).is_err());
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", RelayKey(123_456)), "RelayKey(..)");
    }
}
