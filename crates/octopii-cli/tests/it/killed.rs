//! A sender or a receiver that is killed in the middle: the other process, or the next one, goes on.
//!
//! By default one small file and one kill on each side. `OCTOPII_KILLS=20` kills each side that often, at random points of a
//! file of 1 GiB (`OCTOPII_KILL_MIB`); use a release build for that.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Home, Running, free_addresses, succeeded};

const MIB: u64 = 1 << 20;

/// What may be between the two when one is killed: windows, queues, what waits to be written.
const UNDER_WAY: u64 = 25 * MIB;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

struct Scene {
    home: Home,
    address: String,
    size: u64,
    rate: String,
    random: u64,
}

impl Scene {
    fn new(name: &str) -> Self {
        let home = Home::new();
        let kills = setting("OCTOPII_KILLS", 1);
        let size = setting("OCTOPII_KILL_MIB", if kills > 1 { 1024 } else { 64 }) * MIB;
        std::fs::create_dir(home.path().join("in")).unwrap();
        // Different at every kill of a run, and in every run.
        let random = u64::from(std::process::id()) ^ name.len() as u64;
        let content: Vec<u8> = (0..size / 8)
            .flat_map(|n| (n ^ random).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
            .collect();
        std::fs::write(home.path().join("file"), content).unwrap();
        // About two seconds, so that there is a middle.
        let rate = (size / 2).to_string();
        Self { home, address: free_addresses(1)[0].to_string(), size, rate, random }
    }

    fn receiver(&self) -> Running {
        self.home.start(&["recv", "in", "--bind", &self.address])
    }

    fn sender(&self) -> Child {
        self.home
            .command(&["--json", "send", "file", &self.address, "--limit-rate", &self.rate])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn place(&self) -> PathBuf {
        self.home.path().join("in/file")
    }

    /// A number from `from` to `to`, another one each time.
    fn between(&mut self, from: u64, to: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + (self.random >> 33) % (to - from)
    }

    /// Waits until so much has been written, and checks all the while that nothing is under the final name. Gives how much it
    /// is then.
    fn until(&self, written: u64, sender: &mut Child) -> u64 {
        let begun = Instant::now();
        loop {
            assert!(!self.place().exists(), "it is not complete");
            let found = part(&self.home.path().join("in"));
            if found >= written {
                return found;
            }
            if let Some(status) = sender.try_wait().unwrap() {
                panic!("the sender ended: {status}");
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{found} of {written} bytes in a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The sender's word, and what arrived.
    fn arrived(&self, sender: Child) -> Value {
        let output = sender.wait_with_output().unwrap();
        let result: Value = serde_json::from_str(&succeeded(&output)).unwrap();
        let same = Command::new("cmp").args(["file", "in/file"]).current_dir(self.home.path()).status();
        assert!(same.unwrap().success());
        let left: Vec<_> = std::fs::read_dir(self.home.path().join("in")).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        result
    }
}

/// The length of the unfinished file.
fn part(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let parts = entries.filter(|path| path.extension().is_some_and(|extension| extension == "part"));
    parts.filter_map(|path| path.metadata().ok()).map(|metadata| metadata.len()).max().unwrap_or(0)
}

#[test]
fn after_a_sender_is_killed_the_next_goes_on() {
    let mut scene = Scene::new("sender");
    let mut receiver = scene.receiver();
    let mut most = 0;
    for _ in 0..setting("OCTOPII_KILLS", 1) {
        let mut sender = scene.sender();
        let at = scene.between(scene.size / 2, scene.size - 4 * MIB);
        scene.until(at, &mut sender);
        sender.kill().unwrap();
        sender.wait().unwrap();
        // What was under way when it died is still written.
        let written = part(&scene.home.path().join("in"));
        let result = scene.arrived(scene.sender());
        assert_eq!(receiver.line()["sha256"], result["sha256"]);
        // What was written after that look may have been gone on from, too.
        let again = written.saturating_sub(result["resumed"].as_u64().unwrap());
        assert!(result["resumed"].as_u64().unwrap() > 0);
        most = most.max(again);
        assert!(again + UNDER_WAY <= 64 * MIB, "{again} of {written} bytes were sent again");
        std::fs::remove_file(scene.place()).unwrap();
    }
    println!("at most {} MiB that had been written were sent again", most / MIB);
}

#[test]
fn after_a_receiver_is_killed_the_sender_goes_on_with_the_next() {
    let mut scene = Scene::new("receiver");
    let mut receiver = scene.receiver();
    for _ in 0..setting("OCTOPII_KILLS", 1) {
        let mut sender = scene.sender();
        let at = scene.between(scene.size / 2, scene.size - 4 * MIB);
        let written = scene.until(at, &mut sender);
        receiver.kill();
        assert!(!scene.place().exists());
        receiver = scene.receiver();
        // It goes on where the file was synced: a file that began anew would be empty first.
        let begun = Instant::now();
        while sender.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(120), "it does not end");
            let left = part(&scene.home.path().join("in"));
            assert!(left + 64 * MIB >= written + UNDER_WAY || scene.place().exists(), "{left} of {written}");
            std::thread::sleep(Duration::from_millis(2));
        }
        let result = scene.arrived(sender);
        assert_eq!(receiver.line()["sha256"], result["sha256"]);
        std::fs::remove_file(scene.place()).unwrap();
    }
}

/// Standard input has no second time, and no length.
#[test]
fn standard_input_arrives_under_the_name_that_was_given() {
    let scene = Scene::new("stdin");
    let _receiver = scene.receiver();
    let input = std::fs::File::open(scene.home.path().join("file")).unwrap();
    let sent = scene
        .home
        .command(&["send", "--stdin", "from a pipe", &scene.address])
        .stdin(input)
        .output()
        .unwrap();
    succeeded(&sent);
    let same = Command::new("cmp").args(["file", "in/from a pipe"]).current_dir(scene.home.path()).status();
    assert!(same.unwrap().success());
}
