//! The consensus library's own storage conformance suite, on a real disk.

use std::sync::Arc;

use octopii_transport::Executor;
use octopii_vfs::RealVfs;
use octopii_wal::{Options, WriteAheadLog};
use openraft::StorageError;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use tempfile::TempDir;

use crate::group::{Command, Entry, Group, LeaderId, LogId, Vote};
use crate::kv::KvStore;
use crate::log::store::LogStore;
use crate::machine::Machine;
use crate::session::ProposalId;
use crate::snapshot::store::SnapshotStore;

struct Builder;

impl StoreBuilder<Group, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<Group>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = open(&dir);
        Ok((dir, log, machine))
    }
}

fn open(dir: &TempDir) -> (LogStore, Machine) {
    let executor = Executor::new(tokio::runtime::Handle::current());
    let options = Options { segment_size: 64 << 10, ..Options::default() };
    let wal = WriteAheadLog::open(dir.path().join("wal"), options).unwrap();
    let log = LogStore::open(executor.clone(), wal).unwrap();
    let store = SnapshotStore::open(Arc::new(RealVfs), &dir.path().join("state")).unwrap();
    (log, Machine::new(executor, store, Box::new(KvStore::new())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms() {
    Suite::test_all(Builder).await.unwrap();
}

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let proposal = ProposalId { client: 1, sequence: index, settled: 0 };
    let command = Command { id: proposal, payload: vec![index as u8; bytes].into() };
    Entry { log_id: id(term, index), payload: openraft::EntryPayload::Normal(command) }
}

async fn append(log: &mut LogStore, entries: Vec<Entry>) {
    let (flushed, wait) = Group::oneshot();
    log.append(entries, IOFlushed::signal(flushed)).await.unwrap();
    wait.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_log_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let vote = Vote { leader_id: LeaderId { term: 2, node_id: 1 }, committed: true };
    {
        let (mut log, _) = open(&dir);
        assert!(log.is_blank());
        append(&mut log, (0..20).map(|i| entry(1, i, 10)).collect()).await;
        log.truncate_after(Some(id(1, 14))).await.unwrap();
        append(&mut log, (15..18).map(|i| entry(2, i, 10)).collect()).await;
        log.save_committed(Some(id(2, 16))).await.unwrap();
        log.purge(id(1, 4)).await.unwrap();
        log.save_vote(&vote).await.unwrap();
        assert!(!log.is_blank());
        log.flush_committed();
    }
    let (mut log, _) = open(&dir);
    assert!(!log.is_blank());
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 4)), Some(id(2, 17))));
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(id(2, 16)));
    let entries = log.try_get_log_entries(0..100).await.unwrap();
    assert_eq!(entries.iter().map(|e| (e.log_id.leader_id.term, e.log_id.index)).collect::<Vec<_>>(), {
        let first = (5..15).map(|i| (1, i));
        first.chain((15..18).map(|i| (2, i))).collect::<Vec<_>>()
    });
}

#[tokio::test]
async fn purging_beyond_the_end_moves_the_log_there() {
    let dir = tempfile::tempdir().unwrap();
    {
        let (mut log, _) = open(&dir);
        append(&mut log, (0..3).map(|i| entry(1, i, 10)).collect()).await;
        log.purge(id(4, 99)).await.unwrap();
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(4, 99)));
        append(&mut log, vec![entry(5, 100, 10)]).await;
    }
    let (mut log, _) = open(&dir);
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(4, 99)), Some(id(5, 100))));
}

#[tokio::test]
async fn a_hole_is_refused_and_batches_are_limited_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(&dir);
    append(&mut log, (0..8).map(|i| entry(1, i, 400 << 10)).collect()).await;
    assert!(log.append(vec![entry(1, 9, 1)], IOFlushed::noop()).await.is_err());
    assert!(log.append(vec![entry(1, 3, 1)], IOFlushed::noop()).await.is_err());
    let in_memory = log.limited_get_log_entries(0, 8).await.unwrap().len();
    drop(log);
    let (mut log, _) = open(&dir);
    let on_disk = log.limited_get_log_entries(0, 8).await.unwrap().len();
    assert!((1..=3).contains(&in_memory) && (1..=3).contains(&on_disk), "{in_memory} {on_disk}");
    assert_eq!(log.try_get_log_entries(0..8).await.unwrap().len(), 8);
}
