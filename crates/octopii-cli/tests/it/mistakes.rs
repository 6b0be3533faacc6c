//! What users get wrong: one clear line each, a code that is not 0, nothing half-written.

use std::time::Instant;

use crate::{Home, failed, free_addresses, succeeded};

#[test]
fn sending_what_cannot_be_sent() {
    let home = Home::new();
    failed(&home.run(&["send", "missing.dat", "127.0.0.1:9"]), 1, "missing.dat");
    failed(&home.run(&["send", "/dev/null", "127.0.0.1:9"]), 1, "neither a file nor a directory");
    failed(&home.run(&["send", "--stdin", "name", "127.0.0.1:9", "127.0.0.1:8"]), 1, "goes to one peer");
    assert_eq!(home.run(&["send", "file", "127.0.0.1:9", "--limit-rate", "fast"]).status.code(), Some(2));
    assert!(!home.path().join("state").exists(), "an identity was made for a command that could not run");
}

#[test]
fn nobody_at_the_other_end() {
    let home = Home::new();
    std::fs::write(home.path().join("file"), b"content").unwrap();
    let nobody = free_addresses(1)[0].to_string();
    let begun = Instant::now();
    let output = home.run(&["send", "file", &nobody, "--timeout", "2s"]);
    failed(&output, 4, "the file reached nobody");
    assert!(crate::stdout(&output).contains("no answer"), "{}", crate::stdout(&output));
    failed(&home.run(&["kv", "get", "key", "--node", &nobody, "--timeout", "1s"]), 4, &nobody);
    failed(&home.run(&["call", &nobody, "any.method", "--timeout", "500ms"]), 4, "no connection");
    failed(&home.run(&["cluster", "status", "--node", &nobody, "--timeout", "1s"]), 4, "no node answers");
    assert!(begun.elapsed().as_secs() < 20);
}

#[test]
fn directories_and_ports_that_are_taken() {
    let home = Home::new();
    let bind = free_addresses(1)[0].to_string();
    let _node = home.start(&["node", "--data-dir", "one", "--id", "1", "--bind", &bind]);
    failed(&home.run(&["node", "--data-dir", "one", "--id", "1"]), 1, "in use by another node");
    failed(&home.run(&["node", "--data-dir", "two", "--id", "2", "--bind", &bind]), 1, "already in use");
    failed(&home.run(&["recv", ".", "--bind", &bind]), 1, "already in use");
    std::fs::write(home.path().join("plain"), b"not a directory").unwrap();
    failed(&home.run(&["node", "--data-dir", "plain"]), 1, "plain");
    failed(&home.run(&["recv", "plain"]), 1, "plain is not a directory");
    failed(&home.run(&["recv", "nowhere"]), 1, "nowhere");
    assert!(!home.path().join("nowhere").exists());
    failed(&home.run(&["recv", "/proc"]), 1, "cannot write into /proc");
}

#[test]
fn a_data_directory_of_another_node() {
    let home = Home::new();
    drop(home.start(&["node", "--data-dir", "one", "--id", "1"]));
    failed(&home.run(&["node", "--data-dir", "one", "--id", "2"]), 1, "belongs to node 1");
    // A log without the record of whose it is was not made here.
    std::fs::remove_file(home.path().join("one/node.toml")).unwrap();
    failed(&home.run(&["node", "--data-dir", "one", "--id", "1"]), 1, "node.toml is damaged");
}

#[test]
fn addresses_and_configurations_that_make_no_sense() {
    let home = Home::new();
    let member_of_another = ["node", "--id", "1", "--data-dir", "d", "--member", "2=127.0.0.1:4702"];
    failed(&home.run(&member_of_another), 1, "not among the members");
    failed(&home.run(&["node", "--bind", "0.0.0.0:0", "--data-dir", "d2"]), 1, "octopii cluster issue");
    failed(&home.run(&["node", "--config", "none.toml"]), 1, "none.toml");
    std::fs::write(home.path().join("bad.toml"), "bynd = 1").unwrap();
    let output = home.run(&["node", "--config", "bad.toml"]);
    failed(&output, 1, "bad.toml: line 1, `bynd = 1`: unknown field");
    assert!(!crate::stderr(&output).contains("\\n"), "{}", crate::stderr(&output));
    // Usage mistakes are clap's: code 2.
    assert_eq!(home.run(&["node", "--member", "one"]).status.code(), Some(2));
    assert_eq!(home.run(&["send", "file"]).status.code(), Some(2));
    assert_eq!(home.run(&["send", "file", "localhost"]).status.code(), Some(2));
    assert_eq!(home.run(&[]).status.code(), Some(2));
}

