//! The power goes while a file with holes arrives. The network is real here, the receiver's disk is not.

use std::path::{Path, PathBuf};

use octopii_sim::{Operation, SimDisk};
use octopii_transfer::{ChunkSource, InboxPolicy, SendOptions, Transfer, TransferOptions};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use octopii_vfs::{OpenMode, RealVfs, Vfs, read_file};

const INBOX: &str = "/inbox";
const MIB: usize = 1 << 20;
const LEN: usize = 6 * MIB + 5000;
/// Where there is content, and how much.
const CONTENT: [(usize, usize); 3] = [(MIB, MIB), (2 * MIB + 77, 9000), (4 * MIB, MIB / 2)];

/// It ends with a hole: nothing is written there that would make it as long as it is.
fn plant(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("f");
    let file = RealVfs.open(&path, OpenMode::CreateNew).unwrap();
    file.set_len(LEN as u64).unwrap();
    let mut whole = vec![0; LEN];
    for (at, len) in CONTENT {
        whole[at..at + len].iter_mut().zip(1..).for_each(|(byte, n): (_, u32)| *byte = n as u8 | 1);
        file.write_all_at(&whole[at..at + len], at as u64).unwrap();
    }
    file.sync_data().unwrap();
    (path, whole)
}

/// Whether it was acknowledged.
async fn send(disk: &SimDisk, source: &Path) -> bool {
    let executor = Executor::new(tokio::runtime::Handle::current());
    let authority = ClusterAuthority::generate().unwrap();
    let bind =
        |id| Endpoint::bind(&executor, &authority.issue(id).unwrap(), EndpointOptions::default()).unwrap();
    let (a, b) = (bind(1), bind(2));
    let options = TransferOptions { leave_free: 0, ..TransferOptions::default() };
    let sender = Transfer::start(&a, RealVfs::shared(), options.clone()).unwrap();
    let receiver = Transfer::start(&b, disk.vfs(), options).unwrap();
    receiver.receive("file", InboxPolicy::new(INBOX));
    let source = ChunkSource::File(source.to_owned());
    sender.send(b.local_addr(), &source, SendOptions::new("file")).await.is_ok()
}

fn used(disk: &SimDisk, before: u64) -> u64 {
    before - disk.vfs().free_space(Path::new("/")).unwrap()
}

/// Sends, cuts the power after `calls` calls, and looks at what is there. Tells whether it was acknowledged, and whether it is there.
async fn cut(source: &Path, whole: &[u8], seed: u64, calls: u64, ignore_syncs: bool) -> (bool, bool) {
    let disk = SimDisk::new(seed);
    if ignore_syncs {
        disk.ignore_syncs();
    }
    let room = disk.vfs().free_space(Path::new("/")).unwrap();
    disk.crash_after(calls);
    let acknowledged = send(&disk, source).await;
    disk.stay_up();
    disk.crash();
    let found = read_file(&*disk.vfs(), &Path::new(INBOX).join("f"), 1 << 30);
    let is_there = found.as_ref().is_ok_and(|found| found == whole);
    if !ignore_syncs {
        assert!(found.is_err() || is_there, "seed {seed}: what is under its name is not complete");
        if is_there {
            assert!(used(&disk, room) < LEN as u64 / 2, "seed {seed}: {} in use", used(&disk, room));
        } else {
            assert!(send(&disk, source).await, "seed {seed}: it cannot be sent again");
            let found = read_file(&*disk.vfs(), &Path::new(INBOX).join("f"), 1 << 30).unwrap();
            assert!(found == whole, "seed {seed}");
        }
    }
    (acknowledged, is_there)
}

fn runs(seeds: u64, ignore_syncs: bool) -> Vec<(bool, bool)> {
    let dir = tempfile::tempdir().unwrap();
    let (source, whole) = plant(dir.path());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let all: u64 = runtime.block_on(async {
        let disk = SimDisk::new(0);
        assert!(send(&disk, &source).await);
        assert_eq!(disk.counters().of(Operation::Allocate), 0, "holes are not reserved");
        Operation::CHANGING.iter().map(|operation| disk.counters().of(*operation)).sum()
    });
    let run = |seed| {
        // From the first call to a little after the last.
        let calls = if ignore_syncs { all * 2 } else { (all + all / 4) * seed / seeds };
        runtime.block_on(cut(&source, &whole, seed, calls, ignore_syncs))
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
