//! Joining: who gets a certificate, who learns what, and what strangers cost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use octopii_transport::{
    Admission, Applicant, Certified, ClusterAuthority, Endpoint, EndpointOptions, Executor, Identity,
    JoinError, JoinRefusal, JoinToken, Limits, NodeKey, PeerRole, StreamError, StreamKind, TokenVerifier,
};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::runtime::Handle;

use crate::{endpoint, endpoint_with};

const SOON: Duration = Duration::from_secs(20);

/// Issues to whoever has a token, once.
#[derive(Debug)]
struct Desk {
    authority: ClusterAuthority,
    tokens: Mutex<BTreeMap<TokenVerifier, Kept>>,
}

/// A token's role, and the key that has used it.
type Kept = (PeerRole, Option<[u8; 32]>);

impl Desk {
    fn new(authority: ClusterAuthority) -> Arc<Self> {
        Arc::new(Self { authority, tokens: Mutex::default() })
    }

    fn token(&self, role: PeerRole, addresses: &[SocketAddr]) -> JoinToken {
        let addresses = addresses.iter().map(ToString::to_string).collect();
        let expires = SystemTime::now() + Duration::from_secs(60);
        let (cluster, hash) = (self.authority.cluster(), self.authority.hash());
        let token = JoinToken::generate(cluster, hash, role, expires, addresses).unwrap();
        self.tokens.lock().unwrap().insert(token.verifier(), (role, None));
        token
    }
}

impl Admission for Desk {
    fn admit(&self, applicant: &Applicant) -> Result<Certified, JoinRefusal> {
        let mut tokens = self.tokens.lock().unwrap();
        let (role, used) = tokens.get_mut(&applicant.token).ok_or(JoinRefusal::Unknown)?;
        if *used.get_or_insert(applicant.public_key) != applicant.public_key {
            return Err(JoinRefusal::Used);
        }
        self.authority.certify(77, *role, &applicant.public_key).map_err(|_| JoinRefusal::Failed)
    }
}

/// Joins with a fresh key.
async fn join(executor: &Executor, token: &JoinToken, limit: Duration) -> Result<Identity, JoinError> {
    octopii_transport::join(executor, token, NodeKey::generate().unwrap(), limit).await
}

fn here() -> Executor {
    Executor::new(Handle::current())
}

fn issuing(desk: &Arc<Desk>, identity: &Identity, limits: Limits) -> Endpoint {
    let options =
        EndpointOptions { admission: Some(Arc::<Desk>::clone(desk)), limits, ..EndpointOptions::default() };
    Endpoint::bind(&here(), identity, options).unwrap()
}

#[tokio::test]
async fn a_token_lets_one_node_in_once() {
    let desk = Desk::new(ClusterAuthority::generate().unwrap());
    let a = issuing(&desk, &desk.authority.issue(1).unwrap(), Limits::default());
    for role in PeerRole::ALL {
        let token = desk.token(role, &[a.local_addr()]);
        let identity = join(&here(), &token, SOON).await.unwrap();
        assert_eq!((identity.node_id(), identity.role()), (77, role));
        let error = join(&here(), &token, SOON).await.unwrap_err();
        assert!(matches!(error, JoinError::Refused(JoinRefusal::Used)), "{error}");
        // The certificate is good, and says what the token said.
        let b = Endpoint::bind(&here(), &identity, EndpointOptions::default()).unwrap();
        assert_eq!(b.connect(a.local_addr()).await.unwrap().peer().role, PeerRole::Member);
        assert_eq!(a.connect(b.local_addr()).await.unwrap().peer().role, role);
    }
    let mut unknown = desk.token(PeerRole::Member, &[a.local_addr()]);
    desk.tokens.lock().unwrap().clear();
    let error = join(&here(), &unknown, SOON).await.unwrap_err();
    assert!(matches!(error, JoinError::Refused(JoinRefusal::Unknown)), "{error}");
    // Nobody at the first address: the second is asked.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    unknown = desk.token(PeerRole::Member, &[nobody.local_addr().unwrap(), a.local_addr()]);
    join(&here(), &unknown, Duration::from_secs(8)).await.unwrap();
}

