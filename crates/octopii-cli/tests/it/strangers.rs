//! Strangers cost a node next to nothing.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::{Home, free_addresses, succeeded};

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_flood_of_garbage_and_a_stranger_leave_memory_flat_and_work_going_on() {
    let (home, elsewhere) = (Home::new(), Home::new());
    let bind = free_addresses(1)[0];
    let (addr, member) = (bind.to_string(), format!("1={bind}"));
    let mut node =
        home.start(&["node", "--data-dir", "one", "--id", "1", "--bind", &addr, "--member", &member]);
    assert_eq!(node.line()["event"], "ready");
    succeeded(&home.run(&["kv", "put", "before", "1", "--node", &addr]));
    let before = resident(node.child.id());

    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for first_byte in [None, Some([0xc0, 0, 0, 0, 1, 8])] {
            let (stop, sent) = (&stop, &sent);
            scope.spawn(move || {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                let mut junk = vec![0u8; 1200];
                let mut state = 0x9e37_79b9_u64;
                while !stop.load(Ordering::Relaxed) {
                    for byte in &mut junk {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        *byte = (state >> 33) as u8;
                    }
                    // Random bytes, or what looks like the first packet of a connection.
                    if let Some(head) = first_byte {
                        junk[..6].copy_from_slice(&head);
                    }
                    if socket.send_to(&junk, bind).is_ok() {
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            succeeded(&home.run(&["kv", "put", "during", "2", "--node", &addr]));
            let stranger = elsewhere.run(&["kv", "put", "mine", "now", "--node", &addr]);
            assert_eq!(stranger.status.code(), Some(4));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let after = resident(node.child.id());
    assert!(sent.load(Ordering::Relaxed) > 3_000, "the flood was none");
    assert!(after < before + (16 << 10), "memory grew from {before} to {after} KiB");
    assert_eq!(succeeded(&home.run(&["kv", "get", "during", "--node", &addr])), "2\n");
    assert_eq!(home.run(&["kv", "get", "mine", "--node", &addr]).status.code(), Some(5));
}