#[test]
fn logs_that_are_none_and_logs_that_are_damaged() {
    let home = Home::new();
    failed(&home.run(&["wal", "inspect", "nowhere"]), 1, "nowhere is not a directory");
    failed(&home.run(&["wal", "inspect", "."]), 1, "holds no log");
    let bind = free_addresses(1)[0].to_string();
    let member = format!("1={bind}");
    let mut node =
        home.start(&["node", "--data-dir", "one", "--id", "1", "--bind", &bind, "--member", &member]);
    assert_eq!(node.line()["event"], "ready");
    for n in 0..20 {
        succeeded(&home.run(&["kv", "put", &format!("key{n}"), "value", "--node", &bind]));
    }
    let live = succeeded(&home.run(&["wal", "inspect", "one"]));
    assert!(live.contains("topic raft") && live.contains("tail clean"), "{live}");
    let live = succeeded(&home.run(&["wal", "verify", "one"]));
    assert!(live.contains("are whole"), "{live}");
    let records =
        succeeded(&home.run(&["wal", "dump", "one", "--topic", "raft", "--from", "3", "--to", "5"]));
    let words: Vec<_> = records.lines().map(|line| line.split_whitespace().nth(3).unwrap()).collect();
    assert_eq!(words, ["entry", "entry"], "{records}");
    let records = succeeded(&home.run(&["wal", "dump", "one", "--json"]));
    let keys = records.lines().filter(|line| {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        record["kind"] == "entry" && record["hex"].as_str().unwrap().contains("6b6579")
    });
    assert_eq!(keys.count(), 20, "every entry with the word key");
    node.kill();
    let segment = std::fs::read_dir(home.path().join("one/wal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_file() && std::fs::metadata(path).unwrap().len() > 100_000)
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).unwrap();
    // In the middle of what was acknowledged, not in its last page.
    let end = bytes.iter().rposition(|b| *b != 0).unwrap();
    bytes[end / 2 / 4096 * 4096 + 40] ^= 0x10;
    std::fs::write(&segment, &bytes).unwrap();
    let output = home.run(&["wal", "inspect", "one"]);
    assert_eq!(output.status.code(), Some(1), "{}", crate::stdout(&output));
    let output = home.run(&["wal", "verify", "one"]);
    failed(&output, 1, "1 damaged: restore");
    assert!(crate::stdout(&output).contains("damaged: "), "{}", crate::stdout(&output));
    let output = home.run(&["wal", "dump", "one", "--json"]);
    failed(&output, 1, "everything else is shown");
    let whole = crate::stdout(&output).lines().filter(|line| line.contains("6b6579")).count();
    assert!((18..20).contains(&whole), "{whole}");
    failed(&home.run(&["node", "--data-dir", "one", "--id", "1", "--bind", &bind]), 1, "damaged");
    assert_eq!(std::fs::read(&segment).unwrap(), bytes, "a damaged log was changed");
}

#[test]
fn secrets_are_never_overwritten_and_need_their_authority() {
    let home = Home::new();
    succeeded(&home.run(&["cluster", "init", "--authority", "ca.pem"]));
    failed(&home.run(&["cluster", "init", "--authority", "ca.pem"]), 1, "ca.pem");
    failed(
        &home.run(&["cluster", "issue", "--authority", "none.pem", "--id", "1", "--out", "n.pem"]),
        1,
        "none.pem",
    );
    succeeded(&home.run(&["cluster", "issue", "--authority", "ca.pem", "--id", "1", "--out", "n.pem"]));
    failed(&home.run(&["node", "--identity", "ca.pem", "--data-dir", "d"]), 1, "ca.pem");
    failed(&home.run(&["node", "--identity", "n.pem", "--id", "2", "--data-dir", "d"]), 1, "node 1");
}

/// Runs the command with files limited to so many blocks of the shell's, as on a disk that is full.
fn on_a_full_disk(home: &Home, blocks: u32, args: &[&str]) -> std::process::Command {
    let plain = home.command(args);
    let mut command = std::process::Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    command.args(["-c", &script]).arg(plain.get_program()).args(plain.get_args());
    command.current_dir(home.path());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

#[test]
fn a_full_disk_leaves_no_half_of_a_secret() {
    let home = Home::new();
    let output = on_a_full_disk(&home, 0, &["cluster", "init"]).output().unwrap();
    failed(&output, 1, "octopii-authority.pem");
    succeeded(&home.run(&["cluster", "init"]));
}

/// Once it went on for ever as if nothing had happened, of no use to anybody.
#[test]
fn a_node_whose_log_cannot_be_written_says_so_and_ends() {
    let home = Home::new();
    let bind = free_addresses(1)[0].to_string();
    let member = format!("1={bind}");
    let args = ["--json", "node", "--data-dir", "one", "--id", "1", "--bind", &bind, "--member", &member];
    let mut command = on_a_full_disk(&home, 4096, &args);
    let mut node =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(node.stdout.take().unwrap());
    for _ in 0..2 {
        std::io::BufRead::read_line(&mut lines, &mut String::new()).unwrap();
    }
    let value = "v".repeat(100_000);
    let failing = (0..200).find(|n| {
        let put = home.run(&["kv", "put", &format!("key{n}"), &value, "--node", &bind, "--timeout", "5s"]);
        !put.status.success()
    });
    if failing.is_none() {
        node.kill().unwrap();
    }
    let output = node.wait_with_output().unwrap();
    assert!(failing.is_some(), "the limit was never reached");
    failed(&output, 1, "start the node again");
}

#[test]
fn output_that_cannot_be_written_is_a_failure_and_a_reader_that_left_is_none() {
    let home = Home::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = home.command(&["cluster", "init"]).stdout(full).output().unwrap();
    failed(&output, 1, "cannot write to standard output");
    let issue = ["cluster", "issue", "--id", "1", "--out", "node.pem"];
    let mut issuing = home.command(&issue).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(issuing.stdout.take());
    assert!(issuing.wait().unwrap().success());
    assert!(home.path().join("node.pem").exists());
}

#[test]
fn ports_of_another_local_cluster() {
    let home = Home::new();
    let port = crate::three_free_ports().to_string();
    let mut first = home
        .command(&["--json", "up", "--dir", "one", "--base-port", &port])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(first.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut lines, &mut String::new()).unwrap();
    // The nodes of the first answer at those addresses, but they are not the second's.
    let output = home.run(&["up", "--dir", "two", "--base-port", &port]);
    assert!(std::process::Command::new("kill").arg(first.id().to_string()).status().unwrap().success());
    assert!(first.wait().unwrap().success());
    failed(&output, 1, "is already in use");
    assert_eq!(crate::stdout(&output), "");
}
