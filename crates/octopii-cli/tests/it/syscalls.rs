//! The order in which a receiver asks the kernel for things, as `strace` sees it from outside; `just transfer-syscalls`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Home, free_addresses, succeeded};

/// A finished system call.
#[derive(Debug)]
struct Call {
    name: String,
    /// Everything after the name, results included. Descriptors are followed by `<what they are>`.
    text: String,
    /// Lines of the trace in which it began and ended.
    began: usize,
    ended: usize,
    /// Seconds since the epoch at its beginning and its end.
    from: f64,
    at: f64,
}

/// `strace` writes `thread time name(arguments) = result <seconds taken>`, or the same in two lines if another thread did something meanwhile:
/// the first ends in `<unfinished ...>`, the second begins with `<... name resumed>`.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut open: Vec<(&str, Call)> = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let mut words = line.splitn(3, char::is_whitespace).map(str::trim_start);
        let (Some(thread), Some(time), Some(rest)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let time: f64 = time.parse().unwrap_or_else(|e| panic!("{e}: {line}"));
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some(begun) = open.iter().position(|(other, _)| *other == thread) else { continue };
            let (_, mut call) = open.swap_remove(begun);
            call.text += resumed;
            (call.ended, call.at) = (at, time);
            calls.push(call);
        } else if let Some((name, text)) = rest.split_once('(') {
            let taken = text.rsplit_once('<').and_then(|(_, taken)| taken.strip_suffix('>')?.parse().ok());
            let end = time + taken.unwrap_or(0.0);
            let call =
                Call { name: name.into(), text: text.into(), began: at, ended: at, from: time, at: end };
            if text.ends_with("<unfinished ...>") {
                open.push((thread, call));
            } else {
                calls.push(call);
            }
        }
    }
    calls.sort_by_key(|call| call.ended);
    calls
}

/// A process under `strace`. That one's death alone would let it go on.
struct Traced(Child, String);

impl Drop for Traced {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = Command::new("kill").args(["-KILL", &self.1]).status();
            let _ = self.0.wait();
        }
    }
}

