//! Where a peer listens, as people write it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::join::is_address;

/// Where a peer listens: `IP:PORT`, `[IPv6]:PORT` or `HOST:PORT`. A host name is kept as it was written, and looked up anew for each
/// connection that is made. At most 255 bytes; serialized, it is its text, and nothing else is taken for one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Inner);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Inner {
    Ip(SocketAddr),
    Host(Arc<str>),
}

/// A text that is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an address and a port, such as 10.0.0.1:4701, [2001:db8::1]:4701 or node1.example.com:4701"
)]
pub struct NotAnAddress(String);

impl Address {
    /// The IP address and port, if it is not a host name.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self.0 {
            Inner::Ip(addr) => Some(addr),
            Inner::Host(_) => None,
        }
    }

    /// The host name and port, if it is not an IP address.
    pub fn host(&self) -> Option<&str> {
        match &self.0 {
            Inner::Ip(_) => None,
            Inner::Host(host) => Some(host),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match &self.0 {
            Inner::Ip(addr) => addr.port(),
            Inner::Host(host) => split(host).map_or(0, |(_, port)| port),
        }
    }

    /// Whether it is surely this machine's: a loopback address, or the name `localhost` (RFC 6761 keeps it for that).
    pub fn is_loopback(&self) -> bool {
        match &self.0 {
            Inner::Ip(addr) => addr.ip().is_loopback(),
            Inner::Host(host) => {
                let name = split(host).map_or(&**host, |(name, _)| name);
                name.trim_end_matches('.').eq_ignore_ascii_case("localhost")
            }
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self(Inner::Ip(addr))
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            // A port 0 is told when it is dialled, as for any address that comes from elsewhere.
            return Ok(addr.into());
        }
        if is_address(text) {
            return Ok(Self(Inner::Host(text.into())));
        }
        Err(NotAnAddress(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Ip(addr) => addr.fmt(f),
            Inner::Host(host) => f.pad(host),
        }
    }
}

/// Name and port of `HOST:PORT`.
pub(crate) fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':').filter(|_| is_address(address))?;
    Some((host, port.parse().ok()?))
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Address;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address and a port, such as 10.0.0.1:4701 or node1.example.com:4701")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Address, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write() {
        for (text, ip, loopback) in [
            ("127.0.0.1:4701", true, true),
            ("[::1]:4701", true, true),
            ("10.0.0.1:4701", true, false),
            ("localhost:4701", false, true),
            ("LocalHost:1", false, true),
            ("node-1.example.com:4701", false, false),
            ("localhost.example.com:1", false, false),
            ("localhost.:7", false, true),
            ("node-1.octopii.svc.cluster.local.:4400", false, false),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.ip().is_some(), address.is_loopback()), (ip, loopback), "{text}");
            assert_eq!((address.host().is_none(), address.to_string().as_str()), (ip, text));
            assert_eq!(address.port().to_string(), text.rsplit_once(':').unwrap().1);
        }
        let long =
            format!("{}:4701", ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(63)].join("."));
        for wrong in [
            "",
            "localhost",
            "a b:1",
            "host:0",
            "host:99999",
            "10.0.0.1",
            "::1:x",
            "http://a:1",
            ".:1",
            "a..:1",
            "a\u{1b}:1",
            "a\0:1",
            "\u{e9}:1",
            &long,
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong:?}");
        }
    }
}
