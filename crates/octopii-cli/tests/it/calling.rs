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
    assert!(listed.contains("octopii.methods() -> Vec<MethodInfo>"), "{listed}");
    assert!(listed.contains("What this node knows"), "{listed}");
    let some = succeeded(&home.run(&["call", "--list", &address, "octopii.s", "--json"]));
    let one: Value = serde_json::from_str(&some).unwrap();
    assert_eq!((&one["name"], &one["json"]), (&Value::from("octopii.status"), &Value::from(true)));

    let status = succeeded(&home.run(&["call", &address, "octopii.status", "--verbose"]));
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["addr"], address.as_str());

    failed(&home.run(&["call", &address, "octopii.nothing"]), 1, "no method");
    failed(&home.run(&["call", &address, "octopii.status", "text"]), 1, "not JSON");
    failed(&home.run(&["call", &address, "octopii.status", "7"]), 1, "decode");
    failed(&home.run(&["call", &address, "octopii.echo", "7"]), 1, "takes bytes");
}
