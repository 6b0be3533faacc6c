//! `send --delete` and `send --dry-run`: what may remove at a receiver, and what must not.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Home, Running, failed, free_addresses, stdout, succeeded};

/// A home with a directory `photos`, and a receiver into `in` with these options.
fn receiving(options: &[&str]) -> (Home, Running, String) {
    let home = Home::new();
    for path in ["photos/a/1.jpg", "photos/a/2.jpg", "photos/old/3.jpg"] {
        let path = home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, path.as_os_str().as_encoded_bytes()).unwrap();
    }
    std::fs::create_dir(home.path().join("in")).unwrap();
    let address = free_addresses(1)[0].to_string();
    let receiver = home.start(&[&["recv", "in", "--bind", &address], options].concat());
    (home, receiver, address)
}

/// Every path in a directory, without what Octopii keeps beside trees.
fn paths(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(at).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(".octopii")) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                todo.push(path.clone());
            }
            all.push(path.strip_prefix(dir).unwrap().to_owned());
        }
    }
    all.sort();
    all
}

/// The source loses a file and a directory, and gets a file.
fn change(home: &Home) {
    std::fs::remove_file(home.path().join("photos/a/2.jpg")).unwrap();
    std::fs::remove_dir_all(home.path().join("photos/old")).unwrap();
    std::fs::write(home.path().join("photos/new.jpg"), b"new").unwrap();
}

#[test]
fn a_dry_run_tells_what_would_go_and_only_delete_removes_it() {
    let (home, _receiver, address) = receiving(&["--delete"]);
    succeeded(&home.run(&["send", "photos", &address]));
    let before = paths(&home.path().join("in"));
    assert_eq!(before.len(), 6, "{before:?}");
    change(&home);

    let output = home.run(&["--json", "send", "--delete", "--dry-run", "photos", &address]);
    let lines: Vec<Value> =
        succeeded(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, foretold) = lines.split_last().unwrap();
    let mut foretold: Vec<_> =
        foretold.iter().map(|line| format!("{} {}", line["would"], line["path"]).replace('"', "")).collect();
    foretold.sort();
    assert_eq!(foretold, ["remove a/2.jpg", "remove old", "remove old/3.jpg", "send new.jpg"]);
    let counts = ["dry_run", "stored", "unchanged", "removed", "not_done"].map(|key| summary[key].clone());
    assert_eq!(Value::from(counts.to_vec()), json!([true, 1, 1, 3, 0]));
    assert_eq!(paths(&home.path().join("in")), before, "a dry run has done something");
    let told = succeeded(&home.run(&["send", "--dry-run", "photos", &address]));
    assert!(told.contains("0 would be removed") && told.contains("nothing was"), "{told}");
    assert_eq!(paths(&home.path().join("in")), before, "a dry run has done something");

    // Without --delete everything stays.
    succeeded(&home.run(&["send", "photos", &address]));
    let mut all = [before, vec![PathBuf::from("photos/new.jpg")]].concat();
    all.sort();
    assert_eq!(paths(&home.path().join("in")), all);

    let told = succeeded(&home.run(&["send", "--delete", "photos", &address]));
    assert!(told.contains("3 removed"), "{told}");
    let left = ["photos", "photos/a", "photos/a/1.jpg", "photos/new.jpg"].map(PathBuf::from);
    assert_eq!(paths(&home.path().join("in")), left);
}

#[test]
fn a_receiver_that_does_not_allow_it_is_not_emptied() {
    let (home, _receiver, address) = receiving(&[]);
    succeeded(&home.run(&["send", "photos", &address]));
    let before = paths(&home.path().join("in"));
    change(&home);
    for how in [&["--delete"][..], &["--delete", "--dry-run"]] {
        let output = home.run(&[&["send", "photos", &address], how].concat());
        failed(&output, 1, "did not reach 1 of 1 peers");
        assert!(stdout(&output).contains("have the receiver allow it"), "{}", stdout(&output));
        assert_eq!(paths(&home.path().join("in")), before);
    }
}
