//! Nothing is answered before it is on the disk: a disk whose syncs can be held back shows it.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use octopii_transport::Executor;
use octopii_vfs::{FileHandle, FileLayer, OpenMode, RealVfs, Vfs, VfsFile, VfsLayer};
use octopii_wal::{Options, WriteAheadLog};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;

use crate::group::{Command, Entry, Group, LeaderId, LogId, Vote};
use crate::log::store::LogStore;
use crate::session::ProposalId;

/// While it is closed, no sync of a file returns.
#[derive(Debug, Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn set_closed(&self, closed: bool) {
        *self.0.0.lock().unwrap() = closed;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |closed| *closed).unwrap());
    }
}

/// Opens the gate when a test ends, however it ends: the log cannot be dropped while its sync is held back.
struct OpenAtEnd(Gate);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.set_closed(false);
    }
}

#[derive(Debug)]
struct GatedVfs(Gate);

#[derive(Debug)]
struct GatedFile(FileHandle, Gate);

impl VfsLayer for GatedVfs {
    fn beneath(&self) -> &dyn Vfs {
        &RealVfs
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        Ok(Arc::new(GatedFile(RealVfs.open(path, mode)?, self.0.clone())))
    }
}

impl FileLayer for GatedFile {
    fn beneath(&self) -> &dyn VfsFile {
        &*self.0
    }

    fn sync_data(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync_data()
    }
}

fn entry(index: u64) -> Entry {
    let command = Command { id: ProposalId { client: 1, sequence: index, settled: 0 }, payload: "x".into() };
    let log_id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index };
    Entry { log_id, payload: openraft::EntryPayload::Normal(command) }
}

/// Long enough for an answer that does not wait for the disk.
const A_WHILE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn neither_votes_nor_entries_are_answered_before_their_sync() {
    let (dir, gate) = (tempfile::tempdir().unwrap(), Gate::default());
    let options = Options { vfs: Arc::new(GatedVfs(gate.clone())), ..Options::default() };
    let wal = WriteAheadLog::open(dir.path(), options).unwrap();
    let executor = Executor::new(tokio::runtime::Handle::current());
    let mut log = LogStore::open(executor.clone(), wal).unwrap();
    let _open_at_end = OpenAtEnd(gate.clone());
    let vote = |term| Vote { leader_id: LeaderId { term, node_id: 1 }, committed: false };
    log.save_vote(&vote(1)).await.unwrap();

    gate.set_closed(true);
    let mut voting = log.clone();
    let saving = executor.spawn(async move { voting.save_vote(&vote(2)).await });
    tokio::time::sleep(A_WHILE).await;
    assert!(!saving.is_finished(), "a vote was answered before it was durable");
    gate.set_closed(false);
    saving.await.unwrap().unwrap();

    gate.set_closed(true);
    let (flushed, mut wait) = Group::oneshot();
    let mut appending = log.clone();
    let append =
        executor.spawn(async move { appending.append([entry(0)], IOFlushed::signal(flushed)).await });
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(log.try_get_log_entries(0..1).await.unwrap().len(), 1, "entries can be read at once");
    assert!(wait.try_recv().is_err(), "an entry was called flushed before it was durable");
    gate.set_closed(false);
    append.await.unwrap().unwrap();
    wait.await.unwrap().unwrap();
}
