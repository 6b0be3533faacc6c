//! A cluster with an authority of its own, made as its operator makes it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::Value;

use crate::{Home, Running, failed, free_addresses, stderr, succeeded};

struct Cluster {
    home: Home,
    first: String,
    node: Running,
}

impl Cluster {
    /// One node that issues certificates.
    fn new() -> Self {
        let home = Home::new();
        succeeded(&home.run(&["cluster", "init"]));
        let first = free_addresses(1)[0].to_string();
        let node = Self::start_first(&home, &first);
        Self { home, first, node }
    }

    fn start_first(home: &Home, first: &str) -> Running {
        Self::start_with(home, first, "octopii-authority.pem")
    }

    fn start_with(home: &Home, first: &str, authority: &str) -> Running {
        let member = format!("1={first}");
        let args = [
            "node",
            "--authority",
            authority,
            "--id",
            "1",
            "--bind",
            first,
            "--data-dir",
            "one",
            "--member",
            &member,
        ];
        let mut node = home.start(&args);
        assert_eq!(node.line()["event"], "ready");
        node
    }

    /// A command that an operator gives to the first node.
    fn operator(&self, args: &[&str]) -> std::process::Output {
        let to = ["--node", &self.first, "--identity", "octopii-operator.pem"];
        self.home.run(&[args, &to].concat())
    }

    fn token(&self, args: &[&str]) -> String {
        let token = succeeded(&self.operator(&[&["token", "create"], args].concat())).trim().to_owned();
        assert!(token.starts_with("octopii-join-"), "{token}");
        token
    }

    /// A node with a client's certificate, which it gets for this token: first as somebody would start it by mistake.
    fn client(&self, token: &str, dir: &str) -> Running {
        self.write(&format!("{dir}.token"), token);
        self.write("client.toml", "consensus = false");
        let token = format!("{dir}.token");
        let join = ["node", "--join", &token, "--bind", "127.0.0.1:0", "--data-dir", dir];
        failed(&self.home.run(&join), 1, "only a member takes part in consensus");
        self.home.start(&[&join[..], &["--config", "client.toml"]].concat())
    }

    fn tokens(&self) -> Vec<Value> {
        let shown = succeeded(&self.operator(&["--json", "token", "list"]));
        shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.home.path().join(name), text).unwrap();
    }
}

