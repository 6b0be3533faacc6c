//! Certificates of a company's own authority: who is who by their names, and who is nobody.

use octopii_transport::{
    ClusterAuthority, ConnectError, Endpoint, EndpointOptions, Executor, Identity, IdentityError, NameRules,
    PeerRole,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use tokio::runtime::Handle;

/// An authority as companies have them: with another one between it and the nodes, and keys of another kind than ours.
struct Company {
    root: String,
    intermediate: String,
    params: CertificateParams,
    key: KeyPair,
}

impl Company {
    fn new() -> Self {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            (params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap())
        };
        let ((root_params, root_key), (params, key)) = (authority("root"), authority("intermediate"));
        let root = root_params.self_signed(&root_key).unwrap().pem();
        let intermediate =
            params.signed_by(&key, &Issuer::from_params(&root_params, &root_key)).unwrap().pem();
        Self { root, intermediate, params, key }
    }

    fn identity(&self, names: &[&str], rules: &NameRules) -> Result<Identity, IdentityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        for name in names {
            let value = rcgen::string::Ia5String::try_from(*name).unwrap();
            let san = if name.contains("://") { SanType::URI(value) } else { SanType::DnsName(value) };
            params.subject_alt_names.push(san);
        }
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        let chain = certificate.pem() + &self.intermediate;
        Identity::external(&chain, &key.serialize_pem(), &self.root, rules.clone())
    }
}

fn bind(identity: &Identity) -> Endpoint {
    Endpoint::bind(&Executor::new(Handle::current()), identity, EndpointOptions::default()).unwrap()
}

fn rules(cluster: &str) -> NameRules {
    let patterns = [
        ("node-{id}.prod.example.com", PeerRole::Member),
        ("spiffe://example.com/octopii/{role}/{id}", PeerRole::Client),
    ];
    NameRules::new(cluster, patterns).unwrap()
}

#[tokio::test]
async fn nodes_of_a_companys_authority_know_each_other_by_their_names() {
    let (company, rules) = (Company::new(), rules("prod"));
    let by_dns = company.identity(&["Node-7.prod.example.com", "host.example.com"], &rules).unwrap();
    let by_uri = company.identity(&["spiffe://example.com/octopii/operator/8"], &rules).unwrap();
    let (a, b) = (bind(&by_dns), bind(&by_uri));
    let to_b = a.connect(b.local_addr()).await.unwrap();
    assert_eq!((to_b.peer().node_id, to_b.peer().role), (8, PeerRole::Operator));
    let to_a = bind(&by_uri).connect(a.local_addr()).await.unwrap();
    assert_eq!((to_a.peer().node_id, to_a.peer().role), (7, PeerRole::Member));
    assert_eq!(to_a.peer().cluster, rules.cluster());
    // Certificates made anew are taken over while the node runs.
    let renewed = company.identity(&["node-7.prod.example.com"], &rules).unwrap();
    a.set_identity(&renewed).unwrap();
    let seen = bind(&by_uri).connect(a.local_addr()).await.unwrap();
    assert_eq!(*seen.certificate(), renewed.hash());
}

#[tokio::test]
async fn who_is_not_named_by_the_rules_or_the_authority_is_nobody() {
    let (company, other_company, ours) = (Company::new(), Company::new(), rules("prod"));
    let a = bind(&company.identity(&["node-7.prod.example.com", "y-7.example.com"], &ours).unwrap());
    // The same authority has made certificates for everybody in the company, and their rules are content with ours.
    let lax = |pattern| {
        NameRules::new("prod", [(pattern, PeerRole::Member), ("y-{id}.example.com", PeerRole::Member)])
            .unwrap()
    };
    let (everybody, ambiguous) = (lax("host-{id}.example.com"), lax("x-{id}.example.com"));
    let own = ClusterAuthority::generate().unwrap();
    for stranger in [
        company.identity(&["host-9.example.com"], &everybody).unwrap(),
        company
            .identity(&["x-1.example.com", "node-8.prod.example.com", "node-9.prod.example.com"], &ambiguous)
            .unwrap(),
        other_company.identity(&["node-8.prod.example.com"], &ours).unwrap(),
        own.issue(8).unwrap(),
    ] {
        let stranger = bind(&stranger);
        for (from, to) in [(&a, &stranger), (&stranger, &a)] {
            let error = from.connect(to.local_addr()).await.unwrap_err();
            let refused = matches!(error, ConnectError::NotTrusted { .. } | ConnectError::Refused { .. });
            assert!(refused, "{error}");
        }
        assert!(a.connections().is_empty());
    }
    let unnamed = company.identity(&["host-9.example.com"], &ours);
    assert_eq!(unnamed.unwrap_err(), IdentityError::NotANode);
}
