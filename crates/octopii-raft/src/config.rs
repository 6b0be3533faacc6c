//! How consensus is tuned.

use std::time::Duration;

use crate::error::StartError;

/// How consensus is tuned. The same values should be used on every member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftConfig {
    /// The leader proves that it is alive this often. Also how long one heartbeat may take. Default 50 ms.
    pub heartbeat_interval: Duration,
    /// A follower that heard nothing waits at least this long, on top of the leader's lease, before it stands for election.
    /// Default 200 ms.
    pub election_timeout_min: Duration,
    /// The longest such wait, and the leader's lease: nobody is elected within this time of the leader's last sign of life.
    /// Default 350 ms. A dead leader is replaced after `max + (min … max)`, so 0.55 to 0.7 s by default; lower is faster, but
    /// a disk that stalls for longer than this costs an election.
    pub election_timeout_max: Duration,
    /// How long [`propose`](crate::Consensus::propose), [`query`](crate::Consensus::query) and membership changes wait for a
    /// leader and a quorum before they give up. Default 5 s.
    pub request_timeout: Duration,
    /// How long [`bootstrap`](crate::Consensus::bootstrap) waits for all initial members, to the second. Default 30 s.
    pub bootstrap_timeout: Duration,
    /// How long a follower may take to store and acknowledge one batch of entries. Default 2 s.
    pub append_timeout: Duration,
    /// How long one snapshot may take to travel to a member and be installed there. Default 10 min.
    pub snapshot_timeout: Duration,
    /// A snapshot is taken every so many log entries. Default 10,000. Lower: less to replay at start, more writing.
    pub snapshot_every: u64,
    /// After a snapshot, so many of the entries it contains are kept for members that lag a little. Default 5,000.
    pub keep_entries: u64,
    /// A member that lags by more entries than this gets a snapshot instead of entries; also how close a learner must be to
    /// be promoted. Default 15,000; must exceed `snapshot_every`.
    pub lag_threshold: u64,
    /// The longest command, in bytes. Default 1 MiB.
    pub max_command: usize,
    /// Proposals of this node under way at once; further ones wait their turn. Default 4,096.
    pub max_in_flight: usize,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(50),
            election_timeout_min: Duration::from_millis(200),
            election_timeout_max: Duration::from_millis(350),
            request_timeout: Duration::from_secs(5),
            bootstrap_timeout: Duration::from_secs(30),
            append_timeout: Duration::from_secs(2),
            snapshot_timeout: Duration::from_secs(600),
            snapshot_every: 10_000,
            keep_entries: 5_000,
            lag_threshold: 15_000,
            max_command: 1 << 20,
            max_in_flight: 4096,
        }
    }
}

impl RaftConfig {
    pub(crate) fn build(&self, cluster: String) -> Result<openraft::Config, StartError> {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let invalid = |what: &str| Err(StartError::Config(what.to_owned()));
        if millis(self.heartbeat_interval) == 0 {
            return invalid("heartbeat_interval must be at least 1 ms");
        }
        if self.snapshot_every == 0 || self.lag_threshold <= self.snapshot_every {
            return invalid("snapshot_every must be at least 1 and lag_threshold greater than it");
        }
        if self.max_command == 0 || self.max_command > COMMAND_LIMIT {
            return invalid("max_command must be between 1 byte and 8 MiB");
        }
        if self.max_in_flight == 0 || self.max_in_flight > tokio::sync::Semaphore::MAX_PERMITS {
            return invalid("max_in_flight must be at least 1");
        }
        let config = openraft::Config {
            cluster_name: cluster,
            heartbeat_interval: millis(self.heartbeat_interval),
            election_timeout_min: millis(self.election_timeout_min),
            election_timeout_max: millis(self.election_timeout_max),
            install_snapshot_timeout: millis(self.snapshot_timeout),
            max_payload_entries: MAX_BATCH_ENTRIES,
            replication_lag_threshold: self.lag_threshold,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_entries,
            // A node that cannot win must not depose a leader that others can hear.
            enable_pre_vote: Some(true),
            // Without it a leader cut off from its quorum can keep a reachable minority from ever electing (liveness only).
            quorum_loss_probe_interval: Some(millis(self.election_timeout_max).saturating_mul(2)),
            // A restarted leader has lost its lease and must be elected like anyone else.
            enable_leader_restore: Some(false),
            backoff: "50ms 100ms 200ms ...1s".to_owned(),
            ..openraft::Config::default()
        };
        config.validate().map_err(|e| StartError::Config(e.to_string()))
    }
}

/// Entries per append request; bytes are limited too (see `log::store`).
const MAX_BATCH_ENTRIES: u64 = 1024;

/// Twice this must fit into a frame of the transport with room to spare.
const COMMAND_LIMIT: usize = 8 << 20;
