//! What a node is told: a plain struct, a file, the environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use octopii_raft::RaftConfig;
use octopii_rpc::{MessengerOptions, ServerOptions};
use octopii_transfer::TransferOptions;
use octopii_transport::{Address, Identity, JoinToken, Limits, NameRules, NodeId, PeerRole, Profile};
use octopii_wal::Durability;
use serde::Deserialize;

/// What a node is told. Make one with [`Config::new`] and change its fields, or load it with [`Config::load`]; it is
/// checked once, when the node starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Everything the node keeps lies here: identity, log, state, inbox, lock. One node per directory.
    pub data_dir: PathBuf,
    /// The UDP address to listen on. Default `127.0.0.1:0`: loopback, any free port.
    pub bind: SocketAddr,
    /// The node's id. Default: the one on its certificate, or kept in the data directory, or a random one.
    pub node_id: Option<NodeId>,
    /// Where the certificate comes from. Default [`IdentitySource::Auto`].
    pub identity: IdentitySource,
    /// The authority's PEM file, made by `octopii cluster init`: with it, this node issues certificates to whoever joins with a
    /// token, and its own if it has none. Whoever can read the file can admit nodes, so give it to one node, or to a few that
    /// are well guarded. Default none.
    pub authority: Option<PathBuf>,
    /// The members that form a new cluster, this node included, the same map on each. Empty (the default): the node waits
    /// to be added to a cluster, or is alone. Ignored once the node belongs to a cluster. Host names stay as they are written, in
    /// the membership too, and are looked up for each connection.
    pub members: BTreeMap<NodeId, Address>,
    /// Whether the node takes part in consensus and keeps a log. Default true; without it, it ships files, sends messages
    /// and answers RPC.
    pub consensus: bool,
    /// When the log's writes are durable. Default [`Durability::Synced`]: before they are acknowledged.
    pub durability: Durability,
    /// How long [`Peer::send`](crate::Peer::send) waits for the other application. Default 10 s.
    pub call_timeout: Duration,
    /// Received chunks remembered for [`Peer::recv_chunk_verified`](crate::Peer::recv_chunk_verified). When nobody takes
    /// them the oldest is forgotten; its file stays in the inbox. Default 1,024.
    pub chunk_queue: usize,
    /// The kind of network. Default: loopback on a loopback address, else a local one. [`with_profile`](Self::with_profile) sets the
    /// limits to match.
    pub profile: Option<Profile>,
    /// Bounds on what peers may make the node hold.
    pub limits: Limits,
    /// The tuning of consensus.
    pub raft: RaftConfig,
    /// Bounds of transfers.
    pub transfer: TransferOptions,
    /// Bounds of messages.
    pub messages: MessengerOptions,
    /// Bounds of RPC.
    pub rpc: ServerOptions,
}

/// Where a node's certificate comes from.
#[derive(Debug, Clone, Default)]
pub enum IdentitySource {
    /// The one in the data directory. A node on a loopback address that has none gets one from an authority that this
    /// user's local nodes share (in [`state_dir`](crate::state_dir), made when first needed); elsewhere a node without an
    /// identity is refused.
    #[default]
    Auto,
    /// As `Auto`, with another directory for the shared authority.
    LocalAuthority(PathBuf),
    /// A PEM file made by `octopii cluster issue`.
    File(PathBuf),
    /// This one.
    Given(Identity),
    /// Made by a company's own authority (cert-manager, SPIFFE and the like), in files of PEM.
    External(ExternalIdentity),
    /// The one in the data directory; if there is none, one is asked for with this token, and kept there.
    Token(JoinToken),
}

/// Where a certificate of somebody else's making lies, and how its names are read. Read again when the node is told to
/// ([`OctopiiNode::reload_identity`](crate::OctopiiNode::reload_identity), SIGHUP to the command).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalIdentity {
    /// The node's certificate, and those between it and an authority (`tls.crt`).
    pub certificate: PathBuf,
    /// Its private key (`tls.key`).
    pub key: PathBuf,
    /// The authorities to trust (`ca.crt`).
    pub roots: PathBuf,
    /// How names tell nodes; the same on every node of the cluster.
    pub names: NameRules,
}

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The file or a variable does not say what it should.
    #[error("{origin}: {reason}")]
    Invalid {
        /// The file or the environment variable.
        origin: String,
        /// What is wrong.
        reason: String,
    },
}

