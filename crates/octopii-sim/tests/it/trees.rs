//! The power goes while a directory arrives. The network is real here, the receiver's disk is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use octopii_sim::{Operation, SimDisk};
use octopii_transfer::{
    EntryOutcome, Transfer, TransferError, TransferOptions, TreeInbox, TreeOptions, TreeReport,
};
use octopii_transport::{ClusterAuthority, Endpoint, EndpointOptions, Executor};
use octopii_vfs::{EntryKind, OpenMode, RealVfs, Vfs, VfsDir, read_file};

const INBOX: &str = "/inbox";

type Files = BTreeMap<PathBuf, Vec<u8>>;

fn plant(root: &Path) -> Files {
    let mut files = Files::new();
    for n in 0..24usize {
        let path = PathBuf::from(format!("d{}/{}/{n}", n % 2, n % 3));
        files.insert(path, vec![n as u8 + 1; n * 137]);
    }
    files.insert("large".into(), vec![99; (1 << 20) + 777]);
    for (path, content) in &files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        RealVfs.open(&path, OpenMode::CreateNew).unwrap().write_all_at(content, 0).unwrap();
    }
    files
}

/// Everything under its final name.
fn arrived(dir: &dyn VfsDir, vfs: &dyn Vfs) -> Files {
    let mut files = Files::new();
    let mut todo = vec![PathBuf::from("tree")];
    while let Some(path) = todo.pop() {
        match dir.attributes(&path) {
            Ok(seen) if seen.kind == EntryKind::Directory => {
                todo.extend(dir.names(&path).unwrap().iter().map(|name| path.join(name)));
            }
            Ok(_) => {
                let content = read_file(vfs, &Path::new(INBOX).join(&path), 1 << 30).unwrap();
                files.insert(path.strip_prefix("tree").unwrap().to_owned(), content);
            }
            Err(_) => {}
        }
    }
    files
}

async fn send(
    disk: &SimDisk,
    source: &Path,
    acknowledged: &Arc<Mutex<Vec<PathBuf>>>,
) -> Result<TreeReport, TransferError> {
    let executor = Executor::new(tokio::runtime::Handle::current());
    let authority = ClusterAuthority::generate().unwrap();
    let bind =
        |id| Endpoint::bind(&executor, &authority.issue(id).unwrap(), EndpointOptions::default()).unwrap();
    let (a, b) = (bind(1), bind(2));
    let options = TransferOptions { leave_free: 0, ..TransferOptions::default() };
    let sender = Transfer::start(&a, RealVfs::shared(), options.clone()).unwrap();
    let receiver = Transfer::start(&b, disk.vfs(), options).unwrap();
    receiver.receive_trees("tree", TreeInbox::new(INBOX));
    let told = Arc::clone(acknowledged);
    let options = TreeOptions {
        on_entry: Some(Arc::new(move |path, outcome| {
            if matches!(outcome, EntryOutcome::Stored { .. }) {
                told.lock().unwrap().push(path.to_owned());
            }
        })),
        ..TreeOptions::new("tree")
    };
    sender.send_tree(b.local_addr(), source, options).await
}

/// Sends a tree and cuts the power after `calls` calls. Tells how many acknowledged files are then lost, and whether the power
/// went before the end.
async fn cut(source: &Path, files: &Files, seed: u64, calls: u64, ignore_syncs: bool) -> (usize, bool) {
    let disk = SimDisk::new(seed);
    if ignore_syncs {
        disk.ignore_syncs();
    }
    disk.crash_after(calls);
    let acknowledged = Arc::default();
    let sent = send(&disk, source, &acknowledged).await;
    disk.stay_up();
    disk.crash();
    let vfs = disk.vfs();
    let acknowledged = acknowledged.lock().unwrap().clone();
    let there = match vfs.open_dir(Path::new(INBOX)) {
        Ok(dir) => arrived(&*dir, &*vfs),
        Err(_) => Files::new(),
    };
    let lost = acknowledged.iter().filter(|path| there.get(*path) != files.get(*path)).count();
    if !ignore_syncs {
        for (path, content) in &there {
            assert!(files.get(path) == Some(content), "seed {seed}: {path:?} is not complete");
        }
        // It goes on as if nothing had happened, into the same directory.
        let again = send(&disk, source, &Arc::default()).await.unwrap();
        assert!(again.is_complete() && again.name == Path::new("tree"), "seed {seed}: {again:?}");
        let dir = vfs.open_dir(Path::new(INBOX)).unwrap();
        assert!(arrived(&*dir, &*vfs) == *files, "seed {seed}");
        assert_eq!(dir.names(Path::new("")).unwrap(), [".octopii-trees", "tree"], "seed {seed}");
        let hidden = Path::new(".octopii-trees");
        for tree in dir.names(hidden).unwrap() {
            assert_eq!(dir.names(&hidden.join(tree)).unwrap(), ["lock", "owner"], "seed {seed}");
        }
    }
    (lost, sent.is_err())
}

async fn calls_of_a_whole_run(source: &Path) -> u64 {
    let disk = SimDisk::new(0);
    assert!(send(&disk, source, &Arc::default()).await.unwrap().is_complete());
    let counters = disk.counters();
    Operation::CHANGING.iter().map(|operation| counters.of(*operation)).sum()
}

fn runs(seeds: u64, ignore_syncs: bool) -> (usize, usize) {
    let source = tempfile::tempdir().unwrap();
    let source = source.path().join("tree");
    let files = plant(&source);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let all = runtime.block_on(calls_of_a_whole_run(&source));
    let (mut lost, mut interrupted) = (0, 0);
    for seed in 0..seeds {
        // From the first call to a little after the last.
        let calls = if ignore_syncs { all * 2 } else { (all + all / 8) * seed / seeds };
        let (more, early) = runtime.block_on(cut(&source, &files, seed, calls, ignore_syncs));
        lost += more;
        interrupted += usize::from(early);
    }
    (lost, interrupted)
}

#[test]
fn a_power_cut_loses_no_acknowledged_file_and_leaves_no_half_one() {
    let (lost, interrupted) = runs(14, false);
    assert_eq!(lost, 0);
    assert!((5..14).contains(&interrupted), "{interrupted}: cuts in the middle and after the end");
}

/// The test above would notice forgotten syncs.
#[test]
fn a_disk_that_ignores_syncs_is_noticed() {
    assert!(runs(6, true).0 > 0);
}
