//! The power goes while a file with holes arrives. The network is real here, the receiver's disk is not.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use octopii_sim::{Operation, SimDisk};
use octopii_transfer::{ChunkSource, InboxPolicy, Receipt, SendOptions, Transfer, TransferOptions};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use octopii_vfs::{FileHandle, FileLayer, OpenMode, RealVfs, Vfs, VfsFile, VfsLayer, read_file};

const INBOX: &str = "/inbox";
const MIB: usize = 1 << 20;
const LEN: usize = 6 * MIB + 5000;
/// Where there is content, and how much.
const CONTENT: [(usize, usize); 3] = [(MIB, MIB), (2 * MIB + 77, 9000), (4 * MIB, MIB / 2)];

/// A sender's directory, and its cluster.
struct Source {
    dir: tempfile::TempDir,
    path: PathBuf,
    whole: Vec<u8>,
    authority: ClusterAuthority,
}

impl Source {
    fn new(len: usize, content: &[(usize, usize)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = RealVfs.open(&path, OpenMode::CreateNew).unwrap();
        file.set_len(len as u64).unwrap();
        let mut whole = vec![0; len];
        for &(at, len) in content {
            whole[at..at + len].iter_mut().zip(1..).for_each(|(byte, n): (_, u32)| *byte = n as u8 | 1);
            file.write_all_at(&whole[at..at + len], at as u64).unwrap();
        }
        file.sync_data().unwrap();
        Self { dir, path, whole, authority: ClusterAuthority::generate().unwrap() }
    }

    /// It ends with a hole: nothing is written there that would make it as long as it is.
    fn small() -> Self {
        Self::new(LEN, &CONTENT)
    }

    /// To one that gives back what it got if it was acknowledged. Each time both begin anew.
    async fn send(&self, disk: &SimDisk) -> Option<Receipt> {
        let executor = Executor::new(tokio::runtime::Handle::current());
        let bind = |id| {
            let identity = self.authority.issue(id).unwrap();
            Endpoint::bind(&executor, &identity, EndpointOptions::default()).unwrap()
        };
        let (a, b) = (bind(1), bind(2));
        let options = TransferOptions { leave_free: 0, ..TransferOptions::default() };
        let state_dir = Some(self.dir.path().join("state"));
        let sender =
            Transfer::start(&a, RealVfs::shared(), TransferOptions { state_dir, ..options.clone() }).unwrap();
        let receiver = Transfer::start(&b, Arc::new(Timed(disk.vfs())), options).unwrap();
        receiver.receive("file", InboxPolicy::new(INBOX));
        let source = ChunkSource::File(self.path.clone());
        sender.send(b.local_addr(), &source, SendOptions::new("file")).await.ok()
    }
}

/// The simulated disk knows no times, and what has none is not kept: here everything is new.
#[derive(Debug)]
struct Timed(Arc<dyn Vfs>);

#[derive(Debug)]
struct TimedFile(FileHandle);

impl VfsLayer for Timed {
    fn beneath(&self) -> &dyn Vfs {
        &*self.0
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileHandle> {
        Ok(Arc::new(TimedFile(self.0.open(path, mode)?)))
    }
}

impl FileLayer for TimedFile {
    fn beneath(&self) -> &dyn VfsFile {
        &*self.0
    }

    fn modified(&self) -> io::Result<Option<SystemTime>> {
        Ok(Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 36)))
    }
}

fn used(disk: &SimDisk, before: u64) -> u64 {
    before - disk.vfs().free_space(Path::new("/")).unwrap()
}

