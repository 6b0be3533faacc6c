//! Where a peer listens, as people write it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::join::is_address;

/// Where a peer listens: `IP:PORT`, `[IPv6]:PORT` or `HOST:PORT`. A host name is looked up anew for each connection that is made.
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

    /// Whether it is surely this machine's: a loopback address, or the name `localhost` (RFC 6761 keeps it for that).
    pub fn is_loopback(&self) -> bool {
        match &self.0 {
            Inner::Ip(addr) => addr.ip().is_loopback(),
            Inner::Host(host) => {
                let name = host.rsplit_once(':').map_or(&**host, |(name, _)| name);
                name.eq_ignore_ascii_case("localhost")
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
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.ip().is_some(), address.is_loopback()), (ip, loopback), "{text}");
            assert_eq!((address.host().is_none(), address.to_string().as_str()), (ip, text));
        }
        for wrong in ["", "localhost", "a b:1", "host:0", "host:99999", "10.0.0.1", "::1:x", "http://a:1"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
