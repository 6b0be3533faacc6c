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