/// Sends, cuts the power after `calls` calls, and looks at what is there. Tells whether it was acknowledged, and whether it is there.
async fn cut(source: &Source, seed: u64, calls: u64, ignore_syncs: bool) -> (bool, bool) {
    let whole = &source.whole;
    let disk = SimDisk::new(seed);
    if ignore_syncs {
        disk.ignore_syncs();
    }
    let room = disk.vfs().free_space(Path::new("/")).unwrap();
    disk.crash_after(calls);
    let acknowledged = source.send(&disk).await.is_some();
    disk.stay_up();
    disk.crash();
    let found = read_file(&*disk.vfs(), &Path::new(INBOX).join("f"), 1 << 30);
    let is_there = found.as_ref().is_ok_and(|found| found == whole);
    if !ignore_syncs {
        assert!(found.is_err() || is_there, "seed {seed}: what is under its name is not complete");
        if is_there {
            assert!(used(&disk, room) < LEN as u64 / 2, "seed {seed}: {} in use", used(&disk, room));
        } else {
            assert!(source.send(&disk).await.is_some(), "seed {seed}: it cannot be sent again");
            let found = read_file(&*disk.vfs(), &Path::new(INBOX).join("f"), 1 << 30).unwrap();
            assert!(found == *whole, "seed {seed}");
        }
    }
    (acknowledged, is_there)
}

fn runs(seeds: u64, ignore_syncs: bool) -> Vec<(bool, bool)> {
    let source = Source::small();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let all: u64 = runtime.block_on(async {
        let disk = SimDisk::new(0);
        assert!(source.send(&disk).await.is_some());
        assert_eq!(disk.counters().of(Operation::Allocate), 0, "holes are not reserved");
        Operation::CHANGING.iter().map(|operation| disk.counters().of(*operation)).sum()
    });
    let run = |seed| {
        // From the first call to a little after the last.
        let calls = if ignore_syncs { all * 2 } else { (all + all / 4) * seed / seeds };
        runtime.block_on(cut(&source, seed, calls, ignore_syncs))
    };
    (0..seeds).map(run).collect()
}

#[test]
fn a_power_cut_loses_no_acknowledged_file_with_holes() {
    let seen = runs(12, false);
    assert!(seen.iter().all(|(acknowledged, is_there)| *is_there || !acknowledged), "{seen:?}");
    assert!(seen.iter().any(|(acknowledged, _)| *acknowledged), "{seen:?}");
    assert!(seen.iter().any(|(acknowledged, _)| !acknowledged), "{seen:?}");
}

/// The test above would notice forgotten syncs.
#[test]
fn a_disk_that_ignores_syncs_loses_files_with_holes() {
    assert!(runs(6, true).contains(&(true, false)));
}

/// What was synced before the power went is gone on with, its holes and the end of the file included.
#[test]
fn a_file_with_holes_is_gone_on_with_after_a_power_cut() {
    // 35 MiB of content in the first 40, which are synced twice on the way, and a hole.
    let content: Vec<_> = (0..40).filter(|n| n % 8 != 2).map(|n| (n * MIB, MIB - 5000)).collect();
    let source = Source::new(56 * MIB + 99, &content);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let all: u64 = runtime.block_on(async {
        let disk = SimDisk::new(0);
        assert!(source.send(&disk).await.is_some());
        Operation::CHANGING.iter().map(|operation| disk.counters().of(*operation)).sum()
    });
    let mut resumed = 0;
    for seed in 0..5 {
        let disk = SimDisk::new(seed);
        let room = disk.vfs().free_space(Path::new("/")).unwrap();
        disk.crash_after(all * (5 + seed) / 10);
        assert!(runtime.block_on(source.send(&disk)).is_none(), "seed {seed}: the power went before the end");
        disk.stay_up();
        disk.crash();
        let receipt = runtime.block_on(source.send(&disk)).unwrap();
        resumed += usize::from(receipt.resumed > 0);
        let found = read_file(&*disk.vfs(), &Path::new(INBOX).join("f"), 1 << 30).unwrap();
        assert!(found == source.whole, "seed {seed}, {} resumed", receipt.resumed);
        let used = used(&disk, room);
        assert!(used < 36 * MIB as u64, "seed {seed}: {used} in use");
    }
    assert!(resumed > 1, "{resumed} of 5");
}
