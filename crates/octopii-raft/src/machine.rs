//! The application's state machine as the consensus library drives it: sessions around it, snapshots beside it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use octopii_transport::Executor;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, Snapshot};

use crate::error::SnapshotError;
use crate::group::{Command, Group, LogId, Outcome, SnapshotMeta, StoredMembership};
use crate::session::Sessions;
use crate::snapshot::file;
use crate::snapshot::store::{SnapshotData, SnapshotStore};
use crate::state_machine::{Rejected, SnapshotSource, StateMachine};
use crate::wire;

/// The replicated state of this node.
pub(crate) struct Machine {
    shared: Arc<Shared>,
}

/// The part that queries and snapshot builders use too.
pub(crate) struct Shared {
    executor: Executor,
    store: SnapshotStore,
    state: Mutex<Applied>,
}

struct Applied {
    machine: Box<dyn StateMachine>,
    sessions: Sessions,
    last: Option<LogId>,
    membership: StoredMembership,
    /// The machine panicked, or may hold half of a snapshot.
    panicked: bool,
}

/// The state machine panicked; nothing can be said of its state any more.
#[derive(Debug, thiserror::Error)]
#[error("the state machine panicked; this node must be restarted")]
pub(crate) struct Panicked;

fn caught<T>(f: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|_| Panicked)
}

