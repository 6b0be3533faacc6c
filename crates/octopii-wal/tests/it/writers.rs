//! A process full of writers, which somebody ends in the middle of its work, and the account of what it acknowledged.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use octopii_wal::{Durability, Error, Options, Ticket, Topic, WriteAheadLog};

use crate::disk::Coin;

const DIR: &str = "OCTOPII_WAL_TEST_CHILD";
const WRITERS: &str = "OCTOPII_WAL_TEST_WRITERS";
const ROUND: &str = "OCTOPII_WAL_TEST_ROUND";
const STEPS: &str = "OCTOPII_WAL_TEST_STEPS";
const UNSYNCED: &str = "OCTOPII_WAL_TEST_UNSYNCED";

/// Entries that a writer may have called and not yet seen acknowledged.
const IN_FLIGHT: u64 = 4;
/// Purges leave this many acknowledged entries.
const KEEP: u64 = 20;

/// What a process of writers is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    /// Threads, each with a topic of its own.
    pub(crate) writers: usize,
    /// Goes into every entry, so that an entry of an earlier process cannot pass for one of this.
    pub(crate) round: u64,
    /// Steps of each writer; `None`: until the process is killed. With a number of steps, calls are made one at a time,
    /// so that their order is known.
    pub(crate) steps: Option<u64>,
    /// Whether the log never syncs by itself, so that an acknowledgement is worth nothing.
    pub(crate) unsynced: bool,
}

impl Task {
    /// The command that does this task in `dir`, to be started as it is or by another program.
    pub(crate) fn command(&self, dir: &Path, wrapper: &[String]) -> Command {
        let exe = std::env::current_exe().unwrap().into_os_string();
        let words: Vec<_> = wrapper.iter().map(Into::into).chain([exe]).collect();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .args(["--exact", "writers::child", "--nocapture"])
            .env(DIR, dir)
            .env(WRITERS, self.writers.to_string())
            .env(ROUND, self.round.to_string())
            .env(STEPS, self.steps.unwrap_or(0).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if self.unsynced {
            command.env(UNSYNCED, "1");
        }
        command
    }
}

pub(crate) fn options() -> Options {
    Options { segment_size: 1 << 20, ..Options::default() }
}

pub(crate) fn topic_name(writer: usize) -> String {
    format!("t{writer}")
}

/// What an entry says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) round: u64,
    /// Position among all calls of the process.
    pub(crate) call: u64,
    pub(crate) writer: usize,
    /// The index it should get; another one, if operations before it fail meanwhile.
    pub(crate) index: u64,
    /// Place in its batch, and the entries of the batch.
    part: u64,
    parts: u64,
}

impl Entry {
    fn bytes(&self) -> Vec<u8> {
        let Self { round, call, writer, index, part, parts } = self;
        let mut coin = Coin(call ^ (index << 20) ^ ((*writer as u64) << 40) ^ (round << 50));
        // Frames with one of the largest go past the page cache.
        let len = match coin.below(500) {
            0 => (256 << 10) + coin.below(256 << 10),
            1..11 => coin.below(40 << 10),
            _ => coin.below(900),
        };
        let mut bytes = format!("{round} {call} {writer} {index} {part} {parts}\n").into_bytes();
        while bytes.len() < len as usize {
            bytes.extend(coin.next().to_le_bytes());
        }
        bytes
    }

    /// Reads an entry back. `None`: these bytes were never called.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let line = bytes.split(|b| *b == b'\n').next()?;
        let numbers: Option<Vec<u64>> =
            std::str::from_utf8(line).ok()?.split(' ').map(|n| n.parse().ok()).collect();
        let [round, call, writer, index, part, parts] = numbers?.try_into().ok()?;
        let entry = Self { round, call, writer: writer as usize, index, part, parts };
        (entry.bytes() == bytes).then_some(entry)
    }
}

/// Not a test of its own: the process that is ended.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let number = |name| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let steps = Some(number(STEPS)).filter(|n| *n > 0);
    let unsynced = std::env::var_os(UNSYNCED).is_some();
    let task = Task { writers: number(WRITERS) as usize, round: number(ROUND), steps, unsynced };
    let options = match (unsynced, steps) {
        // Beginning a segment brings a sync with it.
        (true, _) => Options { durability: Durability::None, segment_size: 64 << 20, ..options() },
        // A few steps should see segments come and go.
        (false, Some(_)) => Options { segment_size: 64 << 10, ..options() },
        (false, None) => options(),
    };
    let log = match WriteAheadLog::open(dir, options) {
        Ok(log) => log,
        Err(_) => return report("refused"),
    };
    let child = Child { task, log, calls: AtomicU64::new(0), order: Mutex::new(()) };
    thread::scope(|scope| {
        for writer in 0..task.writers {
            let child = &child;
            scope.spawn(move || {
                // The topic's definition may be refused like anything else.
                match child.log.topic(&topic_name(writer)) {
                    Ok(topic) => child.write(writer, &topic),
                    Err(_) => report("refused"),
                }
            });
        }
    });
    if let Err(Error::Poisoned { .. }) = child.log.close() {
        report("refused");
    }
}