impl Config {
    /// The defaults, with a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), ..Self::default() }
    }

    /// For a kind of network: sets [`profile`](Self::profile) and [`limits`](Self::limits).
    #[must_use]
    pub fn with_profile(mut self, profile: Profile) -> Self {
        self.profile = Some(profile);
        self.limits = profile.limits();
        self
    }

    /// Reads a TOML file, then lets `OCTOPII_*` environment variables override it. `None`: the environment alone.
    ///
    /// Keys: `data_dir`, `bind`, `node_id`, `identity` (a PEM file), `authority` (a PEM file), `profile` (`"lan"`, `"wan"`,
    /// `"loopback"`), `consensus`, `durability` (`"synced"`, `"none"`, or
    /// an interval such as `"200ms"`), `call_timeout`, the table `[members]` (`1 = "127.0.0.1:5001"`, `2 = "node-2.example.com:5001"`), the table `[limits]` (the fields of [`Limits`] in bytes, numbers
    /// and durations), the table `[external_identity]` (`certificate`, `key`, `roots`: PEM files;
    /// `cluster`: its name; `names`: patterns, see [`NameRules`]; `role`: of names without one), and the table
    /// `[raft]` with `heartbeat_interval`, `election_timeout_min`, `election_timeout_max`, `request_timeout`,
    /// `snapshot_every`. Variables: `OCTOPII_DATA_DIR`, `OCTOPII_BIND`, `OCTOPII_NODE_ID`, `OCTOPII_IDENTITY`,
    /// `OCTOPII_AUTHORITY`, `OCTOPII_DURABILITY`. Unknown keys are refused.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            let read = |reason: String| ConfigError::Read { path: path.to_owned(), reason };
            let bytes = octopii_vfs::read_file(&octopii_vfs::RealVfs, path, MAX_FILE)
                .map_err(|e| read(e.to_string()))?;
            let text = String::from_utf8(bytes).map_err(|_| read("it is not UTF-8 text".to_owned()))?;
            config.apply_toml(&text, &path.display().to_string())?;
        }
        config.apply_env(|name| std::env::var(name).ok())?;
        Ok(config)
    }

    fn apply_toml(&mut self, text: &str, origin: &str) -> Result<(), ConfigError> {
        let invalid = |reason: String| ConfigError::Invalid { origin: origin.to_owned(), reason };
        let file: File = toml::from_str(text).map_err(|e| invalid(toml_mistake(text, &e)))?;
        set(&mut self.data_dir, file.data_dir);
        set(&mut self.bind, file.bind);
        self.node_id = file.node_id.or(self.node_id);
        set(&mut self.identity, file.identity.map(IdentitySource::File));
        if let Some(external) = file.external_identity {
            self.identity = IdentitySource::External(external.checked().map_err(invalid)?);
        }
        self.authority = file.authority.or(self.authority.take());
        if let Some(text) = file.profile {
            let profile: Profile = text.parse().map_err(|e| invalid(format!("profile: {text:?}: {e}")))?;
            (self.profile, self.limits) = (Some(profile), profile.limits());
        }
        file.limits.apply(&mut self.limits).map_err(|reason| invalid(format!("limits.{reason}")))?;
        set(&mut self.consensus, file.consensus);
        for (id, addr) in file.members {
            let id =
                id.parse().map_err(|_| invalid(format!("members: {id:?} is not a node id (a number)")))?;
            self.members.insert(id, addr);
        }
        let duration = |key: &str, text: Option<String>| {
            text.map(|text| parse_duration(&text).ok_or_else(|| invalid(not_a_duration(key, &text))))
                .transpose()
        };
        set(&mut self.call_timeout, duration("call_timeout", file.call_timeout)?);
        set(
            &mut self.raft.heartbeat_interval,
            duration("raft.heartbeat_interval", file.raft.heartbeat_interval)?,
        );
        set(
            &mut self.raft.election_timeout_min,
            duration("raft.election_timeout_min", file.raft.election_timeout_min)?,
        );
        set(
            &mut self.raft.election_timeout_max,
            duration("raft.election_timeout_max", file.raft.election_timeout_max)?,
        );
        set(&mut self.raft.request_timeout, duration("raft.request_timeout", file.raft.request_timeout)?);
        set(&mut self.raft.snapshot_every, file.raft.snapshot_every);
        if let Some(every) = file.raft.snapshot_every {
            // The defaults' proportions: a member is sent a snapshot when it lags by more than one and a half.
            self.raft.keep_entries = every / 2;
            self.raft.lag_threshold = every.saturating_add(every / 2).saturating_add(1);
        }
        if let Some(text) = file.durability {
            self.durability =
                parse_durability(&text).ok_or_else(|| invalid(not_a_durability("durability", &text)))?;
        }
        Ok(())
    }

    fn apply_env(&mut self, var: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        let invalid = |name: &str, reason: String| ConfigError::Invalid { origin: name.to_owned(), reason };
        set(&mut self.data_dir, var("OCTOPII_DATA_DIR").map(PathBuf::from));
        set(&mut self.identity, var("OCTOPII_IDENTITY").map(|path| IdentitySource::File(path.into())));
        self.authority = var("OCTOPII_AUTHORITY").map(PathBuf::from).or(self.authority.take());
        if let Some(text) = var("OCTOPII_BIND") {
            self.bind = text.parse().map_err(|_| {
                invalid("OCTOPII_BIND", format!("{text:?} is not an address such as 127.0.0.1:5001"))
            })?;
        }
        if let Some(text) = var("OCTOPII_NODE_ID") {
            let id =
                text.parse().map_err(|_| invalid("OCTOPII_NODE_ID", format!("{text:?} is not a number")))?;
            self.node_id = Some(id);
        }
        if let Some(text) = var("OCTOPII_DURABILITY") {
            self.durability = parse_durability(&text)
                .ok_or_else(|| invalid("OCTOPII_DURABILITY", not_a_durability("durability", &text)))?;
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("octopii-data"),
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            node_id: None,
            identity: IdentitySource::Auto,
            authority: None,
            members: BTreeMap::new(),
            consensus: true,
            durability: Durability::Synced,
            call_timeout: Duration::from_secs(10),
            chunk_queue: 1024,
            profile: None,
            limits: Limits::default(),
            raft: RaftConfig::default(),
            transfer: TransferOptions::default(),
            messages: MessengerOptions::default(),
            rpc: ServerOptions::default(),
        }
    }
}

