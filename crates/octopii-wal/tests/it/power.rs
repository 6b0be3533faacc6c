//! Power cuts on a real file system: ext4 on a loop device that is shut down without flushing its journal.
//!
//! Needs root, `mkfs.ext4` and a kernel with loop devices; `just power-cuts` runs it in a mount namespace of its own, so that
//! nothing stays mounted even if the test itself is killed.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use octopii_wal::{WriteAheadLog, inspect, vfs::RealVfs};

use crate::disk::Coin;
use crate::strace::{self, Fault};
use crate::writers::{self, Account, Report, Task};

const WRITERS: usize = 64;

/// A file system of its own whose power can be cut.
pub(crate) struct Image {
    file: PathBuf,
    mount: PathBuf,
    mounted: bool,
    _scratch: tempfile::TempDir,
}

impl Image {
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "power cuts need root, to mount a file system of their own: run `just power-cuts` as root"
        );
        let scratch = tempfile::tempdir().unwrap();
        let (file, mount) = (scratch.path().join("image"), scratch.path().join("mount"));
        File::create_new(&file).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&mount).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&file));
        let mut image = Self { file, mount, mounted: false, _scratch: scratch };
        image.mount();
        image
    }

    /// Where the log goes.
    pub(crate) fn dir(&self) -> PathBuf {
        self.mount.join("wal")
    }

    /// Replays the journal, as after a power cut.
    pub(crate) fn mount(&mut self) {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.file).arg(&self.mount));
        self.mounted = true;
    }

    pub(crate) fn unmount(&mut self) {
        run(Command::new("umount").arg(&self.mount));
        self.mounted = false;
    }

    /// What is not on the disk by now never will be, and every later write fails.
    pub(crate) fn cut(&self) {
        /// `EXT4_IOC_SHUTDOWN`.
        const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
        /// `EXT4_GOING_FLAGS_NOLOGFLUSH`: the journal is not written either.
        const WITHOUT_FLUSH: u32 = 2;
        let root = open(&self.mount);
        #[expect(unsafe_code, reason = "there is no safe call for a file system's own ioctl")]
        // SAFETY: the kernel reads one u32 from the pointer that `Setter` passes.
        unsafe { rustix::ioctl::ioctl(&root, rustix::ioctl::Setter::<SHUTDOWN, u32>::new(WITHOUT_FLUSH)) }
            .unwrap();
    }

    fn restart(&mut self) {
        self.unmount();
        self.mount();
    }

    /// Has the file system itself checked, without changing it.
    fn check(&mut self) {
        self.unmount();
        run(Command::new("e2fsck").arg("-fn").arg(&self.file));
        self.mount();
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            // A failed check may have left a log open in here: detach at once, and let go with the last open file.
            let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a directory as the target of an ioctl is no business of the log's files"
)]
fn open(path: &Path) -> File {
    File::open(path).unwrap()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| {
        panic!("{command:?}: {e}; `just power-cuts` installs what is missing (e2fsprogs, mount)")
    });
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

/// The cut itself is put to the test: a log on a disk that forgets nothing would prove nothing.
fn assert_that_cuts_forget(image: &mut Image) {
    let write = |name: &str| {
        let mut file = File::create_new(image.mount.join(name)).unwrap();
        file.write_all(&[7; 100 << 10]).unwrap();
        file
    };
    write("synced").sync_all().unwrap();
    open(&image.mount).sync_all().unwrap();
    let unsynced = write("unsynced");
    image.cut();
    drop(unsynced);
    image.restart();
    let len = |name: &str| fs::metadata(image.mount.join(name)).map_or(0, |m| m.len());
    assert_eq!(len("synced"), 100 << 10, "the cut took synced data");
    assert_eq!(len("unsynced"), 0, "the cut left unsynced data");
}

