//! The DNS names that a cluster's certificates carry.

use rustls::pki_types::CertificateDer;

use super::{ClusterId, NodeId, PeerIdentity, PeerRole};
use crate::IdentityError;

const SUFFIX: &str = ".octopii.internal";

/// The name under which every node of a cluster can be verified, without knowing which node answers at an address.
pub(crate) fn cluster_name(cluster: ClusterId) -> String {
    format!("{cluster}{SUFFIX}")
}

/// Reads who it is from a certificate that TLS has verified.
pub(crate) fn peer_identity(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, IdentityError> {
    let mut named = names(certificate)?.filter_map(|name| parse_node_name(&name));
    // Two of them could be read as either.
    match (named.next(), named.next()) {
        (Some(peer), None) => Ok(peer),
        _ => Err(IdentityError::NotANode),
    }
}

/// Tells who holds a certificate: node, role and cluster.
pub(super) fn node_name(node: NodeId, role: PeerRole, cluster: ClusterId) -> String {
    format!("node-{node}.{role}.{cluster}{SUFFIX}")
}

/// The cluster that a certificate names, whether it is an authority's or a node's.
pub(super) fn named_cluster(certificate: &CertificateDer<'_>) -> Result<ClusterId, IdentityError> {
    names(certificate)?.find_map(|name| parse_cluster_name(&name)).ok_or(IdentityError::NotANode)
}

fn parse_cluster_name(name: &str) -> Option<ClusterId> {
    name.strip_suffix(SUFFIX)?.parse().ok()
}

fn parse_node_name(name: &str) -> Option<PeerIdentity> {
    let (node, rest) = name.strip_prefix("node-")?.split_once('.')?;
    let (role, cluster) = rest.split_once('.')?;
    let found = PeerIdentity {
        node_id: node.parse().ok()?,
        cluster: parse_cluster_name(cluster)?,
        role: role.parse().ok()?,
    };
    // One spelling only: no sign, no leading zeroes.
    (node_name(found.node_id, found.role, found.cluster) == name).then_some(found)
}

pub(super) fn names(
    certificate: &CertificateDer<'_>,
) -> Result<impl Iterator<Item = String> + use<>, IdentityError> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|_| IdentityError::Pem { what: "a certificate" })?;
    Ok(parsed.valid_dns_names().map(str::to_owned).collect::<Vec<_>>().into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_name() {
        let cluster = ClusterId::from_bytes([7; 16]);
        let name = node_name(12, PeerRole::Client, cluster);
        let peer = parse_node_name(&name).expect("its own name");
        assert_eq!((peer.node_id, peer.role, peer.cluster), (12, PeerRole::Client, cluster));
        for wrong in [
            name.replace("node-12", "node-+12"),
            name.replace("node-12", "node-012"),
            name.replace(".client", ""),
            name.replace(".client", ".root"),
            name.replace("0707", "070"),
            format!("{name}.evil.example"),
        ] {
            assert_eq!(parse_node_name(&wrong), None, "{wrong}");
        }
    }
}