impl Machine {
    pub(crate) fn new(executor: Executor, store: SnapshotStore, machine: Box<dyn StateMachine>) -> Self {
        let state = Applied {
            machine,
            sessions: Sessions::default(),
            last: None,
            membership: StoredMembership::default(),
            panicked: false,
        };
        Self { shared: Arc::new(Shared { executor, store, state: Mutex::new(state) }) }
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl Shared {
    /// Asks the machine as it is now.
    pub(crate) fn query(&self, query: &[u8]) -> Result<Result<Bytes, Rejected>, Panicked> {
        let state = self.state()?;
        // It cannot have changed anything, so the machine can go on.
        let answer = caught(|| state.machine.query(query));
        Ok(answer.unwrap_or_else(|_| Err(Rejected::new("the state machine panicked at this query"))))
    }

    pub(crate) fn store(&self) -> &SnapshotStore {
        &self.store
    }

    fn state(&self) -> Result<MutexGuard<'_, Applied>, Panicked> {
        let state = self.state.lock().map_err(|_: PoisonError<_>| Panicked)?;
        if state.panicked { Err(Panicked) } else { Ok(state) }
    }

    fn apply(
        &self,
        id: LogId,
        payload: &EntryPayload<Command, u64, crate::member::Member>,
    ) -> io::Result<Outcome> {
        let mut state = self.state().map_err(io::Error::other)?;
        let outcome = match payload {
            EntryPayload::Blank => Outcome::Nothing,
            EntryPayload::Normal(command) => state.command(id.index, command).map_err(io::Error::other)?,
            EntryPayload::Membership(membership) => {
                state.membership = StoredMembership::new(Some(id), membership.clone());
                Outcome::Nothing
            }
        };
        state.last = Some(id);
        Ok(outcome)
    }

    /// Replaces the state by a snapshot's and keeps its file as the current snapshot.
    fn install(&self, meta: &SnapshotMeta, data: &SnapshotData) -> Result<(), SnapshotError> {
        let io = |source| SnapshotError::Io { path: data.path.clone(), source };
        let mut verified = file::open(&**self.store.vfs(), &data.path)?;
        if verified.meta != wire::SnapshotMeta::from(meta) {
            return Err(SnapshotError::Damaged {
                path: verified.path,
                what: "it is not the snapshot announced",
            });
        }
        let sessions = Sessions::read_from(&mut verified.payload).map_err(io)?;
        let mut state = self.state().map_err(io::Error::other).map_err(io)?;
        // Until it has succeeded, the state is neither the old nor the new one.
        state.panicked = true;
        let restored = caught(|| state.machine.restore(&mut verified.payload)).map_err(io::Error::other);
        restored.and_then(|restored| restored).map_err(io)?;
        state.panicked = false;
        state.sessions = sessions;
        state.last = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        drop(state);
        self.store.move_in(meta, &data.path).map_err(io)
    }
}

impl Applied {
    fn command(&mut self, index: u64, command: &Command) -> Result<Outcome, Panicked> {
        if let Some(seen) = self.sessions.begin(command.id, index) {
            return Ok(seen);
        }
        // A panic would end the library's worker without its core noticing: the node would go on without ever applying.
        let outcome = match caught(|| self.machine.apply(&command.payload)) {
            Ok(Ok(reply)) => Outcome::Reply(reply),
            Ok(Err(rejected)) => Outcome::Rejected(rejected),
            Err(panicked) => {
                self.panicked = true;
                return Err(panicked);
            }
        };
        self.sessions.finish(command.id, outcome.clone());
        Ok(outcome)
    }
}

impl RaftStateMachine<Group> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let state = self.shared.state().map_err(io::Error::other)?;
        Ok((state.last, state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Group>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcome = self.shared.apply(entry.log_id, &entry.payload)?;
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let captured = self.shared.state().and_then(|state| {
            Ok(Captured {
                meta: SnapshotMeta { last_log_id: state.last, last_membership: state.membership.clone() },
                sessions: state.sessions.clone(),
                source: caught(|| state.machine.capture())?,
            })
        });
        let captured = captured.ok();
        Builder { shared: Arc::clone(&self.shared), captured: Mutex::new(captured) }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> io::Result<()> {
        let (shared, meta) = (Arc::clone(&self.shared), meta.clone());
        let installed = self.shared.executor.blocking(move || shared.install(&meta, &snapshot)).await;
        installed.map_err(io::Error::other)
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<Snapshot<crate::group::LeaderId, u64, crate::member::Member, SnapshotData>>> {
        Ok(self.shared.store.current().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes one captured state, while the machine goes on.
pub(crate) struct Builder {
    shared: Arc<Shared>,
    /// `None` once written. The mutex is never contended: it makes the builder shareable between threads, as the library
    /// wants it, where sources are not.
    captured: Mutex<Option<Captured>>,
}

struct Captured {
    meta: SnapshotMeta,
    sessions: Sessions,
    source: Box<dyn SnapshotSource>,
}

impl RaftSnapshotBuilder<Group> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> io::Result<Snapshot<crate::group::LeaderId, u64, crate::member::Member, SnapshotData>> {
        let captured = self.captured.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Captured { meta, sessions, source }) = captured else {
            return Err(io::Error::other("the state was not captured, or was written already"));
        };
        let shared = Arc::clone(&self.shared);
        let executor = &self.shared.executor;
        let (meta, path) = executor
            .blocking(move || {
                let path = shared.store.path_of(&meta);
                let vfs = &**shared.store.vfs();
                let written = caught(|| file::write(vfs, &path, &(&meta).into(), &sessions, source));
                written.map_err(io::Error::other)??;
                shared.store.adopt(&meta, path.clone())?;
                io::Result::Ok((meta, path))
            })
            .await?;
        Ok(Snapshot { meta, snapshot: SnapshotData { path } })
    }
}

#[cfg(test)]
mod tests {
    use octopii_vfs::RealVfs;

    use super::*;
    use crate::group::LeaderId;
    use crate::kv::{KvCommand, KvResponse, KvStore};
    use crate::session::ProposalId;

    fn machine(dir: &std::path::Path) -> Machine {
        let executor = Executor::new(tokio::runtime::Handle::current());
        let store = SnapshotStore::open(Arc::new(RealVfs), dir).unwrap();
        Machine::new(executor, store, Box::new(KvStore::new()))
    }

    fn put(machine: &Machine, index: u64, sequence: u64) -> KvResponse {
        let id = ProposalId { client: 5, sequence, settled: 0 };
        let payload = KvCommand::Put { key: b"k".to_vec(), value: vec![sequence as u8] }.encode();
        let at = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
        let applied = machine.shared.apply(at, &EntryPayload::Normal(Command { id, payload })).unwrap();
        let Outcome::Reply(reply) = applied else { panic!("{applied:?}") };
        KvResponse::decode(&reply).unwrap()
    }

    #[tokio::test]
    async fn a_copy_is_not_applied_again_even_after_a_snapshot() {
        let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut leader = machine(dirs.0.path());
        assert_eq!(put(&leader, 0, 7), KvResponse::Previous(None));
        assert_eq!(put(&leader, 1, 7), KvResponse::Previous(None), "the first reply again");
        assert_eq!(put(&leader, 2, 8), KvResponse::Previous(Some(vec![7])));
        let snapshot = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();

        let mut follower = machine(dirs.1.path());
        follower.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
        assert_eq!(put(&follower, 3, 7), KvResponse::Previous(None), "a copy from before the snapshot");
        assert_eq!(
            put(&follower, 4, 9),
            KvResponse::Previous(Some(vec![8])),
            "nor did it put its old value back"
        );
    }

    #[tokio::test]
    async fn an_announced_snapshot_must_be_the_one_in_the_file() {
        let dirs = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut leader = machine(dirs.0.path());
        put(&leader, 0, 1);
        let snapshot = leader.get_snapshot_builder().await.build_snapshot().await.unwrap();
        let mut meta = snapshot.meta.clone();
        meta.last_log_id = meta.last_log_id.map(|id| LogId { index: id.index + 1, ..id });
        let mut follower = machine(dirs.1.path());
        assert!(follower.install_snapshot(&meta, snapshot.snapshot).await.is_err());
        assert_eq!(follower.applied_state().await.unwrap().0, None);
    }

    #[tokio::test]
    async fn only_the_newest_snapshot_and_the_one_before_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = machine(dir.path());
        for index in 0..5 {
            put(&machine, index, index);
            machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
        }
        let count = || octopii_vfs::Vfs::read_dir(&RealVfs, dir.path()).unwrap().len();
        assert_eq!(count(), 3, "two snapshots and the directory for incoming ones");
        let store = SnapshotStore::open(Arc::new(RealVfs), dir.path()).unwrap();
        assert_eq!(store.current().unwrap().0.last_log_id.unwrap().index, 4);
        assert_eq!(count(), 2);
    }
}