/// One call per line: the pipe must not hold back what was acknowledged.
fn report(line: &str) {
    std::io::stdout().lock().write_all(format!("@{line}\n").as_bytes()).unwrap();
}

struct Child {
    task: Task,
    log: WriteAheadLog,
    calls: AtomicU64,
    order: Mutex<()>,
}

impl Child {
    fn write(&self, writer: usize, topic: &Topic) {
        let mut coin = Coin(self.task.round << 32 | writer as u64);
        let slow = writer % 8 == 7;
        let mut step = 0;
        while self.task.steps.is_none_or(|steps| step < steps) {
            step += 1;
            let go_on = match coin.below(12) {
                0 => self.batch(writer, topic),
                1 => self.pipeline(writer, topic, IN_FLIGHT),
                // A purge brings a sync with it.
                2 if step > KEEP && !self.task.unsynced && (!slow || coin.below(20) == 0) => {
                    self.purge(writer, topic)
                }
                _ => self.pipeline(writer, topic, 1),
            };
            if !go_on {
                return;
            }
        }
    }

    fn entry(&self, writer: usize, index: u64, part: u64, parts: u64) -> Entry {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        Entry { round: self.task.round, call, writer, index, part, parts }
    }

    /// Held while calling, where the order of calls matters.
    fn in_order(&self) -> Option<std::sync::MutexGuard<'_, ()>> {
        self.task.steps.is_some().then(|| self.order.lock().unwrap())
    }

    fn pipeline(&self, writer: usize, topic: &Topic, count: u64) -> bool {
        let order = self.in_order();
        let calls: Vec<_> = (0..count)
            .map(|_| {
                let entry = self.entry(writer, topic.next_index(), 1, 1);
                (entry, topic.append(entry.bytes()))
            })
            .collect();
        drop(order);
        let mut go_on = true;
        for (entry, ticket) in calls {
            go_on &= self.outcome(&[entry], ticket);
        }
        go_on
    }

    fn batch(&self, writer: usize, topic: &Topic) -> bool {
        let order = self.in_order();
        let next = topic.next_index();
        let entries = [1, 2, 3].map(|part| self.entry(writer, next + part - 1, part, 3));
        let mut batch = self.log.batch();
        for entry in entries {
            batch.append(topic, entry.bytes());
        }
        let ticket = self.log.commit(batch);
        drop(order);
        self.outcome(&entries, ticket)
    }

    fn purge(&self, writer: usize, topic: &Topic) -> bool {
        let to = topic.next_index().saturating_sub(KEEP);
        match topic.purge(to).and_then(|ticket| ticket.wait()) {
            Ok(()) => {
                report(&format!("purged {writer} {to}"));
                true
            }
            Err(error) => {
                report("refused");
                matches!(error, Error::StorageFull { .. })
            }
        }
    }

    /// Waits, and tells whether there is any sense in going on.
    fn outcome(&self, entries: &[Entry], ticket: Result<Ticket, Error>) -> bool {
        let last = ticket.as_ref().ok().and_then(Ticket::index).unwrap_or(u64::MAX);
        let (word, go_on) = match ticket.and_then(|t| t.wait()) {
            Ok(()) => ("ack", true),
            Err(Error::StorageFull { .. }) => ("full", true),
            Err(_) => ("failed", false),
        };
        for (entry, index) in entries.iter().rev().zip((0..=last).rev()) {
            let crc = crc32c::crc32c(&entry.bytes());
            report(&format!("{word} {} {} {index} {crc}", entry.call, entry.writer));
        }
        go_on
    }
}

/// A line of the child's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    Acknowledged {
        call: u64,
        writer: usize,
        index: u64,
        crc: u32,
    },
    /// Refused for lack of space: it is not in the log.
    Full {
        call: u64,
    },
    /// Failed in a way that leaves open whether it is in the log.
    Failed {
        call: u64,
    },
    Purged {
        writer: usize,
        to: u64,
    },
    /// Something other than an entry failed: to open or to close, a topic, a purge.
    Refused,
}

