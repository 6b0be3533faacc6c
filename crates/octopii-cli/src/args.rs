//! What can be typed.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};
use octopii::{Address, CertificateHash, NodeId, PeerRole};

/// Ship files, run a replicated key-value store, look after a cluster.
#[derive(Debug, Parser)]
#[command(version, about, after_help = crate::exit::CODES)]
pub(crate) struct Args {
    /// Print JSON, one object per line, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show everything on three local nodes: ship a file, kill the leader, lose nothing
    Demo(Demo),
    /// Keep a local three-node cluster running until Ctrl-C
    Up(Up),
    /// Run one node until Ctrl-C
    Node(Node),
    /// Send a file or a directory to one peer or many
    Send(Send),
    /// Receive files and directories until Ctrl-C
    Recv(Recv),
    /// Read and write the replicated key-value store
    Kv(Kv),
    /// Call a method of a peer in JSON, or list its methods
    Call(Call),
    /// Look after a cluster
    Cluster(Cluster),
    /// Make, list and withdraw join tokens
    Token(Token),
    /// Look into a write-ahead log
    Wal(Wal),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Demo {
    /// Ship this file instead of one made for the purpose
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Keep everything in this directory (it must not exist) instead of a temporary one
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Break one of the demo's claims on purpose, to see that it is noticed
    #[arg(long, value_enum, hide = true)]
    pub(crate) sabotage: Option<Sabotage>,
}

/// What the demo can break behind its own back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sabotage {
    /// Flip one byte of a received file.
    ReceivedByte,
    /// Remove a key that was acknowledged.
    AcknowledgedKey,
    /// Do not restart the killed node.
    Restart,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Up {
    /// Where the three nodes keep their data
    #[arg(long, value_name = "DIR", default_value = "octopii-cluster")]
    pub(crate) dir: PathBuf,
    /// The first of three consecutive ports on 127.0.0.1
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_PORT)]
    pub(crate) base_port: u16,
}

/// The first port of a local cluster.
pub(crate) const DEFAULT_PORT: u16 = 4701;

#[derive(Debug, ClapArgs)]
pub(crate) struct Node {
    /// A TOML file; what is typed here goes before it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the node keeps everything
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The UDP address to listen on
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    pub(crate) bind: Option<SocketAddr>,
    /// The node's id
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<NodeId>,
    /// The node's certificate and key, made by `octopii cluster issue`
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Join a cluster with the token in this file (- for standard input; or the token itself in $OCTOPII_JOIN). Once joined,
    /// the node's own identity is used
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    pub(crate) join: Option<PathBuf>,
    /// Issue certificates with the authority in this file, made by `octopii cluster init`
    #[arg(long, value_name = "FILE")]
    pub(crate) authority: Option<PathBuf>,
    /// An initial member of a new cluster, this node included; repeat for each, the same on every node. A host name is looked up
    /// for each connection
    #[arg(long = "member", value_name = "ID=HOST:PORT", value_parser = parse_member)]
    pub(crate) members: Vec<(NodeId, Address)>,
    /// Take the local nodes' shared authority from this directory
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) authority_dir: Option<PathBuf>,
    /// Stop when standard input ends, so that a node does not outlive the program that started it
    #[arg(long, hide = true)]
    pub(crate) until_eof: bool,
}

