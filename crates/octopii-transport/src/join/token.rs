//! The join token: one printable word that lets one node into a cluster, once.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::base32;
use crate::identity::sha256;
use crate::{CertificateHash, ClusterId, PeerRole, TokenError};

/// Lets one node into a cluster, once, until it expires: the hash of the cluster's authority, where to ask, and a secret.
///
/// The text that [`expose`](Self::expose) gives is the secret: hand it over as a password is handed over. `Debug` does not show
/// it, and there is no `Display`. What the issuing node keeps is the [`TokenVerifier`], from which neither the secret nor a
/// proof can be made.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    cluster: ClusterId,
    authority: CertificateHash,
    secret: [u8; SECRET],
    role: PeerRole,
    expires: u64,
    addresses: Vec<String>,
}

/// What the issuing node keeps of a token: the public half of a key that is derived from the secret. 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenVerifier(pub(super) [u8; 32]);

const PREFIX: &str = "octopii-join-";
const VERSION: u8 = 1;
const SECRET: usize = 16;
const CHECKSUM: usize = 4;
/// Version, role, expiry, cluster, authority, secret, number of addresses.
const HEAD: usize = 1 + 1 + 8 + 16 + 32 + SECRET + 1;

impl JoinToken {
    /// Addresses in a token, at the most.
    pub const MAX_ADDRESSES: usize = 8;
    /// Length of an address, at the most.
    pub const MAX_ADDRESS: usize = 255;
    /// Length of a token's text, at the most.
    pub const MAX_TEXT: usize =
        PREFIX.len() + (HEAD + Self::MAX_ADDRESSES * (1 + Self::MAX_ADDRESS) + CHECKSUM) * 8 / 5 + 1;

    /// Makes a token with a fresh secret. Addresses are `IP:PORT` or `HOST:PORT`, one to eight of them, of nodes that issue
    /// certificates; `expires` is cut to whole seconds.
    pub fn generate(
        cluster: ClusterId,
        authority: CertificateHash,
        role: PeerRole,
        expires: SystemTime,
        addresses: Vec<String>,
    ) -> Result<Self, TokenError> {
        if addresses.is_empty() || addresses.len() > Self::MAX_ADDRESSES {
            return Err(TokenError::Addresses);
        }
        if let Some(wrong) = addresses.iter().find(|address| !is_address(address)) {
            return Err(TokenError::Address(wrong.escape_debug().take(80).collect()));
        }
        let expires = expires.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(Self { cluster, authority, secret: rand::random(), role, expires, addresses })
    }

    /// The token as text. This is the secret itself.
    pub fn expose(&self) -> String {
        let mut bytes = Vec::with_capacity(HEAD + 64);
        bytes.extend([VERSION, self.role.byte()]);
        bytes.extend(self.expires.to_le_bytes());
        bytes.extend(self.cluster.to_bytes());
        bytes.extend(self.authority.0);
        bytes.extend(self.secret);
        bytes.push(self.addresses.len() as u8);
        for address in &self.addresses {
            bytes.push(address.len() as u8);
            bytes.extend(address.as_bytes());
        }
        bytes.extend(checksum(&bytes));
        format!("{PREFIX}{}", base32::encode(&bytes))
    }

    /// The cluster it is for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The authority it pins.
    pub fn authority(&self) -> CertificateHash {
        self.authority
    }

    /// The role that its bearer gets.
    pub fn role(&self) -> PeerRole {
        self.role
    }

    /// When it ceases to be valid. The issuing node decides by its own clock.
    pub fn expires(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.expires)).unwrap_or(UNIX_EPOCH)
    }

    /// Where to ask: `IP:PORT` or `HOST:PORT`.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// What the issuing node keeps.
    pub fn verifier(&self) -> TokenVerifier {
        let key = self.key();
        TokenVerifier(key.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes"))
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key().sign(message).as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    fn key(&self) -> Ed25519KeyPair {
        let purpose = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"octopii join token 1");
        let seed = ring::hmac::sign(&purpose, &self.secret);
        Ed25519KeyPair::from_seed_unchecked(seed.as_ref()).expect("any 32 bytes are a seed")
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// Takes exactly what [`expose`](Self::expose) gives, and nothing else: no other spelling, no byte more.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::NotAToken)?;
        if text.len() > Self::MAX_TEXT {
            return Err(TokenError::NotAToken);
        }
        let bytes = base32::decode(digits).ok_or(TokenError::Damaged)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(TokenError::Damaged)?;
        if *sum != checksum(body) {
            return Err(TokenError::Damaged);
        }
        parse(body).ok_or(TokenError::Version)
    }
}