#[test]
fn a_node_joins_with_a_token_once_and_rotates_its_key_while_it_runs() {
    let mut cluster = Cluster::new();
    cluster.write("token", &cluster.token(&[]));
    let second = free_addresses(1)[0].to_string();
    let join = ["node", "--join", "token", "--bind", &second, "--data-dir", "two"];
    let mut node = cluster.home.start(&join);
    let identity = cluster.home.path().join("two/identity.pem");
    assert_eq!(identity.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let id = cluster.tokens()[0]["node_id"].to_string();
    succeeded(&cluster.operator(&["cluster", "add", &id, &second]));
    succeeded(&cluster.operator(&["cluster", "promote", &id]));
    succeeded(&cluster.operator(&["kv", "put", "key", "value"]));

    // Spent: for others, and also after the issuing node was killed. The joined node itself starts with the same command.
    node.kill();
    cluster.node.kill();
    cluster.node = Cluster::start_first(&cluster.home, &cluster.first);
    node = cluster.home.start(&join);
    let third = ["node", "--join", "token", "--bind", "127.0.0.1:0", "--data-dir", "three"];
    failed(&cluster.home.run(&third), 1, "has been used");
    assert_eq!(cluster.tokens()[0]["state"], "used");

    // A new key while it runs; and one that the user puts there.
    let before = std::fs::read(&identity).unwrap();
    let operator = cluster.home.path().join("octopii-operator.pem");
    let rotated = ["cluster", "rotate", "--node", &second, "--issuer", &cluster.first, "--identity"];
    succeeded(&cluster.home.run(&[&rotated[..], &[operator.to_str().unwrap()]].concat()));
    let after = std::fs::read(&identity).unwrap();
    assert_ne!(before, after);
    assert_eq!(identity.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(node.line()["event"], "ready");
    std::fs::write(&identity, before).unwrap();
    let pid = node.child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let told = node.line();
    assert_eq!((&told["event"], &told["changed"]), (&"reloaded".into(), &true.into()), "{told}");
    let get = ["kv", "get", "key", "--node", &second, "--identity", "octopii-operator.pem"];
    assert_eq!(succeeded(&cluster.home.run(&get)), "value\n");

    // What was handed out is on the record, though the issuing node was killed after each.
    cluster.node.kill();
    cluster.node = Cluster::start_first(&cluster.home, &cluster.first);
    let issued = |args: &[&str]| -> Vec<Value> {
        let shown = succeeded(&cluster.operator(&[&["--json", "cluster", "issued"], args].concat()));
        shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let told = |entry: &Value| (entry["node_id"].to_string(), entry["by"].as_str().unwrap().to_owned());
    let expected = [("1", "own"), (&id, "token"), (&id, "renewal")];
    assert_eq!(
        issued(&[]).iter().map(told).collect::<Vec<_>>(),
        expected.map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    let of_two = issued(&[&id]);
    assert_eq!(of_two.len(), 2);
    assert_eq!(of_two[1]["from"], second.as_str(), "the node asks from where it listens");
    // Revoking one of a node's certificates says what else it has.
    let hash = |n: usize| of_two[n]["certificate"].as_str().unwrap().to_owned();
    let shown = succeeded(&cluster.operator(&["cluster", "revoke", "--certificate", &hash(0)]));
    assert!(shown.starts_with("ok\n") && shown.contains(&hash(1)) && !shown.contains(&hash(0)), "{shown}");
    assert!(shown.contains(&format!("`octopii cluster revoke {id}` shuts out all of them")), "{shown}");
    let revoked: Vec<_> = issued(&[&id]).iter().map(|entry| entry["revoked"] == true).collect();
    assert_eq!(revoked, [true, false]);
    succeeded(&cluster.operator(&["cluster", "revoke", &id]));
    assert!(issued(&[&id]).iter().all(|entry| entry["revoked"] == true));
    let shown = succeeded(&cluster.operator(&["cluster", "revoke", "--certificate", &"7".repeat(64)]));
    assert!(shown.contains("not on an issuing node's record"), "{shown}");
    let shown = succeeded(&cluster.operator(&["cluster", "issued"]));
    assert!(
        shown.lines().count() == 3 && shown.contains("renewal") && shown.contains(", revoked"),
        "{shown}"
    );
}

/// Nodes move to a new authority while they serve; at the end the old one admits nobody.
#[test]
fn an_authority_is_replaced_under_a_running_cluster() {
    let mut cluster = Cluster::new();
    let second = free_addresses(1)[0].to_string();
    cluster.write("token", &cluster.token(&[]));
    let _node = cluster.home.start(&["node", "--join", "token", "--bind", &second, "--data-dir", "two"]);
    let issue = |authority: &str, out: &str| {
        let role = ["--role", "operator", "--id", "900", "--authority", authority, "--out", out];
        succeeded(&cluster.home.run(&[&["cluster", "issue"], &role[..]].concat()));
    };
    issue("octopii-authority.pem", "old-client.pem");
    succeeded(&cluster.home.run(&["cluster", "succeed"]));
    let steps = [
        "octopii-authority-1-announce.pem",
        "octopii-authority-2-carry.pem",
        "octopii-authority-3-alone.pem",
    ];
    for step in &steps {
        issue(step, &format!("by-{step}"));
    }
    failed(&cluster.home.run(&["cluster", "succeed"]), 1, "exists");
    for step in steps {
        cluster.node.kill();
        cluster.node = Cluster::start_with(&cluster.home, &cluster.first, step);
        let operator = format!("by-{step}");
        let token = || {
            let to = ["--node", &cluster.first, "--identity", "by-octopii-authority-1-announce.pem"];
            cluster.home.run(&[&["token", "create"], &to[..]].concat())
        };
        if step == "octopii-authority-2-carry.pem" {
            failed(&token(), 1, "cluster rotate");
        }
        // The issuing node last: until then it carries what everybody trusts.
        for node in [&second, &cluster.first] {
            let rotate = ["cluster", "rotate", "--node", node, "--issuer", &cluster.first, "--identity"];
            // Who speaks carries a certificate of the step before, which both sides still trust.
            let speaking = match step {
                "octopii-authority-1-announce.pem" => "by-octopii-authority-1-announce.pem",
                _ => "by-octopii-authority-2-carry.pem",
            };
            succeeded(&cluster.home.run(&[&rotate[..], &[speaking]].concat()));
        }
        if step == "octopii-authority-2-carry.pem" {
            // The issuing node shows the new authority by now, without a restart.
            cluster.write("late", &succeeded(&token()));
            let join = ["node", "--join", "late", "--bind", "127.0.0.1:0", "--data-dir", "late-node"];
            drop(cluster.home.start(&join));
        }
        let ask = ["kv", "put", "k", step, "--node", &cluster.first, "--identity", &operator];
        succeeded(&cluster.home.run(&ask));
    }
    let put = |identity: &str| {
        cluster.home.run(&["kv", "put", "k", "v", "--node", &cluster.first, "--identity", identity])
    };
    failed(&put("old-client.pem"), 4, "not a member");
    succeeded(&put("by-octopii-authority-3-alone.pem"));
    succeeded(&put("two/identity.pem"));
}

#[test]
fn a_revoked_node_is_cut_off_and_stays_so() {
    let mut cluster = Cluster::new();
    let second = free_addresses(1)[0].to_string();
    cluster.write("token", &cluster.token(&["--id", "7"]));
    let _node = cluster.home.start(&["node", "--join", "token", "--bind", &second, "--data-dir", "two"]);
    let _client = cluster.client(&cluster.token(&["--id", "8", "--role", "client"]), "c");
    let put = |cluster: &Cluster, identity: &str| {
        cluster.home.run(&["kv", "put", "k", "v", "--node", &cluster.first, "--identity", identity])
    };
    succeeded(&put(&cluster, "two/identity.pem"));
    succeeded(&put(&cluster, "c/identity.pem"));

    // Signed by the issuing node, and by whoever has the authority's file.
    succeeded(&cluster.operator(&["cluster", "revoke", "7"]));
    failed(&put(&cluster, "two/identity.pem"), 4, "revoked");
    succeeded(&put(&cluster, "c/identity.pem"));
    let signed = ["cluster", "revoke", "8", "--authority", "octopii-authority.pem"];
    succeeded(&cluster.operator(&signed));
    failed(&put(&cluster, "c/identity.pem"), 4, "revoked");
    cluster.node.kill();
    cluster.node = Cluster::start_first(&cluster.home, &cluster.first);
    failed(&put(&cluster, "c/identity.pem"), 4, "revoked");
    let shown = succeeded(&cluster.operator(&["cluster", "revoked"]));
    assert_eq!(shown, "node 7\nnode 8\n");
}

#[test]
fn tokens_are_listed_withdrawn_and_bound_to_a_role() {
    let cluster = Cluster::new();
    let (client, withdrawn) =
        (cluster.token(&["--role", "client", "--id", "50"]), cluster.token(&["--ttl", "5m"]));
    let ids: Vec<_> = cluster.tokens().iter().map(|t| t["id"].as_str().unwrap().to_owned()).collect();
    succeeded(&cluster.operator(&["token", "revoke", &ids[1]]));
    failed(&cluster.operator(&["token", "revoke", &ids[1]]), 1, "no token");
    cluster.write("withdrawn", &withdrawn);
    let join = |file, dir| ["node", "--join", file, "--bind", "127.0.0.1:0", "--data-dir", dir];
    failed(&cluster.home.run(&join("withdrawn", "w")), 1, "not known there");

    // A client's certificate makes no member, and commands nothing.
    let _client = cluster.client(&client, "c");
    let as_client = ["--node", &cluster.first, "--identity", "c/identity.pem"];
    succeeded(&cluster.home.run(&[&["kv", "put", "k", "v"], &as_client[..]].concat()));
    for refused in
        [&["token", "create"][..], &["token", "list"], &["cluster", "remove", "1"], &["cluster", "rotate"]]
    {
        failed(&cluster.home.run(&[refused, &as_client[..]].concat()), 1, "operator");
    }
    failed(&cluster.operator(&["token", "create", "--id", "50"]), 1, "has been given out");
    failed(&cluster.operator(&["token", "create", "--id", "1"]), 1, "has been given out");
    // A member's that has come without a token.
    let by_hand = ["cluster", "issue", "--id", "30", "--role", "member", "--out", "thirty.pem"];
    succeeded(&cluster.home.run(&by_hand));
    let thirtieth = free_addresses(1)[0].to_string();
    let start = ["node", "--identity", "thirty.pem", "--bind", &thirtieth, "--data-dir", "thirty"];
    let _node = cluster.home.start(&start);
    succeeded(&cluster.operator(&["cluster", "add", "30", &thirtieth]));
    failed(&cluster.operator(&["token", "create", "--id", "30"]), 1, "has been given out");
    failed(&cluster.operator(&["token", "create", "--ttl", "100000h"]), 1, "a year");
    failed(&cluster.operator(&["token", "create", "--address", "here"]), 1, "not an address");
}

#[test]
fn a_token_is_never_on_the_command_line_nor_in_a_log() {
    let cluster = Cluster::new();
    let token = cluster.token(&[]);
    let output = cluster.home.run(&["node", "--join", &token, "--data-dir", "two"]);
    failed(&output, 1, "can be read by every user");
    assert!(!stderr(&output).contains(&token[..40]));
    for wrong in ["octopii", &token[..token.len() - 1], ""] {
        cluster.write("wrong", wrong);
        let output = cluster.home.run(&["node", "--join", "wrong", "--data-dir", "two"]);
        failed(&output, 1, "token");
        assert!(wrong.len() < 40 || !stderr(&output).contains(&token[..40]));
    }
    // By standard input, with everything logged.
    let mut node = cluster
        .home
        .command(&["--json", "node", "--join", "-", "--bind", "127.0.0.1:0", "--data-dir", "two"])
        .env("OCTOPII_LOG", "trace")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = node.stderr.take().unwrap();
    let logged = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut log, &mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    });
    node.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(node.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("listening"), "{line}");
    let typed = std::fs::read_to_string(format!("/proc/{}/cmdline", node.id())).unwrap();
    assert!(!typed.contains("octopii-join"), "{typed}");
    node.kill().unwrap();
    node.wait().unwrap();
    let logged = logged.join().unwrap();
    assert!(logged.len() > 1000, "nothing was logged");
    assert!(!logged.contains(&token[13..50]), "the token is in the log");
}