#[derive(Debug, Clone, ClapArgs)]
#[command(
    override_usage = "octopii send [OPTIONS] <PATH>... <PEER>...\n       octopii send [OPTIONS] <PATH>... --to-all"
)]
pub(crate) struct Send {
    /// The files and directories to send (with --stdin, the name that the receiver gives to what is read), and then the
    /// addresses of the peers, such as 127.0.0.1:4701 or host.example.com:4700. A file that is called like an address: ./photo:1
    #[arg(required = true, value_name = "PATH... PEER")]
    pub(crate) what: Vec<OsString>,
    /// The one of them whose turn it is.
    #[arg(skip)]
    pub(crate) path: PathBuf,
    #[arg(skip)]
    pub(crate) peers: Vec<Address>,
    /// Send to all members of a cluster, as its nodes tell (see --node)
    #[arg(long)]
    pub(crate) to_all: bool,
    /// With --to-all: nodes to ask for the members
    #[arg(long = "node", value_name = "ADDR", value_parser = parse_peer, env = "OCTOPII_NODES", value_delimiter = ',',
          default_values_t = [local(0), local(1), local(2)])]
    pub(crate) nodes: Vec<Address>,
    /// Files: enough is when so many peers have it; those that are slower are cut off, and go on when it is sent again
    #[arg(long, value_name = "N")]
    pub(crate) quorum: Option<NonZeroUsize>,
    /// Give up after this long, such as 90s
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
    pub(crate) timeout: Duration,
    /// Send standard input, up to its end, to one peer
    #[arg(long)]
    pub(crate) stdin: bool,
    /// Files: begin anew, also if a peer has a part from before
    #[arg(long, overrides_with = "resume")]
    pub(crate) no_resume: bool,
    /// Files: go on from what a peer has from before (the default)
    #[arg(long, overrides_with = "no_resume")]
    pub(crate) resume: bool,
    /// How often in a row to go on after a lost connection
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub(crate) retries: u32,
    /// Files: how safe they must be at each peer before it counts as sent (directories are always durable)
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t = Ack::Durable)]
    pub(crate) ack: Ack,
    /// Compress with zstd, at level 1 to 19 (3 if none is given), each block of 1 MiB that becomes smaller by it, and small files of
    /// directories together
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "3",
          value_parser = clap::value_parser!(i32).range(1..=19))]
    pub(crate) compress: Option<i32>,
    /// Bytes per second to each peer, such as 500k or 10M, in powers of 1024
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) limit_rate: Option<NonZeroU64>,
    /// Directories: tell files apart by their SHA-256 instead of by size and time
    #[arg(long)]
    pub(crate) checksum: bool,
    /// Directories: remove at the peer what is no longer here, when all else is done; peers must allow it
    #[arg(long)]
    pub(crate) delete: bool,
    /// Directories: only tell what would be sent and removed, in a single attempt
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Directories: send symbolic links that stay inside, as links
    #[arg(long)]
    pub(crate) links: bool,
    /// Directories: fail at the first entry that cannot be read
    #[arg(long)]
    pub(crate) strict: bool,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
}

impl Send {
    /// Takes apart what was typed in one row: the addresses at its end are the peers.
    pub(crate) fn paths_and_peers(&self) -> (Vec<PathBuf>, Vec<Address>) {
        let address = |typed: &OsString| typed.to_str().and_then(|typed| parse_peer(typed).ok());
        let peers: Vec<_> = self.what.iter().rev().map_while(address).collect();
        let paths = self.what[..self.what.len() - peers.len()].iter().map(PathBuf::from).collect();
        (paths, peers.into_iter().rev().collect())
    }
}

/// Ends the program as it does when clap finds the mistake.
pub(crate) fn mistake(what: impl fmt::Display) -> ! {
    Args::command().error(ErrorKind::ValueValidation, what).exit()
}

/// How safe a file must be at its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ack {
    /// Every byte arrived and was checked; naming the file comes after
    Received,
    /// It has its name, and SHA-256 agrees; a power cut there may still take it
    Verified,
    /// It is on stable storage
    Durable,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Recv {
    /// The directory to receive into
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// The UDP address to listen on
    #[arg(long, value_name = "ADDR", value_parser = parse_address, default_value = "127.0.0.1:4700")]
    pub(crate) bind: SocketAddr,
    /// Stop after so many files
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Directories: what happens if the name is taken
    #[arg(long, value_enum, default_value_t = Existing::Own)]
    pub(crate) existing: Existing,
    /// Directories: let the node that has sent one, and operators, remove from it with --delete what is no longer at the source; with
    /// --existing update everybody may
    #[arg(long)]
    pub(crate) delete: bool,
    /// Directories: make symbolic links that stay inside
    #[arg(long)]
    pub(crate) links: bool,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
}