/// The traced process itself, which `strace` starts as its child.
fn traced(strace: &Child) -> String {
    let children = format!("/proc/{0}/task/{0}/children", strace.id());
    let begun = Instant::now();
    loop {
        let found = std::fs::read_to_string(&children).unwrap();
        if let Some(pid) = found.split_whitespace().next() {
            return pid.to_owned();
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "strace starts nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn strace(home: &Home, trace: &Path, more: &[&str], args: &[&str]) -> Command {
    let octopii = home.command(args);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-ttt", "-T", "-s", "500", "-o"]).arg(trace).args(more);
    command.arg(octopii.get_program()).args(octopii.get_args()).current_dir(home.path());
    for (name, value) in octopii.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn has_strace() -> bool {
    let found =
        Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !found {
        println!("skipped: there is no strace; `just transfer-syscalls` installs it");
    }
    found
}

/// Written, synced, renamed without replacing, directory synced, told, acknowledged: each finished before the next begins, with
/// the sync of the directory made slow, so that an acknowledgement that did not wait for it would be far ahead of it.
#[test]
#[ignore = "needs strace: just transfer-syscalls"]
fn a_file_is_synced_named_and_synced_again_before_the_sender_hears_of_it() {
    if !has_strace() {
        return;
    }
    // The second has early syncs on its way, and goes past the page cache.
    for size in [100_000, 50_000_000] {
        let home = Home::new();
        std::fs::create_dir(home.path().join("in")).unwrap();
        let content: Vec<u8> = (0..size).map(|i: u32| (i ^ (i >> 7)) as u8).collect();
        std::fs::write(home.path().join("file"), content).unwrap();
        let address = free_addresses(1)[0].to_string();
        let (receiving, sending) = (home.path().join("receiving"), home.path().join("sending"));
        let seen = "trace=openat,creat,link,linkat,symlinkat,rename,renameat,renameat2,write,writev,pwrite64,pwritev,pwritev2,\
                    ftruncate,fallocate,mmap,fsync,fdatasync,sync,syncfs,sync_file_range,sendmsg,sendmmsg,sendto";
        let slow = ["-e", seen, "-e", "inject=fsync:delay_enter=700000"];
        let receiver =
            strace(&home, &receiving, &slow, &["--json", "recv", "in", "--bind", &address, "--count", "1"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
        let pid = traced(&receiver);
        let mut receiver = Traced(receiver, pid);
        let begun = Instant::now();
        let output = loop {
            let output =
                strace(&home, &sending, &["-e", "trace=write"], &["--json", "send", "file", &address])
                    .output()
                    .unwrap();
            // 4: nobody could be reached yet.
            if output.status.code() != Some(4) || begun.elapsed() > Duration::from_secs(60) {
                break output;
            }
        };
        succeeded(&output);
        assert!(receiver.0.wait().unwrap().success());
        let same = Command::new("cmp").args(["file", "in/file"]).current_dir(home.path()).status();
        assert!(same.unwrap().success());
        let trace = std::fs::read_to_string(&receiving).unwrap();
        let done = std::fs::read_to_string(&sending).unwrap();
        let told = calls(&done)
            .into_iter()
            .find(|call| call.name == "write" && call.text.contains("success") && call.text.contains("true"))
            .expect("the sender's word");
        check(&home.path().canonicalize().unwrap().join("in"), &calls(&trace), told.at);
    }
}

fn check(inbox: &Path, calls: &[Call], told: f64) {
    let inbox = inbox.to_str().unwrap();
    let of_part =
        |call: &&Call| call.text.contains(&format!("<{inbox}/.octopii-")) && call.text.contains(".part>");
    let named = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        move |call: &&Call| names.contains(&call.name)
    };
    let writes: Vec<_> = calls
        .iter()
        .filter(named(&["write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate"]))
        .filter(of_part)
        .collect();
    let syncs: Vec<_> = calls.iter().filter(named(&["fdatasync"])).filter(of_part).collect();
    let renames: Vec<_> = calls
        .iter()
        .filter(named(&["rename", "renameat", "renameat2", "link", "linkat", "symlinkat"]))
        .collect();
    let directory: Vec<_> = calls
        .iter()
        .filter(named(&["fsync"]))
        .filter(|call| call.text.contains(&format!("<{inbox}>")))
        .collect();
    assert!(writes.len() > 1, "no writes were seen: is the trace complete?");
    // Written in memory that is shared with the file, it would not be seen.
    let mapped = |call: &&Call| call.name == "mmap" && call.text.contains("MAP_SHARED") && of_part(call);
    assert_eq!(calls.iter().filter(mapped).count(), 0);

    let into_place: Vec<_> = renames.iter().filter(|call| call.text.contains("in/file\"")).collect();
    let [rename] = into_place[..] else { panic!("one rename, not {renames:#?}") };
    assert!(rename.name == "renameat2" && rename.text.contains("RENAME_NOREPLACE"), "{rename:?}");
    assert!(rename.text.contains(".part\"") && rename.text.contains("= 0"), "{rename:?}");
    let last_write = writes.iter().map(|call| call.ended).max().unwrap();
    let synced: Vec<_> =
        syncs.iter().filter(|sync| sync.began > last_write && sync.ended < rename.began).collect();
    assert!(!synced.is_empty(), "no sync of the content between its last write and its name: {syncs:#?}");
    assert!(synced.iter().all(|sync| sync.text.contains("= 0")), "{synced:?}");
    let named_by_then = |call: &&Call| call.began < rename.began && call.text.contains("in/file");
    assert_eq!(calls.iter().filter(named_by_then).count(), 0, "the final name was used before");
    let sync = directory.iter().find(|sync| sync.began > rename.ended).expect("a sync of the directory");
    assert!(sync.text.contains("= 0"), "{sync:?}");

    let line =
        calls.iter().find(|call| call.name == "write" && call.text.contains("received")).expect("a line");
    assert!(line.began > sync.ended, "told before the directory was synced");
    let datagrams = named(&["sendmsg", "sendmmsg", "sendto"]);
    let acknowledged =
        calls.iter().find(|call| datagrams(call) && call.began > line.ended).expect("a datagram");
    assert!(acknowledged.from < told, "the sender knew of it before this side said so");
    assert!(sync.at < told, "the sender knew of it {} s before the directory was synced", sync.at - told);
    println!(
        "write (line {last_write}) < fdatasync ({}) < renameat2 ({}) < fsync ({} to {}) < {} ({}) < the sender's word, {:.1} ms later",
        synced[0].began,
        rename.began,
        sync.began,
        sync.ended,
        acknowledged.name,
        acknowledged.began,
        (told - acknowledged.from) * 1e3
    );
}
