//! `octopii call`: any method, in JSON.

use serde_json::Value;

use crate::{Home, failed, free_addresses, succeeded};

#[test]
fn methods_are_listed_and_called_in_json() {
    let home = Home::new();
    let address = free_addresses(1)[0].to_string();
    let _node = home.start(&["node", "--data-dir", "n", "--bind", &address]);
    let listed = succeeded(&home.run(&["call", "--list", &address]));
    assert!(listed.contains("octopii.status() -> NodeStatus"), "{listed}");
    assert!(listed.contains("octopii.methods() -> MethodInfo[]"), "{listed}");
    assert!(listed.contains("    Member = {id: u64, addr: string<"), "{listed}");
    assert!(listed.contains(">, voter: bool, matched?: u64}\n"), "{listed}");
    assert!(listed.contains("octopii.echo(bytes) -> bytes  [bytes only]"), "{listed}");
    assert!(listed.contains("What this node knows"), "{listed}");
    let some = succeeded(&home.run(&["call", "--list", &address, "octopii.s", "--json"]));
    let one: Value = serde_json::from_str(&some).unwrap();
    assert_eq!((&one["name"], &one["json"]), (&Value::from("octopii.status"), &Value::from(true)));
    assert_eq!(one["json_signature"], "octopii.status() -> NodeStatus");

    let status = succeeded(&home.run(&["call", &address, "octopii.status", "--verbose"]));
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["addr"], address.as_str());

    failed(&home.run(&["call", &address, "octopii.nothing"]), 1, "no method");
    failed(&home.run(&["call", &address, "octopii.status", "text"]), 1, "not JSON");
    failed(&home.run(&["call", &address, "octopii.status", "7"]), 1, "the request is 7 instead of null");
    failed(&home.run(&["call", &address, "octopii.echo", "7"]), 1, "takes bytes");
}

/// What is wrong with a request is found out before it is sent, and the error says what would be right.
#[test]
fn a_request_that_does_not_fit_is_told_what_does() {
    let home = Home::new();
    let address = free_addresses(1)[0].to_string();
    let member = format!("1={address}");
    let mut node =
        home.start(&["node", "--data-dir", "n", "--id", "1", "--bind", &address, "--member", &member]);
    assert_eq!(node.line()["event"], "ready");
    let takes =
        r#"octopii.member(MembershipChange) -> null where MembershipChange = {"Add": {id: u64, addr: "#;
    for (request, problem) in [
        (r#"{"Add": {"id": 2}}"#, r#"Add lacks the field "addr""#),
        (r#"{"Add": {"id": 2, "address": "x"}}"#, r#"Add has no field "address""#),
        (r#"{"Add": {"id": -2}}"#, "Add.id is -2 instead of a u64"),
        (r#"{"Ad": {}}"#, r#"the request has no variant "Ad""#),
        ("7", "the request is 7 instead of a variant's name"),
        ("text", "not JSON"),
        // What only the peer knows.
        (r#"{"Add": {"id": 2, "addr": "nowhere"}}"#, "nowhere"),
    ] {
        let run = home.run(&["call", &address, "octopii.member", request]);
        failed(&run, 1, problem);
        failed(&run, 1, takes);
    }
    let unchecked = home.run(&["call", &address, "octopii.member", r#"{"Ad": {}}"#, "--unchecked"]);
    failed(&unchecked, 1, "unknown variant `Ad`");
}

#[test]
fn peers_are_named_by_host_and_port() {
    let home = Home::new();
    let address = free_addresses(1)[0];
    let member = format!("1={address}");
    let mut node = home.start(&[
        "node",
        "--data-dir",
        "n",
        "--id",
        "1",
        "--bind",
        &address.to_string(),
        "--member",
        &member,
    ]);
    assert_eq!(node.line()["event"], "ready");
    let name = format!("localhost:{}", address.port());
    let status = succeeded(&home.run(&["call", &name, "octopii.status"]));
    assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["addr"], address.to_string());
    succeeded(&home.run(&["kv", "put", "key", "value", "--node", &name]));
    let shown = succeeded(&home.run(&["cluster", "status", "--node", &name]));
    assert_eq!(shown.lines().count(), 2, "one node, by whatever name it was asked: {shown}");
    // What is on another machine needs an identity of its authority, under whatever name; and no name, no peer.
    failed(&home.run(&["call", "host.invalid:4701", "octopii.status"]), 1, "host.invalid:4701");
    succeeded(&home.run(&["cluster", "init"]));
    let identified = ["--identity", "octopii-operator.pem"];
    let call = home.run(&[&["call", "host.invalid:4701", "octopii.status"][..], &identified].concat());
    failed(&call, 4, "host.invalid:4701 cannot be found");
}

#[test]
fn a_node_on_ipv6_alone_is_called_there() {
    let Ok(socket) = std::net::UdpSocket::bind("[::1]:0") else {
        return eprintln!("skipped: this machine has no IPv6 loopback");
    };
    let address = socket.local_addr().unwrap().to_string();
    drop(socket);
    let home = Home::new();
    let _node = home.start(&["node", "--data-dir", "n", "--bind", &address]);
    let status = succeeded(&home.run(&["call", &address, "octopii.status"]));
    assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["addr"], address);
    std::fs::write(home.path().join("file"), b"content").unwrap();
    succeeded(&home.run(&["send", "file", &address]));
    assert_eq!(std::fs::read(home.path().join("n/inbox/file")).unwrap(), b"content");
}