/// What happens to an existing directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Existing {
    /// Update it if the same source has made it, or make another beside it
    Own,
    /// Update it, whoever has made it
    Update,
    /// Make another beside it
    Fresh,
    /// Refuse
    Refuse,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct IdentityArgs {
    /// Certificate and key made by `octopii cluster issue`; on loopback one is made as needed
    #[arg(long, value_name = "FILE", env = "OCTOPII_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Target {
    /// Nodes to ask, in turn until one answers
    #[arg(long = "node", value_name = "ADDR", value_parser = parse_peer, env = "OCTOPII_NODES", value_delimiter = ',', global = true,
          default_values_t = [local(0), local(1), local(2)])]
    pub(crate) nodes: Vec<Address>,
    /// Give up after this long
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s", global = true)]
    pub(crate) timeout: Duration,
    /// Certificate and key made by `octopii cluster issue`; on loopback one is made as needed
    #[arg(long, value_name = "FILE", env = "OCTOPII_IDENTITY", global = true)]
    pub(crate) identity: Option<PathBuf>,
}

fn local(offset: u16) -> Address {
    SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT + offset)).into()
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Kv {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: KvCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Print a key's value
    Get { key: String },
    /// Set a key
    Put { key: String, value: String },
    /// Remove a key
    Del { key: String },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Call {
    /// The peer to call, such as 127.0.0.1:4701 or node1.example.com:4701
    #[arg(value_name = "PEER", value_parser = parse_peer)]
    pub(crate) peer: Address,
    /// The method to call, such as bank.balance; with --list, the beginning of its name. Without it the methods are listed
    pub(crate) method: Option<String>,
    /// The request in JSON: null for no argument, an array for several, or an object with their names. A method that streams
    /// requests reads them from standard input instead, one per line
    pub(crate) request: Option<String>,
    /// List the peer's methods, and what they take and give
    #[arg(long)]
    pub(crate) list: bool,
    /// Send the request as it is typed, even if it does not fit what the peer tells of the method
    #[arg(long)]
    pub(crate) unchecked: bool,
    /// Show the metadata that comes back, on standard error
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Give up after this long
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "10s")]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Cluster {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the members, the leader, and how far each node is
    Status,
    /// Add an empty node that is up as a learner: it receives the log but does not vote
    Add {
        id: NodeId,
        /// Where the members find it, such as 10.0.0.4:4701 or node-4.example.com:4701
        #[arg(value_parser = parse_peer)]
        addr: Address,
    },
    /// Make a learner that has caught up a voter
    Promote { id: NodeId },
    /// Remove a member
    Remove { id: NodeId },
    /// Hand leadership to another voter
    TransferLeader { id: NodeId },
    /// Make the authority of a new cluster, to issue identities with, and an operator's identity
    Init {
        /// The file to write (mode 0600). Whoever has it can admit nodes
        #[arg(long, value_name = "FILE", default_value = "octopii-authority.pem")]
        authority: PathBuf,
        /// The file for the operator's identity (mode 0600)
        #[arg(long, value_name = "FILE", default_value = "octopii-operator.pem")]
        operator: PathBuf,
    },
    /// Revoke a node's certificates for ever, or one certificate: its connections end everywhere at once. Remove the node from the
    /// membership as well
    Revoke {
        /// The node's id
        #[arg(required_unless_present = "certificate", conflicts_with = "certificate")]
        id: Option<NodeId>,
        /// Only the certificate with this hash, such as one that was replaced; after a theft revoke the node, since whoever has a key can
        /// have it renewed
        #[arg(long, value_name = "HASH")]
        certificate: Option<CertificateHash>,
        /// Sign with the authority in this file, instead of having the issuing node sign
        #[arg(long, value_name = "FILE")]
        authority: Option<PathBuf>,
    },
    /// Show what is revoked
    Revoked,
    /// Show the certificates that the issuing node has issued, for tokens and in exchange for others: whose, when, to which address
    Issued {
        /// Only this node's
        id: Option<NodeId>,
    },
    /// Make a new authority for a cluster, in three steps; see "Rotation" in docs/RPC_AND_TRANSPORT.md
    Succeed {
        /// The authority's file
        #[arg(long, value_name = "FILE", default_value = "octopii-authority.pem")]
        authority: PathBuf,
        /// The directory for the three files to write (mode 0600), which must exist
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Have the nodes named by --node replace their keys and certificates, while they run
    Rotate {
        /// The node that issues certificates; none: each node asks itself
        #[arg(long, value_name = "ADDR", value_parser = parse_peer)]
        issuer: Option<Address>,
    },
    /// Issue an identity for a node or a client
    Issue {
        /// The authority's file
        #[arg(long, value_name = "FILE", default_value = "octopii-authority.pem")]
        authority: PathBuf,
        /// The node's id
        #[arg(long)]
        id: NodeId,
        /// What its holder may do: member (a node), operator (who looks after the cluster) or client
        #[arg(long, default_value_t = PeerRole::Member)]
        role: PeerRole,
        /// The file to write (mode 0600)
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Token {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print a token that lets one node join, once. Whoever has it can join: hand it over as a password
    Create {
        /// What its bearer may do: member (a node), operator (who looks after the cluster) or client
        #[arg(long, default_value_t = PeerRole::Member)]
        role: PeerRole,
        /// How long it is good for
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
        ttl: Duration,
        /// The id that its bearer gets; without, a free one is chosen
        #[arg(long)]
        id: Option<NodeId>,
        /// Where joiners find the issuing node (IP:PORT or HOST:PORT); repeat for several. Default: where it listens
        #[arg(long = "address", value_name = "ADDR")]
        addresses: Vec<String>,
    },
    /// Show the tokens and what has become of them
    List,
    /// Withdraw a token
    Revoke {
        /// Its id, as `octopii token list` shows it
        id: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Wal {
    #[command(subcommand)]
    pub(crate) command: WalCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// Show segments and topics; works while a node has the log open
    Inspect {
        /// A log's directory, or a node's data directory
        dir: PathBuf,
    },
    /// Read all of it and check every checksum; works while a node has the log open
    Verify {
        /// A log's directory, or a node's data directory
        dir: PathBuf,
    },
    /// Show every record that can be read, also from a damaged log; with --json, with the entries in hexadecimal
    Dump(WalDump),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WalDump {
    /// A log's directory, or a node's data directory
    pub(crate) dir: PathBuf,
    /// Only records of this topic
    #[arg(long)]
    pub(crate) topic: Option<String>,
    /// Only entries from this index on
    #[arg(long, value_name = "INDEX")]
    pub(crate) from: Option<u64>,
    /// Only entries before this index
    #[arg(long, value_name = "INDEX")]
    pub(crate) to: Option<u64>,
}

fn parse_member(text: &str) -> Result<(NodeId, Address), String> {
    let (id, addr) = text.split_once('=').ok_or("it should look like 1=127.0.0.1:4701")?;
    let id = id.parse().map_err(|_| format!("{id:?} is not a node id (a number)"))?;
    Ok((id, parse_peer(addr)?))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address and a port, such as 127.0.0.1:4701"))
}

fn parse_peer(text: &str) -> Result<Address, String> {
    text.parse().map_err(|e: octopii::NotAnAddress| e.to_string())
}

fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    let (number, shift) = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((number, "k" | "K")) => (number, 10),
        Some((number, "m" | "M")) => (number, 20),
        Some((number, "g" | "G")) => (number, 30),
        _ => (text, 0),
    };
    let rate = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).and_then(NonZeroU64::new);
    rate.ok_or_else(|| "it should look like 100000, 500k, 10M or 1G".to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    octopii::parse_duration(text).ok_or_else(|| "it should look like 250ms, 5s, 2m or 1h".to_owned())
}
