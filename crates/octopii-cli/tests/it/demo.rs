//! The demo shows what it says, and notices when it does not.

use std::process::Command;

use crate::{Home, failed, stdout, succeeded};

#[test]
fn everything_is_shown_on_a_file_of_the_users_own() {
    let home = Home::new();
    let file = home.path().join("mine.bin");
    std::fs::write(&file, (0..3_000_000u32).map(|n| n.wrapping_mul(n) as u8).collect::<Vec<_>>()).unwrap();
    let output = home.run(&["demo", "--file", "mine.bin"]);
    let shown = succeeded(&output);
    let sum = String::from_utf8(Command::new("sha256sum").arg(&file).output().unwrap().stdout).unwrap();
    let digest = sum.split_whitespace().next().unwrap();
    assert_eq!(shown.matches(digest).count(), 3, "sender and both receivers show the digest:\n{shown}");
    for claim in [
        "form a cluster",
        "both received files are the one that was sent",
        "RPC calls answered meanwhile",
        "read back from every node",
        "kill -9",
        "leads; the next put was acknowledged",
        "are on both survivors",
        "restarted from its log",
        "octopii up",
    ] {
        assert!(shown.contains(claim), "{claim:?} is not in:\n{shown}");
    }
}

#[test]
fn a_flipped_byte_is_named() {
    broken("received-byte", "the file at node 2 is the one that was sent");
}

#[test]
fn a_lost_key_is_named() {
    broken("acknowledged-key", "key-00007 is missing");
}

#[test]
fn a_node_that_does_not_come_back_is_named() {
    broken("restart", "catches up after its restart");
}

fn broken(sabotage: &str, told: &str) {
    let home = Home::new();
    std::fs::write(home.path().join("small"), vec![3; 100_000]).unwrap();
    let output = home.run(&["demo", "--file", "small", "--sabotage", sabotage]);
    failed(&output, 1, "claim broken: ");
    failed(&output, 1, told);
    assert!(!stdout(&output).contains("by hand"), "the demo went on after a broken claim");
}

#[test]
fn a_stop_in_the_middle_leaves_nothing_behind() {
    let home = Home::new();
    std::fs::write(home.path().join("small"), vec![3; 100_000]).unwrap();
    let temporary = home.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut demo = home
        .command(&["--json", "demo", "--file", "small"])
        .env("TMPDIR", &temporary)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(demo.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut lines, &mut String::new()).unwrap();
    assert_ne!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    assert!(Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap().success());
    failed(&demo.wait_with_output().unwrap(), 130, "stopped before");
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
}