/// Lets writers work until the given number of reports has come in, then cuts the power, or kills writers that do not sync.
fn work(image: &Image, account: &mut Account, round: u64, enough: u64, cut: bool) {
    let task = Task { writers: WRITERS, round, steps: None, unsynced: !cut };
    let mut child = task.command(&image.dir(), &[]).spawn().unwrap();
    let mut seen = 0;
    for report in writers::reports(child.stdout.take().unwrap()) {
        let is_expected = match report {
            Report::Acknowledged { .. } | Report::Purged { .. } => true,
            // What was waiting when the power went.
            Report::Failed { .. } | Report::Refused => cut && seen >= enough,
            _ => false,
        };
        assert!(is_expected, "round {round}: {report:?} after {seen} reports");
        if cut {
            account.note(report);
        } else {
            account.note_called(report);
        }
        seen += 1;
        if seen == enough {
            if cut {
                image.cut();
            }
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(seen >= enough, "round {round}: the writers ended by themselves after {seen} reports");
    println!("round {round}: {} after {seen} reports", if cut { "cut" } else { "killed" });
}

/// Opens the log and holds it against the account.
fn settle(image: &Image, account: &mut Account, round: u64) {
    let before = inspect(image.dir(), &RealVfs::shared()).unwrap();
    let log = WriteAheadLog::open(image.dir(), writers::options()).unwrap();
    account.settle(&log, round);
    let bounds: Vec<_> = before.topics.iter().map(|t| (t.first_index, t.next_index)).collect();
    let opened: Vec<_> = before.topics.iter().map(|t| log.topic(&t.name).unwrap()).collect();
    assert_eq!(bounds, opened.iter().map(|t| (t.first_index(), t.next_index())).collect::<Vec<_>>());
}

/// The failed sync wrote nothing, so the cut takes what it should have made durable: had anybody been told otherwise, it
/// shows.
#[test]
#[ignore = "needs root, mkfs.ext4 and strace: just power-cuts"]
fn a_failed_sync_acknowledges_nothing_that_a_power_cut_can_take() {
    let mut image = Image::new();
    let mut account = Account::new(8);
    for round in 0..6 {
        let task = Task { writers: 8, round, steps: Some(60), unsynced: false };
        let fault = Fault { call: "fdatasync", error: "EIO", when: 1 + 5 * round, for_good: false };
        let run = strace::run(&task, &image.dir(), fault);
        assert!(run.injected.is_some(), "round {round}: no sync failed");
        run.reports.iter().for_each(|report| account.note(*report));
        image.cut();
        image.restart();
        settle(&image, &mut account, round);
    }
    image.unmount();
}

#[test]
#[ignore = "needs root and mkfs.ext4: just power-cuts"]
fn what_was_acknowledged_survives_power_cuts_on_ext4() {
    let cuts: u64 = std::env::var("OCTOPII_WAL_CUTS").map_or(15, |n| n.parse().unwrap());
    let mut coin = Coin(u64::from(std::process::id()));
    let mut image = Image::new();
    assert_that_cuts_forget(&mut image);
    let mut account = Account::new(WRITERS);
    let mut acknowledged = 0;
    for round in 0..cuts {
        // Some cuts meet the first segment being made, some come after many.
        let killed = round % 4 == 3;
        let enough = match round % 3 {
            _ if killed => 10_000 + coin.below(20_000),
            0 => 1 + coin.below(200),
            1 => 1 + coin.below(20_000),
            _ => 1 + coin.below(60_000),
        };
        work(&image, &mut account, round, enough, !killed);
        if killed {
            // Much of the log is nowhere but in the system's memory. Once shown it must stay, whatever happens to the power.
            settle(&image, &mut account, round);
            image.cut();
        }
        image.restart();
        acknowledged = acknowledged.max(account.len());
        settle(&image, &mut account, round);
        image.check();
    }
    println!("{cuts} cuts, up to {acknowledged} acknowledged entries held against the log at once");
    image.unmount();
}
