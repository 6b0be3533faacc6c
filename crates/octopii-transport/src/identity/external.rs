//! Certificates of somebody else's making: a company's own authorities, and rules that read a node's id from their names.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::certificates;
use super::names::names;
use super::{ClusterId, Identity, PeerIdentity, PeerRole, sha256};
use crate::IdentityError;

/// How certificates of another authority name nodes. Every node of a cluster has the same rules.
///
/// A pattern is a DNS name or a URI with `{id}` in it, and `{role}` if the name tells the role: `node-{id}.prod.example.com`,
/// `spiffe://example.com/octopii/{role}/{id}`. `{id}` stands for a decimal number without leading zeroes, `{role}` for `member`,
/// `operator` or `client`. Names that match no pattern are ignored; a certificate with none that does, or with two that say
/// different things, is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRules {
    cluster: ClusterId,
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    parts: Vec<Part>,
    /// For names that do not tell.
    role: PeerRole,
    is_uri: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Id,
    Role,
}

/// Authorities of somebody else's making, at the most: bundles hold a few.
const MAX_ROOTS: usize = 64;
const MAX_PATTERNS: usize = 16;
const MAX_CHAIN: usize = 8;

impl NameRules {
    /// Rules for the cluster of this name. Each pattern comes with the role of those whose names do not tell it.
    pub fn new<P: AsRef<str>>(
        cluster: &str,
        patterns: impl IntoIterator<Item = (P, PeerRole)>,
    ) -> Result<Self, IdentityError> {
        let patterns: Vec<_> = patterns
            .into_iter()
            .map(|(text, role)| Pattern::new(text.as_ref(), role))
            .collect::<Result<_, _>>()?;
        if patterns.is_empty() || patterns.len() > MAX_PATTERNS {
            return Err(IdentityError::Pattern {
                pattern: String::new(),
                reason: "give one to sixteen patterns",
            });
        }
        let name = sha256(&[b"octopii external cluster\0", cluster.as_bytes()].concat());
        let cluster = ClusterId::from_bytes(*name.first_chunk().expect("32 bytes are more than 16"));
        Ok(Self { cluster, patterns })
    }

    /// The cluster's id, which follows from its name.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Reads who it is from a certificate whose chain has been verified.
    pub(crate) fn identify(&self, certificate: &CertificateDer<'_>) -> Result<PeerIdentity, IdentityError> {
        let dns = names(certificate)?.map(|name| (name.to_ascii_lowercase(), false));
        let parsed = webpki::EndEntityCert::try_from(certificate)
            .map_err(|_| IdentityError::Pem { what: "a certificate" })?;
        let uris = parsed.valid_uri_names().map(|uri| (uri.to_owned(), true));
        let mut found = None;
        for (name, is_uri) in dns.chain(uris) {
            for pattern in self.patterns.iter().filter(|pattern| pattern.is_uri == is_uri) {
                let Some((node_id, role)) = pattern.matches(&name) else { continue };
                let peer = PeerIdentity { node_id, cluster: self.cluster, role };
                // Two names that could be read as either of two nodes.
                if *found.get_or_insert(peer) != peer {
                    return Err(IdentityError::NotANode);
                }
            }
        }
        found.ok_or(IdentityError::NotANode)
    }
}