#[tokio::test]
async fn of_many_with_one_token_one_gets_in() {
    let desk = Desk::new(ClusterAuthority::generate().unwrap());
    let a = issuing(&desk, &desk.authority.issue(1).unwrap(), Limits::default());
    let token = desk.token(PeerRole::Member, &[a.local_addr()]);
    let racing: Vec<_> = (0..8)
        .map(|_| {
            let token = token.clone();
            tokio::spawn(async move { join(&here(), &token, SOON).await })
        })
        .collect();
    let mut admitted = 0;
    for racer in racing {
        match racer.await.unwrap() {
            Ok(_) => admitted += 1,
            Err(JoinError::Refused(JoinRefusal::Used)) => {}
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(admitted, 1);
}

/// Whoever sits at the token's address: another cluster, a mere client of the right one, or a node that issues nothing.
#[tokio::test]
async fn an_impostor_learns_nothing_and_the_token_stays_good() {
    let desk = Desk::new(ClusterAuthority::generate().unwrap());
    let a = issuing(&desk, &desk.authority.issue(1).unwrap(), Limits::default());
    let foreign = Desk::new(ClusterAuthority::generate().unwrap());
    let impostors = [
        issuing(&foreign, &foreign.authority.issue(1).unwrap(), Limits::default()),
        issuing(&foreign, &desk.authority.issue_as(2, PeerRole::Client).unwrap(), Limits::default()),
        issuing(&foreign, &desk.authority.issue_as(2, PeerRole::Operator).unwrap(), Limits::default()),
    ];
    for impostor in &impostors {
        let token = desk.token(PeerRole::Member, &[impostor.local_addr()]);
        let error = join(&here(), &token, SOON).await.unwrap_err();
        assert!(matches!(error, JoinError::NotTrusted(_)), "{error}");
    }
    let closed = endpoint(&desk.authority, 3);
    let token = desk.token(PeerRole::Member, &[closed.local_addr()]);
    let error = join(&here(), &token, SOON).await.unwrap_err();
    assert!(matches!(error, JoinError::Closed(_)), "{error}");
    let token = desk.token(PeerRole::Member, &[a.local_addr()]);
    join(&here(), &token, SOON).await.unwrap();
}

/// A member that has no authority's key at the token's address: TLS finds nothing wrong with it.
#[tokio::test]
async fn a_member_that_is_not_the_issuing_node_issues_nothing() {
    let desk = Desk::new(ClusterAuthority::generate().unwrap());
    let a = issuing(&desk, &desk.authority.issue(1).unwrap(), Limits::default());
    // An authority of its own with the cluster's name, and a second one that also names the real one among those to trust.
    let own = || desk.authority.successor().unwrap();
    for forged in [own().without_predecessors(), own()] {
        let liar = Desk::new(forged);
        let member = issuing(&liar, &desk.authority.issue(2).unwrap(), Limits::default());
        let token = desk.token(PeerRole::Member, &[member.local_addr()]);
        liar.tokens.lock().unwrap().insert(token.verifier(), (PeerRole::Member, None));
        let error = join(&here(), &token, SOON).await.unwrap_err();
        assert!(matches!(error, JoinError::Misissued), "{error}");
        assert!(liar.tokens.lock().unwrap()[&token.verifier()].1.is_some(), "the liar was not asked");
    }
    let token = desk.token(PeerRole::Member, &[a.local_addr()]);
    join(&here(), &token, SOON).await.unwrap();
}

/// The cluster's name is no secret: anybody can make an authority that bears it. The token pins the one.
#[tokio::test]
async fn an_authority_with_the_clusters_name_is_not_the_clusters() {
    let desk = Desk::new(ClusterAuthority::generate().unwrap());
    let cluster = format!("{}.octopii.internal", desk.authority.cluster());
    let node = format!("node-1.member.{cluster}");
    let mut params = CertificateParams::new([cluster.clone()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = params.self_signed(&root_key).unwrap();
    let leaf = CertificateParams::new([cluster, node]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&params, &root_key)).unwrap();
    let mut tls =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone(), root.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
    tls.alpn_protocols = vec![b"octopii-join/1".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(
        quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap(),
    ));
    let impostor = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let token = desk.token(PeerRole::Member, &[impostor.local_addr().unwrap()]);
    let answering = tokio::spawn(async move { impostor.accept().await.unwrap().await.map(drop) });
    let error = join(&here(), &token, SOON).await.unwrap_err();
    assert!(matches!(error, JoinError::NotTrusted(_)), "{error}");
    assert!(answering.await.unwrap().is_err(), "the joiner went on to talk to the impostor");
}

/// A joiner's packets, but behind them someone who does as he likes.
async fn stranger(
    authority: &ClusterAuthority,
    to: SocketAddr,
    alpn: &[u8],
    mark: bool,
) -> Result<quinn::Connection, String> {
    stranger_at(1, authority, to, alpn, mark).await
}

/// The same, from 127.0.0.`host`.
async fn stranger_at(
    host: u8,
    authority: &ClusterAuthority,
    to: SocketAddr,
    alpn: &[u8],
    mark: bool,
) -> Result<quinn::Connection, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.to_pem().as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let mut tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    if mark {
        config.initial_dst_cid_provider(Arc::new(|| {
            let mut id = *b"\x8foctojoi............";
            rand::Rng::fill(&mut rand::rng(), &mut id[8..]);
            quinn_proto::ConnectionId::new(&id)
        }));
    }
    let client = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
    let name = format!("{}.octopii.internal", authority.cluster());
    let connecting = client.connect_with(config, to, &name).unwrap();
    tokio::time::timeout(SOON, connecting).await.unwrap().map_err(|e| e.to_string())
}

#[tokio::test]
async fn the_joiners_door_leads_nowhere_else() {
    let desk = Desk::new(ClusterAuthority::generate().unwrap());
    let a = issuing(&desk, &desk.authority.issue(1).unwrap(), Limits::default());
    let mut acceptors: Vec<_> = StreamKind::ALL.iter().map(|kind| a.acceptor(*kind).unwrap()).collect();
    // Each protocol has its own door.
    stranger(&desk.authority, a.local_addr(), b"octopii/1", true).await.unwrap_err();
    stranger(&desk.authority, a.local_addr(), b"octopii-join/1", false).await.unwrap_err();
    // Through the right one: no stream of any kind, no second stream, no more bytes than a request has.
    let inside = stranger(&desk.authority, a.local_addr(), b"octopii-join/1", true).await.unwrap();
    let (mut send, _recv) = inside.open_bi().await.unwrap();
    let flood =
        tokio::time::timeout(Duration::from_millis(300), send.write_all(&[StreamKind::Rpc as u8; 1 << 20]));
    assert!(!matches!(flood.await, Ok(Ok(()))), "a stranger could make a node hold a megabyte");
    assert!(!matches!(tokio::time::timeout(Duration::from_millis(100), inside.open_bi()).await, Ok(Ok(_))));
    for acceptor in &mut acceptors {
        let nothing = tokio::time::timeout(Duration::from_millis(50), acceptor.accept()).await;
        assert!(nothing.is_err(), "a stranger's stream was delivered");
    }
    // A request of any bytes is answered with no.
    let inside = stranger(&desk.authority, a.local_addr(), b"octopii-join/1", true).await.unwrap();
    let (mut send, mut recv) = inside.open_bi().await.unwrap();
    send.write_all(&[&193u32.to_le_bytes()[..], &[1; 193]].concat()).await.unwrap();
    let answer = tokio::time::timeout(SOON, recv.read_to_end(100)).await.unwrap().unwrap();
    assert_eq!(answer, [1, 0, 0, 0, 1]);
}

#[tokio::test]
async fn strangers_who_say_nothing_lose_their_place_and_take_none_of_the_members() {
    let desk = Desk::new(ClusterAuthority::generate().unwrap());
    let limits =
        Limits { joins: 2, handshakes: 2, handshake_timeout: Duration::from_secs(4), ..Limits::default() };
    let a = issuing(&desk, &desk.authority.issue(1).unwrap(), limits);
    let mut silent = Vec::new();
    let from = async |host| stranger_at(host, &desk.authority, a.local_addr(), b"octopii-join/1", true).await;
    for host in 1..3 {
        silent.push(from(host).await.unwrap());
    }
    for host in 1..4 {
        from(host).await.unwrap_err();
    }
    endpoint_with(&desk.authority, 5, EndpointOptions::default()).connect(a.local_addr()).await.unwrap();
    for connection in &silent {
        tokio::time::timeout(SOON, connection.closed()).await.expect("a silent stranger is sent away");
    }
    let token = desk.token(PeerRole::Member, &[a.local_addr()]);
    join(&here(), &token, SOON).await.unwrap();
}

/// Someone with one real address holds all the places that he can get, for as long as he likes.
#[tokio::test]
async fn one_address_does_not_shut_the_door() {
    let desk = Desk::new(ClusterAuthority::generate().unwrap());
    let limits = Limits { joins: 8, handshake_timeout: Duration::from_secs(60), ..Limits::default() };
    let a = issuing(&desk, &desk.authority.issue(1).unwrap(), limits);
    let from = async |host| stranger_at(host, &desk.authority, a.local_addr(), b"octopii-join/1", true).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(from(2).await.unwrap());
    }
    for _ in 0..4 {
        from(2).await.unwrap_err();
    }
    // Another one of that kind gets a quarter of the places.
    for _ in 0..2 {
        silent.push(from(3).await.unwrap());
    }
    from(3).await.unwrap_err();
    let token = desk.token(PeerRole::Member, &[a.local_addr()]);
    join(&here(), &token, SOON).await.unwrap();
}

#[tokio::test]
async fn who_may_only_call_has_no_voice_in_consensus() {
    let authority = ClusterAuthority::generate().unwrap();
    let a = endpoint(&authority, 1);
    let (mut raft, mut rpc) = (a.acceptor(StreamKind::Raft).unwrap(), a.acceptor(StreamKind::Rpc).unwrap());
    for role in [PeerRole::Client, PeerRole::Operator] {
        let identity = authority.issue_as(2, role).unwrap();
        let b = Endpoint::bind(&here(), &identity, EndpointOptions::default()).unwrap();
        let connection = b.connect(a.local_addr()).await.unwrap();
        let (_send, mut recv) = connection.open(StreamKind::Raft).await.unwrap();
        assert_eq!(recv.read_frame(10).await, Err(StreamError::Reset(1)));
        let _stream = connection.open(StreamKind::Rpc).await.unwrap();
        assert_eq!(rpc.accept().await.unwrap().connection.peer().role, role);
    }
    let nothing = tokio::time::timeout(Duration::from_millis(50), raft.accept()).await;
    assert!(nothing.is_err());
}

#[tokio::test]
async fn a_new_identity_serves_new_connections_and_live_ones_go_on() {
    let authority = ClusterAuthority::generate().unwrap();
    let (a, b) = (endpoint(&authority, 1), endpoint(&authority, 2));
    let mut at_a = a.acceptor(StreamKind::Rpc).unwrap();
    let old = b.connect(a.local_addr()).await.unwrap();
    let renewed = authority.issue(1).unwrap();
    a.set_identity(&renewed).unwrap();
    b.set_identity(&authority.issue(2).unwrap()).unwrap();
    assert_eq!(a.identity().hash(), renewed.hash());
    let _stream = old.open(StreamKind::Rpc).await.unwrap();
    assert!(at_a.accept().await.is_some());
    assert!(a.set_identity(&authority.issue(3).unwrap()).is_err());
    assert!(a.set_identity(&ClusterAuthority::generate().unwrap().issue(1).unwrap()).is_err());
    let c = endpoint(&authority, 3);
    c.connect(a.local_addr()).await.unwrap();
    a.connect(c.local_addr()).await.unwrap();
}