/// A configuration file longer than this is no configuration file.
const MAX_FILE: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: Option<PathBuf>,
    bind: Option<SocketAddr>,
    node_id: Option<NodeId>,
    identity: Option<PathBuf>,
    authority: Option<PathBuf>,
    profile: Option<String>,
    consensus: Option<bool>,
    durability: Option<String>,
    call_timeout: Option<String>,
    #[serde(default)]
    members: BTreeMap<String, Address>,
    #[serde(default)]
    raft: RaftFile,
    #[serde(default)]
    limits: LimitsFile,
    external_identity: Option<ExternalFile>,
}

/// Bounds on peers. Sizes in bytes.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsFile {
    handshakes: Option<usize>,
    handshake_timeout: Option<String>,
    incoming_buffer: Option<u64>,
    incoming_buffer_total: Option<u64>,
    joins: Option<usize>,
    connections: Option<usize>,
    connections_per_peer: Option<usize>,
    streams_per_connection: Option<u32>,
    stream_header_timeout: Option<String>,
    accept_queue: Option<usize>,
    stream_window: Option<u32>,
    connection_window: Option<u32>,
    send_window: Option<u64>,
}

impl LimitsFile {
    fn apply(self, limits: &mut Limits) -> Result<(), String> {
        const MOST: usize = 1_000_000;
        /// Peers answer over a network.
        const LEAST_TIMEOUT: Duration = Duration::from_millis(100);
        /// A first packet.
        const LEAST_BUFFER: u64 = 1200;
        for (name, value, field) in [
            ("handshakes", self.handshakes, &mut limits.handshakes),
            ("joins", self.joins, &mut limits.joins),
            ("connections", self.connections, &mut limits.connections),
            ("connections_per_peer", self.connections_per_peer, &mut limits.connections_per_peer),
            ("accept_queue", self.accept_queue, &mut limits.accept_queue),
        ] {
            if value.is_some_and(|value| value == 0 || value > MOST) {
                return Err(format!("{name}: it is between 1 and {MOST}"));
            }
            set(field, value);
        }
        for (name, text, field) in [
            ("handshake_timeout", self.handshake_timeout, &mut limits.handshake_timeout),
            ("stream_header_timeout", self.stream_header_timeout, &mut limits.stream_header_timeout),
        ] {
            let Some(text) = text else { continue };
            *field = parse_duration(&text).ok_or_else(|| not_a_duration(name, &text))?;
            if *field < LEAST_TIMEOUT {
                return Err(format!("{name}: at least 100ms, or nobody gets in"));
            }
        }
        if self.streams_per_connection == Some(0) {
            return Err("streams_per_connection: at least 1, or nobody can ask for anything".to_owned());
        }
        set(&mut limits.streams_per_connection, self.streams_per_connection);
        let least = |name: &str, value: Option<u64>| match value {
            Some(value) if value < 16 << 10 => Err(format!("{name}: at least 16384 bytes")),
            _ => Ok(()),
        };
        least("stream_window", self.stream_window.map(u64::from))?;
        least("connection_window", self.connection_window.map(u64::from))?;
        least("send_window", self.send_window)?;
        set(&mut limits.stream_window, self.stream_window);
        set(&mut limits.connection_window, self.connection_window);
        set(&mut limits.send_window, self.send_window);
        for (name, value, field) in [
            ("incoming_buffer", self.incoming_buffer, &mut limits.incoming_buffer),
            ("incoming_buffer_total", self.incoming_buffer_total, &mut limits.incoming_buffer_total),
        ] {
            if value.is_some_and(|value| value < LEAST_BUFFER) {
                return Err(format!("{name}: at least {LEAST_BUFFER} bytes"));
            }
            set(field, value);
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExternalFile {
    certificate: PathBuf,
    key: PathBuf,
    roots: PathBuf,
    cluster: String,
    names: Vec<String>,
    role: Option<String>,
}

impl ExternalFile {
    fn checked(self) -> Result<ExternalIdentity, String> {
        let role = self.role.map_or(Ok(PeerRole::Member), |role| role.parse()).map_err(|e| e.to_string())?;
        let patterns = self.names.iter().map(|pattern| (pattern, role));
        let names = NameRules::new(&self.cluster, patterns).map_err(|e| e.to_string())?;
        Ok(ExternalIdentity { certificate: self.certificate, key: self.key, roots: self.roots, names })
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RaftFile {
    heartbeat_interval: Option<String>,
    election_timeout_min: Option<String>,
    election_timeout_max: Option<String>,
    request_timeout: Option<String>,
    snapshot_every: Option<u64>,
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn parse_durability(text: &str) -> Option<Durability> {
    match text {
        "synced" => Some(Durability::Synced),
        "none" => Some(Durability::None),
        interval => parse_duration(interval).map(Durability::Interval),
    }
}

/// In one line: where, what stands there, what is wrong with it.
fn toml_mistake(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let number = before.map_or(0, |before| before.matches('\n').count());
    let line = text.lines().nth(number).unwrap_or_default().trim();
    format!("line {}, `{line}`: {}", number + 1, error.message().replace('\n', " "))
}

fn not_a_durability(key: &str, text: &str) -> String {
    format!("{key}: {text:?} is not \"synced\", \"none\" or an interval such as \"200ms\"")
}

fn not_a_duration(key: &str, text: &str) -> String {
    format!("{key}: {text:?} is not a duration such as \"250ms\", \"5s\" or \"2m\"")
}

/// Reads a duration as Octopii's files and commands write it: a whole number followed by `ms`, `s`, `m` or `h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_the_docs_say() {
        let mut config = Config::default();
        let text = r#"
            data_dir = "/var/lib/octopii"
            bind = "127.0.0.1:5001"
            node_id = 1
            durability = "200ms"
            call_timeout = "3s"
            profile = "wan"
            [limits]
            connections_per_peer = 5
            handshake_timeout = "2s"
            [members]
            1 = "127.0.0.1:5001"
            2 = "node-2.example.com:5002"
            [raft]
            heartbeat_interval = "20ms"
            snapshot_every = 100
        "#;
        config.apply_toml(text, "test").expect("valid");
        assert_eq!(config.node_id, Some(1));
        let members: Vec<_> = config.members.values().map(ToString::to_string).collect();
        assert_eq!(members, ["127.0.0.1:5001", "node-2.example.com:5002"]);
        let limits = Limits {
            connections_per_peer: 5,
            handshake_timeout: Duration::from_secs(2),
            ..Profile::Wan.limits()
        };
        assert_eq!((config.profile, &config.limits), (Some(Profile::Wan), &limits));
        assert_eq!(config.durability, Durability::Interval(Duration::from_millis(200)));
        assert_eq!(config.call_timeout, Duration::from_secs(3));
        assert_eq!(config.raft.heartbeat_interval, Duration::from_millis(20));
        assert!(config.raft.lag_threshold > config.raft.snapshot_every);
        config
            .apply_env(|name| (name == "OCTOPII_BIND").then(|| "127.0.0.1:6001".to_owned()))
            .expect("valid");
        assert_eq!(config.bind.port(), 6001);
    }

    /// As docs/RPC_AND_TRANSPORT.md says: each of them, under the same name. A new field does not compile without its line here.
    #[test]
    fn every_limit_can_be_set() {
        let Limits {
            handshakes: _,
            handshake_timeout: _,
            incoming_buffer: _,
            incoming_buffer_total: _,
            joins: _,
            connections: _,
            connections_per_peer: _,
            streams_per_connection: _,
            stream_header_timeout: _,
            accept_queue: _,
            stream_window: _,
            connection_window: _,
            send_window: _,
        } = Limits::default();
        let text = "[limits]\nhandshakes = 11\nhandshake_timeout = \"12s\"\nincoming_buffer = 20001\n\
            incoming_buffer_total = 20002\njoins = 13\nconnections = 14\nconnections_per_peer = 15\n\
            streams_per_connection = 16\nstream_header_timeout = \"17s\"\naccept_queue = 18\nstream_window = 20003\n\
            connection_window = 20004\nsend_window = 20005\n";
        let mut config = Config::default();
        config.apply_toml(text, "octopii.toml").expect("valid");
        let set = Limits {
            handshakes: 11,
            handshake_timeout: Duration::from_secs(12),
            incoming_buffer: 20_001,
            incoming_buffer_total: 20_002,
            joins: 13,
            connections: 14,
            connections_per_peer: 15,
            streams_per_connection: 16,
            stream_header_timeout: Duration::from_secs(17),
            accept_queue: 18,
            stream_window: 20_003,
            connection_window: 20_004,
            send_window: 20_005,
        };
        assert_eq!(config.limits, set);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, told) in [
            ("bynd = \"x\"", "bynd"),
            ("bind = \"localhost\"", "bind"),
            ("durability = \"sometimes\"", "sometimes"),
            ("call_timeout = \"5 parsecs\"", "parsecs"),
            ("[members]\nseven = \"127.0.0.1:1\"", "seven"),
            ("[members]\n7 = \"node 7:1\"", "node 7:1"),
            ("[members]\n7 = \"node-7\"", "node-7"),
            ("profile = \"moon\"", "moon"),
            ("[limits]\naccept_queue = 0", "limits.accept_queue"),
            ("[limits]\nstream_window = 5", "limits.stream_window"),
            ("[limits]\nhandshake_timeout = \"soon\"", "soon"),
            ("[limits]\nconections = 5", "conections"),
            ("[limits]\nhandshake_timeout = \"0ms\"", "limits.handshake_timeout"),
            ("[limits]\nstream_header_timeout = \"99ms\"", "limits.stream_header_timeout"),
            ("[limits]\nincoming_buffer = 0", "limits.incoming_buffer"),
            ("[raft]\nspeed = 1", "speed"),
            (
                "[external_identity]\ncertificate = \"c\"\nkey = \"k\"\nroots = \"r\"\ncluster = \"prod\"\nnames = [\"node\"]",
                "{id}",
            ),
        ] {
            let error = Config::default().apply_toml(text, "octopii.toml").expect_err(text).to_string();
            assert!(error.contains(told) && error.contains("octopii.toml"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let error = Config::default()
            .apply_env(|name| (name == "OCTOPII_NODE_ID").then(|| "one".to_owned()))
            .expect_err("not a number");
        assert!(error.to_string().contains("OCTOPII_NODE_ID"), "{error}");
    }
}