fn parse(body: &[u8]) -> Option<JoinToken> {
    let ([VERSION, role], rest) = body.split_first_chunk()? else { return None };
    let role = PeerRole::from_byte(*role)?;
    let (expires, rest) = rest.split_first_chunk()?;
    let (cluster, rest) = rest.split_first_chunk()?;
    let (authority, rest) = rest.split_first_chunk()?;
    let (secret, rest) = rest.split_first_chunk()?;
    let (count, mut rest) = rest.split_first()?;
    if !(1..=JoinToken::MAX_ADDRESSES).contains(&usize::from(*count)) {
        return None;
    }
    let mut addresses = Vec::with_capacity(usize::from(*count));
    for _ in 0..*count {
        let (len, after) = rest.split_first()?;
        let (address, after) = after.split_at_checked(usize::from(*len))?;
        let address = std::str::from_utf8(address).ok().filter(|address| is_address(address))?;
        addresses.push(address.to_owned());
        rest = after;
    }
    rest.is_empty().then_some(JoinToken {
        cluster: ClusterId::from_bytes(*cluster),
        authority: CertificateHash(*authority),
        secret: *secret,
        role,
        expires: u64::from_le_bytes(*expires),
        addresses,
    })
}

/// Whether it is `IP:PORT`, `[IPv6]:PORT` or `HOST:PORT`, with a port that can be dialled.
pub(crate) fn is_address(text: &str) -> bool {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return address.port() != 0 && text.len() <= JoinToken::MAX_ADDRESS;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = !host.is_empty()
        && host.len() <= 249
        // A name may say that it is whole, by a dot at its end.
        && host.strip_suffix('.').unwrap_or(host).split('.').all(|label| !label.is_empty() && label.len() <= 63)
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    is_host && port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    *sha256(bytes).first_chunk().expect("SHA-256 is longer")
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("cluster", &self.cluster)
            .field("role", &self.role)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl TokenVerifier {
    /// A short name for people: the first 16 hexadecimal digits.
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }
}

impl fmt::Display for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        CertificateHash(self.0).fmt(f)
    }
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for TokenVerifier {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let CertificateHash(bytes) = text.parse().map_err(|_| TokenError::Damaged)?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(addresses: &[&str]) -> Result<JoinToken, TokenError> {
        JoinToken::generate(
            ClusterId::from_bytes([3; 16]),
            CertificateHash([9; 32]),
            PeerRole::Member,
            UNIX_EPOCH + Duration::from_secs(4_000_000_000),
            addresses.iter().map(|a| (*a).to_owned()).collect(),
        )
    }

    #[test]
    fn it_survives_its_text() {
        for addresses in [vec!["10.0.0.1:4701"], vec!["[::1]:1", "node-1.example.com:65535"]] {
            let token = token(&addresses).unwrap();
            let text = token.expose();
            assert!(
                text.len() <= JoinToken::MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic()),
                "{text}"
            );
            assert_eq!(text.parse::<JoinToken>().unwrap(), token);
            assert_eq!(token.addresses(), addresses);
        }
        let long =
            format!("{}:4701", ["a".repeat(62), "b".repeat(62), "c".repeat(62), "d".repeat(60)].join("."));
        let eight = token(&[long.as_str(); 8]).unwrap();
        assert!(eight.expose().len() <= JoinToken::MAX_TEXT);
        assert_eq!(eight.expose().parse::<JoinToken>().unwrap(), eight);
    }

    #[test]
    fn any_other_text_is_refused() {
        let text = token(&["10.0.0.1:4701"]).unwrap().expose();
        for i in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[i] = if wrong[i] == b'a' { b'b' } else { b'a' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert!(wrong.parse::<JoinToken>().is_err(), "changed at {i}");
            assert!(text[..i].parse::<JoinToken>().is_err(), "cut at {i}");
        }
        for wrong in [format!("{text}a"), format!(" {text}"), text.to_uppercase(), "a".repeat(1 << 20)] {
            assert!(wrong.parse::<JoinToken>().is_err());
        }
    }

    #[test]
    fn only_addresses_that_can_be_dialled() {
        for wrong in [
            "",
            "host",
            "host:0",
            "host:65536",
            "host:+1",
            ":1",
            "10.0.0.1",
            "10.0.0.1:0",
            "a b:1",
            "a\n:1",
            "a..b:1",
            "http://a:1",
            "é:1",
        ] {
            assert!(token(&[wrong]).is_err(), "{wrong:?}");
        }
        assert_eq!(token(&[]).unwrap_err(), TokenError::Addresses);
        assert_eq!(token(&["a:1"; 9]).unwrap_err(), TokenError::Addresses);
    }

    #[test]
    fn what_is_kept_and_shown_does_not_tell_the_secret() {
        let token = token(&["10.0.0.1:4701"]).unwrap();
        let secret: String = token.secret.iter().map(|b| format!("{b:02x}")).collect();
        let bytes = format!("{:?}", token.secret);
        let kept = token.verifier().to_string();
        for shown in [format!("{token:?}"), format!("{:?}", token.verifier()), kept.clone()] {
            assert!(
                !shown.contains(&secret) && !shown.contains(&bytes) && !shown.contains(&token.expose()),
                "{shown}"
            );
        }
        assert_eq!(kept.parse::<TokenVerifier>().unwrap(), token.verifier());
        assert!(kept[1..].parse::<TokenVerifier>().is_err());
    }
}
