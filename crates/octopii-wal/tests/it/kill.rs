//! A process killed in the middle of writing, again and again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;

use octopii_wal::{Options, WriteAheadLog};

const CHILD: &str = "OCTOPII_WAL_TEST_CHILD";
const WRITERS: usize = 4;

fn options() -> Options {
    Options { segment_size: 256 << 10, ..Options::default() }
}

fn entry(writer: usize, index: u64) -> Vec<u8> {
    let mut entry = format!("{writer}/{index}/").into_bytes();
    entry.resize(entry.len() + (index as usize * 37) % 900, index as u8);
    entry
}

/// Not a test of its own: the process that is killed.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let log = WriteAheadLog::open(dir, options()).unwrap();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let log = &log;
            scope.spawn(move || {
                let topic = log.topic(&format!("t{writer}")).unwrap();
                loop {
                    let index = topic.next_index();
                    topic.append(entry(writer, index)).unwrap().wait().unwrap();
                    // One write per line: the pipe must not hold back what was acknowledged.
                    std::io::stdout().lock().write_all(format!("ack {writer} {index}\n").as_bytes()).unwrap();
                    if index % 100 == 99 {
                        topic.purge(index - 20).unwrap().wait().unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = [0u64; WRITERS];
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            let Some((_, ack)) = line.split_once("ack ") else { continue };
            let (writer, index) = ack.split_once(' ').unwrap();
            acknowledged[writer.parse::<usize>().unwrap()] = index.parse::<u64>().unwrap() + 1;
            seen += 1;
            if seen == 150 + round * 70 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen >= 150, "the child ended by itself after {seen} acknowledgements");

        let log = WriteAheadLog::open(dir.path(), options()).unwrap();
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let topic = log.topic(&format!("t{writer}")).unwrap();
            assert!(topic.next_index() >= *acknowledged, "round {round}");
            for (index, found) in topic.read_range(0..u64::MAX, usize::MAX).unwrap() {
                assert_eq!(found, entry(writer, index), "round {round}");
            }
        }
    }
}
