//! `send` and `recv`.

use std::process::Command;

use serde_json::Value;

use crate::{Home, failed, free_addresses, stdout, succeeded};

fn sha256sum(path: &std::path::Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_file_reaches_several_receivers_with_the_digest_that_sha256sum_prints() {
    let home = Home::new();
    let file = home.path().join("big file.dat");
    let content: Vec<u8> =
        (0..5_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(&file, &content).unwrap();
    let digest = sha256sum(&file);
    let addresses: Vec<_> = free_addresses(2).iter().map(ToString::to_string).collect();
    let mut receivers = Vec::new();
    for (n, address) in addresses.iter().enumerate() {
        let dir = format!("in{n}");
        std::fs::create_dir(home.path().join(&dir)).unwrap();
        receivers.push(home.start(&["recv", &dir, "--bind", address, "--count", "1"]));
    }
    let output = home.run(&["--json", "send", "big file.dat", &addresses[0], &addresses[1]]);
    for line in succeeded(&output).lines() {
        let result: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (&result["success"], &result["sha256"]),
            (&Value::Bool(true), &Value::from(digest.clone()))
        );
        assert_eq!(result["bytes"], content.len());
    }
    for (n, receiver) in receivers.iter_mut().enumerate() {
        let received = receiver.line();
        assert_eq!(received["sha256"], digest.as_str());
        assert!(receiver.child.wait().unwrap().success());
        assert_eq!(sha256sum(&home.path().join(format!("in{n}/big file.dat"))), digest);
    }
}

#[test]
fn one_peer_that_is_not_there_is_told_and_the_other_gets_the_file() {
    let home = Home::new();
    std::fs::write(home.path().join("file"), vec![1; 100_000]).unwrap();
    std::fs::create_dir(home.path().join("in")).unwrap();
    let addresses: Vec<_> = free_addresses(2).iter().map(ToString::to_string).collect();
    let _receiver = home.start(&["recv", "in", "--bind", &addresses[0]]);
    let output = home.run(&["send", "file", &addresses[0], &addresses[1], "--timeout", "3s"]);
    failed(&output, 1, "did not reach 1 of 2 peers");
    assert!(stdout(&output).contains("durable"), "{}", stdout(&output));
    assert!(home.path().join("in/file").exists());
}

#[test]
fn a_stranger_neither_sends_nor_receives() {
    let (home, elsewhere) = (Home::new(), Home::new());
    std::fs::create_dir(home.path().join("in")).unwrap();
    std::fs::write(elsewhere.path().join("file"), b"let me in").unwrap();
    let address = free_addresses(1)[0].to_string();
    let _receiver = home.start(&["recv", "in", "--bind", &address]);
    let output = elsewhere.run(&["send", "file", &address]);
    failed(&output, 4, "reached nobody");
    assert!(stdout(&output).contains("not a member of this cluster"), "{}", stdout(&output));
    assert_eq!(std::fs::read_dir(home.path().join("in")).unwrap().count(), 0);
}

#[test]
fn over_ipv6_too() {
    let home = Home::new();
    std::fs::write(home.path().join("file"), vec![1; 100_000]).unwrap();
    std::fs::create_dir(home.path().join("in")).unwrap();
    let address = std::net::UdpSocket::bind("[::1]:0").unwrap().local_addr().unwrap().to_string();
    let _receiver = home.start(&["recv", "in", "--bind", &address]);
    succeeded(&home.run(&["send", "file", &address]));
}

/// Ctrl-C in the middle: nothing under the final name, nothing temporary left by the sender, and the receiver goes on.
#[test]
fn a_send_that_is_stopped_leaves_nothing_behind() {
    let home = Home::new();
    std::fs::File::create(home.path().join("huge")).unwrap().set_len(4 << 30).unwrap();
    std::fs::write(home.path().join("small"), b"small").unwrap();
    for dir in ["in", "tmp"] {
        std::fs::create_dir(home.path().join(dir)).unwrap();
    }
    let address = free_addresses(1)[0].to_string();
    let mut receiver = home.start(&["recv", "in", "--bind", &address]);
    let names = |dir: &str| -> Vec<String> {
        let entries = std::fs::read_dir(home.path().join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let sending = home
        .command(&["send", "huge", &address])
        .env("TMPDIR", home.path().join("tmp"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while names("in").is_empty() {
        assert!(begun.elapsed().as_secs() < 60, "the transfer did not begin");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &sending.id().to_string()]).status().unwrap().success());
    failed(&sending.wait_with_output().unwrap(), 130, "send it again");
    assert!(names("tmp").is_empty(), "{:?} were left", names("tmp"));
    succeeded(&home.run(&["send", "small", &address]));
    assert!(receiver.line()["path"].as_str().unwrap().ends_with("in/small"));
    let begun = std::time::Instant::now();
    while names("in") != ["small"] {
        assert!(begun.elapsed().as_secs() < 60, "{:?} were left", names("in"));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_directory_arrives_is_updated_and_says_what_it_left_out() {
    let home = Home::new();
    let write = |path: &str, content: &[u8]| {
        let path = home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("photos/a/1.jpg", b"one");
    write("photos/a/large", &vec![3; 3_000_000]);
    std::fs::create_dir(home.path().join("photos/empty")).unwrap();
    std::fs::create_dir_all(home.path().join("in")).unwrap();
    // Made by somebody else: left alone.
    write("in/photos/mine", b"");
    let address = free_addresses(1)[0].to_string();
    let mut receiver = home.start(&["recv", "in", "--bind", &address]);
    let send = || -> Value {
        let output = home.run(&["--json", "send", "photos", &address]);
        serde_json::from_str(&succeeded(&output)).unwrap()
    };
    let first = send();
    let pick =
        |value: &Value| ["name", "stored", "unchanged", "directories", "not_done"].map(|k| value[k].clone());
    assert_eq!(Value::from(pick(&first).to_vec()), serde_json::json!(["photos (1)", 2, 0, 3, 0]));
    let told = receiver.line();
    assert_eq!((&told["event"], &told["stored"]), (&"received_tree".into(), &2.into()));
    assert_eq!(told["manifest_sha256"], first["manifest_sha256"]);
    assert_eq!(std::fs::read(home.path().join("in/photos (1)/a/1.jpg")).unwrap(), b"one");
    assert!(home.path().join("in/photos (1)/empty").is_dir());
    write("photos/a/1.jpg", b"two!");
    let again = send();
    assert_eq!(Value::from(pick(&again).to_vec()), serde_json::json!(["photos (1)", 1, 1, 3, 0]));
    assert_eq!(std::fs::read(home.path().join("in/photos (1)/a/1.jpg")).unwrap(), b"two!");

    std::os::unix::fs::symlink("/etc/passwd", home.path().join("photos/\u{1b}[2Jlink")).unwrap();
    std::os::unix::fs::symlink("a", home.path().join("photos/link")).unwrap();
    let output = home.run(&["send", "photos", &address]);
    failed(&output, 1, "2 entries of the directory were not done");
    let shown = stdout(&output);
    assert!(shown.contains("not done: link: ") && shown.contains("\\u{1b}[2Jlink"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
}

/// Lines of text, which zstd makes smaller.
fn text(lines: u32) -> String {
    (0..lines).map(|n| format!("line {n} of some log\n")).collect()
}

fn json_lines(output: &std::process::Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn several_files_and_directories_reach_several_peers() {
    let home = Home::new();
    std::fs::write(home.path().join("one"), text(100_000)).unwrap();
    std::fs::write(home.path().join("two"), b"two").unwrap();
    std::fs::create_dir(home.path().join("three")).unwrap();
    std::fs::write(home.path().join("three/file"), text(5000)).unwrap();
    let addresses: Vec<_> = free_addresses(2).iter().map(ToString::to_string).collect();
    let mut receivers = Vec::new();
    for (n, address) in addresses.iter().enumerate() {
        std::fs::create_dir(home.path().join(format!("in{n}"))).unwrap();
        receivers.push(home.start(&["recv", &format!("in{n}"), "--bind", address]));
    }
    let digest = sha256sum(&home.path().join("one"));
    let send = ["--json", "send", "--ack", "verified", "--compress", "one", "two", "three"];
    let output = home.run(&[&send[..], &[&addresses[0], &addresses[1]]].concat());
    succeeded(&output);
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 7, "two files and a directory, to two peers, and a summary");
    for line in &lines[..2] {
        assert_eq!((&line["path"], &line["sha256"]), (&"one".into(), &digest.clone().into()));
        assert_eq!(line["level"], "verified");
        assert!(line["travelled"].as_u64().unwrap() * 3 < line["bytes"].as_u64().unwrap(), "{line}");
    }
    for line in &lines[4..6] {
        assert_eq!((&line["name"], &line["stored"]), (&"three".into(), &1.into()), "{line}");
        assert!(line["travelled"].as_u64().unwrap() * 3 < line["bytes"].as_u64().unwrap(), "{line}");
    }
    let summary = &lines[6];
    assert_eq!(
        (&summary["event"], &summary["sent"], &summary["peers"]),
        (&"summary".into(), &3.into(), &2.into())
    );
    assert_eq!(summary["items"][0]["sha256"], digest.as_str());
    for n in 0..2 {
        let dir = home.path().join(format!("in{n}"));
        assert_eq!(sha256sum(&dir.join("one")), digest);
        assert_eq!(std::fs::read(dir.join("two")).unwrap(), b"two");
        assert_eq!(std::fs::read(dir.join("three/file")).unwrap(), text(5000).into_bytes());
    }
    // One of the peers is gone: each file says so.
    drop(receivers.pop());
    let output = home.run(&["send", "one", "two", &addresses[0], &addresses[1], "--timeout", "3s"]);
    failed(&output, 1, "2 of 2 did not reach all peers");
    let told = stdout(&output);
    assert!(told.contains("0 of 2 sent to 2 peers") && told.contains(&format!("{digest}  one")), "{told}");
    // One is enough.
    let quorum = ["send", "one", "two", &addresses[0], &addresses[1], "--timeout", "3s", "--quorum", "1"];
    let told = succeeded(&home.run(&quorum));
    assert!(told.contains("2 of 2 sent to 2 peers") && told.contains("durable"), "{told}");
}

#[test]
fn peers_are_named_by_host_names_in_every_form() {
    let home = Home::new();
    let large = vec![7; 9 << 20];
    std::fs::write(home.path().join("large"), &large).unwrap();
    std::fs::create_dir(home.path().join("dir")).unwrap();
    std::fs::write(home.path().join("dir/inside"), b"in a directory").unwrap();
    let addresses: Vec<_> = free_addresses(3).iter().map(ToString::to_string).collect();
    let names: Vec<_> = addresses.iter().map(|addr| addr.replace("127.0.0.1", "localhost")).collect();
    let receive = |n: usize| {
        let dir = format!("in{n}");
        std::fs::create_dir(home.path().join(&dir)).unwrap();
        home.start(&["recv", &dir, "--bind", &addresses[n]])
    };
    let _receivers: Vec<_> = (0..3).map(receive).collect();
    // A large file to many goes from one to the other; they are told of IP addresses.
    let output = home.run(&["--json", "send", "large", "dir", &names[0], &names[1], &names[2]]);
    succeeded(&output);
    let told: Vec<_> =
        json_lines(&output).iter().filter_map(|line| line["peer"].as_str().map(str::to_owned)).collect();
    assert_eq!(told, [&names[..], &names[..]].concat());
    let mut child = home
        .command(&["send", "--stdin", "piped", &names[1]])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"from a pipe").unwrap();
    assert!(child.wait().unwrap().success());
    for n in 0..3 {
        let inbox = home.path().join(format!("in{n}"));
        assert!(std::fs::read(inbox.join("large")).unwrap() == large, "receiver {n}");
        assert_eq!(std::fs::read(inbox.join("dir/inside")).unwrap(), b"in a directory");
    }
    assert_eq!(std::fs::read(home.path().join("in1/piped")).unwrap(), b"from a pipe");
    // One that is not there keeps nothing from the others; one that is elsewhere takes an identity, as an address does.
    let output = home.run(&["send", "dir", &names[0], "nobody.invalid:4700"]);
    failed(&output, 1, "no identity for nobody.invalid:4700");
    for what in ["large", "dir"] {
        let one = ["--json", "send", what, "localhost:9", &names[2], "--timeout", "5s"];
        let output = home.run(&one);
        assert_eq!(output.status.code(), Some(1), "{}", crate::stderr(&output));
        let told: Vec<_> =
            json_lines(&output).iter().map(|line| (line["peer"].clone(), line["success"].clone())).collect();
        assert!(told.contains(&("localhost:9".into(), false.into())), "{told:?}");
        assert!(told.contains(&(names[2].as_str().into(), true.into())), "{told:?}");
    }
}

#[test]
fn all_members_of_a_cluster_get_a_file() {
    let home = Home::new();
    std::fs::write(home.path().join("file"), b"for everybody").unwrap();
    let addresses: Vec<_> = free_addresses(3).iter().map(ToString::to_string).collect();
    // By name: that is what the members' list has.
    let names: Vec<_> = addresses.iter().map(|addr| addr.replace("127.0.0.1", "localhost")).collect();
    let members: Vec<_> = names.iter().enumerate().map(|(n, addr)| format!("{}={addr}", n + 1)).collect();
    let start = |n: usize| {
        let (id, dir) = ((n + 1).to_string(), format!("node{}", n + 1));
        let mut args = vec!["node", "--id", &id, "--data-dir", &dir, "--bind", &addresses[n]];
        members.iter().for_each(|member| args.extend(["--member", member]));
        home.start(&args)
    };
    let mut nodes: Vec<_> = (0..3).map(start).collect();
    for node in &mut nodes {
        assert_eq!(node.line()["event"], "ready");
    }
    // Any of them knows all.
    let output = home.run(&["--json", "send", "file", "--to-all", "--node", &addresses[1]]);
    succeeded(&output);
    let mut peers: Vec<_> =
        json_lines(&output).iter().map(|line| line["peer"].as_str().unwrap().to_owned()).collect();
    peers.sort();
    let mut all = names.clone();
    all.sort();
    assert_eq!(peers, all);
    for n in 1..=3 {
        let inbox = home.path().join(format!("node{n}/inbox/file"));
        assert_eq!(std::fs::read(inbox).unwrap(), b"for everybody");
    }
    drop(nodes);
    // Whoever only receives belongs to no cluster, and nobody at all can tell nothing.
    std::fs::create_dir(home.path().join("in")).unwrap();
    let alone = free_addresses(1)[0].to_string();
    let _receiver = home.start(&["recv", "in", "--bind", &alone]);
    let output = home.run(&["send", "file", "--to-all", "--node", &alone]);
    assert_ne!(output.status.code(), Some(0), "{}", stdout(&output));
    assert_eq!(std::fs::read_dir(home.path().join("in")).unwrap().count(), 0);
    failed(&home.run(&["send", "file", "--to-all", "--node", &addresses[0]]), 4, "no node answers");
}

#[test]
fn what_makes_no_sense_is_wrong_usage() {
    let home = Home::new();
    std::fs::write(home.path().join("file"), b"content").unwrap();
    let wrong: [&[&str]; 8] = [
        &["127.0.0.1:9"],
        &["file", "--to-all", "127.0.0.1:9"],
        &["file", "127.0.0.1:9", "127.0.0.1:8", "--quorum", "3"],
        &["file", "127.0.0.1:9", "--quorum", "0"],
        &["file", "127.0.0.1:9", "--compress=20"],
        &["file", "127.0.0.1:9", "--compress=0"],
        &["file", "127.0.0.1:9", "--ack", "perhaps"],
        &["file", "127.0.0.1:9", "elsewhere"],
    ];
    for args in wrong {
        let output = home.run(&[&["send"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", crate::stderr(&output));
    }
    assert!(!home.path().join("state").exists());
}
