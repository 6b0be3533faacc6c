//! A sender, a receiver or a relay that is killed in the middle: the other processes, or the next one, go on.
//!
//! By default a small file and one kill of each, two of sender and receiver. `OCTOPII_KILLS=20` kills each that often, at random
//! points of a file of 1 GiB (`OCTOPII_KILL_MIB`): `just kills`. Every other sender to one receiver compresses.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Home, Running, free_addresses, stdout, succeeded};

const MIB: u64 = 1 << 20;

/// What may be between the two when one is killed: windows, queues, what waits to be written.
const UNDER_WAY: u64 = 25 * MIB;

/// The most that may go twice because of a kill.
const AGAIN: u64 = 64 * MIB;

/// What a sender reads beside the content: libraries, its state, blocks that it reads ahead, the way from a checkpoint.
const ASIDE: u64 = 12 * MIB;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

fn kills() -> u64 {
    setting("OCTOPII_KILLS", 1)
}

/// What travels in a run.
fn how(run: u64) -> &'static [&'static str] {
    if run.is_multiple_of(2) { &[] } else { &["--compress"] }
}

struct Scene {
    home: Home,
    addresses: Vec<String>,
    size: u64,
    rate: String,
    random: u64,
}

impl Scene {
    fn new(name: &str, receivers: usize) -> Self {
        let home = Home::new();
        let size = setting("OCTOPII_KILL_MIB", if kills() > 1 { 1024 } else { 96 }) * MIB;
        // Different at every kill of a run, and in every run.
        let random = u64::from(std::process::id()) ^ name.len() as u64;
        // Every other 64 KiB can be compressed.
        let word =
            |n: u64| if n >> 13 & 1 == 0 { (n ^ random).wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { n };
        let content: Vec<u8> = (0..size / 8).flat_map(|n| word(n).to_le_bytes()).collect();
        std::fs::write(home.path().join("file"), content).unwrap();
        // Some seconds, so that there is a middle.
        let rate = (size / 3).to_string();
        let addresses = free_addresses(receivers).iter().map(ToString::to_string).collect();
        let scene = Self { home, addresses, size, rate, random };
        (0..receivers).for_each(|i| std::fs::create_dir(scene.inbox(i)).unwrap());
        scene
    }

    fn inbox(&self, i: usize) -> PathBuf {
        self.home.path().join(format!("in{i}"))
    }

    fn place(&self, i: usize) -> PathBuf {
        self.inbox(i).join("file")
    }

    fn receiver(&self, i: usize) -> Running {
        self.home.start(&["recv", &format!("in{i}"), "--bind", &self.addresses[i]])
    }

    fn sender(&self, more: &[&str]) -> Child {
        let args = [&["--json", "send", "file", "--limit-rate", &self.rate], more].concat();
        self.home
            .command(&args)
            .args(&self.addresses)
            .env("OCTOPII_LOG", "warn,octopii_transfer::distribute=debug")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// A number from `from` to `to`, another one each time.
    fn between(&mut self, from: u64, to: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + (self.random >> 33) % (to - from)
    }

    /// Where to kill: when more than may be under way has surely been synced, and not when nearly all is there.
    fn point(&mut self) -> u64 {
        self.between(56 * MIB, self.size - 32 * MIB)
    }

    /// The length of receiver `i`'s unfinished file.
    fn part(&self, i: usize) -> u64 {
        let entries = std::fs::read_dir(self.inbox(i)).unwrap().map(|entry| entry.unwrap().path());
        let parts = entries.filter(|path| path.extension().is_some_and(|extension| extension == "part"));
        parts.filter_map(|path| path.metadata().ok()).map(|metadata| metadata.len()).max().unwrap_or(0)
    }

    /// Waits until receiver `i` has written so much, and checks all the while that nothing is under the final name.
    fn until(&self, i: usize, written: u64, sender: &mut Child) {
        let begun = Instant::now();
        loop {
            assert!(!self.place(i).exists(), "it is not complete");
            let found = self.part(i);
            if found >= written {
                return;
            }
            if let Some(status) = sender.try_wait().unwrap() {
                panic!("the sender ended: {status}");
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{found} of {written} bytes in two minutes");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// All of it is at receiver `i`, and nothing else.
    fn arrived(&self, i: usize) {
        let same = Command::new("cmp").arg("file").arg(self.place(i)).current_dir(self.home.path()).status();
        assert!(same.unwrap().success());
        let left: Vec<_> = std::fs::read_dir(self.inbox(i)).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    /// For the next run.
    fn clear(&self) {
        for i in 0..self.addresses.len() {
            for entry in std::fs::read_dir(self.inbox(i)).unwrap() {
                std::fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
    }
}

/// Waits for the end of a process that prints little. Gives what it printed, and how many bytes it had read in its life.
fn ended(child: Child) -> (Output, u64) {
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let begun = Instant::now();
    // Its counters outlive it until somebody waits for it.
    while !std::fs::read_to_string(proc.join("stat")).unwrap().contains(") Z ") {
        assert!(begun.elapsed() < Duration::from_secs(180), "it does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
    let io = std::fs::read_to_string(proc.join("io")).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap();
    (child.wait_with_output().unwrap(), read)
}

#[test]
fn after_a_sender_is_killed_the_next_goes_on() {
    let mut scene = Scene::new("sender", 1);
    let mut receiver = scene.receiver(0);
    let mut most = 0;
    let runs = kills().max(2);
    for run in 0..runs {
        let mut sender = scene.sender(how(run));
        let at = scene.point();
        scene.until(0, at, &mut sender);
        sender.kill().unwrap();
        sender.wait().unwrap();
        let written = scene.part(0);
        assert!(!scene.place(0).exists());
        let (output, read) = ended(scene.sender(how(run)));
        let result: Value = serde_json::from_str(&succeeded(&output)).unwrap();
        scene.arrived(0);
        assert_eq!(receiver.line()["sha256"], result["sha256"]);
        let resumed = result["resumed"].as_u64().unwrap();
        assert!(resumed > 0);
        // More was never on its way than this, and some of it was still written.
        let again = (written + UNDER_WAY).saturating_sub(resumed);
        most = most.max(again);
        assert!(again <= AGAIN, "{again} bytes may have been sent again: {resumed} of {written} resumed");
        // What it did not read it did not hash.
        assert!(read >= scene.size - resumed, "{read} bytes read?");
        assert!(read <= scene.size - resumed + ASIDE, "{read} bytes read after {resumed} were resumed");
        scene.clear();
    }
    println!("sender: {runs} kills, at most {} MiB may have been sent again", most / MIB);
}

#[test]
fn after_a_receiver_is_killed_the_sender_goes_on_with_the_next() {
    let mut scene = Scene::new("receiver", 1);
    let mut receiver = scene.receiver(0);
    let mut most = 0;
    let runs = kills().max(2);
    for run in 0..runs {
        let mut sender = scene.sender(how(run));
        let at = scene.point();
        scene.until(0, at, &mut sender);
        receiver.kill();
        let written = scene.part(0);
        assert!(!scene.place(0).exists());
        receiver = scene.receiver(0);
        let (output, read) = ended(sender);
        let result: Value = serde_json::from_str(&succeeded(&output)).unwrap();
        scene.arrived(0);
        assert_eq!(receiver.line()["sha256"], result["sha256"]);
        let again = result["resent"].as_u64().unwrap();
        most = most.max(again);
        assert!(again <= AGAIN, "{again} bytes were sent again after {written} had been written");
        assert!(again < written, "it began anew");
        assert!(read >= scene.size + again, "{read} bytes read?");
        assert!(read <= scene.size + again + ASIDE, "{read} bytes read, {again} of them sent again");
        scene.clear();
    }
    println!("receiver: {runs} kills, at most {} MiB were sent again", most / MIB);
}

/// What a sender tells of who supplies whom.
struct Supply {
    lines: Receiver<String>,
    /// Each receiver's first supplier; the sender has no address.
    from: BTreeMap<String, Option<String>>,
    all: Vec<String>,
}

impl Supply {
    fn of(log: ChildStderr) -> Self {
        let (tx, lines) = channel();
        std::thread::spawn(move || BufReader::new(log).lines().try_for_each(|line| tx.send(line.unwrap())));
        Self { lines, from: BTreeMap::new(), all: Vec::new() }
    }

    /// Receivers in the order of the chain, as it was made.
    fn chain(&mut self, receivers: usize) -> Vec<String> {
        while self.from.len() < receivers {
            let line = self.lines.recv_timeout(Duration::from_secs(60)).unwrap();
            if let Some((peer, from, _)) = supplied(&line) {
                self.from.entry(peer).or_insert(from);
            }
            self.all.push(line);
        }
        let mut chain = Vec::new();
        while let Some((peer, _)) = self.from.iter().find(|(_, from)| from.as_ref() == chain.last()) {
            chain.push(peer.clone());
        }
        chain
    }

    /// Hears the sender out.
    fn end(&mut self) {
        self.all.extend(self.lines.iter());
    }

    /// How much `peer` had when its last attempt began.
    fn had(&self, peer: &str) -> u64 {
        let mut attempts = self.all.iter().filter_map(|line| supplied(line));
        attempts.rfind(|(other, ..)| other == peer).unwrap().2
    }
}

/// `… is supplied by 127.0.0.1:1 peer=127.0.0.1:2 have=0`
fn supplied(line: &str) -> Option<(String, Option<String>, u64)> {
    let (from, rest) = line.split_once("is supplied by ")?.1.split_once(" peer=")?;
    let (peer, have) = rest.split_once(" have=")?;
    Some((peer.to_owned(), (from != "the sender").then(|| from.to_owned()), have.parse().unwrap()))
}

/// Of three receivers in a chain one that hands on is killed. It is left dead every other time.
#[test]
fn after_a_relay_is_killed_the_others_get_everything() {
    let mut scene = Scene::new("the relay", 3);
    let mut receivers: Vec<_> = (0..3).map(|i| scene.receiver(i)).collect();
    let (mut most, mut longest) = (0, 0.0_f64);
    for run in 0..kills() {
        let is_restarted = run % 2 == 0;
        let mut sender = scene.sender(if is_restarted { &[] } else { &["--retries", "1"] });
        let mut supply = Supply::of(sender.stderr.take().unwrap());
        let chain = supply.chain(3);
        assert_eq!(chain.len(), 3, "{:?}", supply.from);
        // The middle one, and the first, which hands on, too.
        let place = if run / 2 % 2 == 0 { 1 } else { 0 };
        let number = |address: &String| scene.addresses.iter().position(|other| other == address).unwrap();
        let [victim, next] = [number(&chain[place]), number(&chain[place + 1])];
        let at = scene.point();
        scene.until(victim, at, &mut sender);
        assert!(scene.part(next) > 0, "it has handed nothing on");
        receivers[victim].kill();
        let written = scene.part(victim);
        assert!(!scene.place(victim).exists());
        if is_restarted {
            receivers[victim] = scene.receiver(victim);
        }
        let output = sender.wait_with_output().unwrap();
        supply.end();
        assert_eq!(output.status.code(), Some(if is_restarted { 0 } else { 1 }), "{:#?}", supply.all);
        for line in stdout(&output).lines() {
            let result: Value = serde_json::from_str(line).unwrap();
            let i = scene.addresses.iter().position(|address| result["peer"] == **address).unwrap();
            let is_dead = i == victim && !is_restarted;
            assert_eq!(result["success"], !is_dead, "{result}");
            if is_dead {
                assert!(result["error"].is_string() && result["sha256"].is_null(), "{result}");
                assert!(!scene.place(i).exists());
                continue;
            }
            assert_eq!(receivers[i].line()["sha256"], result["sha256"]);
            scene.arrived(i);
            if i != victim {
                assert_eq!(result["resent"], 0, "{result}");
                longest = longest.max(result["seconds"].as_f64().unwrap());
            }
        }
        assert_eq!(stdout(&output).lines().count(), 3);
        if is_restarted {
            let again = (written + UNDER_WAY).saturating_sub(supply.had(&scene.addresses[victim]));
            most = most.max(again);
            assert!(again <= AGAIN, "{again} bytes may have been sent again, of {written}");
        }
        scene.clear();
        if !is_restarted {
            receivers[victim] = scene.receiver(victim);
        }
    }
    println!(
        "relay: {} kills, at most {} MiB may have been sent again; the others had everything after {longest:.1} s",
        kills(),
        most / MIB
    );
}

/// Standard input has no second time, and no length.
#[test]
fn standard_input_arrives_under_the_name_that_was_given() {
    let scene = Scene::new("stdin", 1);
    let _receiver = scene.receiver(0);
    let input = std::fs::File::open(scene.home.path().join("file")).unwrap();
    let sent = scene
        .home
        .command(&["send", "--stdin", "from a pipe", &scene.addresses[0]])
        .stdin(input)
        .output()
        .unwrap();
    succeeded(&sent);
    let same = Command::new("cmp").args(["file", "in0/from a pipe"]).current_dir(scene.home.path()).status();
    assert!(same.unwrap().success());
}