impl Pattern {
    fn new(text: &str, role: PeerRole) -> Result<Self, IdentityError> {
        let wrong = |reason| IdentityError::Pattern { pattern: text.chars().take(200).collect(), reason };
        let is_uri = text.contains("://");
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            let (before, placeholder) = rest.split_at(at);
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            } else if !parts.is_empty() {
                return Err(wrong("something must stand between two placeholders"));
            }
            let (part, after) = if let Some(after) = placeholder.strip_prefix("{id}") {
                (Part::Id, after)
            } else if let Some(after) = placeholder.strip_prefix("{role}") {
                (Part::Role, after)
            } else {
                return Err(wrong("only {id} and {role} are known"));
            };
            if parts.contains(&part) {
                return Err(wrong("each placeholder stands there once"));
            }
            parts.push(part);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        if !parts.contains(&Part::Id) {
            return Err(wrong("{id} must stand somewhere"));
        }
        // Whoever could choose the rest of a name could choose who he is.
        if parts.len() < 2 || text.len() > 1024 || (!is_uri && text.chars().any(|c| c.is_ascii_uppercase())) {
            return Err(wrong("a name is more than its placeholders, short, and in lower case"));
        }
        Ok(Self { parts, role, is_uri })
    }

    fn matches(&self, name: &str) -> Option<(u64, PeerRole)> {
        let (mut rest, mut id, mut role) = (name, None, self.role);
        for part in &self.parts {
            // Placeholders end where something begins that cannot be in them.
            let len = |is_in: fn(u8) -> bool| rest.bytes().take_while(|b| is_in(*b)).count();
            rest = match part {
                Part::Text(text) => rest.strip_prefix(text.as_str())?,
                Part::Id => {
                    let (digits, after) = rest.split_at(len(|b| b.is_ascii_digit()));
                    id = Some(digits.parse::<u64>().ok().filter(|id| id.to_string() == digits)?);
                    after
                }
                Part::Role => {
                    let (word, after) = rest.split_at(len(|b| b.is_ascii_lowercase()));
                    role = word.parse().ok()?;
                    after
                }
            };
        }
        Some((id.filter(|_| rest.is_empty())?, role))
    }
}

impl Identity {
    /// An identity of somebody else's making, from PEM: the node's certificate with what stands between it and an authority, its
    /// private key, the authorities to trust, and the rules by which names are read. Any kind of key that TLS 1.3 knows.
    ///
    /// Every node of the cluster trusts the same authorities and has the same rules. Certificates made anew are taken over with
    /// [`Endpoint::set_identity`](crate::Endpoint::set_identity). Such authorities sign no revocations of ours: use short-lived
    /// certificates.
    pub fn external(chain: &str, key: &str, roots: &str, rules: NameRules) -> Result<Self, IdentityError> {
        let (chain, roots) = (certificates(chain)?, certificates(roots)?);
        if chain.is_empty() || chain.len() > MAX_CHAIN {
            return Err(IdentityError::Pem { what: "the node's certificate" });
        }
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(IdentityError::Pem { what: "the authorities' certificates" });
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|_| IdentityError::Pem { what: "the private key" })?;
        let peer = rules.identify(&chain[0])?;
        Ok(Self::from_parts(peer, chain, roots, key, Some(Arc::new(rules))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(pattern: &str) -> Result<NameRules, IdentityError> {
        NameRules::new("prod", [(pattern, PeerRole::Member)])
    }

    #[test]
    fn a_pattern_reads_one_spelling_of_a_name() {
        let dns = rules("node-{id}.prod.example.com").unwrap();
        let uri = rules("spiffe://example.com/octopii/{role}/{id}").unwrap();
        let read = |rules: &NameRules, name: &str| rules.patterns[0].matches(name);
        assert_eq!(read(&dns, "node-7.prod.example.com"), Some((7, PeerRole::Member)));
        assert_eq!(
            read(&uri, "spiffe://example.com/octopii/client/18446744073709551615"),
            Some((u64::MAX, PeerRole::Client))
        );
        for wrong in [
            "node-.prod.example.com",
            "node-07.prod.example.com",
            "node-+7.prod.example.com",
            "node-7.prod.example.com.evil",
            "x.node-7.prod.example.com",
            "node-7.prodxexample.com",
            "node-18446744073709551616.prod.example.com",
            "",
        ] {
            assert_eq!(read(&dns, wrong), None, "{wrong}");
        }
        for wrong in [
            "spiffe://example.com/octopii/admin/7",
            "spiffe://example.com/octopii//7",
            "spiffe://example.com/octopii/member/7/",
        ] {
            assert_eq!(read(&uri, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for wrong in [
            "",
            "{id}",
            "node.example.com",
            "{id}{role}.x",
            "{id}.{id}.x",
            "node-{name}.x",
            "node-{id.x",
            "Node-{id}.x",
            "}",
        ] {
            assert!(matches!(rules(wrong), Err(IdentityError::Pattern { .. })), "{wrong}");
        }
        assert!(NameRules::new("prod", Vec::<(&str, PeerRole)>::new()).is_err());
        assert_ne!(
            rules("n-{id}.x").unwrap().cluster(),
            NameRules::new("test", [("n-{id}.x", PeerRole::Member)]).unwrap().cluster()
        );
    }
}