/// The child's reports, as long as it lives.
pub(crate) fn reports(stdout: ChildStdout) -> impl Iterator<Item = Report> {
    BufReader::new(stdout).lines().map_while(Result::ok).filter_map(|line| {
        let words: Vec<_> = line.split_once('@')?.1.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().unwrap();
        Some(match words[0] {
            "ack" => Report::Acknowledged {
                call: number(1),
                writer: number(2) as usize,
                index: number(3),
                crc: number(4) as u32,
            },
            "full" => Report::Full { call: number(1) },
            "failed" => Report::Failed { call: number(1) },
            "purged" => Report::Purged { writer: number(1) as usize, to: number(2) },
            "refused" => Report::Refused,
            other => panic!("the child says {other:?}"),
        })
    })
}

/// What must be in the log, as far as anybody outside it knows.
#[derive(Debug)]
pub(crate) struct Account {
    topics: Vec<Known>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    /// Entries that were acknowledged or shown, with the checksum of their content.
    entries: BTreeMap<u64, u32>,
    /// One more than the last index among them, ever.
    next: u64,
    /// One more than the last index known to have been called.
    called: u64,
    /// Purged at least up to here.
    purged: u64,
}

impl Account {
    pub(crate) fn new(writers: usize) -> Self {
        Self { topics: vec![Known::default(); writers] }
    }

    /// Notes what a child whose acknowledgements count has said.
    pub(crate) fn note(&mut self, report: Report) {
        self.note_called(report);
        match report {
            Report::Acknowledged { writer, index, crc, .. } => {
                let known = &mut self.topics[writer];
                known.entries.insert(index, crc);
                known.next = known.next.max(index + 1);
            }
            Report::Purged { writer, to } => {
                let known = &mut self.topics[writer];
                known.purged = known.purged.max(to);
            }
            _ => {}
        }
    }

    /// Notes what a child whose acknowledgements do not count has said.
    pub(crate) fn note_called(&mut self, report: Report) {
        if let Report::Acknowledged { writer, index, .. } = report {
            let known = &mut self.topics[writer];
            known.called = known.called.max(index + 1);
        }
    }

    /// Entries known and not known to be purged.
    pub(crate) fn len(&self) -> usize {
        self.topics.iter().map(|t| t.entries.range(t.purged..).count()).sum()
    }

    /// Checks `log` against the account: everything acknowledged is there with its content, no topic has a gap, no batch
    /// is there in part, and nothing is there that was not called. From then on everything found counts as acknowledged:
    /// what was shown must stay. Returns what was found.
    pub(crate) fn settle(&mut self, log: &WriteAheadLog, round: u64) -> Vec<Entry> {
        let mut all = Vec::new();
        let names: Vec<_> = (0..self.topics.len()).map(topic_name).collect();
        for name in log.topics() {
            assert!(names.contains(&name), "round {round}: topic {name} was never called");
        }
        for (writer, known) in self.topics.iter_mut().enumerate() {
            // Asking for a topic that is not there would bring it into being.
            if !log.topics().contains(&names[writer]) {
                assert_eq!(known.next, 0, "round {round}: topic {writer} is missing");
                continue;
            }
            let topic = log.topic(&names[writer]).unwrap();
            let (first, next) = (topic.first_index(), topic.next_index());
            let what = format!("round {round}, topic {writer}, {first}..{next}, known to {}", known.next);
            assert!(next >= known.next, "{what}: acknowledged entries are missing");
            assert!(next <= known.called + IN_FLIGHT, "{what}: more entries than were called");
            assert!(first >= known.purged, "{what}: a purge to {} was undone", known.purged);
            assert!(first == 0 || first + KEEP <= next, "{what}: purged further than was called");
            let found = topic.read_range(0..u64::MAX, usize::MAX).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(found.iter().map(|(index, _)| *index).eq(first..next), "{what}: there is a gap");
            let mut entries = BTreeMap::new();
            let mut last: Option<Entry> = None;
            for (index, bytes) in found {
                let entry = Entry::parse(&bytes)
                    .unwrap_or_else(|| panic!("{what}: entry {index} is none that was called"));
                assert_eq!(entry.writer, writer, "{what}: entry {index} is another topic's");
                let before = last.map(|e| (e.round, e.call));
                assert!(before < Some((entry.round, entry.call)), "{what}: entry {index} is out of order");
                let crc = crc32c::crc32c(&bytes);
                match known.entries.get(&index) {
                    Some(expected) => assert_eq!(crc, *expected, "{what}: entry {index} is another one"),
                    None => assert_eq!(entry.round, round, "{what}: entry {index} came back"),
                }
                entries.insert(index, crc);
                all.push(entry);
                last = Some(entry);
            }
            assert!(last.is_none_or(|e| e.part == e.parts), "{what}: a batch is there in part: {last:?}");
            *known = Known { entries, next, called: next, purged: first };
        }
        all
    }
}
